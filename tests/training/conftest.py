"""What the tests of training share."""

from collections.abc import Iterator

import pytest
import torch
from support import warm_python


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    "Variables with which processes start as forks of one that has imported everything."
    with warm_python(tmp_path_factory.mktemp("warm")) as env:
        yield env


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    "As in processes that are killed: another number of threads adds up in another order."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
