"""One process on a machine with several GPUs: the reference is on the GPU that trains. The GPUs are mocked."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from accelerate import infer_auto_device_map
from accelerate.utils import get_balanced_memory, send_to_device
from transformers import PreTrainedModel
from trl.trainer import grpo_trainer, utils

from r3_repro.config import find_home
from r3_repro.planning.models import Shape, random_model
from r3_repro.runs.layout import open_run
from r3_repro.tasks.base import get_task
from r3_repro.training.model_setup import reference_loading
from r3_repro.training.shared_prefix import prefix_parts
from r3_repro.training.train import build_trainer

BASE = str(find_home() / "r3_repro/assets/tiny-a")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    "The device maps that models are loaded with on a machine with GPUs, each loaded on the CPU in truth."
    seen: list[Any] = []
    load = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def noted(cls: Any, *args: Any, device_map: Any = "not given", **more: Any) -> Any:
        seen.append(device_map)
        return load(cls, *args, **more)

    class OnGpus:
        device = torch.device("cuda", 0)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(noted))
    monkeypatch.setattr(utils, "PartialState", OnGpus)
    return seen


def test_trl_spreads_the_reference_of_a_single_process(asked: list[Any]) -> None:
    "Why `reference_loading` is there. If this fails, TRL has changed, and it may not be needed any more."
    grpo_trainer.create_model_from_path(BASE)
    assert asked == ["auto"]


def test_our_reference_is_on_one_device(asked: list[Any]) -> None:
    with reference_loading():
        grpo_trainer.create_model_from_path(BASE)
    with reference_loading(device_map={"": 0}):
        grpo_trainer.create_model_from_path(BASE)
    assert asked == [None, {"": 0}]


def test_the_trainer_of_a_run_loads_its_reference_on_one_device(asked: list[Any], tmp_path: Path) -> None:
    run = open_run("smoke", root=str(tmp_path))
    task = get_task(run.profile.task)
    problem = task.problems("train", run.profile.data_options)[0]
    failed = pd.DataFrame([{"problem_id": problem.id, "problem": problem.dumps(), "attempt": "no"}])
    trainer = build_trainer(run, failed)
    assert asked == ["not given", None] and not hasattr(trainer.ref_model, "hf_device_map")


def test_auto_means_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    "Even for a model of a few hundred MB on GPUs of 80 GB, and packed rows would stay behind."
    gpus: dict[int | str, int] = {i: 80 * 2**30 for i in range(4)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    with torch.device("meta"):
        model = random_model(Shape("qwen2", 24, 896, 14, 2, 64, 4864, 151936, True, 1024))
    model.tie_weights()
    split = model._no_split_modules
    balanced = get_balanced_memory(model, max_memory=gpus | {"cpu": 2**40}, no_split_module_classes=split)
    placed = infer_auto_device_map(model, max_memory=balanced, no_split_module_classes=split)
    assert len(set(placed.values())) > 1
    parts = prefix_parts(torch.tensor([[0, 0, 1, 1, 2, 2]]))
    assert send_to_device({"shared_prefix": parts}, torch.device("meta"))["shared_prefix"].seen.device.type == "cpu"
