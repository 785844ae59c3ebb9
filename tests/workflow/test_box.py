"""A rented box: container file, SkyPilot task, the copy that a new box goes on from, the entry script with a stand-in for Python.

`make test-box` runs the script with the tiny model. What neither can tell: whether the image builds, and what a cloud does.
hadolint, shellcheck and SkyPilot's schema were run once.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support import REPOSITORY, environment, patience

CLUSTER = REPOSITORY / "cluster"
sys.path.insert(0, str(CLUSTER))
from mirror import mirror  # noqa: E402

# ── Files ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def instructions() -> list[tuple[str, str]]:
    "The container file's instructions and their arguments."
    text = "\n".join(line for line in (CLUSTER / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#"))
    return [tuple(line.split(maxsplit=1)) for line in text.replace("\\\n", " ").splitlines() if line.strip()]  # type: ignore[misc]


def test_the_container_file_copies_what_there_is() -> None:
    sources = [word for name, rest in instructions() if name == "COPY" for word in shlex.split(rest)[:-1]]
    assert len(sources) > 5 and [s for s in sources if not (REPOSITORY / s).exists()] == []
    wanted = re.findall(r'^readme = "(.*)"', (REPOSITORY / "pyproject.toml").read_text("utf-8"), re.M)
    assert set(wanted) <= set(sources), "pip reads it before the rest of the clone is there"
    scripts = [word for name, rest in instructions() if name == "RUN" for word in rest.split() if word.startswith("cluster/")]
    assert scripts and all(os.access(REPOSITORY / s, os.X_OK) for s in scripts)


def test_no_file_names_a_registry() -> None:
    base = next(rest for name, rest in instructions() if name == "ARG").removeprefix("BASE=")
    assert "." not in base.split("/")[0] and ":" in base and dict(instructions())["FROM"] == "${BASE}"
    for file in ("Dockerfile", "install.sh", "sky.yaml", "run_box.sh"):
        assert not re.search(r"https?://|index-url|docker\.io|pypi\.org", (CLUSTER / file).read_text("utf-8")), file


def test_pinned_versions_are_those_of_the_tests_with_vllm() -> None:
    "And without what contradicts vLLM's build for GPUs."
    pattern = re.search(r"--extended-regexp '(.*)' requirements-vllm.txt", (CLUSTER / "install.sh").read_text("utf-8"))
    assert pattern
    kept = [
        line for line in (REPOSITORY / "requirements-vllm.txt").read_text("utf-8").splitlines() if not re.search(pattern[1], line)
    ]
    assert {"trl", "transformers", "accelerate", "datasets"} <= {line.split("==")[0] for line in kept}
    assert not [line for line in kept if line.endswith("+cpu") or not re.fullmatch(r"[\w.-]+==[\w.+]+", line)]


@pytest.mark.parametrize("script", sorted(p.name for p in CLUSTER.glob("*.s[hb]*")))
def test_scripts_parse(script: str) -> None:
    done = subprocess.run(["bash", "-n", str(CLUSTER / script)], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


# Of SkyPilot 0.14's documentation of task files.
TASK = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "volumes", "file_mounts", "setup", "run", "config"}
RESOURCES = {"infra", "accelerators", "cpus", "memory", "instance_type", "use_spot", "disk_size", "disk_tier", "network_tier"}
RESOURCES |= {"max_hourly_cost", "image_id", "ports", "labels", "autostop", "any_of", "ordered", "job_recovery"}


def test_the_sky_task_has_known_fields_and_variables() -> None:
    task = yaml.safe_load((CLUSTER / "sky.yaml").read_text("utf-8"))
    assert set(task) <= TASK and set(task["resources"]) <= RESOURCES
    assert re.fullmatch(r"H100:[1-8]", task["resources"]["accelerators"])
    assert all(set(m) <= {"name", "source", "store", "mode"} and m["mode"] == "MOUNT" for m in task["file_mounts"].values())
    used = set(re.findall(r"\$\{?([A-Z_0-9]+)", yaml.safe_dump([task["run"], task["setup"], task["file_mounts"]])))
    assert used == set(task["envs"]), "each variable is used, and each that is used is there"
    assert task["secrets"] == {"HF_TOKEN": None} and all(isinstance(v, str) for v in task["envs"].values())
    paths = re.findall(r"cluster/[\w.]+", task["run"] + task["setup"])
    assert paths and all(os.access(REPOSITORY / p, os.X_OK) for p in paths)
    assert f"R3_BACK={next(iter(task['file_mounts']))}/" in task["run"]
    for script in (task["run"], task["setup"]):
        assert subprocess.run(["bash", "-n"], input=script, encoding="utf-8").returncode == 0


# ── The copy ───────────────────────────────────────────────────────────────────────────────────────────────────────


def tree(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(file, "utf-8")
    return root


def copied(root: Path) -> set[str]:
    return {str(f.relative_to(root)) for f in root.rglob("*") if f.is_file()}


SAVED = ("t/checkpoints/checkpoint-1/complete", "t/checkpoints/checkpoint-1/model.safetensors")


def test_a_copy_is_complete_and_made_once(tmp_path: Path) -> None:
    a, b = tree(tmp_path / "a", *SAVED, "t/log.jsonl", "t/.lock"), tmp_path / "b"
    assert mirror(a, b) == 3 and copied(b) == {*SAVED, "t/log.jsonl"} and mirror(a, b) == 0
    (a / "t/log.jsonl").write_text("one line more", "utf-8")
    assert mirror(a, b) == 1 and (b / "t/log.jsonl").read_text("utf-8") == "one line more"
    assert (a / SAVED[1]).stat().st_mtime_ns == (b / SAVED[1]).stat().st_mtime_ns


def test_marks_arrive_last_and_owners_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = tree(tmp_path / "a", *SAVED, "t/identity.json", "t/manifest.json", "t/zz", "e/vanilla.manifest.json", "n/done-seed0")
    order: list[str] = []
    real = shutil.copy2
    monkeypatch.setattr(shutil, "copy2", lambda source, to: (order.append(Path(source).name), real(source, to)))
    mirror(a, tmp_path / "b")
    assert order[0] == "identity.json" and set(order[1:3]) == {"model.safetensors", "zz"}
    assert set(order[3:]) == {"complete", "manifest.json", "vanilla.manifest.json", "done-seed0"}


def test_a_mark_that_came_while_copying_waits_for_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, real = tree(tmp_path / "a", "t/log.jsonl"), tmp_path / "b", shutil.copy2
    monkeypatch.setattr(shutil, "copy2", lambda source, to: (tree(a, *SAVED), real(source, to)))
    mirror(a, b)
    assert copied(b) == {"t/log.jsonl"}


def test_a_checkpoint_that_is_being_removed_gets_no_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, real = tree(tmp_path / "a", *SAVED), tmp_path / "b", shutil.copy2

    def copy(source: Path, to: Path) -> None:
        if Path(source).name == "model.safetensors":
            raise FileNotFoundError(source)
        real(source, to)

    monkeypatch.setattr(shutil, "copy2", copy)
    mirror(a, b)
    assert copied(b) == set()


def test_only_old_checkpoints_are_removed(tmp_path: Path) -> None:
    a, b = tree(tmp_path / "a", "t/log.jsonl"), tree(tmp_path / "b", *SAVED, "other/result.csv")
    mirror(a, b)
    assert copied(b) == {"t/log.jsonl", "other/result.csv"}
    b = tree(tmp_path / "c", *SAVED)
    mirror(tmp_path / "empty", b)
    assert copied(b) == set(SAVED), "an empty disk is no reason to empty the copy"


def dated(root: Path, content: str, seconds: int, *files: str) -> Path:
    "Files with a content and a time of change."
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(content, "utf-8")
        os.utime(root / file, (seconds, seconds))
    return root


def test_on_the_way_back_nothing_newer_is_replaced_or_removed(tmp_path: Path) -> None:
    bucket = dated(
        tmp_path / "bucket", "copy", 2000, "t/log.jsonl", "t/old.txt", "t/gone.txt", "t/manifest.json", "d/manifest.json"
    )
    dated(bucket, "copy", 2000, *SAVED)
    disk = dated(tmp_path / "disk", "here", 3000, "t/log.jsonl", "t/checkpoints/checkpoint-2/complete")
    dated(disk, "here", 1000, "t/old.txt")
    assert mirror(bucket, disk, back=True) == 5
    assert {f for f in copied(disk) if (disk / f).read_text("utf-8") == "here"} == {
        "t/log.jsonl",
        "t/checkpoints/checkpoint-2/complete",
    }
    assert copied(disk) == {
        *SAVED,
        "t/checkpoints/checkpoint-2/complete",
        "t/log.jsonl",
        "t/old.txt",
        "t/gone.txt",
        "d/manifest.json",
    }
    assert mirror(bucket, disk, back=True) == 0, "the run has gone on here: that it was finished elsewhere does not come"


def test_what_is_finished_here_stays_as_it_is(tmp_path: Path) -> None:
    bucket = dated(tmp_path / "bucket", "copy", 3000, *SAVED, "t/log.jsonl", "t/manifest.json", "e/a.parquet", "e/b.parquet")
    disk = dated(tmp_path / "disk", "here", 2000, "t/log.jsonl", "t/manifest.json", "e/a.parquet", "e/a.manifest.json")
    assert mirror(bucket, disk, back=True) == 1
    assert copied(disk) == {"t/log.jsonl", "t/manifest.json", "e/a.parquet", "e/a.manifest.json", "e/b.parquet"}
    assert (disk / "t/log.jsonl").read_text("utf-8") == (disk / "e/a.parquet").read_text("utf-8") == "here"


# ── The entry script ───────────────────────────────────────────────────────────────────────────────────────────────

# Answers for the doctor as it is told to, makes the three chapters that are not there yet, notes what it did, and copies as the
# real one does.
STAND_IN = """#!/bin/bash
if [[ $1 == -m ]]; then
  echo "$*, with $(ls "$R3_ROOT" | xargs)" >>"$NOTES"
  if [[ $3 == doctor ]]; then exit "${DOCTOR:-0}"; fi
  for chapter in 1 2 3; do
    if [[ -f $R3_ROOT/$chapter ]]; then continue; fi
    echo "by $$" >"$R3_ROOT/$chapter"
    if [[ $chapter == "${LASTS:-}" ]]; then exec sleep 600; fi
  done
  exit "${CODE:-0}"
fi
exec "$REAL" "$@"
"""


def start(folder: Path, *args: str, **more: str) -> subprocess.Popen:
    env = environment(folder, R3_ROOT=str(folder / "disk"), R3_BACK=str(folder / "bucket"), REAL=sys.executable)
    env |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "NOTES": str(folder / "notes")} | more
    line = [str(CLUSTER / "run_box.sh"), "--profile", "smoke", *args]
    return subprocess.Popen(
        line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", cwd=folder, start_new_session=True
    )


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    program = tmp_path / "python"
    program.write_text(STAND_IN, "utf-8")
    program.chmod(0o755)
    return str(program)


def noted(folder: Path) -> list[str]:
    "What was asked of the stand-in, and the files that its run tree had then."
    return [line.removeprefix("-m r3_repro ") for line in (folder / "notes").read_text("utf-8").splitlines()]


def wait_for(file: Path) -> None:
    ends = time.monotonic() + patience(60)
    while not file.is_file() and time.monotonic() < ends:
        time.sleep(0.02)


def test_the_doctor_comes_first_and_can_end_it(tmp_path: Path, stand_in: str) -> None:
    process = start(tmp_path, PYTHON=stand_in, DOCTOR="1")
    said, _ = process.communicate(timeout=patience(60))
    root = tmp_path / "disk"
    doctor = f"doctor --profile smoke --root {root} --json {root}/doctor.json, with "
    assert process.returncode == 1 and noted(tmp_path) == [doctor], said
    process = start(tmp_path, PYTHON=stand_in, R3_SEEDS="0 1")
    said, _ = process.communicate(timeout=patience(60))
    seeds = [f"reproduce --profile smoke --root {root} --seed {n}, with {there}" for n, there in ((0, ""), (1, "1 2 3"))]
    assert process.returncode == 0 and noted(tmp_path)[1:] == [doctor, *seeds], said
    assert copied(tmp_path / "bucket") == {"1", "2", "3"}
    process = start(tmp_path, PYTHON=stand_in, CODE="3")
    assert process.wait(patience(60)) == 3, "a chapter that fails is not hidden"


def test_a_signal_brings_back_what_is_there(tmp_path: Path, stand_in: str) -> None:
    process = start(tmp_path, PYTHON=stand_in, LASTS="1")
    wait_for(tmp_path / "disk/1")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=patience(60))
    assert process.returncode == 143 and (tmp_path / "bucket/1").is_file(), said


def test_a_box_is_lost_and_a_new_one_goes_on(tmp_path: Path, stand_in: str) -> None:
    "Killed in its second chapter, after a copy; the next box, with an empty disk, gets the copy first and does the rest."
    bucket = tmp_path / "bucket"
    lost = start(tmp_path, PYTHON=stand_in, LASTS="2", R3_BACK_EVERY="0.1")
    wait_for(bucket / "2")
    os.killpg(lost.pid, signal.SIGKILL)
    said, _ = lost.communicate()
    assert copied(bucket) == {"1", "2"}, said
    before = [(bucket / n).read_text("utf-8") for n in "12"]
    shutil.rmtree(tmp_path / "disk")

    process = start(tmp_path, PYTHON=stand_in)
    said, _ = process.communicate(timeout=patience(60))
    assert process.returncode == 0, said
    assert [line.split(", with ")[1] for line in noted(tmp_path)] == ["", "", "1 2", "1 2"]
    assert copied(bucket) == {"1", "2", "3"} and [(bucket / n).read_text("utf-8") for n in "12"] == before


def test_a_second_start_on_the_same_machine_keeps_what_is_newer(tmp_path: Path, stand_in: str) -> None:
    log, saved = "t/log.jsonl", "t/checkpoints/checkpoint-2/complete"
    dated(tmp_path / "bucket", "copy", 2000, log, "t/checkpoints/checkpoint-1/complete")
    disk = dated(tmp_path / "disk", "here", 3000, log, saved)
    process = start(tmp_path, PYTHON=stand_in)
    said, _ = process.communicate(timeout=patience(60))
    assert process.returncode == 0 and (disk / log).read_text("utf-8") == "here" and (disk / saved).is_file(), said
    assert (tmp_path / "bucket" / log).read_text("utf-8") == "here"


def test_a_box_without_a_copy_runs_too(tmp_path: Path, stand_in: str) -> None:
    process = start(tmp_path, PYTHON=stand_in, R3_BACK="")
    said, _ = process.communicate(timeout=patience(60))
    assert process.returncode == 0 and copied(tmp_path / "disk") == {"1", "2", "3"} and not (tmp_path / "bucket").exists(), said
