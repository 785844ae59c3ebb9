"""Mining until the first failure against the paper's fixed number of answers: attempts and wall time for the same failures.

    python benchmarks/mining_modes.py                      # 100 problems, up to 64 answers each, at four pass rates
    python benchmarks/mining_modes.py --out results/benchmarks/mining_modes

The answers are really generated, by the tiny model on this machine. Whether one counts as right is drawn by a hash of its
seed with a given probability, the same for every problem, so that each pass rate can be had exactly. Both modes run the same
loop over the same seeds in stores of their own; the script fails unless they keep the same problems.
"""

import argparse
import hashlib
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import r3_repro.tasks.countdown.task as countdown
from r3_repro.config import model_path
from r3_repro.data import load_split
from r3_repro.engines.base import Request
from r3_repro.engines.hf import Transformers
from r3_repro.mining.sampler import sample_attempts
from r3_repro.mining.stopping import expected_samples, stopping_points
from r3_repro.mining.store.reader import read_outcomes
from r3_repro.reporting.tables import save_table
from r3_repro.runs.layout import open_run, provenance
from r3_repro.tasks.base import Problem, Verdict
from r3_repro.utils.files import write_json

RATES = (0.1, 0.5, 0.66, 0.9)


class Marked(Transformers):
    "Writes the seed of an answer behind it, for the verifier to draw by."

    def submit(self, request: Request) -> None:
        self.seeds = getattr(self, "seeds", {})
        self.seeds[request.key] = request.seed
        super().submit(request)

    def collect(self) -> list:
        return [(k, [replace(c, text=f"{c.text} #{self.seeds.pop(k)}") for c in cs]) for k, cs in super().collect()]


def drawn_by(rate: float) -> Any:
    "A verifier that accepts with a probability."

    def verify(problem: Problem, text: str, rule: str = "strict") -> Verdict:
        ok = int(hashlib.sha256(text.rpartition("#")[2].encode()).hexdigest()[:8], 16) / 2**32 < rate
        return Verdict(ok, "" if ok else "missed_target", text)

    return verify


def measure(rate: float, mode: str, problems: int, samples: int, engine: Transformers) -> tuple[set[int], int, float]:
    "Problems with a failure, attempts drawn, seconds."
    usual = countdown.TASK
    countdown.TASK = replace(usual, verify=drawn_by(rate))
    try:
        with tempfile.TemporaryDirectory() as d:
            run = open_run("tiny", root=d, train_size=problems, attempts_per_problem=samples, mining_mode=mode)
            asked = load_split(run, "train")
            began = time.perf_counter()
            drawn = sample_attempts(run, asked, Path(d, "attempts"), engine)
            seconds = time.perf_counter() - began
            codes = read_outcomes(Path(d, "attempts"), problems, samples).codes
            _, finished = stopping_points(codes, mode, samples)
            assert finished.all()
            return {int(i) for i in (codes > 0).any(axis=1).nonzero()[0]}, drawn, seconds
    finally:
        countdown.TASK = usual


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--problems", type=int, default=100)
    ap.add_argument("--samples", type=int, default=64)
    ap.add_argument("--out", type=Path, help="folder for the table and its manifest")
    a = ap.parse_args()
    engine, rows = Marked.load(model_path(open_run("tiny").profile), batch=256), []
    for rate in RATES:
        of = {m: measure(rate, m, a.problems, a.samples, engine) for m in ("paper", "until_failure")}
        (kept, many, slow), (same, few, fast) = of["paper"], of["until_failure"]
        assert kept == same, "the two modes keep different problems"
        foretold = float(expected_samples(np.array([rate]), "until_failure", a.samples)[0])
        rows.append({
            "pass rate": rate, "problems kept": len(kept), "attempts, paper": many, "attempts, until failure": few,
            "times fewer": round(many / few, 1), "foretold": round(a.samples / foretold, 1),
            "seconds, paper": round(slow, 1), "seconds, until failure": round(fast, 1), "times faster": round(slow / fast, 1),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    print(table.to_markdown(index=False))
    if a.out:
        save_table(table, a.out, "mining_modes", caption="The same kept problems by two mining modes.")
        write_json(a.out / "mining_modes.manifest.json", provenance())


if __name__ == "__main__":
    main()
