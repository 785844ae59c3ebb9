"""Seconds an item of the published benchmarks, by backend: transformers and vLLM, in one run.

    python benchmarks/benchmark_backends.py --model models/SmolLM2-135M-Instruct --benchmarks FOLDER      # prints the table
    python benchmarks/benchmark_backends.py … --dtype bfloat16 --items 200 --batch 64                     # on a GPU
    python benchmarks/benchmark_backends.py … --out results/benchmarks/benchmark_backends                 # and stores it

It needs vLLM; on a CPU the environment of `make test-vllm`. FOLDER has the rows of the benchmarks, as the setting `benchmarks`
does. Each backend runs in a process of its own, for its peak of memory, with the same number of threads, and they take turns for
`--rounds` rounds; medians are printed. A benchmark is run as by `r3-repro forgetting`: prompts, shots, limits and grading are
lm-eval's own. Loading the model is a column of its own. Items that one backend gets right and the other does not are counted.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from r3_repro.evaluation.backends import open_backend
from r3_repro.evaluation.benchmark_files import read_questions
from r3_repro.evaluation.benchmarks import is_local, load_tasks, longest_request, request_sizes, timed_benchmark
from r3_repro.reporting.tables import save_table
from r3_repro.runs.identity import model_hash
from r3_repro.runs.layout import open_run, provenance
from r3_repro.tasks.suites import suite_of
from r3_repro.utils.files import write_json

BACKENDS = ("transformers", "vllm")


def one_backend(a: argparse.Namespace) -> dict[str, Any]:
    "Load seconds, and for each benchmark seconds an item and what was right; the peak of memory of this process in GB."
    how = {"forgetting_limit": a.items, "forgetting_batch": a.batch, "forgetting_tasks": a.tasks, "benchmarks": a.benchmarks}
    p = open_run("paper", model=a.model, engine=a.backend, dtype=a.dtype, forgetting_suite=a.suite, **how).profile
    suite, out = suite_of(p.forgetting_suite, p.forgetting_tasks), dict[str, Any]()
    with tempfile.TemporaryDirectory() as d:
        asked = read_questions(tuple(b for b in suite if not is_local(b)), a.items, p.benchmarks)
        longest = longest_request(request_sizes(a.model, p, *load_tasks(suite, Path(d), asked)))
        began = time.perf_counter()
        with open_backend(p, a.model, suite, longest) as lm:
            loaded = time.perf_counter() - began
            for b in suite:
                out[b.name] = timed_benchmark(lm, b, asked, Path(d), a.items)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"load": loaded, "benchmarks": out, "peak": peak}


def measured(a: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    "What each backend's process says, round by round."
    found: dict[str, list[dict[str, Any]]] = {b: [] for b in BACKENDS}
    env = os.environ | {"OMP_NUM_THREADS": str(a.threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1"}
    for _ in range(a.rounds):
        for backend in BACKENDS:
            with tempfile.NamedTemporaryFile(suffix=".json") as said:
                subprocess.run([sys.executable, *sys.argv, "--backend", backend, "--said", said.name], check=True, env=env)
                found[backend].append(json.loads(Path(said.name).read_text("utf-8")))
    return found


def table_of(found: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    "A row a backend and benchmark."
    rows = []
    for benchmark in found["vllm"][0]["benchmarks"]:
        for backend, rounds in found.items():
            times, right = zip(*(r["benchmarks"][benchmark] for r in rounds), strict=True)
            other = found["transformers"][0]["benchmarks"][benchmark][1]
            usual = [r["benchmarks"][benchmark][0] for r in found["transformers"]]
            ratios = [u / t for u, t in zip(usual, times, strict=True)]
            rows.append({
                "benchmark": benchmark, "backend": backend, "s an item": round(statistics.median(times), 2),
                "range": f"{min(times):.2f} to {max(times):.2f}", "times faster": round(statistics.median(ratios), 2),
                "right": right[0].count("1"), "of": len(right[0]),
                "judged otherwise": sum(x != y for x, y in zip(right[0], other, strict=True)),
                "load, s": round(statistics.median(r["load"] for r in rounds), 1),
                "peak memory, GB": round(max(r["peak"] for r in rounds), 2),
            })  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True, help="folder or hub name")
    ap.add_argument("--benchmarks", default="", help="folder of the benchmarks' rows; empty = from the hub")
    ap.add_argument("--suite", default="paper")
    ap.add_argument("--tasks", default="", help="benchmarks of the suite; empty = all")
    ap.add_argument("--dtype", default="float32")
    ap.add_argument("--items", type=int, default=8, help="of each benchmark")
    ap.add_argument("--batch", type=int, default=8, help="requests at once")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--backend", choices=BACKENDS, help="measure this one alone, in this process")
    ap.add_argument("--said", type=Path, help="with --backend: file for what it measured")
    ap.add_argument("--out", type=Path, help="folder for the table and its manifest")
    a = ap.parse_args()
    if a.backend:
        return write_json(a.said, one_backend(a))
    found = measured(a)
    table = table_of(found)
    print(table.to_markdown(index=False))
    if a.out:
        save_table(table, a.out, "benchmark_backends", caption="Seconds an item of the published benchmarks, by backend.")
        how = {k: getattr(a, k) for k in ("items", "batch", "rounds", "threads", "dtype")} | {"model": Path(a.model).name}
        how |= {"model_hash": model_hash(a.model), "benchmarks": list(found["vllm"][0]["benchmarks"]), "measured": found}
        write_json(a.out / "benchmark_backends.manifest.json", provenance() | how)


if __name__ == "__main__":
    main()
