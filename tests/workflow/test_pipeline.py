"""All chapters through the pipeline of an installed wheel, outside of the clone, and some under papermill from another folder."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from support import CHAPTERS, NOTEBOOKS, REPOSITORY, command, environment, patience, warm_python
from test_wheel import programs, run, source, wheel  # noqa: F401
from typer.testing import CliRunner

from r3_repro.config import load_profile
from r3_repro.runs.layout import open_run
from r3_repro.training.train import is_trained
from r3_repro.utils.errors import ERROR_PREFIX, SettingsError
from r3_repro.workflow.cli import app
from r3_repro.workflow.pipeline import check_parameters

SETTINGS = REPOSITORY / "settings.ini"

pytestmark = pytest.mark.slow


ARMS = ("r3", "random_reward")


def hashes() -> dict[str, str]:
    return {n.name: hashlib.sha256(n.read_bytes()).hexdigest() for n in NOTEBOOKS}


@pytest.fixture(scope="module", autouse=True)
def sources_stay_as_they_are():
    "Whatever runs here, the notebooks under nbs/ are byte for byte the same afterwards."
    before = hashes()
    yield
    assert hashes() == before


# ── The pipeline ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def pipeline(root: Path, *args: str, **more: str) -> subprocess.CompletedProcess:
    args = ("-m", "r3_repro", "reproduce", "--profile", "smoke", "--root", str(root), *args)
    env = environment(root, **more)
    return subprocess.run(
        [sys.executable, *args], cwd=root, env=env, capture_output=True, encoding="utf-8", timeout=patience(540)
    )


@pytest.fixture(scope="module")
def reproduced(elsewhere: Path, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    "All chapters through the pipeline of the wheel, in a folder with nothing but settings.ini, with two arms side by side."
    settings, n = re.subn(
        r"(?<=\[smoke\]\nbased_on = tiny\n)arms = r3\n", f"arms = {' '.join(ARMS)}\n", SETTINGS.read_text("utf-8")
    )
    assert n == 1
    (elsewhere / "settings.ini").write_text(settings, "utf-8")
    with warm_python(tmp_path_factory.mktemp("warm"), str(programs / "python")) as env:
        warm = {k: v for k, v in env.items() if k.startswith(("WARM_", "PYTHONPATH"))}
        done = run([str(programs / "r3-repro"), "reproduce", "--profile", "smoke"], elsewhere, seconds=540, **warm)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "\nC2  training helps" in done.stdout and "everything done" in done.stdout
    assert sorted(p.name for p in elsewhere.iterdir()) == ["runs", "settings.ini"]
    assert re.search(r"\[1/\d\] 01_datasets: done in \d+ s", done.stderr)
    lines = re.split(r"[\r\n]", done.stderr)
    together = [line for line in lines if all(f"train {arm}-seed0" in line for arm in ARMS)]
    assert together, "the progress of both trainings did not reach the terminal in one line"
    return elsewhere / "runs" / "smoke" / "countdown" / "tiny-a"


def stamps(folder: Path) -> dict[str, int]:
    kept = ("*.safetensors", "*.parquet", "training/*/log.jsonl", "forgetting/*.json", "*manifest.json")
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for k in kept for p in folder.rglob(k)}


def test_a_finished_reproduction_is_recognised(elsewhere: Path, reproduced: Path) -> None:
    "By the clone too: what it rests on is the same there."
    executed = sorted(reproduced.glob("notebooks/*.ipynb"))
    before = {f: f.stat().st_mtime_ns for f in executed}
    again = pipeline(elsewhere / "runs", R3_SETTINGS=str(elsewhere / "settings.ini"))
    assert again.returncode == 0, again.stderr[-3000:]
    assert "everything was done already" in again.stdout and "\nC2  training helps" in again.stdout
    assert executed and {f: f.stat().st_mtime_ns for f in executed} == before


def test_a_second_run_makes_nothing_anew(reproduced: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The stages that the chapters start, once more: no weights, attempts, episodes or log lines are written again."
    for key, value in environment(elsewhere, R3_ROOT=str(elsewhere / "runs")).items():
        monkeypatch.setenv(key, value)
    first = stamps(elsewhere)
    assert {Path(k).name for k in first} >= {"model.safetensors", "failures.parquet", "log.jsonl", "vanilla.json"}
    stages = [
        ("datasets", "r3"),
        ("mine", "r3"),
        ("train", "r3"),
        ("evaluate", "vanilla"),
        ("evaluate", "r3"),
        ("forgetting", ""),
    ]
    for stage, arm in stages:
        named = [stage, "--profile", "smoke", "--root", str(elsewhere / "runs"), *(("--arm", arm) if arm else ())]
        done = CliRunner().invoke(app, named)
        assert done.exit_code == 0, (stage, done.output)
    assert stamps(elsewhere) == first
    run = open_run("smoke", root=str(elsewhere / "runs"))
    assert is_trained(run) and not is_trained(replace(run, seed=1))
    with pytest.raises(SettingsError, match="begun with something else"):
        is_trained(open_run("smoke", root=str(elsewhere / "runs"), learning_rate=0.5))


def test_the_pipeline_leaves_every_chapter_executed(reproduced: Path) -> None:
    executed = sorted((reproduced / "notebooks").glob("*.ipynb"))
    assert {n.name[:2] for n in executed} == {"01", "02", "03", "04", "05", "06"}
    for n in executed:
        code = [c for c in nbformat.read(n, 4).cells if c.cell_type == "code" and c.source.strip()]
        assert all(c.execution_count for c in code) and any(c.outputs for c in code)


def test_figures_are_shown_as_pictures(reproduced: Path) -> None:
    "A bare figure is text, `<Figure size …>`, unless the notebook was told how to draw one."
    shown = [
        o for n in (reproduced / "notebooks").glob("*.ipynb") for c in nbformat.read(n, 4).cells for o in c.get("outputs", [])
    ]
    data = [o.data for o in shown if "data" in o]
    figures = [d for d in data if "<Figure size" in str(d.get("text/plain", ""))]
    assert figures and all("image/png" in d for d in figures) and sum("image/png" in d for d in data) > 5
    assert not [o for o in shown if "<Figure size" in str(o.get("text", ""))]


def test_every_result_has_its_manifest(reproduced: Path, programs: Path) -> None:  # noqa: F811
    manifests = [reproduced / "failures/manifest.json", reproduced / "training/r3-seed0/manifest.json"]
    manifests += [*sorted(reproduced.glob("episodes/*.manifest.json")), reproduced.parent / "dataset/manifest.json"]
    manifests += sorted(reproduced.glob("controls/*.manifest.json"))
    assert len(manifests) >= 7
    for m in manifests:
        known = json.loads(m.read_text("utf-8"))
        for key in (
            "command",
            "profile",
            "git_commit",
            "git_dirty",
            "versions",
            "hardware",
            "seed",
            "hashes",
            "seconds",
        ):
            assert key in known, (m, key)
        assert str(REPOSITORY) not in m.read_text("utf-8") and str(programs.parent) not in m.read_text("utf-8"), (
            f"{m.name} names the machine"
        )


def test_a_trained_model_carries_a_card_with_its_scores(reproduced: Path) -> None:
    card = ModelCard.load(reproduced / "training/r3-seed0/model/README.md")
    assert card.data.library_name == "transformers" and "two tries, trained minus vanilla" in card.text
    manifest = json.loads((reproduced / "training/r3-seed0/manifest.json").read_text("utf-8"))
    assert manifest["hashes"]["model"] in card.text and str(REPOSITORY) not in card.text


def test_two_arms_were_trained_side_by_side(reproduced: Path) -> None:
    logs = [pd.read_json(reproduced / f"training/{arm}-seed0/log.jsonl", lines=True) for arm in ARMS]
    assert [len(log) for log in logs] == [load_profile("smoke").max_steps] * 2
    assert {n.name for n in (reproduced / "notebooks").glob("03_*.ipynb")} == {f"03_train-{arm}.ipynb" for arm in ARMS}
    assert {json.loads(m.read_text("utf-8"))["arm"] for m in reproduced.glob("training/*/manifest.json")} == set(ARMS)
    assert {f.stem for f in reproduced.glob("episodes/*.parquet")} == {"vanilla", *(f"{arm}-seed0" for arm in ARMS)}


# ── Plain papermill ────────────────────────────────────────────────────────────────────────────────────────────────


def test_plain_papermill_from_another_folder(reproduced: Path, elsewhere: Path) -> None:
    "As in the README: the notebook finds the repository, the settings and what is stored by itself."
    chapter = REPOSITORY / "nbs/01_datasets.ipynb"
    before = stamps(elsewhere)
    args = [str(chapter), "out.ipynb", "-p", "profile", "smoke", "-k", "python3", "--no-progress-bar"]
    done = command("papermill", *args, cwd=elsewhere, env=environment(elsewhere, R3_ROOT=str(elsewhere / "runs")))
    assert done.returncode == 0, done.stderr[-6000:]
    out = nbformat.read(elsewhere / "out.ipynb", 4)
    assert any("injected-parameters" in c.metadata.get("tags", []) for c in out.cells)
    assert stamps(elsewhere) == before, "what the pipeline had made was made again"


# ── Mistakes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.stem)
def test_a_mistyped_parameter_is_an_error(chapter: Path) -> None:
    check_parameters(chapter, dict.fromkeys(("profile", "task", "model", "arm", "seed", "root"), ""))
    with pytest.raises(SettingsError, match="profil"):
        check_parameters(chapter, {"profil": "paper"})


def test_a_notebook_without_parameters_takes_none() -> None:
    with pytest.raises(SettingsError, match="parameters"):
        check_parameters(REPOSITORY / "nbs" / "index.ipynb", {"profile": "tiny"})


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--profile", "tinny"], "did you mean [tiny]"),
        (["--task", "cuntdown"], "unknown task"),
        (["--model", "no/such/model"], "no such folder"),
        (["--model", "nbs/model"], "exists, 'model' in it does not"),
        (["--model", "nobody/qwen"], "taken for a model of the hub"),
    ],
)
def test_a_wrong_run_is_refused_before_anything_is_written(args: list[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["reproduce", "--profile", "smoke", "--root", str(tmp_path), *args])
    assert done.exit_code == 2 and said in done.stderr and all(s.startswith(ERROR_PREFIX) for s in done.stderr.splitlines())
    assert list(tmp_path.iterdir()) == []
