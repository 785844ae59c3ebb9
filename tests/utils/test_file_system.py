"Faults of the file system: one line that names the folder and what chooses it, exit code 2, and no traceback."

import errno
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support import command, environment, patience

from r3_repro.config import load_profile
from r3_repro.reporting.tables import save_table
from r3_repro.runs.layout import open_run
from r3_repro.runs.preflight import preflight
from r3_repro.utils.errors import CHOOSERS, FAULTS, SettingsError, chosen_by, exit_on_user_error, file_system_fault
from r3_repro.utils.files import atomic, atomic_folder, check_writable, find_home, locked, write_json, write_parquet


def words(path: Path) -> None:
    with atomic(path) as part, open(part, "w", encoding="utf-8") as f:
        f.write("x" * 100_000)


def files(path: Path) -> None:
    with atomic_folder(path) as part:
        (part / "a").write_bytes(b"x" * 100_000)


def lock(path: Path) -> None:
    with locked(path):
        pass


TABLE = pd.DataFrame({"a": [os.urandom(8).hex() for _ in range(9000)]})
WRITERS: dict[str, Callable[[Path], Any]] = {
    "atomic": words,
    "atomic_folder": files,
    "write_json": lambda path: write_json(path, "x" * 100_000),
    "write_parquet": lambda path: write_parquet(path, TABLE),
    "save_table": lambda path: save_table(TABLE, path.parent, path.name, "a table"),
    "locked": lock,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_in_the_place_of_a_folder(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("R3_ROOT", str(tmp_path))
    (tmp_path / "runs").write_text("a file", "utf-8")
    with pytest.raises(SystemExit, match="2"), exit_on_user_error():
        WRITERS[writer](tmp_path / "runs" / "below" / "x")
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        f"{tmp_path}/runs" in line and "a file is where a folder is wanted" in line and f"R3_ROOT = {tmp_path} chooses it" in line
    )


def write_within(size: int, writer: str, path: Path) -> None:
    "Write where no file may become larger: the kernel enforces it as it does the end of a disk."
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    with exit_on_user_error():
        WRITERS[writer](path)


@pytest.mark.parametrize("writer", [w for w in WRITERS if w != "locked"])  # a process number always fits
def test_no_room_for_a_file(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    "For real, in a forked process."
    monkeypatch.setenv("R3_ROOT", str(tmp_path))
    process = multiprocessing.get_context("fork").Process(target=write_within, args=(20_000, writer, tmp_path / "there" / "x"))
    process.start()
    process.join(patience(120))
    said = capfd.readouterr().err
    assert process.exitcode == 2 and "Traceback" not in said
    (line,) = said.splitlines()
    assert f"{tmp_path}/there" in line and "files may not become that large" in line and "R3_ROOT" in line
    assert not [f for f in (tmp_path / "there").rglob("*") if f.is_file()], "nothing half written is left"


@pytest.mark.parametrize("number", FAULTS)
def test_every_fault_is_told_in_one_line(number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "a" / "b")
    with pytest.raises(SystemExit, match="2"), exit_on_user_error():
        raise OSError(number, os.strerror(number), path)
    (line,) = capsys.readouterr().err.splitlines()
    assert path in line and FAULTS[number] in line


@pytest.mark.parametrize(
    "error",
    [
        OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError(
            "[enforce fail at inline_container.cc:820] . PytorchStreamWriter failed writing file data/7: file write failed"
        ),
    ],
)
def test_a_full_disk_as_libraries_say_it(error: Exception) -> None:
    assert FAULTS[errno.ENOSPC] in file_system_fault(error)
    outer = RuntimeError("a stage failed")
    outer.__cause__ = error
    assert FAULTS[errno.ENOSPC] in file_system_fault(outer)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "x", "/a"), ConnectionResetError(104, "x"), KeyError("a"), OSError("x")])
def test_other_errors_keep_their_traceback(error: Exception) -> None:
    assert file_system_fault(error) == ""
    with pytest.raises(type(error)), exit_on_user_error():
        raise error


@pytest.mark.parametrize("name", [v for v in CHOOSERS if v != "HOME"])
def test_the_variable_that_chooses_the_folder_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in CHOOSERS:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, str(tmp_path / "deep"))
    assert chosen_by(str(tmp_path / "deep" / "x")).startswith(f"{name} = ")
    assert not chosen_by(str(tmp_path / "deeper")).startswith(f"{name} = ")


@pytest.mark.parametrize("stage", ["", "datasets", "mine", "train", "evaluate", "forgetting", "figures"])
@pytest.mark.parametrize("place", ["file", "system"])
def test_what_cannot_be_written_is_refused_before_any_work(stage: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    root = tmp_path / "file" if place == "file" else Path("/proc/nowhere")
    with pytest.raises(SettingsError, match=f"cannot write to {root}/smoke"):
        preflight(open_run("smoke", root=str(root)), stage)


def test_a_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_home_that_is_no_folder(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("R3_HOME", str(tmp_path / kind))
    for use in (find_home, load_profile):
        with pytest.raises(
            SettingsError, match=f"R3_HOME = {tmp_path / kind}: .* is {'a file' if kind == 'file' else 'not there'}"
        ):
            use()


@pytest.mark.parametrize(
    ("stage", "changed", "named"),
    [
        ("datasets", {"R3_ROOT": "/proc/nowhere"}, "/proc/nowhere"),
        ("datasets", {"R3_HOME": "/proc/nowhere"}, "R3_HOME = /proc/nowhere"),
        ("datasets", {"R3_SETTINGS": "/proc"}, "/proc"),
        ("forgetting", {"HOME": "/proc/nowhere", "HF_HOME": "/proc/nowhere"}, "/proc/nowhere"),
    ],
)
def test_commands_say_it_in_one_line(stage: str, changed: dict[str, str], named: str, tmp_path: Path) -> None:
    env = environment(tmp_path) | changed
    done = command("r3-repro", stage, "--profile", "smoke", cwd=tmp_path, env=env)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("r3_repro: ")]
    assert len(said) == 1 and named in said[0] and "network" not in said[0]


@pytest.mark.parametrize("cached", [True, False])
def test_a_model_that_will_be_fetched_needs_a_cache_that_takes_it(
    cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    cache = tmp_path / "hub" if cached else tmp_path / "file" / "hub"
    if cached:
        (cache / "models--owner--name" / "snapshots" / "abc").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("r3_repro.runs.preflight.hub_commit", lambda *_: "abc")
    run = open_run("smoke", model="owner/name", root=str(tmp_path))
    if cached:
        return preflight(run, "datasets")
    with pytest.raises(SettingsError, match=f"cannot write to {cache}: .* HF_HUB_CACHE = {cache} chooses it"):
        preflight(run, "datasets")
