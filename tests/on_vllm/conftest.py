"""Tests with a real vLLM, on a CPU: `make test-vllm`. Where vLLM is not installed, nothing here is collected.

The folder must not be called `vllm`: tests/ is on the path while other tests run, and would hold something of that name.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"TORCHDYNAMO_DISABLE": "1"}  # vLLM compiles two small functions, which takes longer than all that they do here


@pytest.fixture(scope="session")
def base() -> str:
    "The tiny base as it is shipped."
    from r3_repro.config import load_profile, model_path

    return model_path(load_profile("tiny"))


@pytest.fixture(scope="session")
def wide(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    "The tiny base with heads of a size that vLLM's attention on a CPU knows."
    from widened import widen

    return str(widen(Path(base), tmp_path_factory.mktemp("models") / "tiny-wide"))


@pytest.fixture(scope="session")
def slow(base: str):
    "The reference: the shipped model with transformers."
    from r3_repro.engines.hf import Transformers

    return Transformers.load(base, batch=64)


@pytest.fixture(scope="module")
def fast(wide: str) -> Iterator:
    "The same model with vLLM, closed at the end of a module: a process has one at a time on a CPU."
    from r3_repro.engines.vllm import VLLM

    engine = VLLM.load(wide, "float32", batch=64)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def root(wide: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A run tree with failures of the wide base, to train on."
    from r3_repro.mining.failures import mine
    from r3_repro.runs.layout import open_run

    root = tmp_path_factory.mktemp("training")
    mine(open_run("smoke", model=wide, root=str(root)))
    return root
