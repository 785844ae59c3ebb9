"""Continuous integration says at its end what it left out, with a `make` that only pretends."""

import os
import subprocess
from pathlib import Path

import pytest
from support import REPOSITORY, patience

SKIPPED = "SKIPPED [2] tests/x.py:3: no real rows here"
STAND_IN = f"""#!/bin/sh
echo "make $1"
case $1 in
  test) echo "{SKIPPED}";;
  .venv-vllm/.done) exit 7;;
esac
[ "$1" != "$FAILS" ]
"""


def ci(folder: Path, fails: str = "") -> subprocess.CompletedProcess:
    make = folder / "make"
    make.write_text(STAND_IN, "utf-8")
    make.chmod(0o755)
    env = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "FAILS": fails, "TMPDIR": str(folder)}
    return subprocess.run([str(REPOSITORY / ".ci/run")], env=env, capture_output=True, encoding="utf-8", timeout=patience(30))


def test_what_was_left_out_is_listed_at_the_end(tmp_path: Path) -> None:
    done = ci(tmp_path)
    ran, _, end = done.stdout.partition("LEFT OUT: 2 part(s), 1 kind(s) of skipped tests\n")
    assert done.returncode == 0 and ran.startswith(f"make test\n{SKIPPED}\nmake .venv-vllm/.done\nmake .venv-deepspeed/.done\n")
    assert "make test-deepspeed\n" in ran and "make test-trackers\n" in ran and "make test-vllm\n" not in ran
    assert end.splitlines() == [
        "  make test-box, a whole study as a rented box runs it and the doctor with two processes: takes minutes, not run here",
        "  make test-vllm, the tests with vLLM: not installed within 600 seconds (exit code 7)",
        f"  {SKIPPED}",
    ]
    assert [f.name for f in tmp_path.iterdir()] == ["make"], "its notes are removed"


@pytest.mark.parametrize("target", ["test", "test-trackers"])
def test_a_failing_part_fails_it_and_is_said(tmp_path: Path, target: str) -> None:
    done = ci(tmp_path, fails=target)
    assert done.returncode != 0 and "parts after the failing one were not run" in done.stdout
    assert ("make test-deepspeed" in done.stdout) == (target != "test")
    assert f"  {SKIPPED}" in done.stdout.partition("LEFT OUT")[2]
