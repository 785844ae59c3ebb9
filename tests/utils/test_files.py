"""Locks between processes: who works in a folder, and what a killed process leaves behind."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import patience

from r3_repro.utils.errors import SettingsError
from r3_repro.utils.files import locked

HOLD = """
import sys, time
from pathlib import Path
from r3_repro.utils.files import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen]:
    "A process that works in the folder."
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, encoding="utf-8")
    assert child.stdout is not None and child.stdout.readline() == "locked\n"
    yield child
    child.kill()
    child.wait()


def test_the_other_process_is_named(other: subprocess.Popen, tmp_path: Path) -> None:
    for _ in range(2):  # to try does not change what the file says
        with pytest.raises(SettingsError, match=rf"another process \(id {other.pid}\) works in"), locked(tmp_path, patience=0):
            pass


def test_a_killed_process_leaves_no_lock(other: subprocess.Popen, tmp_path: Path) -> None:
    other.kill()
    other.wait()
    with locked(tmp_path, patience=0):
        assert (tmp_path / ".lock").read_text("utf-8") == str(os.getpid())


def test_it_waits_for_the_other_process_to_end(other: subprocess.Popen, tmp_path: Path) -> None:
    began = time.monotonic()
    threading.Timer(0.5, other.kill).start()
    with locked(tmp_path, patience=patience(20)):
        assert time.monotonic() - began >= 0.5


def test_it_waits_no_longer_than_it_is_told(other: subprocess.Popen, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(SettingsError), locked(tmp_path, patience=0.5):
        pass
    assert 0.5 <= time.monotonic() - began < patience(5)


def test_of_one_trainings_processes_only_the_first_locks(
    other: subprocess.Popen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path, patience=0):
        assert (tmp_path / ".lock").read_text("utf-8") == str(other.pid)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SettingsError), locked(tmp_path, patience=0):
        pass
