"""Every notebook under nbs/lib runs under nbdev-test, in parts: one process each, which imports everything once."""

import re
from pathlib import Path

import pytest
from test_notebooks import NOTEBOOKS, REPOSITORY, command, environment

pytestmark = pytest.mark.slow

PARTS = ["a-e", "f-o", "p-z"]
"First letters of the notebooks."


@pytest.mark.parametrize("letters", PARTS)
def test_the_library_runs_under_nbdev_test(letters: str, tmp_path: Path) -> None:
    args = ["nbs/lib", "--file-re", f"^[{letters}]", "--n-workers", "0"]
    done = command("nbdev-test", *args, cwd=REPOSITORY, env=environment(tmp_path, OMP_NUM_THREADS="1"))
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def test_no_notebook_is_left_out() -> None:
    rest = [n for n in NOTEBOOKS if n.parent.name != "lib"]
    assert [n.stem[:2] for n in rest] == ["01", "02", "03", "04", "05", "06", "de", "in"]
    parts = [n for part in PARTS for n in NOTEBOOKS if n.parent.name == "lib" and re.match(f"[{part}]", n.name)]
    assert sorted(rest + parts) == NOTEBOOKS
