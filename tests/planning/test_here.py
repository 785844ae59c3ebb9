"""For which machine a run is planned, and with which of its rates."""

from typing import Any

import psutil
import pytest
import torch

from r3_repro.config import load_profile
from r3_repro.planning import here
from r3_repro.planning.memory import GIB, H100


@pytest.mark.parametrize(
    ("gpu", "settings", "memory", "own"),
    [
        (False, {}, H100.memory, True),
        (False, {"engine": "vllm"}, H100.memory, False),
        (False, {"use_vllm": True}, H100.memory, False),
        (False, {}, 40.0, False),
        (True, {}, H100.memory, False),
    ],
)
def test_only_transformers_without_a_gpu_are_planned_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, settings: dict[str, Any], memory: float, own: bool
) -> None:
    "Another memory than the data sheet's asks for GPUs, wherever it is asked."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(here, "measured_rates", lambda: (3e11, 2e10) if own else pytest.fail("measured for nothing"))
    machine, name = here.machine_for(load_profile("smoke", **settings), memory)
    if own:
        assert (machine.flops, machine.bandwidth) == (3e11, 1e10), "a float32 weight has twice the bytes that plans count"
        assert machine.memory == psutil.virtual_memory().total / GIB and machine.place == "of main memory"
        assert name.startswith("this machine, measured: ") and machine.name == "this machine"
        half, _ = here.machine_for(load_profile("smoke", dtype="bfloat16"))
        assert half.bandwidth == 2e10
    else:
        assert (machine.flops, machine.memory, machine.name) == (H100.flops, memory, "H100") and "H100" in name
        assert machine.place == "on each GPU"


@pytest.mark.parametrize(("load", "said"), [(3.0, "; others use it (load 3.0, 4 cores), so that rates are too low"), (2.0, "")])
def test_a_plan_says_that_others_use_the_machine(monkeypatch: pytest.MonkeyPatch, load: float, said: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(here, "measured_rates", lambda: (3e11, 2e10))
    monkeypatch.setattr(psutil, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    assert here.machine_for(load_profile("smoke"))[1].partition(" threads")[2] == said
