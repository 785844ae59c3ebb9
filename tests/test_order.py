"""The order in which `make test` runs the files."""

from collections import Counter
from pathlib import Path

from order import FIRST

FILES = [p.stem for p in Path(__file__).parent.rglob("test_*.py")]


def test_every_name_in_the_order_is_a_file() -> None:
    assert [name for name in FIRST if f"test_{name}" not in FILES] == []


def test_the_names_of_the_files_are_unique() -> None:
    "Without packages, pytest imports two files of one name as one module."
    assert [name for name, n in Counter(FILES).items() if n > 1] == []
