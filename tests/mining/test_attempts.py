"""The store of attempts: nothing lost but a buffer, nothing doubled, nothing foreign, whatever process, disk and files do."""

import contextlib
import errno
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support import patience

from r3_repro.mining.store.reader import connect, count_attempts, fetch, read_outcomes, relation
from r3_repro.mining.store.segments import SCHEMA, Attempt, segments
from r3_repro.mining.store.writer import Writer, _free_name, _sync, check, compact
from r3_repro.utils.errors import SettingsError

KEY = {"settings": {"temperature": 1.0, "top_p": 1.0}, "model": "abc", "train": "0123"}
PROBLEMS, SAMPLES = 40, 5
ALL = [(place, sample) for sample in range(SAMPLES) for place in range(PROBLEMS)]


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r3_repro.utils.files.PATIENCE", 0.0)


def made(place: int, sample: int, text: str = "") -> Attempt:
    "An attempt that hangs on its arguments alone: what is drawn again has another text and another verdict."
    error = ["", "wrong_value", "no_answer"][(place + sample + len(text)) % 3]
    finish = "length" if (place + len(text)) % 7 == 0 else "stop"
    return Attempt(place, f"p{place}", sample, text or f"answer {place}/{sample}", not error, error, place + sample, finish)


def write(folder: Path, which: list[tuple[int, int]], rows: int = 7, key: dict[str, Any] = KEY, text: str = "") -> None:
    with Writer(folder, key, {"engine": "test"}, rows=rows) as writer:
        for place, sample in which:
            writer.add(made(place, sample, text))


def stored(folder: Path) -> dict[tuple[int, int], str]:
    "Texts by place and sample; fails if an attempt is there twice."
    rows = relation(folder).df()
    assert not rows.duplicated(["place", "sample"]).any()
    assert set(rows.columns) == set(SCHEMA.names)
    return {(int(p), int(s)): t for p, s, t in zip(rows.place, rows["sample"], rows.attempt, strict=True)}


def physical(folder: Path) -> list[tuple[int, int]]:
    "Place and sample of every row in every file, as it lies there."
    files = sorted(folder.glob("part-*.parquet"))
    tables = [pq.read_table(f, columns=["place", "sample"]).to_pylist() for f in files]
    return [(r["place"], r["sample"]) for t in tables for r in t]


def child(work: Callable[[], object], wait: bool = True) -> tuple[int, str]:
    "Run something in a forked process; its id or exit status, and the error that ended it."
    read, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        status = 0
        try:
            work()
        except BaseException as e:
            text = str(e) if isinstance(e, SettingsError | SystemExit) else traceback.format_exc()
            os.write(write_end, f"{type(e).__name__}: {text}".encode()[:60_000])
            status = 3
        os._exit(status)
    os.close(write_end)
    if not wait:
        os.close(read)
        return pid, ""
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def hidden(folder: Path) -> list[str]:
    return [f.name for f in folder.glob(".*.part")]


# ── Processes that are killed ──────────────────────────────────────────────────────────────────────────────────────


def mine(folder: Path, counter: mmap.mmap) -> None:
    "Draw what is missing, as a mining run does; `counter` says how many attempts were added."
    with Writer(folder, KEY, rows=7) as writer:
        known = read_outcomes(folder, PROBLEMS, SAMPLES)
        missing = [(p, s) for p, s in ALL if known.codes[p, s] < 0]
        for n, (place, sample) in enumerate(missing, len(ALL) - len(missing) + 1):
            writer.add(made(place, sample))
            counter[:8] = struct.pack("q", n)
            time.sleep(0.0005)


def test_a_writer_killed_twenty_times_loses_a_buffer_at_most(tmp_path: Path) -> None:
    rng, counter, kills = random.Random(0), mmap.mmap(-1, 8), 0
    before = 0
    for _ in range(20):
        pid, _ = child(lambda: mine(tmp_path, counter), wait=False)
        until, goal = time.monotonic() + patience(30), min(before + rng.randrange(1, 20), len(ALL) - 1)
        while struct.unpack("q", counter[:8])[0] < goal and time.monotonic() < until:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.006))
        os.kill(pid, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        now, added = physical(tmp_path), struct.unpack("q", counter[:8])[0]
        assert len(set(now)) == len(now) >= before and now == ALL[: len(now)]
        assert added - 7 <= len(now) <= added + 1
        before = len(now)
        counter[:8] = struct.pack("q", len(now))
    assert kills >= 10 and before > 50
    assert child(lambda: mine(tmp_path, counter)) == (0, "")
    assert sorted(physical(tmp_path)) == sorted(ALL) and hidden(tmp_path) == []
    assert stored(tmp_path) == {(p, s): f"answer {p}/{s}" for p, s in ALL}
    plain = tmp_path / "plain"
    write(plain, ALL[::-1])
    killed, whole = (read_outcomes(folder, PROBLEMS, SAMPLES) for folder in (tmp_path, plain))
    for name in ("codes", "cut", "errors", "doubled"):
        assert np.array_equal(getattr(killed, name), getattr(whole, name))


DISK = [(Path, "replace"), (Path, "unlink"), (Path, "write_bytes"), (os, "fsync"), (pq.ParquetWriter, "write_table")]


def die_at(step: int, work: Callable[[], object]) -> bool:
    "Kill a process before its step-th act on the disk; False if it ends before."

    def dying() -> None:
        count = 0

        def patched(original: Any) -> Any:
            def act(*args: Any, **more: Any) -> Any:
                nonlocal count
                if count == step:
                    if original is written:  # half of it
                        original(args[0], memoryview(args[1])[: len(memoryview(args[1])) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return original(*args, **more)

            return act

        written = Path.write_bytes
        for owner, name in DISK:
            setattr(owner, name, patched(getattr(owner, name)))
        work()

    status, said = child(dying)
    assert status in (0, -signal.SIGKILL), said
    return status != 0


def test_a_segment_is_whole_or_not_there_wherever_it_is_killed(tmp_path: Path) -> None:
    write(tmp_path / "0", ALL[:10])
    steps = 0
    while True:
        folder = tmp_path / f"step{steps}"
        shutil.copytree(tmp_path / "0", folder)
        died = die_at(steps, lambda folder=folder: write(folder, ALL[10:17]))  # type: ignore[misc]
        assert sorted(stored(folder)) in (sorted(ALL[:10]), sorted(ALL[:17]))
        with Writer(folder, KEY) as writer:
            assert writer.stored in (10, 17) and hidden(folder) == []
        if not died:
            break
        steps += 1
    assert steps >= 4 and sorted(stored(folder)) == sorted(ALL[:17])


def test_an_interrupt_at_any_moment_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "After the file is there, before the buffer is emptied: leaving the block writes the same buffer once more."
    sync, calls = _sync, []

    def interrupted(folder: Path) -> None:
        sync(folder)
        calls.append(folder)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("r3_repro.mining.store.writer._sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, ALL[:20])
    assert physical(tmp_path) == ALL[:7] and len(calls) == 2


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_buffer_is_written_when_the_block_is_left(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), Writer(tmp_path, KEY, rows=100) as writer:
        for place, sample in ALL[:3]:
            writer.add(made(place, sample))
        raise error
    assert physical(tmp_path) == ALL[:3]
    write(tmp_path, ALL[3:4])  # the lock is free


def test_sigterm_stores_the_buffer(tmp_path: Path) -> None:
    def work() -> None:
        signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(143)))
        with Writer(tmp_path, KEY, rows=100) as writer:
            writer.add(made(0, 0))
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

    status, said = child(work)
    assert status == 3 and said.startswith("SystemExit") and physical(tmp_path) == [(0, 0)]


# ── Torn and damaged files ─────────────────────────────────────────────────────────────────────────────────────────


def tearings(whole: bytes) -> Iterator[bytes]:
    yield from (whole[: int(len(whole) * f)] for f in (0.0, 0.001, 0.3, 0.7, 0.99))
    yield from (whole[:-1], whole[-8:], b"PAR1", bytes(len(whole)))
    yield from (
        np.random.default_rng(0).bytes(5000),
        b"PAR1" + bytes(500) + b"\x64\0\0\0PAR1",
        b"PAR1" + bytes(99) + b"\xff\xff\xff\x7fPAR1",
    )


def test_a_torn_segment_is_passed_over_by_readers_and_moved_aside_by_a_writer(tmp_path: Path) -> None:
    write(tmp_path, ALL[:21])
    last = tmp_path / "part-00000003.parquet"
    whole = last.read_bytes()
    for n, torn in enumerate(tearings(whole)):
        last.write_bytes(torn)
        with pytest.warns(UserWarning, match="1 torn files .* passed over"):
            assert sorted(stored(tmp_path)) == sorted(ALL[:14])
        assert last.exists() and not (tmp_path / "torn" / f"{last.name}.{n}").exists()
        with pytest.warns(UserWarning, match=r"1 torn files .*moved to torn/") as said, Writer(tmp_path, KEY, rows=7) as writer:
            assert writer.stored == 14 and not last.exists()
            known = read_outcomes(tmp_path, PROBLEMS, SAMPLES)
            for p, s in ALL[:21]:
                if known.codes[p, s] < 0:
                    writer.add(made(p, s))
        assert len(said) == 1 and "\n" not in str(said[0].message)
        assert physical(tmp_path) == ALL[:21] and len(list((tmp_path / "torn").iterdir())) == n + 1


def test_damage_inside_is_an_error_and_never_other_numbers(tmp_path: Path) -> None:
    "Bytes all over the pages: a changed one is noticed when the pages are read, and `check` moves the file aside."
    write(tmp_path, ALL[:40], rows=40)
    file = tmp_path / "part-00000001.parquet"
    whole, expected = file.read_bytes(), read_outcomes(tmp_path, PROBLEMS, SAMPLES)
    noticed, texts = 0, fetch(tmp_path, ALL[:40])
    for at in range(4, len(whole) - 5000 if len(whole) > 6000 else len(whole) // 3, 7):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        file.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = read_outcomes(tmp_path, PROBLEMS, SAMPLES)
            assert np.array_equal(found.codes, expected.codes) and np.array_equal(found.cut, expected.cut)  # in another column
        except SettingsError as e:
            assert "damaged inside" in str(e) and "writer.check(" in str(e)
            noticed += 1
        with contextlib.suppress(SettingsError):
            pd.testing.assert_frame_equal(fetch(tmp_path, ALL[:40]), texts)
    assert noticed > 10
    with pytest.warns(UserWarning, match="moved to torn"):
        assert check(tmp_path) == [file.name]
    assert segments(tmp_path) == [] and check(tmp_path) == []


def test_a_file_that_cannot_be_opened_is_not_called_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ALL[:7])

    def refuse(*args: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(PermissionError):
        Writer(tmp_path, KEY).__enter__()
    assert (tmp_path / "part-00000001.parquet").exists() and not (tmp_path / "torn").exists()


# ── Full disks ─────────────────────────────────────────────────────────────────────────────────────────────────────


def noise(n: int) -> str:
    "Text that cannot be compressed much."
    return np.random.default_rng(n).bytes(1500).hex()


def mount(folder: Path, request: pytest.FixtureRequest) -> None:
    "A real disk of 256 KB, for which root is needed."
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8")
    except OSError as e:
        pytest.skip(f"no small disk to fill: {e}")
    if done.returncode:
        pytest.skip(f"no small disk to fill: this user may not mount one ({done.stderr.strip()})")
    request.addfinalizer(lambda: subprocess.run(["umount", "--lazy", str(folder)], check=True))


def limit(folder: Path, request: pytest.FixtureRequest) -> None:
    "Writes that end as on such a disk: what still fits is in the file, then comes the error."
    patch, usage, write_bytes = request.getfixturevalue("monkeypatch"), shutil.disk_usage, Path.write_bytes

    def free(written: Path | None = None) -> int:
        return 256 * 1024 - sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f != written)

    def limited(self: Path, data: Any) -> int:
        room = free(self) if self.is_relative_to(folder) else len(data)
        write_bytes(self, bytes(data)[:room])
        if room < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)

    patch.setattr(Path, "write_bytes", limited)
    patch.setattr(Path, "write_text", lambda self, text, *args, **more: limited(self, text.encode()))
    patch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=free()))


@pytest.fixture(params=[limit, mount], ids=["patched", "mounted"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    "A disk of 256 KB."
    folder = tmp_path / "disk"
    folder.mkdir()
    request.param(folder, request)
    return folder


def fill(folder: Path, first: int = 0) -> str:
    "Add until the disk is full; what was said."
    with pytest.raises(SettingsError) as e, Writer(folder, KEY, rows=7) as writer:
        for n in range(first, 100_000):
            writer.add(replace(made(n, 0), attempt=noise(n)))
    return str(e.value)


def test_a_full_disk_keeps_what_was_stored_and_says_what_to_do(small_disk: Path) -> None:
    store = small_disk / "store"
    said = fill(store)
    n = len(physical(store))
    assert n > 20 and n % 7 == 0 and hidden(store) == [] and physical(store) == [(i, 0) for i in range(n)]
    assert str(store) in said and "the disk is full" in said and "bytes are needed" in said and "are free" in said
    assert f"7 attempts were not stored and will be drawn again; the {n:,} before them are kept" in said and "Make room" in said
    need, free = (int(said.split(word)[0].split()[-1].replace(",", "")) for word in (" bytes are needed", " are free"))
    assert need > free
    with pytest.raises(SettingsError, match="Nothing was merged or lost"):
        compact(store)
    assert len(physical(store)) == n and hidden(store) == []
    (store / "part-00000001.parquet").unlink()  # room again
    said = fill(store, first=n)
    assert len(physical(store)) >= n - 7 and len(stored(store)) == len(physical(store))


def test_a_disk_that_is_full_from_the_start_is_refused_in_the_same_way(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(b"x" * 300_000)
    with pytest.raises(SettingsError, match=r"the disk is full.*Nothing was drawn"):
        Writer(small_disk / "store", KEY).__enter__()
    (small_disk / "ballast").unlink()
    write(small_disk / "store", ALL[:3])
    assert physical(small_disk / "store") == ALL[:3]


def test_a_limit_on_file_sizes_is_said_like_a_full_disk(tmp_path: Path) -> None:
    write(tmp_path, ALL[:7])

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        with Writer(tmp_path, KEY, rows=50) as writer:
            for n in range(100, 150):
                writer.add(replace(made(n, 0), attempt=noise(n)))

    status, said = child(work)
    assert status == 3 and said.startswith("SettingsError") and "ulimit -f" in said
    assert "50 attempts were not stored" in said and "the 7 before them are kept" in said
    assert physical(tmp_path) == ALL[:7] and hidden(tmp_path) == []

    def merge() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        compact(tmp_path)

    for n in range(3):
        with Writer(tmp_path, KEY) as writer:
            for k in range(10 * n, 10 * n + 10):
                writer.add(replace(made(k, 4), attempt=noise(k)))
    before = stored(tmp_path)
    status, said = child(merge)
    assert status == 3 and said.startswith("SettingsError") and "ulimit -f" in said and "Nothing was merged or lost" in said
    assert stored(tmp_path) == before and hidden(tmp_path) == [] and len(segments(tmp_path)) == 4


def test_a_writer_goes_on_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Who catches the error inside the block loses that buffer and no other."
    write_bytes, full = Path.write_bytes, [True]

    def maybe(self: Path, data: Any) -> int:
        if full[0]:
            raise OSError(122, "Disk quota exceeded")
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", maybe)
    with Writer(tmp_path, KEY, rows=2) as writer:
        writer.add(made(0, 0))
        with pytest.raises(SettingsError, match="quota"):
            writer.add(made(1, 0))
        full[0] = False
        for n in range(2, 7):
            writer.add(made(n, 0))
    assert physical(tmp_path) == [(n, 0) for n in range(2, 7)]


# ── Others ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Writer(tmp_path, KEY) as writer:
        for work in (lambda: write(tmp_path, ALL[:1]), lambda: compact(tmp_path), lambda: check(tmp_path)):
            status, said = child(work)
            assert status == 3 and f"another process (id {os.getpid()}) works in {tmp_path}" in said
        writer.add(made(0, 0))
    assert physical(tmp_path) == [(0, 0)]
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SettingsError, match="only the first"):
        Writer(tmp_path, KEY).__enter__()


def test_readers_work_beside_a_writer(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, rows=2) as writer:
        for n in range(5):
            writer.add(made(n, 0))
        leftover = tmp_path / ".part-00000009.parquet.1.part"
        leftover.write_bytes(b"of the process that writes")
        assert read_outcomes(tmp_path, PROBLEMS, SAMPLES).drawn == count_attempts(tmp_path)["attempts"] == 4
        assert len(stored(tmp_path)) == 4
        assert leftover.exists()
    write(tmp_path, [])
    assert not leftover.exists() and len(stored(tmp_path)) == 5


def test_another_key_is_refused_and_one_that_was_not_known_is_not(tmp_path: Path) -> None:
    write(tmp_path, ALL[:3], key=KEY | {"train": None})
    write(tmp_path, ALL[3:6])  # known by now; the store does not contradict it
    assert len(stored(tmp_path)) == 6
    with pytest.raises(SettingsError, match=r"temperature \(was 1.0, is 0.5\)"):
        write(tmp_path, ALL[6:9], key=KEY | {"settings": {"temperature": 0.5, "top_p": 1.0}})
    assert len(stored(tmp_path)) == 6


def strangers(folder: Path) -> Iterator[tuple[Path, str]]:
    "Files that do not belong here, and what is said."
    write(folder.parent / "other", ALL[:3], key=KEY | {"model": "xyz"})
    shutil.copy(folder.parent / "other/part-00000001.parquet", folder / "part-00000005.parquet")
    yield folder / "part-00000005.parquet", "the model's weights"
    table = pd.DataFrame({"place": [1], "sample": [2]})
    for name, said in (("part-00000006.parquet", "is no segment"), ("part-00000-000.parquet", "did not write")):
        table.to_parquet(folder / name)
        yield folder / name, said
    other = pq.read_table(folder / "part-00000001.parquet").drop_columns(["tokens"])
    pq.write_table(other, folder / "part-00000007.parquet")
    yield folder / "part-00000007.parquet", "has other columns"


def test_foreign_files_are_refused_by_readers_and_writers(tmp_path: Path) -> None:
    folder, met = tmp_path / "store", 0
    write(folder, ALL[:3])
    for file, said in strangers(folder):
        for work in (
            lambda: write(folder, ALL[3:6]),
            lambda: relation(folder),
            lambda: read_outcomes(folder, PROBLEMS, SAMPLES),
            lambda: compact(folder),
        ):
            with pytest.raises(SettingsError, match=said) as e:
                work()
            assert file.name in str(e.value) and "elsewhere" in str(e.value)
        file.unlink()
        met += 1
    assert met == 4 and len(stored(folder)) == 3
    (folder / "identity.json").unlink()
    with pytest.raises(SettingsError, match="lost its identity"):
        segments(folder)


# ── Doubled attempts ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def doubled(tmp_path: Path) -> Path:
    "Segments 1 and 2; 3 and 4 have some of them once more; 5 is a copy of 1; 6 has attempts twice in itself."
    folder = tmp_path / "store"
    write(folder, ALL[:14])
    write(folder, ALL[5:16], rows=6, text="drawn again")
    shutil.copy(folder / "part-00000001.parquet", folder / "part-00000005.parquet")
    with Writer(folder, KEY) as writer:
        for n, text in ((16, "one"), (2, "third"), (14, "third"), (16, "another"), (17, "seven..")):
            writer.add(made(*ALL[n], text))
    assert len(segments(folder)) == 6
    return folder


def winners() -> dict[tuple[int, int], Attempt]:
    "What counts in it."
    texts = {14: "drawn again", 15: "drawn again", 16: "one", 17: "seven.."}
    return {x: made(*x, texts.get(n, "")) for n, x in enumerate(ALL[:18])}


def first_wins() -> dict[tuple[int, int], str]:
    return {x: a.attempt for x, a in winners().items()}


def check_outcomes(folder: Path, doubled: int) -> None:
    known = read_outcomes(folder, PROBLEMS, SAMPLES)
    assert (known.drawn, known.doubled, known.beyond) == (18, doubled, 0)
    for (place, sample), a in winners().items():
        assert ["", *known.errors][known.codes[place, sample]] == a.error and known.cut[place, sample] == (a.finish == "length")


def test_doubled_attempts_count_once_and_the_first_wins(doubled: Path) -> None:
    assert len(physical(doubled)) == 14 + 11 + 7 + 5
    assert stored(doubled) == first_wins()
    check_outcomes(doubled, doubled=19)
    assert count_attempts(doubled)["attempts"] == 18 and len(fetch(doubled, ALL[:18])) == 18
    assert count_attempts(doubled)["pass_rate"] == sum(a.ok for a in winners().values()) / 18
    assert fetch(doubled, [ALL[6], ALL[15]]).attempt.tolist() == [f"answer {ALL[6][0]}/0", "drawn again"]


def test_doubled_rows_are_found_far_inside_a_segment(tmp_path: Path) -> None:
    n = 70_000
    write(tmp_path, [(n - 1, 0), (66_000, 0)], text="first")
    with Writer(tmp_path, KEY, rows=n) as writer:
        for place in range(n):
            writer.add(made(place, 0, "later"))
    for _ in range(2):
        found = relation(tmp_path).aggregate("count(*), count(*) filter (attempt = 'first')").fetchall()
        texts = fetch(tmp_path, [(n - 1, 0), (n - 2, 0), (66_000, 0)]).attempt.tolist()
        assert found == [(n, 2)] and texts == ["first", "later", "first"]
        compact(tmp_path)
    assert len(segments(tmp_path)) == 1 and len(physical(tmp_path)) == n


def test_merging_drops_them(doubled: Path) -> None:
    assert compact(doubled) == 5
    assert len(physical(doubled)) == 18 and stored(doubled) == first_wins()
    check_outcomes(doubled, doubled=0)


# ── Merging ────────────────────────────────────────────────────────────────────────────────────────────────────────


def killed_at_every_step(source: Path, size: int, expected: dict[tuple[int, int], str], groups: int) -> int:
    "Merge copies of a store, kill each at another step, look and go on; how many steps there were."
    for steps in range(1000):
        folder = source.parent / f"step{steps}"
        shutil.copytree(source, folder)
        died = die_at(steps, lambda folder=folder: compact(folder, size))  # type: ignore[misc]
        assert stored(folder) == expected and read_outcomes(folder, PROBLEMS, SAMPLES).drawn == len(expected)
        assert died or len(segments(folder)) == groups
        write(folder, ALL[50:51])
        more = expected | {ALL[50]: made(*ALL[50]).attempt}
        assert hidden(folder) == [] and stored(folder) == more
        compact(folder)
        assert stored(folder) == more and len(segments(folder)) == 1 and len(physical(folder)) == len(more)
        shutil.rmtree(folder)
        if not died:
            return steps
    raise AssertionError("does not end")


def test_merging_killed_between_any_two_steps_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "store", ALL[:42])
    size = sum(s.size for s in segments(tmp_path / "store")[:3])
    expected = {x: made(*x).attempt for x in ALL[:42]}
    assert killed_at_every_step(tmp_path / "store", size, expected, groups=2) >= 16


def test_the_same_where_attempts_are_doubled(doubled: Path) -> None:
    "Whatever the size: several steps could let the wrong one of two attempts win."
    size = sum(s.size for s in segments(doubled)[:3])
    assert killed_at_every_step(doubled, size, first_wins(), groups=1) >= 10


def test_merging_keeps_rows_dictionaries_and_engines(tmp_path: Path) -> None:
    for n, engine in enumerate(("transformers", "vllm")):
        with Writer(tmp_path, KEY, {"engine": engine, "versions": {"x": "1"}}, rows=7) as writer:
            for place, sample in ALL[n * 20 : n * 20 + 20]:
                writer.add(made(place, sample))
    before = relation(tmp_path).order("place, sample").df()
    assert len(segments(tmp_path)) == 6 and compact(tmp_path) == 5 and compact(tmp_path) == 0
    pd.testing.assert_frame_equal(relation(tmp_path).order("place, sample").df(), before)
    by = relation(tmp_path).aggregate("engine, count(*)", "engine").order("engine").fetchall()
    assert [(json.loads(e)["engine"], n) for e, n in by] == [("transformers", 20), ("vllm", 20)]
    assert pq.read_schema(segments(tmp_path)[0].path).equals(SCHEMA)


def test_large_segments_are_left_alone(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, rows=50) as writer:
        for n in range(50):
            writer.add(replace(made(n, 0), attempt=noise(n)))
    large = segments(tmp_path)[0]
    write(tmp_path, ALL[50:64])
    assert compact(tmp_path, size=large.size) == 1
    assert [s.path.name for s in segments(tmp_path)] == ["part-00000001.parquet", "part-00000004.parquet"]


def test_replacing_a_copy_leaves_the_original(tmp_path: Path) -> None:
    "Both have the same id; the original is large enough to be left alone."
    with Writer(tmp_path, KEY) as writer:
        for n, x in enumerate(ALL[:40]):
            writer.add(made(*x, noise(n)))
    shutil.copy(tmp_path / "part-00000001.parquet", tmp_path / "part-00000002.parquet")
    write(tmp_path, ALL[40:42])
    assert segments(tmp_path)[0].size > 2 * segments(tmp_path)[2].size
    assert compact(tmp_path, size=segments(tmp_path)[0].size) == 1
    assert sorted(stored(tmp_path)) == sorted(ALL[:42]) and len(physical(tmp_path)) == 42
    assert [s.path.name for s in segments(tmp_path)] == ["part-00000001.parquet", "part-00000004.parquet"]


def test_a_torn_merged_segment_brings_its_sources_back(tmp_path: Path) -> None:
    write(tmp_path, ALL[:14])
    sources = {f: f.read_bytes() for f in tmp_path.glob("part-*")}
    compact(tmp_path)
    for f, data in sources.items():  # as if it had been killed before they were deleted
        f.write_bytes(data)
    assert len(segments(tmp_path)) == 1
    merged = tmp_path / "part-00000003.parquet"
    merged.write_bytes(merged.read_bytes()[:100])
    with pytest.warns(UserWarning, match="torn"):
        write(tmp_path, [])
    assert len(segments(tmp_path)) == 2 and sorted(stored(tmp_path)) == sorted(ALL[:14])


def test_a_merged_segment_of_another_machine_deletes_nothing_here(tmp_path: Path) -> None:
    "Both mined the same key; names are alike, ids are not."
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, ALL[:14])
    write(there, ALL[14:28])
    compact(there)
    shutil.copy(there / "part-00000003.parquet", here / "part-00000003.parquet")
    write(here, ALL[28:30])
    assert sorted(stored(here)) == sorted(ALL[:30]) and len(physical(here)) == 30


# ── What goes in comes out ─────────────────────────────────────────────────────────────────────────────────────────

AWKWARD = [
    "", " ", "\0", "a\0b\0", "\n\r\n\t", "'; drop table attempts; --", "\ufeff", "\U0001f600 é 漢字 \u202e", "\ufffd",
    "NULL", "nan", "\x7f\x01\x1b[0m", "{}", "\ud7ff\ue000\U0010ffff", "x" * 1_000_000, "漢" * 400_000,
]  # fmt: skip


def test_awkward_texts_come_back(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY) as writer:
        for n, text in enumerate(AWKWARD):
            writer.add(replace(made(n, 0), attempt=text))
    assert fetch(tmp_path, [(n, 0) for n in range(len(AWKWARD))]).attempt.tolist() == AWKWARD
    shutil.copy(tmp_path / "part-00000001.parquet", tmp_path / "part-00000002.parquet")
    assert compact(tmp_path) == 1
    assert fetch(tmp_path, [(n, 0) for n in range(len(AWKWARD))]).attempt.tolist() == AWKWARD


def test_half_a_character_becomes_the_replacement_character(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY) as writer:
        writer.add(replace(made(0, 0), attempt="a\ud800b\udfff"))
    assert fetch(tmp_path, [(0, 0)]).attempt.tolist() == ["a\ufffdb\ufffd"]


@pytest.mark.parametrize(
    "bad",
    [
        {"sample": -1},
        {"sample": 1 << 15},
        {"place": 1 << 31},
        {"tokens": -5},
        {"ok": True},
        {"error": ""},
        {"finish": "\ud800"},
        {"problem_id": "\udfff"},
    ],
    ids=str,
)
def test_what_cannot_be_stored_is_refused_at_once_and_the_buffer_kept(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError), Writer(tmp_path, KEY) as writer:
        writer.add(made(0, 0))
        writer.add(replace(made(1, 0), **bad))
    assert physical(tmp_path) == [(0, 0)]


def test_a_folder_name_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "runs[1] *?'\";--{a,b}"
    write(folder, ALL[:9])
    assert len(stored(folder)) == 9 and fetch(folder, [ALL[3]]).place.tolist() == [3]


def test_an_empty_store(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not there"):
        assert stored(folder) == {} and count_attempts(folder)["attempts"] == 0 and fetch(folder, []).empty
        assert read_outcomes(folder, 3, 2).drawn == 0 and segments(folder) == []
    write(tmp_path, [])
    assert [f.name for f in tmp_path.iterdir() if not f.name.startswith(".")] == ["identity.json"] and compact(tmp_path) == 0


# ── Reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_outcomes(tmp_path: Path) -> None:
    write(tmp_path, ALL)
    known = read_outcomes(tmp_path, PROBLEMS, 3)
    assert known.errors == ["no_answer", "wrong_value"] and known.beyond == 2 * PROBLEMS and known.drawn == 3 * PROBLEMS
    for place, sample in ALL[: 3 * PROBLEMS]:
        a = made(place, sample)
        assert known.codes[place, sample] == (0 if a.ok else known.errors.index(a.error) + 1)
        assert known.cut[place, sample] == (a.finish == "length")
    noted = read_outcomes(tmp_path / "none", PROBLEMS, 3)
    for place, sample in ALL[: 3 * PROBLEMS]:
        noted.note(made(place, sample))
    named = np.array(["", *noted.errors])[noted.codes]
    assert (named == np.array(["", *known.errors])[known.codes]).all() and (noted.cut == known.cut).all()
    with pytest.raises(SettingsError, match="attempt at problem 39, and there are 39"):
        read_outcomes(tmp_path, PROBLEMS - 1, 3)


def test_fetch_keeps_the_order_and_says_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, ALL[:50])
    rng = random.Random(0)
    chosen = [rng.choice(ALL[:50]) for _ in range(200)]  # some of them often
    for asked in (chosen, iter(chosen), pd.DataFrame(chosen, columns=["place", "sample"])):
        rows = fetch(tmp_path, asked)  # type: ignore[arg-type]
        assert list(zip(rows.place, rows["sample"], strict=True)) == chosen
        assert rows.attempt.tolist() == [f"answer {p}/{s}" for p, s in chosen] and list(rows.columns) == SCHEMA.names
    with pytest.raises(SettingsError, match=r"2 of 4 chosen attempts .* sample 4 at problem 39"):
        fetch(tmp_path, [(0, 0), (39, 4), (1, 0), (70_000, 40_000)])


def test_counts_agree_with_pandas(tmp_path: Path) -> None:
    write(tmp_path, ALL[:190])
    rows = pd.DataFrame([{k: getattr(a, k) for k in a.__slots__} for a in (made(*x) for x in ALL[:190])])
    found = count_attempts(tmp_path)
    rates = rows.groupby("place").ok.mean().round(4)
    assert found["problems"] == 40 and found["attempts"] == 190 and found["pass_rate"] == pytest.approx(rows.ok.mean())
    assert found["tokens_mean"] == pytest.approx(rows.tokens.mean())
    assert found["never_solved"] == pytest.approx((rates == 0).mean())
    assert found["cut_off"] == pytest.approx((rows.finish == "length").mean())
    assert found["errors"] == rows.error[~rows.ok].value_counts().sort_index().to_dict()
    assert found["pass_rates"] == rates.value_counts().sort_index().rename(str).to_dict()
    assert json.loads(json.dumps(found)) == found and count_attempts(tmp_path, 1)["attempts"] == 40


def test_queries_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "What does not fit into memory goes to a temporary folder that is gone afterwards."
    (tmp_path / "spill").mkdir()
    monkeypatch.setattr("r3_repro.mining.store.reader.tempfile.gettempdir", lambda: str(tmp_path / "spill"))
    store = tmp_path / "store"
    write(store, ALL)
    before = sorted(f.name for f in store.iterdir())
    with connect(store, memory="60MB") as con:
        texts = "a.attempt || b.attempt || c.attempt"
        con.execute(f"create table big as select {texts} as x from attempts a, attempts b, (from attempts limit 50) c")
        assert con.sql("select count(*) from big").fetchall() == [(200 * 200 * 50,)]
        spilled = [f for f in (tmp_path / "spill").rglob("*") if f.is_file()]
    assert spilled and [f for f in (tmp_path / "spill").rglob("*") if f.is_file()] == []
    assert sorted(f.name for f in store.iterdir()) == before


# ── The buffer ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_buffer_is_bounded_in_rows_bytes_and_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("r3_repro.mining.store.writer.time.monotonic", lambda: now[0])
    with Writer(tmp_path, KEY, rows=10, seconds=60, size=5000) as writer:
        held = []
        for n in range(25):
            writer.add(made(n, 0))
            held.append(len(writer.buffer.rows))
        assert max(held) == 9 and held[-1] == 5
        now[0] = 61.0
        writer.add(made(25, 0))
        assert writer.buffer.rows == [] and writer.stored == 26
        for n in range(26, 40):
            now[0] += 5
            writer.add(replace(made(n, 0), attempt="é" * 1000))
            assert writer.buffer.bytes < 5000 and len(writer.buffer.rows) < 3
    assert len(stored(tmp_path)) == 40


def test_long_answers_take_no_more_memory_than_the_bounds(tmp_path: Path) -> None:
    def work() -> None:
        text = np.random.default_rng(0).bytes(500_000).hex()
        with Writer(tmp_path, KEY, size=8 << 20) as writer:
            for n in range(20):
                writer.add(replace(made(n, 0), attempt=str(n) + text))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for n in range(20, 420):  # 400 MB
                writer.add(replace(made(n, 0), attempt=str(n) + text))
            assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 64 << 20

    def merge() -> None:
        "Twice: many segments of one row group, then one of many."
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert compact(tmp_path, size=1 << 40) > 10
        write(tmp_path, [(1000, 0)])
        assert compact(tmp_path, size=1 << 40) == 1
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 220 << 20

    assert child(work) == (0, "")
    assert len(physical(tmp_path)) == 420
    assert child(merge) == (0, "")
    assert check(tmp_path) == [] and len(segments(tmp_path)) == 1 and len(physical(tmp_path)) == 421


# ── All of it ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
def test_any_history_agrees_with_a_dictionary(tmp_path: Path, seed: int) -> None:
    "Writing, copying files, merging and dying in between, in any order: the first text of an attempt is the one that counts."
    rng, expected = random.Random(seed), dict[tuple[int, int], str]()
    for n in range(25):
        act = rng.choice(["write", "write", "copy", "merge", "die"])
        files = [s.path for s in segments(tmp_path)]
        if act == "write":
            some = rng.sample(ALL, rng.randrange(1, 20))
            write(tmp_path, some, rows=rng.randrange(1, 20), text=f"round {n}")
            expected = {x: f"round {n}" for x in some} | expected
        elif act == "copy" and files:
            shutil.copy(rng.choice(files), _free_name(tmp_path))
        elif act == "merge":
            compact(tmp_path, size=rng.choice([9_000, 20_000, 1 << 20]))
        elif act == "die":
            die_at(rng.randrange(12), lambda: compact(tmp_path, size=1 << 20))
        assert stored(tmp_path) == expected
    known = read_outcomes(tmp_path, PROBLEMS, SAMPLES)
    assert {(int(p), int(s)) for p, s in np.argwhere(known.codes >= 0)} == expected.keys()
