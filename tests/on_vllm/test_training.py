"""Training that generates both steps with a vLLM in the same process, as a stage: TRL's `colocate`, on a CPU."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from support import patience

from r3_repro.runs.launch import stage_command
from r3_repro.runs.layout import Run, open_run

SETS = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.2, "max_steps": 4, "beta": 0.0}
SETS |= {"learning_rate": 1e-3, "warmup_ratio": 0.0}
"A rate that moves the policy far in a step: weights that were not handed over would show at once."


ROUNDING = 0.02  # TRL leaves the precision to vLLM, which takes bfloat16 for a model in float32

KEEP = f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\nimport keep_weights"


def trained(wide: str, root: Path, arm: str = "r3", before: str = "", **sets: object) -> tuple[Run, subprocess.CompletedProcess]:
    "The stage in a process of its own, after some code that is to spoil it."
    run = open_run("smoke", model=wide, arm=arm, root=str(root), **(SETS | sets))
    script = root / f"{arm}{len(list(root.glob('*.py')))}.py"
    script.write_text(
        "\n".join([KEEP, before, "from r3_repro.workflow.cli import app", "if __name__ == '__main__':", "    app()"]), "utf-8"
    )
    words = stage_command("train", run)
    at = words.index("r3_repro")
    words[at - 1 : at + 1] = [str(script)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_AOT_COMPILE": "0"}
    return run, subprocess.run(words, capture_output=True, encoding="utf-8", timeout=patience(500), env=env)


def log_of(run: Run) -> pd.DataFrame:
    return pd.read_json(run.training / "log.jsonl", lines=True)


@pytest.mark.parametrize("arm", ["r3", "all_tokens", "plain_grpo"])
def test_vllm_samples_from_the_weights_that_are_trained(arm: str, wide: str, root: Path) -> None:
    "At every sampled token vLLM's log-probability is the trainer's, after each update, in one step and in two."
    run, done = trained(wide, root, arm)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    log = log_of(run)
    print(log[["sampling_logp_difference", "entropy", "grad_norm", "reflect_tokens", "retry_tokens"]])
    steps = len(log) if arm == "plain_grpo" else 4  # which has a token budget
    assert log["step"].tolist() == [*range(1, steps + 1)] and (log["grad_norm"] > 0).any()
    assert (log["sampling_logp_difference"] < ROUNDING).all()
    assert (log["retry_tokens"] > 0).all() == (arm != "plain_grpo")
    before, after = load_file(Path(wide) / "model.safetensors"), load_file(run.training / "model/model.safetensors")
    assert max(float(np.abs(before[k] - after[k]).max()) for k in before) > 1e-4
    assert json.loads((run.training / "manifest.json").read_text("utf-8"))["profile"]["use_vllm"]


def test_training_ends_where_vllm_keeps_its_old_weights(wide: str, root: Path) -> None:
    "The canary: weights that are never handed over."
    spoil = "from trl.generation.vllm_generation import VLLMGeneration as V\nV.sync_weights = lambda self: None"
    run, done = trained(wide, root, "random_reward", spoil, max_steps=12, stop_after=2)
    print(log_of(run)["sampling_logp_difference"].tolist())
    assert done.returncode == 2 and "vLLM samples from other weights" in done.stderr, (done.stdout + done.stderr)[-6000:]
    assert not (run.training / "manifest.json").exists() and len(log_of(run)) < 12


def test_each_of_two_processes_samples_with_a_vllm_of_its_own(wide: str, root: Path) -> None:
    "The weights of an update, which both have made together, reach both; each samples its own half of the batch."
    run, done = trained(wide, root, seed=1, processes=2, per_device_train_batch_size=8)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    log = log_of(run)
    assert log["step"].tolist() == [1, 2, 3, 4] and (log["grad_norm"] > 0).any()
    assert (log["sampling_logp_difference"] < ROUNDING).all() and (log["retry_tokens"] > 0).all()
