"""ZeRO-3 in two processes, on processors over gloo: `make test-deepspeed`, which says where DeepSpeed is (`R3_DEEPSPEED`)."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_two_processes as two

from r3_repro.runs.layout import Run

KEPT = ("smoke/countdown/dataset", "smoke/countdown/tiny-a/failures")


def sharded(root: Path, name: str, **more: bool) -> Run:
    return two.two(root, "whole", name, sharding="zero3", **more)


def budgeted(root: Path) -> Run:
    "plain GRPO with the tokens of r3."
    return replace(sharded(root, "shared"), arm="plain_grpo")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "By one process, with a recording; by two with ZeRO-3, once interrupted after the first step; and without a shared prefix."
    root, where = tmp_path_factory.mktemp("zero3"), Path(os.environ["R3_DEEPSPEED"]).resolve()
    tape = str(root / "tape.json")
    alone = two.one(root, "whole")
    two.drive(alone, [{"argv": two.words(alone), "mine": True, "record": tape, "out": str(root / "one")}], root / "plan-one.json")
    for name in ("shared", "unshared", "sharded"):
        for kept in KEPT:
            shutil.copytree(root / "one" / kept, root / name / kept)
    shared, unshared = sharded(root, "shared"), sharded(root, "unshared", shared_prefix=False)
    plans = [
        {"argv": two.words(shared), "replay": tape, "stop": 1, "out": str(root / "first")},
        {"argv": two.words(shared), "replay": tape, "out": str(root / "second")},
        {"argv": two.words(unshared), "replay": tape, "out": str(root / "third")},
        {"argv": two.words(two.adapted(root, "zero3")), "out": str(root / "adapted")},
        {"argv": two.words(budgeted(root)), "stop": 1, "out": str(root / "budget-first")},
        {"argv": two.words(budgeted(root)), "out": str(root / "budget")},
    ]
    with pytest.MonkeyPatch.context() as m:
        m.setenv("PYTHONPATH", str(where))
        m.setenv("DS_ACCELERATOR", "cpu")
        for plan in plans:  # a model that is loaded while a configuration of ZeRO-3 is alive is cut up at once
            two.drive(shared, [plan], root / "plan-two.json")
    return root


def test_zero3_trains_as_one_process_does_and_resumes(trained: Path) -> None:
    first, second = two.seen(trained / "first"), two.seen(trained / "second")
    assert all("DEEPSPEED" in s["kind"] and s["world"] == 2 and s["shares"] for s in first + second)
    assert [c["step"] for c in first[0]["calls"]] == [0, 0] and [c["step"] for c in second[0]["calls"]] == [1, 1]
    a, b = two.one(trained, "whole"), sharded(trained, "shared")
    two.same_training(a, b, loss=1e-6, grad=1e-4, weight=1e-3)


def test_a_shared_prefix_is_sharded_like_any_other_pass(trained: Path) -> None:
    assert not any(s["shares"] for s in two.seen(trained / "third"))
    runs = sharded(trained, "shared"), sharded(trained, "unshared", shared_prefix=False)
    two.same_training(*runs, loss=1e-6, grad=1e-4, weight=1e-3)


def test_an_adapter_is_saved_with_the_model_around_it(trained: Path) -> None:
    two.check_adapted(two.adapted(trained, "zero3"))


def test_a_token_budget_goes_on_from_a_checkpoint(trained: Path) -> None:
    run = budgeted(trained)
    manifest, log = json.loads((run.training / "manifest.json").read_text("utf-8")), two.log_of(run)
    assert two.seen(trained / "budget")[0]["calls"][0]["step"] == 1 and (log["reflect_tokens"] > 0).all()
    assert abs(log["reflect_tokens"].sum() - manifest["token_budget"]) <= 0.6 * log["reflect_tokens"].max()
    share = log["reflect_tokens"].iloc[0] / manifest["token_budget"]
    assert log["learning_rate"].iloc[1] == pytest.approx(log["learning_rate"].iloc[0] * (1 + np.cos(np.pi * share)) / 2, rel=1e-6)
