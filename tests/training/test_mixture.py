"""One training on the failures of several tasks: parts, verifiers, requests, numbers by task, identity."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from r3_repro.analysis.loading import load_training
from r3_repro.config import load_profile
from r3_repro.data import prepare
from r3_repro.runs.layout import Run, mixture_runs, model_path_for, open_run, trained_runs, transfers
from r3_repro.tasks.base import Problem, get_task
from r3_repro.training.callbacks import read_log
from r3_repro.training.grpo_config import reward_functions, training_set
from r3_repro.training.train import as_trained, is_trained, load_failures, train, training_identity
from r3_repro.utils.errors import SettingsError
from r3_repro.utils.files import write_parquet

BOTH = ("countdown", "function_calling")


def mixed(root: Path, task: str = "countdown", **more: Any) -> Run:
    return open_run("smoke", task=task, mixture=" ".join(BOTH), root=str(root), **{"max_steps": 1, "batch_size": 16} | more)


def mined(root: Path, counts: tuple[int, int] = (3, 2), attempt: str = "no answer") -> Run:
    "A run of the mixture whose tasks have this many failures."
    run = mixed(root)
    for each, n in zip(mixture_runs(run), counts, strict=True):
        prepare(each)
        problems = get_task(each.profile.task).problems("train", each.profile.data_options)[:n]
        rows = [{"problem_id": p.id, "problem": p.dumps(), "attempt": attempt} for p in problems]
        write_parquet(each.failures / "failures.parquet", pd.DataFrame(rows))
    return run


def test_tasks_take_turns_whatever_they_have_and_each_has_its_words(tmp_path: Path) -> None:
    run = mined(tmp_path, (3, 2))
    rows = training_set(load_failures(run), get_task("countdown"), as_trained(run).profile, seed=0)
    assert rows["task"] == list(BOTH) * 2
    assert rows["reflection_request"][:2] == [get_task(t).reflection_request for t in BOTH]
    long = training_set(load_failures(run), get_task("countdown"), run.profile.model_copy(update={"max_steps": 6}), seed=0)
    counts = pd.DataFrame({"task": long["task"], "id": long["problem_id"]}).value_counts()
    assert sorted(counts["countdown"]) == [4, 4, 4] and sorted(counts["function_calling"]) == [6, 6]


def test_each_row_is_judged_by_its_own_verifier() -> None:
    problems = [get_task(t).problems("test", load_profile("smoke", task=t).data_options)[0] for t in BOTH]
    calls: Problem = problems[1]
    right = json.dumps(calls.data["calls"] if "calls" in calls.data else calls.data["answers"])
    (verifier,) = reward_functions(open_run("smoke", mixture=" ".join(BOTH)), get_task("countdown"))
    said = [[{"role": "assistant", "content": right}]] * 2
    columns = {"problem_id": [calls.id] * 2, "problem": [calls.dumps()] * 2}
    assert verifier(said, **columns, task=["function_calling", "countdown"]) == [1.0, 0.0]


def test_a_mixture_is_trained_once_logged_by_task_and_found_from_both(tmp_path: Path) -> None:
    run = mined(tmp_path)
    model = train(run)
    assert model.relative_to(tmp_path).parts[:2] == ("smoke", "countdown+function_calling")
    log = read_log(run.training / "log.jsonl")
    by_task = log[[f"retry_success_{t}" for t in BOTH]].mean(axis=1)
    assert by_task.tolist() == pytest.approx(log.retry_success.tolist())
    other = mixed(tmp_path, "function_calling")
    assert is_trained(other) and train(other) == model and model_path_for(other) == str(model)
    assert [r.name for r in trained_runs(other)] == ["r3-seed0"] and transfers(other) == []
    for task in BOTH:  # a run of one task has nothing to do with it; tables of both find the curves
        alone = open_run("smoke", task=task, root=str(tmp_path))
        assert trained_runs(alone) == [] and transfers(alone) == []
        assert len(load_training(alone.model_dir)) == 1
    samples = [json.loads(line) for line in (run.training / "samples.jsonl").read_text("utf-8").splitlines()]
    assert {s["task"] for s in samples} == set(BOTH) and "reflection_request" not in samples[0]
    assert "countdown and function" in (model / "README.md").read_text("utf-8")


def test_the_identity_covers_the_failures_of_both_and_not_which_task_named_it(tmp_path: Path) -> None:
    run = mined(tmp_path)
    one, other = (training_identity(as_trained(mixed(tmp_path, t))) for t in BOTH)
    assert one == other and one["settings"]["max_answer_tokens"] == load_profile("smoke", task=BOTH[1]).max_answer_tokens
    second = mixture_runs(run)[1].failures / "failures.parquet"
    write_parquet(second, pd.read_parquet(second).assign(attempt="another"))
    assert training_identity(as_trained(run))["failures"] != one["failures"]
    second.unlink()
    with pytest.raises(
        SettingsError, match=r"no failures at .*function_calling.* r3-repro mine --profile smoke --task function_calling"
    ):
        train(run)


@pytest.mark.parametrize("tasks", ["countdown", "countdown countdown", "function_calling sorting", "countdown sorting"])
def test_a_mixture_that_is_none_is_refused(tasks: str) -> None:
    with pytest.raises(SettingsError, match=r"mixture|sorting"):
        load_profile("smoke", mixture=tasks)
