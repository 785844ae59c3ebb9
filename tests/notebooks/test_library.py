"""Every library notebook runs under nbdev-test, a folder in a process; these, and stages, are forked from `warm`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support import CHAPTERS, NOTEBOOKS, REPOSITORY, patience

pytestmark = pytest.mark.slow

PARTS = sorted(
    {n.relative_to(REPOSITORY / "nbs").parts[0] for n in NOTEBOOKS}
    - {n.name for n in CHAPTERS}
    - {"index.ipynb", "details.ipynb", "input.ipynb"}
)


@pytest.fixture(scope="module")
def tested(warm: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    "What nbdev-test said of each part, and of a notebook that fails."
    folder = tmp_path_factory.mktemp("library")
    bad = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 + 1 == 3")])
    nbformat.write(bad, folder / "bad.ipynb")
    program = [sys.executable, str(Path(__file__).with_name("nbdev_parts.py"))]
    command = [*program, str(folder / "bad.ipynb"), *(f"nbs/{part}" for part in PARTS)]
    env = warm | {"R3_ROOT": str(folder), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, encoding="utf-8", timeout=patience(1200))
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return {Path(row["path"]).name: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("part", PARTS)
def test_the_library_runs_under_nbdev_test(part: str, tested: dict[str, dict[str, Any]]) -> None:
    code, said = tested[part]["code"], tested[part]["said"]
    assert code == 0, said[-6000:]
    inside = [n for n in NOTEBOOKS if n.relative_to(REPOSITORY / "nbs").parts[0] == part and '"code"' in n.read_text("utf-8")]
    silent = [n.name for n in inside if f"{n.name}:" not in said]
    assert not silent, f"no cell of {silent} was timed: were they run?"


def test_nbdev_test_would_see_a_failing_notebook(tested: dict[str, dict[str, Any]]) -> None:
    "A notebook that fails makes nbdev-test fail: its success above says something."
    assert tested["bad.ipynb"]["code"] == 1 and "AssertionError" in tested["bad.ipynb"]["said"]
