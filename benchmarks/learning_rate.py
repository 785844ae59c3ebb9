"""Trainings that differ in their learning rate alone: right retries in the last steps, and the rate that is chosen.

    python benchmarks/learning_rate.py FOLDER FOLDER …                                        # of trainings, in their run trees
    python benchmarks/learning_rate.py FOLDER … --out results/benchmarks/small_model_rate     # and stores the table

The rule of nbs/small_model.ipynb: the larger share of right retries in the last `--last` steps wins, unless a sign of trouble
shows; at a tie the smaller rate. Failures are of the training split, so nothing of the held-out problems is seen.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from r3_repro.analysis.health import check_health
from r3_repro.analysis.watch import read_training
from r3_repro.reporting.tables import save_table, show_intervals
from r3_repro.runs.layout import provenance
from r3_repro.utils.files import write_json
from r3_repro.utils.stats import wilson


def rate_row(folder: Path, last: int) -> dict[str, Any]:
    "What one training's log says; its settings are returned beside it."
    w = read_training(folder)
    settings = json.loads((folder / "identity.json").read_text("utf-8"))["settings"]
    rows, retries = w.rows[-last:], min(last, len(w.rows)) * settings["batch_size"]
    right = round(sum(r["retry_success"] for r in rows) * settings["batch_size"])
    share, low, high = wilson(right, retries)
    sign = check_health(w.rows, w.limits) or ""
    row = {"learning rate": settings["learning_rate"], "steps": len(w.rows), "of": w.steps, "right": right, "retries": retries}
    first = sum(r["retry_success"] for r in w.rows[:last]) / len(w.rows[:last])
    return row | {"share": share, "low": low, "high": high, "first steps": first, "sign of trouble": sign, "settings": settings}


def chosen(table: pd.DataFrame) -> float:
    "The rate by the rule; raises `ValueError` if each training shows a sign of trouble."
    sound = table[table["sign of trouble"] == ""]
    if sound.empty:
        raise ValueError("each training shows a sign of trouble: no rate is chosen")
    return float(sound[sound.share == sound.share.max()]["learning rate"].min())


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folders", nargs="+", type=Path, help="of trainings")
    ap.add_argument("--last", type=int, default=5, help="steps that count")
    ap.add_argument("--out", type=Path, help="folder for the table and its manifest")
    a = ap.parse_args()
    made, table = provenance(), pd.DataFrame([rate_row(f, a.last) for f in a.folders]).sort_values("learning rate")
    settings = list(table.pop("settings"))
    if differ := sorted(k for k in settings[0] if k != "learning_rate" and len({json.dumps(s.get(k)) for s in settings}) > 1):
        raise SystemExit(f"the trainings differ in more than their rate: {', '.join(differ)}")
    rate = chosen(table)
    shown = table.drop(columns=["share", "low", "high", "first steps"])
    shown.insert(5, f"right in the last {a.last} steps, %", show_intervals(table, "share"))
    shown.insert(5, f"in the first {a.last}, %", [f"{100 * x:.1f}" for x in table["first steps"]])
    print(shown.to_markdown(index=False), f"\nchosen: {rate:g}")
    if a.out:
        save_table(shown, a.out, "learning_rate", f"Trainings of one seed by learning rate; chosen: {rate:g}.", table)
        write_json(a.out / "manifest.json", made | {"chosen": rate, "settings": settings})


if __name__ == "__main__":
    main()
