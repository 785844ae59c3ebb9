"A start that fails owns nothing: the next one, with other settings, goes on in the same folder."

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r3_repro.data import prepare
from r3_repro.engines.base import MockEngine
from r3_repro.evaluation.episodes import evaluate
from r3_repro.mining.failures import mine
from r3_repro.runs.identity import check_identity, ensure_identity
from r3_repro.runs.layout import Run, open_run
from r3_repro.training import train as training
from r3_repro.utils.errors import EngineError, SettingsError

SMALL = {"train_size": 12, "test_size": 4, "modes": ("greedy",), "controls": ()}


def wrong(*_: Any, **__: Any) -> Any:
    raise SettingsError("this cannot be")


def gone(*_: Any, **__: Any) -> Any:
    raise EngineError("no server has answered")


def right(*_: Any, **__: Any) -> MockEngine:
    return MockEngine(lambda prompt, seed: "I do not know.")


def mined(run: Run) -> None:
    mine(run, right())


def trained(run: Run) -> None:
    "With the trainer replaced by a file that only a complete training leaves."
    training.train(run)


STAGES: dict[str, tuple[Callable[[Run], Any], str, dict[str, Any]]] = {
    "datasets": (prepare, "r3_repro.data.get_task", {"train_size": 10}),
    "datasets, half made": (prepare, "r3_repro.data.write_json", {"train_size": 10}),
    "mine": (mine, "r3_repro.mining.sampler.open_engine", {"temperature": 0.5}),
    "mine, refused by the plan": (mine, "r3_repro.mining.sampler.prepared_engine", {"max_answer_tokens": 12}),
    "train": (trained, "r3_repro.training.train.build_trainer", {"learning_rate": 0.01}),
    "train, no room": (trained, "r3_repro.training.train.check_room", {"learning_rate": 0.01}),
    "evaluate": (evaluate, "r3_repro.evaluation.episodes.open_engine", {"temperature": 0.5}),
}
"Stage, what fails at its first start, and the settings that differ at its second."


@pytest.mark.parametrize("fault", [wrong, gone])
@pytest.mark.parametrize("stage", STAGES)
def test_corrected_settings_are_taken_without_removing_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, fault: Callable[..., Any]
) -> None:
    start, place, changed = STAGES[stage]

    def run(**more: Any) -> Run:
        arm = "vanilla" if stage == "evaluate" else "r3"
        return open_run("smoke", arm=arm, root=str(tmp_path), **SMALL | more)

    if stage.startswith("train"):
        mined(run())
    with monkeypatch.context() as m:
        m.setattr(place, fault)
        with pytest.raises((SettingsError, EngineError)):
            start(run())
    monkeypatch.setattr("r3_repro.mining.sampler.prepared_engine", right)
    monkeypatch.setattr("r3_repro.evaluation.episodes.open_engine", right)
    monkeypatch.setattr("r3_repro.training.train.check_room", lambda *_, **__: None)
    monkeypatch.setattr(training, "_train", lambda run, *_: (run.training / "manifest.json").write_text("{}", "utf-8"))
    start(run(**changed))
    start(run(**changed))
    if stage != "evaluate":  # which keeps the episodes of other settings apart by their manifest
        with pytest.raises(SettingsError, match=rf"begun with something else; what differs: {next(iter(changed))} \(was"):
            start(run())


def test_what_a_folder_owns(tmp_path: Path) -> None:
    ensure_identity(tmp_path, {"model": "a"})
    for name in (".lock", ".part-1.parquet.77.part"):
        (tmp_path / name).touch()
    ensure_identity(tmp_path, {"model": "b"})
    with pytest.raises(SettingsError):
        (tmp_path / "part-1.parquet").touch()
        check_identity(tmp_path, {"model": "c"})
    check_identity(tmp_path, {"model": "c"}, owned=["manifest.json"])
    assert (tmp_path / "identity.json").read_text("utf-8") == '{\n "model": "b"\n}\n', "to check writes nothing"
