"""The queue of the announced study: what a line does, in which order, and what a failed line leaves."""

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from r3_repro.analysis.protocol import ANNOUNCED
from r3_repro.runs.layout import Run
from r3_repro.utils.errors import SettingsError
from r3_repro.workflow import announced
from r3_repro.workflow.announced import STUDY_PROFILE, Line, announced_lines, run_line, run_lines


def test_every_announced_training_is_in_one_line() -> None:
    lines = announced_lines()
    found = Counter((line.base, arm) for line in lines for arm in line.arms())
    bases = {*ANNOUNCED.bases, *ANNOUNCED.ladder, *ANNOUNCED.ability}
    assert found == {(b, arm): n for b in bases for arm, n in ANNOUNCED.seeds_of(b).items()}
    assert len(set(lines)) == len(lines)
    small = replace(ANNOUNCED, seeds={"r3": 2, "no_leak": 1}, ladder=(), ability=())
    assert [line.arms(small) for line in announced_lines(small) if line.base == "tiny-a"] == [["r3", "no_leak"], ["r3"]]


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


ONE_TASK = replace(ANNOUNCED, tasks=("countdown",), seeds={"plain_grpo": 4, "r3": 4})


def test_a_line_trains_r3_before_what_is_matched_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = done(monkeypatch)
    run_line(Line("tiny-a", 3), str(tmp_path), ONE_TASK)
    assert [s for s in seen if s[0] not in ("prepare", "mine", "run_benchmarks")] == [
        ("evaluate_with_controls", "vanilla"),
        ("train", "r3"), ("evaluate_with_controls", "r3"), ("evaluate_curve", "r3"),
        ("train", "plain_grpo"), ("evaluate", "plain_grpo"), ("evaluate_curve", "plain_grpo"),
    ]  # fmt: skip
    assert [s[0] for s in seen[:2]] == ["prepare", "mine"] and seen[-1][0] == "run_benchmarks"


def test_transfer_is_evaluated_last_and_both_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = done(monkeypatch)
    asked: list[tuple[str, str, str]] = []

    def evaluate(run: Run, trained_on: str = "") -> None:
        seen.append(("evaluate", run.arm))
        asked.append((run.profile.task, run.name, trained_on))

    monkeypatch.setattr("r3_repro.evaluation.episodes.evaluate", evaluate)
    run_line(Line("tiny-a", 2), str(tmp_path), replace(ANNOUNCED, seeds={"r3": 3}))
    assert [a for a in asked if a[2]] == asked[-2:] == [
        ("countdown", "r3-seed2", "function_calling"), ("function_calling", "r3-seed2", "countdown")
    ]  # fmt: skip


def test_the_ladder_has_no_controls_and_no_transfer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = done(monkeypatch)
    monkeypatch.setattr(announced, "base_folder", lambda name: Path("r3_repro/assets/tiny-a").resolve())
    run_line(Line("ladder-50k"), str(tmp_path))
    assert [s for s in seen if "evaluate" in s[0]] == [("evaluate", "vanilla"), ("evaluate", "r3"), ("evaluate_curve", "r3")] * 2


def test_a_base_that_was_not_built_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="base nobody is not there: build it first"):
        run_line(Line("nobody"), str(tmp_path))


def test_lines_of_one_base_wait_for_one_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    "And a line that fails stops no other."
    busy, most = Counter[str](), Counter[str]()

    def process(line: Line, root: str, log: Path) -> int:
        busy[line.base] += 1
        most[line.base] = max(most[line.base], busy[line.base])
        time.sleep(0.05)  # long enough to meet another line of the same base, if it does not wait
        (tmp_path / f"{line.name}.json").write_text(json.dumps(line.seed), "utf-8")
        busy[line.base] -= 1
        return int(line.seed == 1)

    monkeypatch.setattr(announced, "_process", process)
    monkeypatch.setattr(announced, "publish_line", lambda *_: None)
    lines = [Line(base, seed) for seed in range(4) for base in ("a", "b")]
    with pytest.raises(RuntimeError, match="2 lines failed") as error:
        run_lines(lines, str(tmp_path / "runs"), lanes=4, results=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 8 and set(most.values()) == {1}
    assert "a-seed1" in str(error.value) and "b-seed1" in str(error.value)


def made(root: Path, line: Line, commit: str = "c0ffee", task: str = "countdown") -> None:
    "Files that a line leaves in a run tree."
    stage = {"stage": "train", "git_commit": commit, "git_dirty": False}
    names = [f"{kind}/{name}" for name in ("vanilla", f"r3-seed{line.seed}") for kind in ("episodes", "controls", "forgetting")]
    for name in (*names, f"training/r3-seed{line.seed}/"):
        manifest = (
            root / STUDY_PROFILE / task / line.base / (f"{name}manifest.json" if name[-1] == "/" else f"{name}.manifest.json")
        )
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(json.dumps(stage), "utf-8")
        if name.startswith("episodes"):
            manifest.with_name(f"{Path(name).name}.parquet").write_text(f"{line} in {root}", "utf-8")
    failures = root / STUDY_PROFILE / task / line.base / "failures/failures.parquet"
    failures.parent.mkdir(exist_ok=True)
    failures.write_text("mined", "utf-8")


def test_a_finished_line_is_published_and_skipped_on_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    p, results = replace(ANNOUNCED, tasks=("countdown",), seeds={"r3": 2}), tmp_path / "results"
    monkeypatch.setattr(announced, "provenance", lambda: {"git_commit": "c0ffee"})
    ran: list[str] = []

    def process(line: Line, root: str, log: Path) -> int:
        base = Path(root) / STUDY_PROFILE / "countdown/tiny-a"
        there = [
            n
            for n in ("failures/failures.parquet", "episodes/vanilla.parquet", "controls/vanilla.manifest.json")
            if (base / n).is_file()
        ]
        ran.append(f"{Path(root).name} {line.name} finds {len(there)} of 3")
        made(Path(root), line)
        return 0

    monkeypatch.setattr(announced, "_process", process)
    run_lines([Line("tiny-a", 0)], str(tmp_path / "one"), results=results, p=p)
    run_lines([Line("tiny-a", 0), Line("tiny-a", 1)], str(tmp_path / "two"), results=results, p=p)
    assert ran == ["one tiny-a-seed0 finds 0 of 3", "two tiny-a-seed1 finds 3 of 3"]
    kept = results / STUDY_PROFILE / "countdown/tiny-a/episodes/vanilla.parquet"
    assert kept.read_text("utf-8").endswith("one"), "what is published stays"
    assert {f.parent.name for f in results.rglob("training/*/manifest.json")} == {"r3-seed0", "r3-seed1"}


def test_a_study_goes_on_from_its_own_commit_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made(tmp_path, Line("tiny-a", 0), commit="0ld")
    monkeypatch.setattr(announced, "_process", lambda *_: pytest.fail("a line was run"))
    with pytest.raises(SettingsError, match=r"1 trainings .* made from commit 0ld, this is .*: go on in a clone of that commit"):
        run_lines([Line("tiny-a", 1)], str(tmp_path / "runs"), results=tmp_path)
