"""Mining and training survive SIGKILL at any moment: nothing lost, nothing doubled, the same result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from support import patience
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from r3_repro.data import load_split, prepare
from r3_repro.evaluation.episodes import episode_files, evaluate
from r3_repro.mining.failures import mine
from r3_repro.mining.store.reader import relation
from r3_repro.runs.layout import open_run
from r3_repro.tasks.countdown import task as countdown
from r3_repro.tasks.countdown.generator import generate
from r3_repro.training.train import train
from r3_repro.utils import files
from r3_repro.utils.errors import SettingsError
from r3_repro.utils.files import locked
from r3_repro.workflow.cli import app

HERE = Path(__file__).parent
MOMENTS = ["start", "middle", "middle", "middle", "end", "save"]
MINING = ["train_size=96", "generation_batch=8", "flush_rows=8", "attempts_per_problem=3"]
MINING = [word for setting in MINING for word in ("--set", setting)]
STEPS = 12
TRAINING = ["--set", f"max_steps={STEPS}", "--set", "save_steps=2"]
TRAINED = "smoke/countdown/tiny-a/training/r3-seed0"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


ENV = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def kill_and_resume(stage: str, root: Path, moments: list[str], more: list[str], env: dict[str, str] | None = None) -> list[dict]:
    "Run kill_and_resume.py; what it printed of each run."
    command = [sys.executable, str(HERE / "kill_and_resume.py"), stage, str(root), ",".join(moments), "0", *more]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=env or ENV, timeout=patience(500))
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {run["exit"] for run in said} == {0}, done.stderr[-3000:]
    return said


def check_moments(said: dict) -> None:
    "Every kill hit a running stage, at the moment that was meant."
    assert [moment for moment, _, _ in said["hits"]] == MOMENTS, said
    by_moment = {moment: (progress, finished) for moment, progress, finished in said["hits"]}
    assert by_moment["start"][0] == 0 and not any(finished for *_, finished in said["hits"]), said
    assert 0 < by_moment["middle"][0] < said["work"] == by_moment["end"][0] == by_moment["save"][0], said


def test_mining_killed_six_times_draws_the_same_attempts(warm, tmp_path):
    to_its_end("mine", tmp_path / "plain", MINING)
    (cut,) = kill_and_resume("mine", tmp_path / "cut", MOMENTS, MINING, warm)
    check_moments(cut)
    stored = []
    for root in ("plain", "cut"):
        folder = tmp_path / root / "smoke/countdown/tiny-a/failures"
        attempts = relation(folder / "attempts").order("place, sample").df()
        assert len(attempts) == 96 * 3 and not attempts.duplicated(["problem_id", "sample"]).any()
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        stored.append((attempts, pd.read_parquet(folder / "failures.parquet"), manifest["hashes"]))
    assert all(a.equals(b) for a, b in zip(stored[0][:2], stored[1][:2], strict=True)) and stored[0][2] == stored[1][2]


def to_its_end(stage: str, root: Path, more: list[str]) -> None:
    "Run a stage in this process, which has imported everything already."
    done = CliRunner().invoke(app, [stage, "--profile", "smoke", "--root", str(root), *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mined")
    to_its_end("mine", root, [])
    return root


@pytest.fixture(scope="module")
def uninterrupted(mined: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain") / "root"
    shutil.copytree(mined, root)
    to_its_end("train", root, TRAINING)
    return root


def check_same_training(plain: Path, cut: Path, arm: str = "r3", steps: int = STEPS) -> None:
    "The same log (but for seconds), samples and weights, byte for byte; no half-written rest."
    ends = []
    for root in (plain, cut):
        folder = (root / TRAINED).with_name(f"{arm}-seed0")
        log = pd.read_json(folder / "log.jsonl", lines=True)
        assert log.step.tolist() == list(range(1, steps + 1))  # no step lost, none twice
        assert (folder / "manifest.json").is_file() and not any(f.name.endswith(".part") for f in folder.iterdir())
        samples, weights = (folder / "samples.jsonl").read_text("utf-8"), (folder / "model/model.safetensors").read_bytes()
        ends.append((log.drop(columns=[c for c in log if c.startswith("seconds_")]), samples, weights))
    pd.testing.assert_frame_equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert ends[0][2] == ends[1][2], "the weights of a resumed run differ from those of an uninterrupted one"


def test_training_killed_six_times_ends_with_the_same_weights(mined, uninterrupted, warm, tmp_path):
    shutil.copytree(mined, tmp_path / "cut")
    check_moments(*kill_and_resume("train", tmp_path / "cut", MOMENTS, TRAINING, warm))
    check_same_training(uninterrupted, tmp_path / "cut")
    check_curves(tmp_path / "cut" / TRAINED)


def check_curves(folder: Path) -> None:
    "Tensorboard has every step of the log once, TRL's numbers and ours."
    curves, log = EventAccumulator(str(folder / "tensorboard")).Reload(), pd.read_json(folder / "log.jsonl", lines=True)
    for ours, theirs in {"retry_success": "r3/retry_success", "retry_tokens": "r3/retry_tokens", "kl": "kl"}.items():
        drawn = {e.step: e.value for e in curves.Scalars(f"train/{theirs}")}
        assert len(curves.Scalars(f"train/{theirs}")) == STEPS and list(drawn) == log.step.tolist()
        assert [*drawn.values()] == pytest.approx(log[ours].tolist(), rel=1e-5)


def test_every_arm_goes_on_as_if_never_killed(uninterrupted, warm, tmp_path):
    "One with refilled batches, whose place in the data is taken up again as well; one with two steps on each batch; a budget."
    for root in ("plain", "cut"):  # the run of r3 is there: plain GRPO generates as many tokens
        shutil.copytree(uninterrupted, tmp_path / root)
    steps, arms = {"all_tokens": 8, "random_reward": 8, "plain_grpo": STEPS}, []
    for arm in steps:
        own = {"all_tokens": ["zero_variance=refill"], "random_reward": ["num_iterations=2", "save_steps=2"]}.get(arm, [])
        words = [word for setting in (f"max_steps={steps[arm]}", "save_steps=1", *own) for word in ("--set", setting)]
        arms.append(["--arm", arm, *words])
        to_its_end("train", tmp_path / "plain", arms[-1])
    all_arms = [*arms[0], "--then", *arms[1], "--then", *arms[2]]
    cut = kill_and_resume("train", tmp_path / "cut", ["middle", "save"], all_arms, warm)
    record = json.loads((tmp_path / "plain" / TRAINED).with_name("plain_grpo-seed0").joinpath("manifest.json").read_text("utf-8"))
    assert abs(record["reflect_tokens"] - record["token_budget"]) <= 0.6 * record["reflect_tokens"] / record["steps"]
    steps["plain_grpo"] = record["steps"]
    for arm, said in zip(steps, cut, strict=True):
        (middle, done, _), (save, saved, _) = said["hits"]
        assert (middle, save) == ("middle", "save") and 0 < done < steps[arm] == saved, said
        check_same_training(tmp_path / "plain", tmp_path / "cut", arm, steps[arm])
    refilled = pd.read_json((tmp_path / "cut" / TRAINED).with_name("all_tokens-seed0") / "log.jsonl", lines=True).refilled
    assert refilled.sum() > 0


LAUNCH = f"""
import sys
from r3_repro.runs.launch import launch
from r3_repro.runs.layout import open_run
if __name__ == "__main__":
    launch("train", open_run("smoke", root=sys.argv[1], max_steps={STEPS}, save_steps=2))
"""


def test_a_killed_launcher_is_started_again_at_once(mined, uninterrupted, warm, tmp_path):
    "The launch as a chapter does it. Only the launcher is killed: for a moment, its trainer still lives."
    root = tmp_path / "cut"
    shutil.copytree(mined, root)
    (tmp_path / "launch.py").write_text(LAUNCH, "utf-8")
    command = [sys.executable, str(tmp_path / "launch.py"), str(root)]
    first = subprocess.Popen(command, env=warm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    log, until = root / TRAINED / "log.jsonl", time.monotonic() + patience(240)
    while not (log.is_file() and log.read_bytes().count(b"\n") >= 4):
        assert first.poll() is None and time.monotonic() < until, first.communicate()[0].decode()[-3000:]
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not (root / TRAINED / "manifest.json").exists()
    again = subprocess.run(command, env=warm, capture_output=True, encoding="utf-8", timeout=patience(300))
    assert again.returncode == 0, again.stderr[-3000:]
    check_same_training(uninterrupted, root)


# ── One process a folder ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["datasets", "mine", "train", "episodes", "controls"])
def test_a_second_process_in_the_same_folder_is_refused(what, mined, tmp_path, monkeypatch):
    root = tmp_path / "root"
    shutil.copytree(mined, root)
    run = open_run("smoke", root=str(root))
    folder, name, stage = {
        "datasets": (run.dataset, "", "datasets"),
        "mine": (run.failures, "", "mine"),
        "train": (run.training, "", "train"),
        "episodes": (run.model_dir / "episodes", "vanilla", "evaluate"),
        "controls": (run.model_dir / "controls", "vanilla", "evaluate"),
    }[what]
    if what in ("datasets", "mine"):
        (folder / "manifest.json").unlink()
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    more = ["--arm", "vanilla"] if stage == "evaluate" else []
    if what == "controls":
        evaluate(replace(run, arm="vanilla"))
    with locked(folder, name):
        done = CliRunner().invoke(app, [stage, "--profile", "smoke", "--root", str(root), *more])
    assert done.exit_code == 2
    assert f"another process (id {os.getpid()}) works in {folder}" in done.stderr


# ── Never something else under the same name ───────────────────────────────────────────────────────────────────────


def test_other_settings_do_not_resume_somebody_elses_run(mined, tmp_path):
    shutil.copytree(mined, tmp_path / "root")
    run = open_run("smoke", root=str(tmp_path / "root"))
    run.training.mkdir(parents=True)
    (run.training / "identity.json").write_text(json.dumps({"settings": "others"}), "utf-8")
    (run.training / "manifest.json").write_text("{}", "utf-8")
    with pytest.raises(SettingsError, match="begun with"):
        train(run)


def test_training_without_failures_says_what_to_do(tmp_path):
    with pytest.raises(SettingsError, match="chapter 02"):
        train(open_run("smoke", root=str(tmp_path)))


SMALL = {"train_size": 40, "test_size": 20, "generation_batch": 20, "max_failures": 0}


def test_a_source_that_grew_cannot_turn_training_problems_into_held_out_ones(tmp_path):
    rows = [json.dumps(p.data) for p in generate(120, sizes=[3], low=1, high=12, target_low=1, target_high=100)]
    source = tmp_path / "own.jsonl"
    source.write_text("\n".join(rows[:70]), "utf-8")
    run = open_run("smoke", root=str(tmp_path / "root"), source=str(source), attempts_per_problem=1, **SMALL)
    kept, held_out = mine(run), load_split(run, "test")
    source.write_text("\n".join(rows), "utf-8")
    vanilla = replace(run, arm="vanilla")
    for stage in (lambda: mine(run), lambda: evaluate(vanilla), lambda: prepare(run)):
        with pytest.raises(SettingsError, match="source of the problems"):
            stage()
    source.unlink()  # what is stored still counts, and is what is used
    assert load_split(run, "test") == held_out
    evaluated = set(evaluate(vanilla).problem_id)
    assert evaluated == {p.id for p in held_out} and not evaluated & set(kept.problem_id)


@pytest.mark.parametrize("change", ["prompt", "reflection_request", "verify"])
def test_a_changed_task_is_noticed_by_every_stage(change, tmp_path, monkeypatch):
    run = open_run("smoke", root=str(tmp_path), attempts_per_problem=2, **SMALL)
    vanilla = replace(run, arm="vanilla")
    mine(run)
    before = evaluate(vanilla)
    stamp = episode_files(vanilla)[0].stat().st_mtime_ns
    assert evaluate(vanilla).equals(before) and episode_files(vanilla)[0].stat().st_mtime_ns == stamp
    usual = countdown.TASK
    changed = {
        "prompt": lambda problem: "Say nothing. " + usual.prompt(problem),
        "reflection_request": "Why?",
        "verify": lambda problem, text, rule="strict": usual.verify(problem, "no"),
    }
    monkeypatch.setattr(countdown, "TASK", replace(usual, **{change: changed[change]}))
    with pytest.raises(SettingsError, match="the task's prompt, request, verifier or tools"):
        mine(run)
    evaluate(vanilla)
    assert episode_files(vanilla)[0].stat().st_mtime_ns != stamp


# ── Mistakes on the command line ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stage", ["datasets", "mine", "train", "evaluate", "forgetting"])
def test_a_stage_says_a_mistake_in_one_line(stage, tmp_path):
    done = CliRunner().invoke(app, [stage, "--root", str(tmp_path), "--set", "top_p=2"])
    assert done.exit_code == 2
    said = done.stderr.splitlines()
    assert len(said) == 1 and said[0].startswith("r3_repro: settings.ini [smoke] top_p = '2'"), said
    assert list(tmp_path.iterdir()) == []
