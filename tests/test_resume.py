"""Mining and training survive SIGKILL at any moment: nothing lost, nothing doubled, the same result."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from r3_repro.failures import read_attempts
from r3_repro.runs import open_run
from r3_repro.settings import SettingsError

HERE = Path(__file__).parent
KILLS = 5
MINING = ["--set", "train_size=320", "--set", "generation_batch=8", "--set", "attempts_per_problem=3"]
TRAINING = ["--set", "steps=30", "--set", "save_steps=3", "--set", "train_size=64"]


def kill_and_resume(stage: str, root: Path, kills: int, more: list[str]) -> dict:
    "Run tests/kill_and_resume.py; what it printed last."
    command = [sys.executable, str(HERE / "kill_and_resume.py"), stage, str(root), str(kills), "0", *more]
    env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["exit"] == 0, done.stderr[-3000:]
    return said


def test_mining_killed_five_times_draws_the_same_attempts(tmp_path):
    plain = kill_and_resume("failures", tmp_path / "plain", 0, MINING)
    cut = kill_and_resume("failures", tmp_path / "cut", KILLS, MINING)
    assert plain["hits"] == [] and len(cut["hits"]) == KILLS, cut
    stored = []
    for root in ("plain", "cut"):
        folder = tmp_path / root / "smoke/countdown/tiny-base/failures"
        attempts = read_attempts(folder / "attempts")
        assert len(attempts) == 320 * 3 and not attempts.duplicated(["problem_id", "sample"]).any()
        stored.append((attempts, pd.read_parquet(folder / "failures.parquet")))
    assert stored[0][0].equals(stored[1][0]) and stored[0][1].equals(stored[1][1])


def test_training_killed_five_times_ends_with_the_same_weights(tmp_path):
    kill_and_resume("failures", tmp_path / "plain", 0, [])
    shutil.copytree(tmp_path / "plain", tmp_path / "cut")
    plain = kill_and_resume("train", tmp_path / "plain", 0, TRAINING)
    cut = kill_and_resume("train", tmp_path / "cut", KILLS, TRAINING)
    assert plain["hits"] == [] and len(cut["hits"]) == KILLS, cut
    ends = []
    for root in ("plain", "cut"):
        folder = tmp_path / root / "smoke/countdown/tiny-base/training/r3-seed0"
        log = pd.read_json(folder / "log.jsonl", lines=True)
        assert log.step.tolist() == list(range(1, 31))  # no step lost, none twice
        samples = (folder / "samples.jsonl").read_text()
        weights = (folder / "model/model.safetensors").read_bytes()
        ends.append((log.drop(columns=[c for c in log if c.startswith("seconds_")]), samples, weights))
    pd.testing.assert_frame_equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert ends[0][2] == ends[1][2], "the weights of a resumed run differ from those of an uninterrupted one"


def test_other_settings_do_not_resume_somebody_elses_run(tmp_path):
    from r3_repro.train import train

    run = open_run("smoke", root=str(tmp_path))
    run.failures.mkdir(parents=True)
    pd.DataFrame({"problem_id": ["a"], "problem": ["{}"], "attempt": [""]}).to_parquet(run.failures / "failures.parquet")
    run.training.mkdir(parents=True)
    (run.training / "identity.json").write_text(json.dumps({"settings": "others"}))
    with pytest.raises(SettingsError, match="begun with other settings"):
        train(run)


def test_training_without_failures_says_what_to_do(tmp_path):
    from r3_repro.train import train

    with pytest.raises(SettingsError, match="chapter 02"):
        train(open_run("smoke", root=str(tmp_path)))
