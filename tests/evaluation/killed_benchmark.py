"""GSM8K on a model for test_benchmark_files.py, killed before a batch: what it printed are the batches that were run.

python tests/evaluation/killed_benchmark.py MODEL ROOT BENCHMARKS BATCHES
"""

import os
import signal
import sys
from typing import Any

from lm_eval.models.huggingface import HFLM

from r3_repro.evaluation.benchmarks import run_benchmarks
from r3_repro.runs.layout import open_run

model, root, benchmarks, batches = sys.argv[1:]
usual, left = HFLM._model_generate, [int(batches)]


def generate(self: HFLM, *args: Any, **kwargs: Any) -> Any:
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    print("batch", flush=True)
    return usual(self, *args, **kwargs)


HFLM._model_generate = generate
how = {"engine": "transformers", "dtype": "float32", "benchmarks": benchmarks, "forgetting_limit": 8, "forgetting_batch": 2}
run_benchmarks(open_run("paper", model=model, root=root, **how, forgetting_tasks=("GSM8K",)))
