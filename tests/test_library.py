"""Every notebook under nbs/lib runs under nbdev-test, all in one process, which imports everything once."""

from pathlib import Path

import pytest
from test_notebooks import NOTEBOOKS, REPOSITORY, command, environment

pytestmark = pytest.mark.slow


def test_the_library_runs_under_nbdev_test(tmp_path: Path) -> None:
    args = ["nbs/lib", "--n-workers", "0", "--cell-timing-min", "0"]
    done = command("nbdev-test", *args, cwd=REPOSITORY, env=environment(tmp_path, OMP_NUM_THREADS="1"))
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    silent = [n.name for n in NOTEBOOKS if n.parent.name == "lib" and f"{n.name}:" not in said]
    assert not silent, f"no cell of {silent} was timed: were they run?"


def test_no_notebook_is_left_out() -> None:
    "The rest is run, with the chapters, by test_notebooks.py."
    rest = [n for n in NOTEBOOKS if n.parent.name != "lib"]
    assert [n.stem[:2] for n in rest] == ["01", "02", "03", "04", "05", "06", "de", "in"]
