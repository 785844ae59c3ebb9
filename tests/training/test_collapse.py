"""The signs of collapse: they see a run of an earlier study that collapsed (log and samples beside), and no healthy one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY

from r3_repro.analysis.health import check_health
from r3_repro.config import Profile, load_profile
from r3_repro.data import prepare
from r3_repro.mining.failures import mine
from r3_repro.runs.layout import open_run
from r3_repro.tasks.base import Problem, Verdict, get_task, leaks_answer, reflection_messages
from r3_repro.training import train as training
from r3_repro.training.callbacks import read_jsonl
from r3_repro.training.monitoring import TrainingStopped, completion_shares, content_counts, repetition_counts
from r3_repro.training.train import STOPS

COLLAPSED = Path(__file__).with_name("collapsed_run")  # r3 on function calling, seed 0, made at commit 3b17426e4a
STUDY = REPOSITORY / "results/studies/tiny-study"
HEALTHY = sorted(f for f in STUDY.glob("countdown/tiny-[ab]/training/*-seed0") if not f.name.startswith("plain_grpo"))


def limits(**stops: Any) -> Profile:
    "The defaults of the limits, but for those given."
    return load_profile("paper", **stops)


def sampled(run: Path) -> list[dict[str, Any]]:
    "Rows of a log, one for each stored sample of a run's conversations, with what the trainer would have counted."
    task, rows = get_task("function_calling" if run == COLLAPSED else run.parents[2].name), []
    samples = read_jsonl(run / "samples.jsonl")
    for step in sorted({s["step"] for s in samples}):
        batch = [s for s in samples if s["step"] == step]
        problems = [Problem(s["problem_id"], json.loads(s["problem"])) for s in batch]
        prompts = [reflection_messages(task, p, s["attempt"]) for p, s in zip(problems, batch, strict=True)]
        texts = [s["reflection"] for s in batch]
        leaked = [leaks_answer(task, p, t) for p, t in zip(problems, texts, strict=True)]
        counts = content_counts(prompts, texts, leaked) | repetition_counts([p.id for p in problems], texts)
        rows.append({"step": step} | completion_shares({"texts": len(batch)} | counts))
    return rows


def stopped(rows: list[dict[str, Any]], p: Profile) -> str | None:
    "The message of the first stop in a log, if there is one."
    messages = (check_health(rows[max(0, i + 1 - p.stop_after) : i + 1], p) for i in range(len(rows)))
    return next(filter(None, messages), None)


def logged(run: Path) -> list[dict[str, Any]]:
    return read_jsonl(run / "log.jsonl")


def test_the_same_reflection_for_everything_stops_the_collapsed_run() -> None:
    words = stopped(sampled(COLLAPSED), limits(stop_after=2))
    assert words and "most_common_share is above stop_most_common" in words and "leave out problems" in words
    assert stopped(sampled(COLLAPSED), limits(stop_after=2, stop_most_common=1)) is None


def test_the_kl_of_the_collapsed_run_stops_it() -> None:
    words = stopped(logged(COLLAPSED), limits())
    assert words and "kl is above stop_kl = 3.0 nats per token" in words and "beta" in words
    assert stopped(logged(COLLAPSED), limits(stop_kl=0)) is None


@pytest.mark.parametrize("run", HEALTHY, ids=lambda f: f"{f.parents[1].name}-{f.name}")
def test_healthy_runs_go_on(run: Path) -> None:
    assert stopped(logged(run), limits()) is None
    assert stopped(sampled(run), limits(stop_after=2)) is None


def test_there_are_healthy_runs_to_look_at() -> None:
    assert len(HEALTHY) == 2 * 4  # two bases, the arms with reflections


def test_reflections_in_another_script_stop_a_run() -> None:
    prompts = [[{"role": "user", "content": "Reflect on what went wrong."}]] * 4
    texts = ["我把数字七用了两次。", "我算错了。", "Я ошибся.", "I used seven twice."]
    row = {"step": 1} | completion_shares({"texts": 4} | content_counts(prompts, texts))
    assert row["other_script_share"] == 0.75 and "script" in str(stopped([row], limits(stop_after=1)))
    assert stopped([row], limits(stop_after=1, stop_other_script=1)) is None


def test_the_stored_study_can_be_repeated() -> None:
    for profile in ("tiny", "smoke"):
        p = load_profile(profile, stop_after=2)
        assert stopped(logged(COLLAPSED), p) is None and stopped(sampled(COLLAPSED), p) is None
    assert {"stop_kl", "stop_most_common", "stop_other_script"} <= STOPS  # not part of the identity of a training


def test_a_training_that_never_pays_ends_after_five_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run("smoke", root=str(tmp_path), max_steps=12, save_steps=100, stop_unpaid=5)
    prepare(run)
    mine(run)
    task = get_task(run.profile.task)
    monkeypatch.setattr(training, "get_task", lambda _: replace(task, verify=never_right))
    with pytest.raises(TrainingStopped, match=r"steps 1 to 5: no completion was rewarded \(stop_unpaid = 5\).*r3-repro gate"):
        training.train(run)
    assert [row["reward"] for row in logged(run.training)] == [0.0] * 5


def never_right(problem: Problem, text: str) -> Verdict:
    return Verdict(False, "missed_target")
