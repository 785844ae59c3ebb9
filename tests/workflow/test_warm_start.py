"""A supervised start that is killed goes on, and ends with the same weights."""

from pathlib import Path
from typing import Any

import pytest

from r3_repro.config import load_profile, model_path
from r3_repro.engines.chat import load_tokenizer
from r3_repro.runs.identity import model_hash
from r3_repro.runs.layout import Run, open_run
from r3_repro.tasks.base import user
from r3_repro.utils.errors import SettingsError
from r3_repro.workflow import warm_start
from r3_repro.workflow.warm_start import WarmStart

HOW = WarmStart(problems=24, epochs=7, batch=16, learning_rate=1e-3)


def run(root: Path) -> Run:
    return open_run("smoke", root=str(root), train_size=274)


def test_a_start_that_is_killed_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = warm_start.warm_start(run(tmp_path / "whole"), tmp_path / "a", HOW)
    mark = warm_start._Marked.on_save

    def killed(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        mark(self, args, state, control, **more)
        if state.global_step == 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(warm_start._Marked, "on_save", killed)
        with pytest.raises(KeyboardInterrupt):
            warm_start.warm_start(run(tmp_path / "cut"), tmp_path / "b", HOW)
    assert not (tmp_path / "b").exists()
    monkeypatch.setattr(warm_start, "run_episodes", lambda *_: pytest.fail("generated again"))
    again = warm_start.warm_start(run(tmp_path / "cut"), tmp_path / "b", HOW)
    assert model_hash(str(tmp_path / "b")) == model_hash(str(tmp_path / "a")) != made["base"]
    monkeypatch.setattr(warm_start, "teach", lambda *_: pytest.fail("taught again"))
    assert warm_start.warm_start(run(tmp_path / "cut"), tmp_path / "b", HOW) == again, "a finished start is not made again"
    assert again["log"] == made["log"] and made["log"][-1]["step"] > 20 and again["turns"] == made["turns"]
    assert [f.suffix for f in run(tmp_path / "cut").model_dir.glob("warm_start/*")] == [".parquet"], "checkpoints are left"


def test_problems_of_the_gate_are_not_taught(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="25 problems and 250 for the gate, but train_size = 274"):
        warm_start.warm_start(run(tmp_path), tmp_path / "a", WarmStart(problems=25))
    assert not (tmp_path / "a").exists()


def test_nothing_but_the_turn_is_taught() -> None:
    tokenizer = load_tokenizer(model_path(load_profile("smoke")))
    row = warm_start.encode_taught(tokenizer, warm_start.Turn("answer", [user("2 + 2?")], "4"))
    taught = [i for i in row["labels"] if i != -100]
    assert (
        row["input_ids"][-len(taught) :]
        == taught
        == [*tokenizer("4", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    )
