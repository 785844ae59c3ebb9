"""The learning curve: which weights answer which problems, what is read and what is asked, refusals, kills."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support import patience
from typer.testing import CliRunner

from r3_repro.analysis.integrity import mixtures
from r3_repro.config import model_path
from r3_repro.data import load_split
from r3_repro.engines.base import MockEngine
from r3_repro.evaluation import episodes, learning_curve
from r3_repro.evaluation.episodes import EPISODE_COLUMNS, episode_files, evaluate
from r3_repro.evaluation.learning_curve import curve_files, evaluate_curve, stored_curve
from r3_repro.runs.layout import Run, open_run, trained_runs
from r3_repro.runs.preflight import preflight
from r3_repro.utils.errors import SettingsError
from r3_repro.workflow import study
from r3_repro.workflow.cli import app
from r3_repro.workflow.pipeline import own_files
from r3_repro.workflow.study import PUBLISHED_FILES, evaluate_curves

pytestmark = pytest.mark.filterwarnings("ignore:.*held-out problems are among those the base was trained on")

SOLVED = {"step-2": 1, "step-4": 3, "step-6": 2, "model": 4}
"Folder of weights -> how many of the first problems they solve at once, and two more in the retry; vanilla solves none."
LAST = 7
"The last step of the training, which max_steps does not say."
Asked = list[tuple[str, str]]


def engine(asked: Asked, names: list[str], kill_at: int = 0) -> Callable[[Any, str], MockEngine]:
    "Opens engines that know as much as `SOLVED` says, and note weights and first words of what they are asked."

    def open_one(p: Any, path: str) -> MockEngine:
        solved = SOLVED.get(Path(path).name, 0)

        def answer(prompt: list[dict[str, str]], seed: int) -> str:
            name = prompt[0]["content"].split("]")[0][1:]
            asked.append((Path(path).name, name))
            if len(asked) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if len(prompt) == 3:
                return f"Reflection {seed}."
            return "right" if names.index(name) < solved + (2 if len(prompt) > 3 else 0) else "wrong"

        return MockEngine(answer, size=1)

    return open_one


def train_in_name(run: Run, **settings: Any) -> None:
    "Leave what a training leaves: manifest, weights of the last step, and weights that are kept."
    base = Path(model_path(run.profile))
    for folder in (run.training / "model", *map(run.step_weights, run.profile.kept_steps(LAST))):
        shutil.copytree(base, folder)
        (folder / "which").write_text(f"{run.name} {folder.name}", "utf-8")
    profile = run.profile.model_dump(mode="json") | settings
    known = {"stage": "train", "arm": run.arm, "seed": run.seed, "steps": LAST, "profile": profile}
    known |= {"hashes": {"model": learning_curve.model_hash(str(run.training / "model"))}}
    (run.training / "manifest.json").write_text(json.dumps(known), "utf-8")


World = tuple[Run, Asked, list[str]]


@pytest.fixture
def world(right_or_wrong: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    "A run of arm r3 that is trained and evaluated without a model: the run, what engines are asked, and ids of the problems."
    run = open_run("smoke", root=str(tmp_path), curve_steps=2, curve_problems=6, test_size=10, draws=2)
    train_in_name(run)
    names, asked = [p.id for p in load_split(run, "test")], Asked()
    for module in (episodes, learning_curve):
        monkeypatch.setattr(module, "open_engine", engine(asked, names))
    for arm in ("vanilla", "r3"):
        evaluate(replace(run, arm=arm))
    asked.clear()
    return run, asked, names


def changed(run: Run, **settings: Any) -> Run:
    return replace(run, profile=run.profile.model_copy(update=settings))


def test_each_step_answers_the_first_problems_once_and_the_ends_are_read(world: World) -> None:
    run, asked, names = world
    table = evaluate_curve(run)
    assert list(table.columns) == [c for name in EPISODE_COLUMNS for c in (["seed", "step"] if name == "seed" else [name])]
    assert {name for name, _ in asked} == {"step-2", "step-4", "step-6"}, "what is stored was asked again"
    assert set(table.arm) == {"r3"} and set(table.seed) == {0} and set(table["mode"]) == {"sampled"} and set(table.draw) == {0}
    right, two = table.attempt_ok, table.attempt_ok | table.retry_ok.fillna(False)
    assert right.groupby(table.step).sum().to_dict() == {0: 0, 2: 1, 4: 3, 6: 2, LAST: 4}
    assert two.groupby(table.step).sum().to_dict() == {0: 2, 2: 3, 4: 5, 6: 4, LAST: 6}
    assert all(rows.problem_id.tolist() == names[:6] for _, rows in table.groupby("step"))
    for step, arm in ((0, "vanilla"), (LAST, "r3")):
        stored = pd.read_parquet(episode_files(replace(run, arm=arm))[0])
        mine = stored[(stored["mode"] == "sampled") & (stored.draw == 0) & stored.problem_id.isin(names[:6])]
        both = [t.drop(columns=["arm", "seed", "step"], errors="ignore") for t in (table[table.step == step], mine)]
        pd.testing.assert_frame_equal(*(t.reset_index(drop=True) for t in both))


def test_the_same_seeds_at_every_step(world: World) -> None:
    "A problem that fails at two steps gets the same seed for its reflection: curves differ by their weights alone."
    run, _, names = world
    said = evaluate_curve(run).set_index(["step", "problem_id"]).reflection
    assert said[0, names[5]] == said[2, names[5]] == said[LAST, names[5]] != said[2, names[4]]


def test_the_manifest_names_weights_problems_and_protocol(world: World) -> None:
    run, _, _ = world
    evaluate_curve(run)
    manifest = json.loads(curve_files(run)[1].read_text("utf-8"))
    assert (manifest["stage"], manifest["steps"], manifest["problems"]) == ("learning_curve", [0, 2, 4, 6, LAST], 6)
    hashes = manifest["hashes"]
    weights = [hashes[f"step {k}"] for k in (0, 2, 4, 6)] + [hashes["model"]]
    assert len(set(weights)) == 5 and {"task", "protocol", "test", "problems", "learning_curve"} <= hashes.keys()
    assert mixtures(run.model_dir) == []
    table = curve_files(run)[0]
    pd.read_parquet(table).iloc[1:].to_parquet(table)
    assert mixtures(run.model_dir) == ["learning_curve/r3-seed0.parquet is not the table of its manifest"]


def test_what_is_finished_is_only_read_and_something_else_is_made_anew(world: World) -> None:
    run, asked, _ = world
    table, stamp = evaluate_curve(run), curve_files(run)[0].stat().st_mtime_ns
    asked.clear()
    assert evaluate_curve(run).equals(table) and not asked and curve_files(run)[0].stat().st_mtime_ns == stamp
    assert evaluate_curve(changed(run, curve_problems=5)).problem_id.nunique() == 5 and asked
    asked.clear()
    (run.step_weights(4) / "which").write_text("trained again", "utf-8")
    evaluate_curve(changed(run, curve_problems=5))
    assert {name for name, _ in asked} == {"step-2", "step-4", "step-6"}
    everything = changed(run, curve_problems=0)
    assert evaluate_curve(everything).problem_id.nunique() == 10


def test_without_the_mode_sampled_it_is_the_first_one(world: World) -> None:
    run, _, _ = world
    greedy = changed(run, modes=("greedy",), draws=1)
    for arm in ("vanilla", "r3"):
        evaluate(replace(greedy, arm=arm))
    assert set(evaluate_curve(greedy)["mode"]) == {"greedy"}


# ── Refusals ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_weights_that_were_not_kept_are_named(world: World, capsys: Any) -> None:
    run, _, _ = world
    shutil.rmtree(run.training)
    train_in_name(changed(run, curve_steps=0))
    with pytest.raises(SettingsError, match=r"r3-seed0 has no weights of steps 2, 4, 6 .* curve_steps is 2, and was 0 when"):
        evaluate_curve(run)
    evaluate_curves(run)
    assert "r3-seed0 has no weights of steps 2, 4, 6" in capsys.readouterr().out
    with pytest.raises(SettingsError, match=r"r3-seed0 has no weights for a learning curve .* curve_steps is 0"):
        evaluate_curve(changed(run, curve_steps=0))


@pytest.mark.parametrize(("arm", "seed", "why"), [("vanilla", 0, "name a trained arm"), ("r3", 1, "trained to their end")])
def test_only_a_finished_training_has_a_curve(arm: str, seed: int, why: str, world: World) -> None:
    with pytest.raises(SettingsError, match=why):
        evaluate_curve(replace(world[0], arm=arm, seed=seed))


@pytest.mark.parametrize("arm", ["vanilla", "r3"])
def test_without_its_episodes_nothing_is_asked(arm: str, world: World) -> None:
    run, asked, _ = world
    episode_files(replace(run, arm=arm))[1].unlink()
    with pytest.raises(SettingsError, match=f"evaluate first .*--arm {arm}"):
        evaluate_curve(run)
    assert not asked


def test_a_server_is_not_asked_for_kept_weights(world: World) -> None:
    run, _, _ = world
    with pytest.raises(SettingsError, match="engine = server asks for"):
        evaluate_curve(changed(run, engine="server", servers=("http://somewhere:8000/v1",)))


# ── Kills ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def killed_at(run: Run, answer_number: int, names: list[str]) -> int:
    "Make the curve in a process of its own that is killed at its n-th answer; its exit code."

    def work() -> None:
        learning_curve.open_engine = engine(Asked(), names, answer_number)
        evaluate_curve(run)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(patience(60))
    return process.exitcode


def test_killed_again_and_again_it_ends_with_the_same_table(world: World) -> None:
    "A step that is finished is not asked again, and no rest is left."
    run, asked, names = world
    expected, (table_file, manifest_file) = evaluate_curve(run), curve_files(run)
    made, each = table_file.read_bytes(), pd.Series([name for name, _ in asked]).value_counts()
    table_file.unlink()
    manifest_file.unlink()
    for at, done in ((2, 2), (each["step-2"] + 1, 3), (1, 3), (each["step-4"] + 2, 4)):
        assert killed_at(run, at, names) == -signal.SIGKILL
        assert len(list(table_file.parent.glob(".r3-seed0-*/*.parquet"))) == done and not table_file.exists()
    asked.clear()
    assert evaluate_curve(run).equals(expected) and table_file.read_bytes() == made
    assert {name for name, _ in asked} == {"step-6"} and not list(table_file.parent.glob(".r3-seed0-*"))


# ── In a study ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_study_makes_each_curve_once(world: World, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run, _, _ = world
    launched: list[tuple[str, str]] = []

    def in_place(stage: str, run: Run, *more: str, **env: str) -> str:
        launched.append((stage, run.name))
        preflight(run, stage)
        return learning_curve.curve_summary_line(evaluate_curve(run))

    monkeypatch.setattr(study, "run_stage", in_place)
    for _ in range(2):
        evaluate_curves(run)
    assert launched == [("curve", "r3-seed0")]
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and first.startswith(
        "learning curve of r3 (seed 0), right with two tries: step 0 33.3%, step 2 50.0%, "
    )
    files = {f.relative_to(run.task_dir) for pattern in PUBLISHED_FILES for f in run.task_dir.glob(pattern)}
    assert {f.relative_to(run.task_dir) for f in curve_files(run)} <= files
    assert not [f for f in files if "curve" in f.parts], "weights are not published"
    assert set(curve_files(run)) <= set(own_files(run)) and [r.name for r in trained_runs(run)] == ["r3-seed0"]


def test_as_a_command(world: World) -> None:
    run, asked, _ = world
    sets = ("curve_steps=2", "curve_problems=6", "test_size=10", "draws=2")
    words = ["--root", str(run.root), *(word for each in sets for word in ("--set", each))]
    done = CliRunner().invoke(app, ["curve", *words], catch_exceptions=False)
    assert done.exit_code == 0 and "step 7 100.0%" in done.output and asked
    assert stored_curve(run, learning_curve.curve_identity(run)) is not None
    done = CliRunner().invoke(app, ["curve", *words, "--arm", "vanilla"])
    assert done.exit_code == 2 and "name a trained arm" in done.stderr
