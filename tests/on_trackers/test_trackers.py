"""Curves in trackio and wandb, offline: `make test-trackers`, which says where these are (`R3_TRACKERS`)."""

import json
import os
import sqlite3
from pathlib import Path

import pandas as pd
import pytest
import test_resume as resume

from r3_repro.runs.layout import Run, open_run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trackers")
    resume.to_its_end("mine", root, [])
    return root


def trained(root: Path, to: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> Run:
    "A run that was killed in the middle and then trained to its end."
    own = {
        "PYTHONPATH": str(Path(os.environ["R3_TRACKERS"]).resolve()),
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(root / "trackio"),
    }
    monkeypatch.setattr(resume, "ENV", resume.ENV | own)
    more = ["--seed", str(seed), *(w for s in ("max_steps=6", "save_steps=2", f"report_to={to}") for w in ("--set", s))]
    (said,) = resume.kill_and_resume("train", root, ["middle"], more)
    assert said["hits"][0][1] < 6, said
    return open_run("smoke", root=str(root), seed=seed)


def test_trackio_shows_one_run_with_every_number(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(root, "trackio", 0, monkeypatch)
    with sqlite3.connect(root / "trackio" / "r3_repro.db") as db:
        rows = db.execute("select run_name, metrics from metrics").fetchall()
    assert {name for name, _ in rows} == {f"countdown tiny-a r3-seed0 {(run.training / 'curves_id').read_text('utf-8')}"}
    steps = [m for _, text in rows if "train/r3/retry_success" in (m := json.loads(text))]
    log = pd.read_json(run.training / "log.jsonl", lines=True)
    drawn = {m["train/global_step"]: m for m in steps}  # steps that were done again after the kill are there again
    assert log.step.tolist() == [1, 2, 3, 4, 5, 6]
    assert list(drawn) in ([1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6], [3, 4, 5, 6]), "a killed process may not have sent its steps yet"
    log = log[log.step.isin(drawn)]
    for ours, theirs in {
        "retry_success": "r3/retry_success",
        "retry_tokens": "r3/retry_tokens",
        "reward": "reward",
        "kl": "kl",
    }.items():
        assert [m[f"train/{theirs}"] for m in drawn.values()] == pytest.approx(log[ours].tolist(), rel=1e-5)


def test_wandb_keeps_one_run_in_the_training_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(root, "wandb", 1, monkeypatch)
    name = (run.training / "curves_id").read_text("utf-8")
    parts = sorted((run.training / "wandb").glob("offline-run-*/*.wandb"))
    assert len(parts) == 2 and {part.name for part in parts} == {f"run-{name}.wandb"}
    said = b"".join(part.read_bytes() for part in parts)  # the part of the killed process may hold nothing
    assert b"r3_repro" in said and f"countdown tiny-a r3-seed1 {name}".encode() in said
    assert b"train/r3/retry_success" in said and b"train/kl" in said
