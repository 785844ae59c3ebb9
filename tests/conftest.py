"""The order of the files, and what several of them use."""

from pathlib import Path

import pytest

from r3_repro import contribution, reflections, results

FIRST = ["test_notebooks", "test_two_processes", "test_resume", "test_library", "test_results"]
"""The slow files first. `make test` gives whole files to its two processes, in the order in which they come, and a process gets
its next file when two tests of its last one are left: a short file just before a long one would give both to the same."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    "Figures are made and not drawn, which takes most of the time: for tests of tables."
    for module in (contribution, reflections, results):
        monkeypatch.setattr(module, "save_figure", lambda fig, folder, name: [Path(folder) / f"{name}.png"])
