"""Prose of notebooks and pages, docstrings and comments are spelled correctly, as far as a list of common mistakes tells."""

import json
import subprocess
import sys
from pathlib import Path

from support import NOTEBOOKS, REPOSITORY, patience

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "settings.ini",
    "Makefile",
    "r3_repro",
    "tests",
    "benchmarks",
    "docs",
    "cluster",
]


def misspelled(*arguments: str | Path, text: str = "") -> list[str]:
    "What codespell finds; its settings are in pyproject.toml."
    command = [sys.executable, "-m", "codespell_lib", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=REPOSITORY, input=text, capture_output=True, encoding="utf-8", errors="replace", timeout=patience(120)
    )
    assert done.returncode in (0, 64, 65), done.stderr
    return [line for line in done.stdout.splitlines() if "==>" in line]


def test_pages_and_modules_are_spelled_correctly() -> None:
    assert misspelled(*PAGES) == []


def test_prose_of_notebooks_is_spelled_correctly() -> None:
    cells = [c for n in NOTEBOOKS for c in json.loads(n.read_text("utf-8"))["cells"] if c["cell_type"] == "markdown"]
    assert misspelled("-", text="\n\n".join("".join(c["source"]) for c in cells)) == []


def test_a_mistake_is_seen() -> None:
    assert len(misspelled("-", text="the sepeXrate models recieXve a reward".replace("X", ""))) == 2
