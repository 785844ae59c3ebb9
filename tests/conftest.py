"""The order of the files, and what several of them use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import shared_python

FIRST = [
    "library",
    "pipeline",
    "resume",
    "two_processes",
    "site",
    "kept_weights",
    "doctor",
    "wheel",
    "benchmark_files",
    "own_task",
    "token_budget",
    "encodings",
    "results",
    "attempts",
    "servers",
    "sharding",
    "benchmarks",
    "controls",
]
"""The slow files first, by name without `test_`, in whatever folder they are. `make test` gives whole files to its processes, in
the order in which they come, and a process gets its next file when two tests of its last one are left: a short file just before a
long one would give both to the same."""


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


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    "Figures are made and not drawn, which takes most of the time: for tests of tables."
    reports = ("accuracy", "differences", "error_flow", "forgetting", "learning_curve", "models", "reflection_effect")
    reports += ("reflection_form", "reflection_report", "training_curves", "verdicts")
    for module in reports:
        monkeypatch.setattr(f"r3_repro.analysis.{module}.save_figure", lambda fig, folder, name: [Path(folder) / f"{name}.png"])
