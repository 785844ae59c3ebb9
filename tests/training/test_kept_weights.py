"""Weights kept for the learning curve are those of their steps, whatever happened on the way, and training stays the same."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import patience
from transformers import AutoModelForCausalLM, AutoTokenizer

from r3_repro.mining.failures import mine
from r3_repro.runs.launch import launch
from r3_repro.runs.layout import Run, open_run, trained_runs
from r3_repro.training.train import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

KILL = Path(__file__).with_name("kill_and_resume.py")
STEADY: dict[str, Any] = {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.0, "save_steps": 2}


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mined")
    mine(open_run("smoke", root=str(root)))
    return root


def trained(mined: Path, root: Path, **settings: Any) -> Run:
    shutil.copytree(mined, root)
    run = open_run("smoke", root=str(root), **STEADY, **settings)
    train(run)
    return run


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def kept(run: Run) -> dict[str, bytes]:
    "All there is in the folder of the curve."
    return {f.name: weights(f) for f in sorted((run.training / "curve").glob("*"))}


@pytest.mark.parametrize("how", [{}, {"lora_r": 4, "learning_rate": 1e-2}], ids=["all weights", "LoRA"])
def test_what_is_kept_are_the_weights_of_the_step_and_the_training_is_the_same(how: Any, mined: Path, tmp_path: Path) -> None:
    "With a constant learning rate, a training of two steps ends with the weights that one of four has after two."
    short, plain = (trained(mined, tmp_path / str(n), max_steps=n, **how) for n in (2, 4))
    run = trained(mined, tmp_path / "kept", max_steps=4, curve_steps=2, **how)
    assert kept(plain) == {} and not (plain.training / "curve").exists()
    assert kept(run) == {"step-2": weights(short.training / "model")}, "not the weights of step 2, or something beside them"
    assert weights(run.training / "model") == weights(plain.training / "model") != kept(run)["step-2"]
    logs = [[json.loads(line) for line in (r.training / "log.jsonl").open(encoding="utf-8")] for r in (run, plain)]
    assert len(logs[0]) == 4
    for ours, theirs in zip(*logs, strict=True):
        assert {k: v for k, v in ours.items() if "seconds" not in k} == {k: v for k, v in theirs.items() if "seconds" not in k}
    model, path = AutoModelForCausalLM.from_pretrained(run.step_weights(2)), run.step_weights(2)
    assert model.num_parameters() > 0 and AutoTokenizer.from_pretrained(path).chat_template
    assert [r.name for r in trained_runs(run)] == ["r3-seed0"], "the kept weights were taken for a trained model"


def test_other_steps_for_the_curve_are_no_other_training(mined: Path, tmp_path: Path) -> None:
    run = trained(mined, tmp_path / "root", max_steps=2)
    stamp = (run.training / "model/model.safetensors").stat().st_mtime_ns
    train(open_run("smoke", root=str(run.root), **STEADY, max_steps=2, curve_steps=1))
    assert (run.training / "model/model.safetensors").stat().st_mtime_ns == stamp and kept(run) == {}


def test_killed_and_resumed_the_same_weights_are_kept(mined: Path, warm: dict[str, str], tmp_path: Path) -> None:
    "Killed while it trains, while it keeps weights, and at the end."
    how = {"max_steps": 12, "curve_steps": 3}
    plain = trained(mined, tmp_path / "plain", **how)
    assert list(kept(plain)) == ["step-3", "step-6", "step-9"]
    shutil.copytree(mined, tmp_path / "cut")
    sets = [word for key, value in (STEADY | how).items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, str(KILL), "train", str(tmp_path / "cut"), "keep,middle,keep,middle,end,save", "1", *sets]
    done = subprocess.run(command, env=warm, capture_output=True, encoding="utf-8", timeout=patience(500))
    assert done.returncode == 0, done.stderr[-3000:]
    (said,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert [moment for moment, _, _ in said["hits"]] == ["keep", "middle", "keep", "middle", "end", "save"] and said["exit"] == 0
    cut = open_run("smoke", root=str(tmp_path / "cut"), **STEADY, **how)
    assert kept(cut) == kept(plain) and weights(cut.training / "model") == weights(plain.training / "model")


def test_kept_weights_are_not_made_again(mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from r3_repro.training import train as stage

    made, keep = [], stage.keep_weights

    def counted(trainer: Any, p: Any, folder: Path) -> None:
        made.append(folder.name)
        keep(trainer, p, folder)
        if made == ["step-1", "step-2", "step-3"]:
            raise InterruptedError  # after the checkpoint of step 2

    monkeypatch.setattr(stage, "keep_weights", counted)
    with pytest.raises(InterruptedError):
        trained(mined, tmp_path / "root", max_steps=5, curve_steps=1)
    run = open_run("smoke", root=str(tmp_path / "root"), **STEADY, max_steps=5, curve_steps=1)
    stamps = {k: (run.step_weights(k) / "model.safetensors").stat().st_mtime_ns for k in (1, 2)}
    train(run)
    assert made[3:] == ["step-3", "step-4"], "only what came after the checkpoint is made, step 3 of it again"
    assert {k: (run.step_weights(k) / "model.safetensors").stat().st_mtime_ns for k in (1, 2)} == stamps
    assert list(kept(run)) == [f"step-{k}" for k in range(1, 5)]


def test_two_processes_keep_one_set_of_weights(mined: Path, warm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "All of them save together: one that went on alone would wait for ever at the next exchange."
    for key, value in (os.environ | warm).items():
        monkeypatch.setenv(key, value)
    shutil.copytree(mined, tmp_path / "root")
    how = {"max_steps": 4, "processes": 2, "per_device_train_batch_size": 8, "lora_r": 4}
    run = open_run("smoke", root=str(tmp_path / "root"), **STEADY, **how, curve_steps=1)
    launch("train", run)
    assert list(kept(run)) == ["step-1", "step-2", "step-3"] and len(set(kept(run).values())) == 3
    assert AutoModelForCausalLM.from_pretrained(run.step_weights(3)).num_parameters() > 0
