"""What trainings did that were never paid, or stopped themselves: steps, retries, right retries, and the sign that ended them.

    python benchmarks/unpaid_trainings.py runs/small/countdown/SmolLM2-135M-Instruct                           # prints the table
    python benchmarks/unpaid_trainings.py FOLDER … --out results/benchmarks/small_model_as_it_is               # and stores it

A training that stops itself has no trained model and is not part of a published study; its log is all that it leaves. A row is a
training. The gradient of a step without any reward is exactly 0, so the largest norm says whether a weight could have moved.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from r3_repro.analysis.watch import read_training, training_folders
from r3_repro.reporting.tables import save_table, show_intervals
from r3_repro.runs.layout import provenance
from r3_repro.utils.files import read_jsonl, write_json
from r3_repro.utils.stats import wilson


def training_row(folder: Path) -> dict[str, Any]:
    "What a training's log says."
    w, completions = read_training(folder), json.loads((folder / "identity.json").read_text("utf-8"))["settings"]["batch_size"]
    arm, _, seed = folder.name.partition("-seed")
    retries = len(w.rows) * completions
    right = round(sum(r["retry_success"] for r in w.rows) * completions)
    share, low, high = wilson(right, retries)
    return {
        "task": folder.parent.parent.parent.name, "arm": arm, "seed": int(seed), "steps": len(w.rows), "of": w.steps,
        "retries": retries, "right": right, "share": share, "low": low, "high": high,
        "largest gradient norm": max(r["grad_norm"] for r in w.rows),
        "reflections cut off, %": round(100 * sum(r["truncated_share"] for r in w.rows) / len(w.rows), 1),
        "ended by": w.stopped or ("its last step" if w.finished else "a kill: not finished"),
    }  # fmt: skip


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folders", nargs="+", type=Path, help="of models in a run tree, or of trainings")
    ap.add_argument("--out", type=Path, help="folder for table, samples and manifest")
    a = ap.parse_args()
    made, found = provenance(), [f for folder in a.folders for f in training_folders(folder)]
    table = pd.DataFrame([training_row(f) for f in found])
    shown = table.drop(columns=["share", "low", "high"])
    shown.insert(7, "right, %", show_intervals(table, "share"))
    print(shown.to_markdown(index=False))
    if a.out:
        save_table(shown, a.out, "trainings", "Trainings that were never paid, or that stopped themselves.", table)
        samples = {f"{f.parent.parent.parent.name}/{f.name}": read_jsonl(f / "samples.jsonl") for f in found}
        write_json(a.out / "samples.json", samples)
        kept = {name: [json.loads((f / f"{name}.json").read_text("utf-8")) for f in found] for name in ("identity", "settings")}
        write_json(a.out / "manifest.json", made | kept)


if __name__ == "__main__":
    main()
