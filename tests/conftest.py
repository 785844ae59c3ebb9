"""The slow files first: `make test` gives whole files to its processes, in the order in which they come."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
