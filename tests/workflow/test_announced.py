"""The queue of the announced study: what a line does, in which order, and what a failed line leaves."""

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from r3_repro.analysis.protocol import ANNOUNCED
from r3_repro.utils.errors import SettingsError
from r3_repro.workflow import announced
from r3_repro.workflow.announced import Line, announced_lines, run_line, run_lines


def test_every_announced_training_is_in_one_line() -> None:
    lines = announced_lines()
    found = Counter((line.base, line.task, arm) for line in lines for arm in line.arms)
    bases = {*ANNOUNCED.bases, *ANNOUNCED.ladder, *ANNOUNCED.ability}
    assert found == {(b, t, arm): n for b in bases for t in ANNOUNCED.tasks for arm, n in ANNOUNCED.seeds_of(b).items()}
    trained = [(line.base, line.task, arm, line.seed) for line in lines for arm in line.arms]
    assert len(set(trained)) == len(trained) and [line.arms for line in lines[-4:]] == [()] * 4, "transfer comes last"
    small = replace(ANNOUNCED, seeds={"r3": 2, "no_leak": 1}, ladder=(), ability=())
    assert [line.arms for line in announced_lines(small) if line.base == "tiny-a" and line.task == "countdown"] == [
        ("r3", "no_leak"), ("r3",), ()
    ]  # fmt: skip


def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    "Record the stages of a line in the place of doing them."
    seen: list[tuple[str, str]] = []
    for module, name in (
        ("data", "prepare"), ("mining.failures", "mine"), ("training.train", "train"), ("evaluation.episodes", "evaluate"),
        ("evaluation.reflection_controls", "evaluate_with_controls"), ("evaluation.learning_curve", "evaluate_curve"),
        ("evaluation.benchmarks", "run_benchmarks"),
    ):  # fmt: skip
        monkeypatch.setattr(f"r3_repro.{module}.{name}", lambda run, *_, name=name: seen.append((name, run.arm)))
    return seen


def test_a_line_trains_r3_before_what_is_matched_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = done(monkeypatch)
    run_line(Line("tiny-a", "countdown", 3, ("plain_grpo", "r3")), str(tmp_path))
    assert [s for s in seen if s[0] not in ("prepare", "mine", "run_benchmarks")] == [
        ("evaluate_with_controls", "vanilla"),
        ("train", "r3"), ("evaluate_with_controls", "r3"), ("evaluate_curve", "r3"),
        ("train", "plain_grpo"), ("evaluate", "plain_grpo"), ("evaluate_curve", "plain_grpo"),
    ]  # fmt: skip
    assert [s[0] for s in seen[:2]] == ["prepare", "mine"] and seen[-1][0] == "run_benchmarks"


def test_the_ladder_has_no_controls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = done(monkeypatch)
    monkeypatch.setattr(announced, "base_folder", lambda name: Path("r3_repro/assets/tiny-a").resolve())
    run_line(Line("ladder-50k", "countdown", 0, ("r3",)), str(tmp_path))
    assert ("evaluate", "vanilla") in seen and ("evaluate", "r3") in seen
    assert not any(name == "evaluate_with_controls" for name, _ in seen)


def test_a_base_that_was_not_built_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="base nobody is not there: build it first"):
        run_line(Line("nobody", "countdown", 0, ("r3",)), str(tmp_path))


def test_lines_of_one_base_and_task_wait_for_one_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    "And a line that fails stops no other."
    busy, most = Counter[tuple[str, str]](), Counter[tuple[str, str]]()

    def process(line: Line, root: str, log: Path) -> int:
        key = (line.base, line.task)
        busy[key] += 1
        most[key] = max(most[key], busy[key])
        time.sleep(0.05)  # long enough to meet another line of the same base, if it does not wait
        (tmp_path / f"{line.name}.json").write_text(json.dumps(line.seed), "utf-8")
        busy[key] -= 1
        return int(line.seed == 1)

    monkeypatch.setattr(announced, "_process", process)
    lines = [Line(base, "countdown", seed, ("r3",)) for seed in range(4) for base in ("a", "b")]
    with pytest.raises(RuntimeError, match="2 lines failed") as error:
        run_lines(lines, str(tmp_path), lanes=4)
    assert len(list(tmp_path.glob("*.json"))) == 8 and set(most.values()) == {1}
    assert "a-countdown-seed1" in str(error.value) and "b-countdown-seed1" in str(error.value)
