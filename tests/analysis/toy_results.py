"""Stored results of the toy task, with known chances: what the tests of the analysis read."""

import json
from pathlib import Path

import pandas as pd

from r3_repro.testing import synthetic_episodes

SMALL = 60
"Problems: too few for verdicts, enough for tables and figures."


def episodes(problems: int = 520, r3: float = 0.32, control: float = 0.15, seeds: int = 2) -> pd.DataFrame:
    return pd.concat(
        [
            synthetic_episodes("vanilla", 0, 0.15, 0.15, words=14, problems=problems),
            *(synthetic_episodes("r3", s, 0.18, r3, words=8, problems=problems) for s in range(seeds)),
            *(synthetic_episodes("random_reward", s, 0.15, control, 14, problems) for s in range(seeds)),
        ]
    )


def store_episodes(folder: Path, table: pd.DataFrame) -> None:
    (folder / "episodes").mkdir(parents=True)
    for (arm, seed), rows in table.groupby(["arm", "seed"]):
        rows.to_parquet(folder / "episodes" / f"{'vanilla' if arm == 'vanilla' else f'{arm}-seed{seed}'}.parquet", index=False)


def store(root: Path, table: pd.DataFrame) -> Path:
    "Store episodes, and a training log for every trained arm and seed; returns the model's folder."
    folder = root / "tiny" / "r3_repro.testing.TOY" / "toy-model"
    store_episodes(folder, table)
    for arm, seed in table.loc[table.arm != "vanilla", ["arm", "seed"]].drop_duplicates().itertuples(index=False):
        log = folder / "training" / f"{arm}-seed{seed}" / "log.jsonl"
        log.parent.mkdir(parents=True)
        steps = [{"step": i, "retry_success": 0.2, "reward": 0.2, "kl": 0.01 * i} for i in range(1, 21)]
        log.write_text("".join(json.dumps(s) + "\n" for s in steps), "utf-8")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    "What a model's tables and figures hold, by name."
    return {str(p.relative_to(folder)): p.read_bytes() for k in ("tables", "figures") for p in sorted(folder.glob(f"{k}/*"))}
