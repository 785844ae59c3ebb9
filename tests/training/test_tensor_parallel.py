"""vLLM over several training processes, as far as that goes without GPUs; and who may load weights when."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from r3_repro.config import load_profile
from r3_repro.planning.memory import GIB, H100, LENGTHS, longest_with_retry, training_problems, vllm_needs
from r3_repro.planning.models import shape_of
from r3_repro.runs.layout import open_run
from r3_repro.tasks.base import get_task
from r3_repro.training import train as training
from r3_repro.training.grpo_config import grpo_config
from r3_repro.training.r3_config import R3Config
from r3_repro.utils.errors import SettingsError

FOUR = {"processes": 4, "use_vllm": True, "batch_size": 32, "num_generations": 8, "per_device_train_batch_size": 8}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vllm_tensor_parallel_size": 3}, "does not divide processes = 4"),
        ({"vllm_tensor_parallel_size": 2, "use_vllm": False}, "is ignored unless vLLM runs in the training processes"),
        (
            {"vllm_tensor_parallel_size": 2, "vllm_mode": "server", "vllm_server_base_url": "http://here:8000"},
            "is ignored unless vLLM runs in the training processes",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_with_the_settings(settings: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_profile("smoke", **FOUR | settings)


def test_heads_must_be_divisible_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = shape_of(load_profile("smoke").model).heads
    size = next(k for k in range(2, 20) if heads % k)
    run = open_run(
        "smoke", root=str(tmp_path), vllm_tensor_parallel_size=size, **FOUR | {"processes": size, "batch_size": 8 * size}
    )
    monkeypatch.setattr(training, "load_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(SettingsError, match=f"does not divide the {heads} attention heads"):
        training.build_trainer(run, pd.DataFrame())


def test_the_setting_reaches_trl_and_is_refused_there_where_it_is_ignored(tmp_path: Path) -> None:
    assert grpo_config(open_run("smoke", vllm_tensor_parallel_size=2, **FOUR)).vllm_tensor_parallel_size == 2
    with pytest.raises(ValueError, match="vllm_tensor_parallel_size is ignored"):
        R3Config(str(tmp_path), use_cpu=True, bf16=False, vllm_tensor_parallel_size=2)


def test_a_share_that_is_too_small_for_the_whole_model_may_do_for_a_part() -> None:
    p, tok = load_profile("paper"), LENGTHS["countdown"]
    shape = shape_of(p.model)
    whole, half = (vllm_needs(shape, longest_with_retry(p, tok), k) / (H100.memory * GIB) for k in (1, 2))
    for size, enough in ((1, False), (2, True)):
        q = load_profile("paper", vllm_tensor_parallel_size=size, vllm_gpu_memory_utilization=(whole + half) / 2)
        assert any(w.startswith("vLLM needs") for w in training_problems(q, shape, tok, H100)) != enough


def test_no_process_loads_weights_before_the_memory_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Loaded(Exception):
        pass

    def load(*_: Any, **__: Any) -> None:
        order.append("load")
        raise Loaded

    monkeypatch.setattr(training.PartialState, "wait_for_everyone", lambda self: order.append("wait"))
    monkeypatch.setattr(training, "load_model", load)
    problem = get_task("countdown").problems("train", load_profile("smoke").data_options)[0]
    failed = pd.DataFrame([{"problem_id": problem.id, "problem": problem.dumps(), "attempt": "1"}])
    with pytest.raises(Loaded):
        training.build_trainer(open_run("smoke", root=str(tmp_path)), failed)
    assert order == ["wait", "load"]
