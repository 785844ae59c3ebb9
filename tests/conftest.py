"""The slow files first: `make test` gives whole files to its processes, in the order in which they come."""

from pathlib import Path

import pytest

from r3_repro import contribution, reflections, results


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    "Figures are made and not drawn, which takes most of the time: for tests of tables."
    for module in (contribution, reflections, results):
        monkeypatch.setattr(module, "save_figure", lambda fig, folder, name: [Path(folder) / f"{name}.png"])
