"""Fused layers: refused where they cannot run, called as they must be, and equal where there is a GPU."""

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from r3_repro.planning.models import Shape, random_model
from r3_repro.training import model_setup
from r3_repro.training.model_setup import PACKAGES, with_layer_kernels
from r3_repro.utils.errors import SettingsError


def small() -> Any:
    torch.manual_seed(0)
    return random_model(Shape("qwen2", 2, 64, 4, 2, 16, 128, 100, True, 64))


@pytest.mark.parametrize("kind", PACKAGES)
def test_what_is_not_installed_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_setup.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=rf"layer_kernels = {kind}, but .* is not installed: pip install"):
        with_layer_kernels(small(), kind)


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_machine_without_a_gpu_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_setup.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="needs a GPU"):
        with_layer_kernels(small(), kind)


def test_the_loss_stays_the_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    "Liger's fused loss would replace the forward pass that returns log-probabilities."
    called: list[dict[str, Any]] = []
    fake = ModuleType("liger_kernel.transformers")
    fake._apply_liger_kernel_to_instance = lambda **given: called.append(given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", fake)
    monkeypatch.setattr(model_setup, "check_layer_kernels", lambda _: None)
    model = small()
    assert with_layer_kernels(model, "liger") is model and called == [{"model": model, "fused_linear_cross_entropy": False}]
    asked: list[bool] = []
    monkeypatch.setattr(PreTrainedModel, "set_use_kernels", lambda self, on: asked.append(on))
    assert with_layer_kernels(model, "hub") is model and asked == [True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fused kernels need a GPU")
@pytest.mark.parametrize("kind", PACKAGES)
def test_log_probabilities_and_gradients_are_equal_on_a_gpu(kind: str) -> None:
    if importlib.util.find_spec(PACKAGES[kind]) is None:
        pytest.skip(f"{PACKAGES[kind]} is not installed")
    found = []
    ids = torch.arange(48, device="cuda").view(2, 24)
    for each in ("none", kind):
        model = small().to("cuda").train()
        add_fused_lm_head(model)
        out = with_layer_kernels(model, each)(input_ids=ids, labels=ids, fused_lm_head=True)
        out.loss.backward()
        found.append((out.log_probs, torch.cat([w.grad.flatten() for w in model.parameters()])))
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-4, rtol=1e-3)
