"""Every library notebook runs under nbdev-test, all in one process, which imports everything once."""

from pathlib import Path

import pytest
from support import CHAPTERS, NOTEBOOKS, REPOSITORY, command, environment

pytestmark = pytest.mark.slow

PARTS = sorted(
    {n.relative_to(REPOSITORY / "nbs").parts[0] for n in NOTEBOOKS}
    - {n.name for n in CHAPTERS}
    - {"index.ipynb", "details.ipynb"}
)


@pytest.mark.parametrize("part", PARTS)
def test_the_library_runs_under_nbdev_test(part: str, tmp_path: Path) -> None:
    args = [f"nbs/{part}", "--n-workers", "0", "--cell-timing-min", "0"]
    done = command("nbdev-test", *args, cwd=REPOSITORY, env=environment(tmp_path, OMP_NUM_THREADS="1"))
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    inside = [n for n in NOTEBOOKS if n.relative_to(REPOSITORY / "nbs").parts[0] == part]
    silent = [n.name for n in inside if f"{n.name}:" not in said]
    assert not silent, f"no cell of {silent} was timed: were they run?"


def test_nbdev_test_would_see_a_failing_notebook(tmp_path: Path) -> None:
    "A notebook that fails makes nbdev-test fail: its success above says something."
    import nbformat

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 + 1 == 3")])
    nbformat.write(notebook, tmp_path / "bad.ipynb")
    done = command("nbdev-test", str(tmp_path / "bad.ipynb"), cwd=REPOSITORY, env=environment(tmp_path))
    assert done.returncode != 0 and "AssertionError" in done.stdout + done.stderr
