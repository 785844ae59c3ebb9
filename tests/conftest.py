"""The order of the files, and what several of them use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from order import FIRST
from support import shared_python


def place(item: pytest.Item) -> int:
    name = item.path.stem.removeprefix("test_")
    return FIRST.index(name) if name in FIRST else len(FIRST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    "Variables with which stages and drivers start as forks of one interpreter, the same for all processes of `make test`."
    folder = tmp_path_factory.getbasetemp()
    with shared_python(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) as env:
        yield env


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    "As in processes that are killed: another number of threads adds up in another order."
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    "Figures are made and not drawn, which takes most of the time: for tests of tables."
    reports = ("accuracy", "differences", "error_flow", "forgetting", "learning_curve", "models", "reflection_effect")
    reports += ("reflection_form", "reflection_report", "training_curves", "verdicts")
    for module in reports:
        monkeypatch.setattr(f"r3_repro.analysis.{module}.save_figure", lambda fig, folder, name: [Path(folder) / f"{name}.png"])
