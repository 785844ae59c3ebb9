"""The gate tells a model that can learn from one that cannot, and mining says early what spoils all attempts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support import REPOSITORY
from typer.testing import CliRunner

from r3_repro.config import load_profile, model_path
from r3_repro.data import load_split
from r3_repro.engines.base import MockEngine
from r3_repro.engines.vllm import VLLM
from r3_repro.evaluation import gate as gates
from r3_repro.mining import sampler
from r3_repro.runs.layout import Run, open_run
from r3_repro.tasks.countdown.generator import solve
from r3_repro.workflow import study
from r3_repro.workflow.cli import app


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run("smoke", root=str(tmp_path))


def answers(prompt: Any, right: bool) -> str:
    "A solution of the Countdown problem that the last question of a conversation asks, or nothing of use."
    asked = [m["content"] for m in prompt if m["role"] == "user" and "[" in m["content"]][-1]
    nums = json.loads(asked[asked.index("[") : asked.index("]") + 1])
    target = int(asked.split("equals ")[-1].split()[0].strip(".,")) if right else 0
    return f"<answer>{solve(nums, target)[0]}</answer>" if right else "I do not know."


def opened(monkeypatch: pytest.MonkeyPatch, after: set[str]) -> None:
    "An engine that is right in the retries that come after one of these words, and nowhere else."

    def say(prompt: Any, seed: int) -> str:
        if prompt[-1]["content"].startswith("You tried"):
            return "Own words."
        return answers(prompt, any(word in m["content"] for m in prompt for word in after))

    monkeypatch.setattr(gates, "open_engine", lambda *_: MockEngine(say, context=10**6))


@pytest.mark.parametrize(
    ("after", "verdict", "right"), [(set(), "not able", []), ({"Own"}, "able", ["own"]), ({"begin with"}, "not able", ["good"])]
)
def test_what_is_right_decides(
    run: Run, monkeypatch: pytest.MonkeyPatch, after: set[str], verdict: str, right: list[str]
) -> None:
    opened(monkeypatch, after)
    run = open_run("smoke", root=str(run.root), train_size=300)
    found = gates.gate(run)  # as many problems as decide it
    share = found.rows.set_index("what").share
    assert found.verdict == verdict and share["first try"] == share["retry, no reflection"] == 0
    assert [kind for kind in ("own", "good") if share[f"retry, {kind} reflection"] == 1] == right
    assert any("no answer that can be read" in line for line in found.advice)
    manifest = json.loads((run.model_dir / "gate/manifest.json").read_text("utf-8"))
    assert manifest["verdict"] == verdict and len(pd.read_parquet(run.model_dir / "gate/episodes.parquet")) == gates.ENOUGH


def test_problems_are_those_of_the_training_split(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(monkeypatch, set())
    gates.gate(run, 10)
    asked = set(pd.read_parquet(run.model_dir / "gate/episodes.parquet").problem_id)
    assert asked == {p.id for p in load_split(run, "train")[-10:]}


def test_the_real_number_of_problems_is_stored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    "Profile smoke has 64: nobody is sent for more of them."
    opened(monkeypatch, set())
    found, folder = gates.gate(run), run.model_dir / "gate"
    assert found.verdict == "not decided" and not any(line.startswith("more problems") for line in found.advice)
    assert "a larger train_size, to decide it: all 64 training problems were measured" in found.advice
    assert json.loads((folder / "manifest.json").read_text("utf-8"))["problems"] == 64
    assert "before GRPO on countdown, all 64 training problems: not decided." in (folder / "gate.md").read_text("utf-8")
    assert "more problems, to decide it" in gates.gate(run, 63).advice


@pytest.mark.parametrize(("task", "told"), [("function_calling", True), ("countdown", False)])
def test_right_answers_that_ask_for_nothing_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, told: bool
) -> None:
    "A text without a call is right where no tool fits: a first try of 15 percent may be no ability at all."
    monkeypatch.setattr(gates, "open_engine", lambda *_: MockEngine(lambda *_: "Let me think.", context=10**6))
    found = gates.gate(open_run("smoke", task=task, root=str(tmp_path)))
    assert (found.rows.right[0] > 0) == told
    line = "the problems: 100% of the right first answers are where any text without an answer is right"
    assert (line in found.advice) == told


def test_a_training_begins_with_what_its_gate_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(monkeypatch, {"Own"})
    copied = shutil.copytree(model_path(load_profile("smoke")), tmp_path / "own")
    named = ["--root", str(tmp_path), "--model", str(copied), "--set", "forgetting_suite=paper"]

    def said() -> str:
        return CliRunner().invoke(app, ["train", *named]).stdout

    none = f"no gate of this model and task is stored here: r3-repro gate --profile smoke --task countdown --model {copied} "
    run = open_run("smoke", model=str(copied), root=str(tmp_path), forgetting_suite="paper")
    assert none in said() and CliRunner().invoke(app, ["train", "--root", str(tmp_path)]).stdout == ""
    beside = tmp_path / "own-gate"  # where a supervised start has it
    gates.gate(run, 40, beside)
    assert f"gate of {copied} on countdown: able ({beside / 'gate.md'})" in said()
    other = open_run("smoke", "function_calling", str(copied), root=str(tmp_path), forgetting_suite="paper")
    assert gates.known_gates(other)[0][0] == "", "of another task"
    (copied / "config.json").write_text((copied / "config.json").read_text("utf-8") + " ", "utf-8")
    assert none in said(), "of other weights"


def test_a_study_begins_with_what_its_gate_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    "Before problems are mined."
    copied = shutil.copytree(model_path(load_profile("smoke")), tmp_path / "own")
    monkeypatch.setattr(study, "launch", lambda stage, run: pytest.exit(stage))
    monkeypatch.setattr(study, "check_last_chapter", lambda p: None)
    with pytest.raises(pytest.exit.Exception, match="datasets"):
        study.run_study(open_run("smoke", model=str(copied), root=str(tmp_path), forgetting_suite="paper"), [0])
    assert "no gate of this model and task is stored here: r3-repro gate" in capsys.readouterr().err


def test_mining_says_early_that_nothing_is_right(run: Run, tmp_path: Path) -> None:
    problems = load_split(run, "train")
    with pytest.warns(UserWarning, match=r"none of the first \d{3} attempts is right") as told:
        sampler.sample_attempts(run, problems, tmp_path / "store", MockEngine(lambda *_: "I do not know.", context=10**6))
    assert sum("of the first " in str(w.message) for w in told) == 2  # once each: nothing right, nothing to read


def test_an_interval_on_both_sides_decides_nothing() -> None:
    row = pd.DataFrame({"what": ["retry, own reflection"], "low": [0.01], "high": [0.09]})
    assert gates.gate_verdict(row) == "not decided"
    assert gates.gate_verdict(row.assign(low=0.03)) == "able" and gates.gate_verdict(row.assign(high=0.015)) == "not able"


def test_the_guide_says_when_mining_looks() -> None:
    guide, engine = (REPOSITORY / "nbs/guides/own_model.ipynb").read_text("utf-8"), object.__new__(VLLM)
    engine.batch, engine.rows = load_profile("paper").generation_batch, 0
    assert f"{max(sampler.EARLY, engine.capacity)} with vLLM in `paper`" in guide
