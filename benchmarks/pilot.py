"""Which learning rate and KL weight a study of a tiny base takes, and how much seeds differ: on training problems alone.

    python benchmarks/pilot.py --rates 5e-5 1e-4 2e-4 --betas 0.001 0.04
    python benchmarks/pilot.py --rates 1e-4 --betas 0.001 --seeds 100 101 102 --out results/benchmarks/pilot

Failures are mined as chapter 02 does. The last problems of the training split are put aside: arms are trained on the failures of
the others and compared on those, sampled, four draws each. `permuted_reward` shows what noise does: the rewards are real ones, of
other groups. What is finished is kept in `--root` and not made again; `--out` writes what is there.
"""

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from r3_repro.analysis.contrasts import contrast
from r3_repro.analysis.protocol import base_of, first_try, two_tries
from r3_repro.data import load_split, prepare
from r3_repro.engines.factory import open_engine
from r3_repro.evaluation.episodes import as_table, run_episodes
from r3_repro.mining.failures import mine
from r3_repro.reporting.tables import save_table
from r3_repro.runs.layout import Run, model_path_for, open_run, provenance
from r3_repro.tasks.base import get_task
from r3_repro.training.callbacks import read_log
from r3_repro.training.train import train
from r3_repro.utils.files import write_json, write_parquet

TASKS, ARMS = ("countdown", "function_calling"), ("r3", "permuted_reward")
SHOWN = ("retry_success", "kl", "most_common_share", "reflection_tokens_mean", "frac_reward_zero_std")


def pilot_run(a: argparse.Namespace, task: str, rate: float, beta: float) -> Run:
    "The run of a learning rate and KL weight, whose failures leave out the problems put aside."
    settings: dict[str, Any] = {"learning_rate": rate, "beta": beta, "draws": 4, "modes": ("sampled",), "curve_steps": 0}
    settings |= dict(s.split("=", 1) for s in a.set)
    mined = open_run("tiny", task, a.model, root=str(a.root / "mined"))
    prepare(mined)
    failures = mine(mined)
    run = open_run("tiny", task, a.model, root=str(a.root / f"lr{rate:g}-beta{beta:g}"), **settings)
    prepare(run)
    aside = {p.id for p in load_split(run, "train")[-a.problems :]}
    if not (file := run.failures / "failures.parquet").is_file():
        write_parquet(file, failures[~failures.problem_id.isin(aside)].reset_index(drop=True))
        (run.failures / "summary.json").write_text((mined.failures / "summary.json").read_text("utf-8"), "utf-8")
    return run


def episodes(a: argparse.Namespace, run: Run) -> pd.DataFrame:
    "The episodes of a run on the problems put aside, stored beside its training."
    folder = a.root / "mined" / run.profile.task if run.arm == "vanilla" else run.training
    if not (file := folder / f"pilot-{run.arm}.parquet").is_file():
        engine, problems = open_engine(run.profile, model_path_for(run)), load_split(run, "train")[-a.problems :]
        rows = run_episodes(engine, get_task(run.profile.task), problems, run.profile, "sampled", run.name)
        write_parquet(file, as_table(rows, run.arm, run.seed))
        engine.close()
    return pd.read_parquet(file)


def rows_of(a: argparse.Namespace, task: str, rate: float, beta: float) -> list[dict[str, float | str]]:
    "One row an arm and seed: what training logged, tries after it minus tries before."
    run, rows = pilot_run(a, task, rate, beta), []
    before = episodes(a, replace(run, arm="vanilla"))
    for arm, seed in itertools.product(ARMS, a.seeds):
        train(one := replace(run, arm=arm, seed=seed))
        base = base_of(task, pd.concat([before, episodes(a, one)]))
        log, manifest = read_log(one.training / "log.jsonl"), json.loads((one.training / "manifest.json").read_text("utf-8"))
        row: dict[str, float | str] = {"task": task, "learning_rate": rate, "beta": beta, "arm": arm, "seed": seed}
        row |= {f"{k} at the end": float(log[k].tail(10).mean()) for k in SHOWN if k in log}
        for name, of in (("first try", first_try), ("two tries", two_tries)):
            c = contrast(of(base, arm), of(base, "vanilla"))
            row |= {f"{name} before": float(of(base, "vanilla").by_seed[0]), f"{name} gain": c.estimate}
            row |= {f"{name} problem variance": c.between_problems * c.problems}
        rows.append(row | {"minutes": manifest["seconds"]["train"] / 60})
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="r3_repro/assets/tiny-a", help="folder of a base (default: the shipped one)")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--rates", nargs="+", type=float, required=True, help="learning rates")
    parser.add_argument("--betas", nargs="+", type=float, required=True, help="weights of the KL term")
    parser.add_argument("--seeds", nargs="+", type=int, default=[100], help="of training (default: 100, none that a study has)")
    parser.add_argument("--problems", type=int, default=500, help="training problems put aside (default: 500)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings")
    parser.add_argument("--root", type=Path, default=Path("runs/pilot"), help="folder of the runs (default: runs/pilot)")
    parser.add_argument("--out", type=Path, help="folder for the table")
    a = parser.parse_args()
    torch.set_num_threads(1)
    table = pd.DataFrame([r for t, lr, beta in itertools.product(a.tasks, a.rates, a.betas) for r in rows_of(a, t, lr, beta)])
    print(table.round(4).to_string(index=False))
    if a.out:
        caption = f"Trained on training problems, compared on {a.problems} others of the same split: {a.model}."
        save_table(table.round(4), a.out, "pilot", caption, table)
        write_json(a.out / "pilot.manifest.json", provenance() | {"arguments": {k: str(v) for k, v in vars(a).items()}})


if __name__ == "__main__":
    main()
