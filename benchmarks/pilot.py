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

from r3_repro.analysis.contrasts import contrast, power
from r3_repro.analysis.protocol import ANNOUNCED, OWN_QUESTIONS, QUESTIONS, Base, base_of, compare_bases, first_try, two_tries
from r3_repro.data import load_split, prepare
from r3_repro.engines.factory import open_engine
from r3_repro.evaluation.episodes import as_table, run_episodes
from r3_repro.evaluation.reflection_controls import retry_again
from r3_repro.mining.failures import mine
from r3_repro.profiles import CONTROLS
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


def controls(a: argparse.Namespace, run: Run) -> pd.DataFrame:
    "The retries of a run without its own reflection, stored likewise."
    folder = a.root / "mined" / run.profile.task if run.arm == "vanilla" else run.training
    if not (file := folder / f"pilot-{run.arm}-controls.parquet").is_file():
        failed = episodes(a, run).query("not attempt_ok").reset_index(drop=True)
        engine = open_engine(run.profile, model_path_for(run))
        parts = [retry_again(engine, get_task(run.profile.task), failed, run.profile, "sampled", c) for c in CONTROLS]
        write_parquet(file, pd.concat(parts, ignore_index=True))
        engine.close()
    return pd.read_parquet(file)


def pilot_base(a: argparse.Namespace, run: Run) -> Base:
    "What was trained with the settings of a run, and vanilla."
    runs = [replace(run, arm="vanilla"), *(replace(run, arm=arm, seed=s) for arm in ARMS for s in a.seeds)]
    for one in runs[1:]:
        train(one)
    retried = [controls(a, one) for one in runs if one.arm in ANNOUNCED.controlled]
    return base_of(run.profile.task, pd.concat([episodes(a, one) for one in runs]), pd.concat(retried))


def rows_of(a: argparse.Namespace, run: Run) -> list[dict[str, float | str]]:
    "One row an arm and seed: what training logged, tries after it minus tries before."
    whole, rows = pilot_base(a, run), []
    for arm, seed in itertools.product(ARMS, a.seeds):
        one, e = replace(run, arm=arm, seed=seed), whole.episodes
        base = base_of(run.profile.task, e[(e.arm == "vanilla") | (e.arm == arm) & (e.seed == seed)])
        log, manifest = read_log(one.training / "log.jsonl"), json.loads((one.training / "manifest.json").read_text("utf-8"))
        row: dict[str, float | str] = {
            "task": run.profile.task,
            "learning_rate": run.profile.learning_rate,
            "beta": run.profile.beta,
        }
        row |= {"arm": arm, "seed": seed} | {f"{k} at the end": float(log[k].tail(10).mean()) for k in SHOWN if k in log}
        for name, of in (("first try", first_try), ("two tries", two_tries)):
            before = of(base, "vanilla")
            row |= {f"{name} before": float(before.by_seed[0]), f"{name} gain": contrast(of(base, arm), before).estimate}
        rows.append(row | {"minutes": manifest["seconds"]["train"] / 60})
    return rows


def power_rows(a: argparse.Namespace, run: Run) -> list[dict[str, float | str]]:
    "Every comparison that the pilot can make, and how likely the study is to support it for a true difference of some size."
    base, rows, p = pilot_base(a, run), [], ANNOUNCED
    for q in (*QUESTIONS, *OWN_QUESTIONS):
        for name, c in compare_bases(q, run.profile.task, [base]).contrasts.items():
            seeds, problems = c.between_seeds * len(a.seeds), c.between_problems * c.problems
            unit, n = 1.0 if q.spread > 1 else 0.01, p.seeds["r3"] * len(p.bases)
            row: dict[str, float | str] = {
                "task": run.profile.task,
                "claim": q.claim,
                "against": name,
                "in the pilot": c.estimate / unit,
            }
            row |= {"sd between seeds": seeds**0.5 / unit, "sd between problems": problems**0.5 / unit}
            for effect in (1.0, 2.0, 5.0):
                row[f"power at {effect:g}"] = power(effect * unit, seeds, problems, n, p.problems, p.alpha)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="r3_repro/assets/tiny-a", help="folder of a base (default: the shipped one)")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--rates", nargs="+", type=float, required=True, help="learning rates")
    parser.add_argument("--betas", nargs="+", type=float, required=True, help="weights of the KL term")
    parser.add_argument("--seeds", nargs="+", type=int, default=[100], help="of training (default: 100, of no study)")
    parser.add_argument("--problems", type=int, default=500, help="training problems put aside (default: 500)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings")
    parser.add_argument("--root", type=Path, default=Path("runs/pilot"), help="folder of the runs (default: runs/pilot)")
    parser.add_argument("--out", type=Path, help="folder for the table")
    a = parser.parse_args()
    torch.set_num_threads(1)
    runs = [pilot_run(a, *settings) for settings in itertools.product(a.tasks, a.rates, a.betas)]
    tables = {"pilot": pd.DataFrame([row for run in runs for row in rows_of(a, run)])}
    if len(a.seeds) > 1:
        tables["power"] = pd.DataFrame([row for run in runs for row in power_rows(a, run)])
    captions = {
        "pilot": f"Trained on training problems, compared on {a.problems} others of the same split: {a.model}.",
        "power": "Probability that a comparison is supported at one-sided 2.5%, before Holm, for a true difference in points "
        "(C7, length: tokens); variances of the pilot, seeds and problems of the protocol.",
    }
    for name, table in tables.items():
        print(table.round(4).to_string(index=False))
        if a.out:
            shown = table.round(3).assign(**{c: table[c].map("{:g}".format) for c in {"learning_rate"} & set(table)})
            save_table(shown, a.out, name, captions[name], table)
    if a.out:
        write_json(a.out / "pilot.manifest.json", provenance() | {"arguments": {k: str(v) for k, v in vars(a).items()}})


if __name__ == "__main__":
    main()
