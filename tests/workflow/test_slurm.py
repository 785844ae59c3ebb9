"""The queue: what is submitted, and what the job script does, with an `sbatch`, `scontrol` and `srun` that only take notes.

The same scripts were tried on a real Slurm; `cluster/local.sh` starts one on a single machine.
"""

import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import patience
from typer.testing import CliRunner

from r3_repro.config import find_home
from r3_repro.runs.distributed import machines
from r3_repro.runs.launch import stage_command
from r3_repro.runs.layout import open_run
from r3_repro.utils.errors import SettingsError
from r3_repro.workflow.cli import app
from r3_repro.workflow.slurm import submit

SCRIPT = find_home() / "cluster" / "chapter.sbatch"
NAMES = ["01_datasets", "02_failures", "03_train", "04_results", "05_reflections", "06_forgetting", "figures"]

# Notes its arguments; sbatch answers with the next id; the Python of a job shows what it was given and lasts as long as asked.
STAND_IN = f"""#!{sys.executable}
import json, os, sys, time
notes, name = os.environ["NOTES"], os.path.basename(sys.argv[0])
kept = {{k: os.environ.get(k) for k in ("NNODES", "MASTER_ADDR", "R3_ON_EACH_MACHINE", "SRUN_CPUS_PER_TASK")}}
with open(notes, "a") as f:
    f.write(json.dumps([name, sys.argv[1:], kept]) + chr(10))
if name == "sbatch":
    if os.environ.get("REFUSE") in sys.argv:
        sys.exit("sbatch: error: invalid account")
    print(100 + len(open(notes).readlines()))
if name == "scontrol" and sys.argv[1] == "show":
    print("gpu7" + chr(10) + "gpu8")
if name == "python":
    time.sleep(float(os.environ.get("LASTS", "0")))
    sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "Where the stand-ins write what they were called with; they come first on the path."
    for name in ("sbatch", "scontrol", "srun", "python"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(STAND_IN, "utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes.jsonl"))
    for key in [k for k in os.environ if k.startswith("SLURM_")]:
        monkeypatch.delenv(key)
    return tmp_path / "notes.jsonl"


def noted(notes: Path, name: str) -> list[tuple[list[str], dict[str, str]]]:
    "Arguments and environment of each call of a stand-in, in order."
    rows = [json.loads(line) for line in notes.read_text("utf-8").splitlines()] if notes.exists() else []
    return [(args, env) for called, args, env in rows if called == name]


# ── What is submitted ──────────────────────────────────────────────────────────────────────────────────────────────


def test_chapters_are_submitted_in_order_and_wait_for_each_other(notes: Path, tmp_path: Path) -> None:
    named = ["submit", "--profile", "smoke", "--root", str(tmp_path / "runs"), "--seeds", "0 1 2"]
    done = CliRunner().invoke(app, [*named, "--", "--partition=short"])
    assert done.exit_code == 0, done.output
    calls = [args for args, _ in noted(notes, "sbatch")]
    assert [c[c.index(str(SCRIPT)) + 2] for c in calls] == NAMES
    ids = [line.split()[0] for line in done.stdout.splitlines()]
    assert ids == [str(101 + i) for i in range(len(NAMES))]
    assert not any("--dependency" in word for word in calls[0])
    for before, call in zip(ids, calls[1:], strict=False):
        assert f"--dependency=afterok:{before}" in call and "--kill-on-invalid-dep=yes" in call
    assert [[w for w in c if w.startswith("--array")] for c in calls] == [[], [], ["--array=0-2"], [], [], [], []]
    assert all("--parsable" in c and "--partition=short" in c and f"--chdir={Path.cwd()}" in c for c in calls)
    assert not any("gpus" in word for c in calls for word in c), "smoke is for processors"
    folder = tmp_path / "runs/smoke/countdown/tiny-a/slurm"
    assert folder.is_dir(), "Slurm fails a job whose log has no folder"
    assert all(f"--output={folder}/%x-%{'A_%a' if 'train' in ' '.join(c) else 'j'}.log" in c for c in calls)


def test_a_refused_job_says_what_is_in_the_queue_already(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSE", "--array=0-1")
    with pytest.raises(SettingsError, match=r"sbatch refused 03_train: .*invalid account; submitted already: 101 102"):
        submit(open_run("smoke", root=str(tmp_path)), [0, 1])


def test_a_dry_run_submits_nothing(notes: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["submit", "--profile", "smoke", "--root", str(tmp_path / "runs"), "--dry-run"])
    assert done.exit_code == 0 and done.stdout.count("sbatch --parsable") == len(NAMES)
    assert not noted(notes, "sbatch") and not (tmp_path / "runs").exists()


def test_relative_paths_of_a_job_begin_where_it_was_submitted(notes: Path, tmp_path: Path) -> None:
    "Run tree, settings, source and model, with the wrapper script too, which is in another folder."
    (tmp_path / "own.ini").write_text("[mine]\nbased_on = smoke\nsource = rows.jsonl\n", "utf-8")
    (tmp_path / "rows.jsonl").write_text('{"target": 7, "nums": [3, 4, 5]}\n', "utf-8")
    shutil.copytree(find_home() / "r3_repro/assets/tiny-a", tmp_path / "models" / "own")
    env = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(find_home()), "R3_SETTINGS": "own.ini"}
    args = ["--profile", "mine", "--model", "models/own", "--root", "tree"]
    done = subprocess.run(
        [str(SCRIPT.with_name("submit.sh")), *args], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    for call, _ in noted(notes, "sbatch"):
        words = dict(itertools.pairwise(call))
        assert f"--chdir={tmp_path}" in call and str(SCRIPT) in call and words["--root"] == str(tmp_path / "tree")
        assert words["--profile"] == "mine" and ("figures" in call or words["--model"] == "models/own")


# ── What a job does ────────────────────────────────────────────────────────────────────────────────────────────────


def job(notes: Path, chapter: str, choices: str, **env: str) -> subprocess.Popen:
    "The job script as Slurm would start it."
    python = str(notes.with_name("bin") / "python")
    command = ["bash", str(SCRIPT), python, chapter, choices, "--profile", "smoke"]
    env = os.environ | {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "gpu[7-8]"} | env
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")


@pytest.mark.parametrize("code", [0, 2])
def test_a_job_ends_as_its_chapter_does(notes: Path, code: int) -> None:
    process = job(notes, "01_datasets", "r3:0", CODE=str(code))
    said, _ = process.communicate(timeout=patience(20))
    assert process.returncode == code and f"01_datasets r3:0: ended with {code}" in said
    assert noted(notes, "python")[0][0] == [
        *("-m", "r3_repro", "chapter", "01_datasets", "--arm", "r3", "--seed", "0", "--profile", "smoke")
    ]


def test_a_task_of_the_array_takes_its_arm_and_seed(notes: Path) -> None:
    for task, (arm, seed) in enumerate([("r3", "0"), ("random_reward", "0"), ("r3", "7")]):
        job(notes, "03_train", "r3:0 random_reward:0 r3:7", SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_JOB_ID="42").communicate()
        args = noted(notes, "python")[-1][0]
        assert (args[args.index("--arm") + 1], args[args.index("--seed") + 1]) == (arm, seed)


def signalled(notes: Path, choices: str, **env: str) -> tuple[subprocess.Popen, str]:
    "A job whose chapter has begun when Slurm says that its time is nearly over, and all that it says."
    process, until = job(notes, "03_train", choices, LASTS="3", **env), time.monotonic() + patience(20)
    while not noted(notes, "python"):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    return process, process.communicate(timeout=patience(20))[0]


@pytest.mark.parametrize("array", [{}, {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "1"}])
def test_a_signal_before_the_limit_requeues_this_task_alone(notes: Path, array: dict[str, str]) -> None:
    "And the job goes on until Slurm ends it; where it is done before, its own result counts."
    process, said = signalled(notes, "r3:0 r3:1", SLURM_RESTART_COUNT="4", **array)
    assert [args for args, _ in noted(notes, "scontrol")] == [["requeue", "40_1" if array else "42"]]
    assert "back into the queue after restart 4" in said and process.returncode == 0


def test_a_job_does_not_restart_for_ever(notes: Path) -> None:
    _, said = signalled(notes, "r3:0", SLURM_RESTART_COUNT="9", R3_MAX_RESTARTS="9")
    assert not noted(notes, "scontrol") and "not queued again" in said


def test_several_machines_start_training_with_srun(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "What the script exports is what the launch line is made of, on the first machine and on each."
    job(notes, "03_train", "r3:0", SLURM_JOB_NUM_NODES="2", SLURM_CPUS_PER_TASK="32").communicate(timeout=patience(20))
    _, env = noted(notes, "python")[0]
    assert (env["NNODES"], env["MASTER_ADDR"], env["SRUN_CPUS_PER_TASK"]) == ("2", "gpu7", "32")
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    command = stage_command("train", open_run("smoke", processes=2, per_device_train_batch_size=8))
    assert command[:4] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert command[command.index("-m") : command.index("-m") + 3] == ["-m", "r3_repro", "launch-training"]
    monkeypatch.setenv("SLURM_NODEID", "1")  # as srun sets it there
    assert (machines().rank, machines().address) == (1, "gpu7")
    job(notes, "03_train", "r3:0", SLURM_JOB_NUM_NODES="1").communicate(timeout=patience(20))


def test_one_machine_needs_no_srun(notes: Path) -> None:
    job(notes, "03_train", "r3:0", SLURM_JOB_NUM_NODES="1").communicate(timeout=patience(20))
    _, env = noted(notes, "python")[0]
    assert env["R3_ON_EACH_MACHINE"] is None and env["NNODES"] is None


def test_the_last_job_draws_everything_again(notes: Path) -> None:
    job(notes, "figures", "r3:0").communicate(timeout=patience(20))
    assert noted(notes, "python")[0][0] == ["-m", "r3_repro", "figures", "--profile", "smoke"]
