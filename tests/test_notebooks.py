"""Every notebook runs under nbdev-test, all chapters through the pipeline, and some under papermill from another folder."""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from r3_repro.pipeline import SKIP, check_parameters
from r3_repro.runs import open_run, preflight
from r3_repro.settings import SettingsError, load_profile

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = REPOSITORY / "settings.ini"
NOTEBOOKS = sorted((REPOSITORY / "nbs").rglob("[!.]*.ipynb"))
CHAPTERS = [n for n in NOTEBOOKS if re.match(r"0[1-6]_", n.name)]

pytestmark = pytest.mark.slow


ARMS = ("r3", "random_reward")


def environment(root: Path, **more: str) -> dict[str, str]:
    "Offline, with a run tree of its own, and with the settings that are in it, if any."
    if (own := root / "settings.ini").is_file():
        more["R3_SETTINGS"] = str(own)
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | offline | {"R3_ROOT": str(root), "OMP_WAIT_POLICY": "passive"} | more


def command(name: str, *args: str, cwd: Path, env: dict[str, str], timeout: float = 540) -> subprocess.CompletedProcess:
    program = [str(Path(sys.executable).with_name(name)), *args]
    return subprocess.run(program, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def hashes() -> dict[str, str]:
    return {n.name: hashlib.sha256(n.read_bytes()).hexdigest() for n in NOTEBOOKS}


@pytest.fixture(scope="module", autouse=True)
def sources_stay_as_they_are():
    "Whatever runs here, the notebooks under nbs/ are byte for byte the same afterwards."
    before = hashes()
    yield
    assert hashes() == before


# ── nbdev-test ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nbdev_test_would_see_a_failing_notebook(tmp_path: Path) -> None:
    "A notebook that fails makes nbdev-test fail: its success above says something."
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 + 1 == 3")])
    nbformat.write(notebook, tmp_path / "bad.ipynb")
    done = command("nbdev-test", str(tmp_path / "bad.ipynb"), cwd=REPOSITORY, env=environment(tmp_path))
    assert done.returncode != 0 and "AssertionError" in done.stdout + done.stderr


# ── The pipeline ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def pipeline(root: Path, *args: str, **more: str) -> subprocess.CompletedProcess:
    args = ("-m", "r3_repro.pipeline", "--profile", "smoke", "--root", str(root), *args)
    env = environment(root, **more)
    return subprocess.run([sys.executable, *args], cwd=root, env=env, capture_output=True, text=True, timeout=540)


@pytest.fixture(scope="module")
def reproduced(elsewhere: Path) -> Path:
    "All chapters through the pipeline, from another folder than the repository's, with two arms side by side."
    settings, n = re.subn(r"(?<=\[smoke\]\nbased_on = tiny\n)arms = r3\n", f"arms = {' '.join(ARMS)}\n", SETTINGS.read_text())
    assert n == 1
    (elsewhere / "settings.ini").write_text(settings)
    done = pipeline(elsewhere)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "\nC2  training lifts accuracy" in done.stdout and "everything done" in done.stdout
    assert re.search(r"\[1/\d\] 01_datasets: done in \d+ s", done.stderr)
    lines = re.split(r"[\r\n]", done.stderr)
    together = [line for line in lines if all(f"train {arm}-seed0" in line for arm in ARMS)]
    assert together, "the progress of both trainings did not reach the terminal in one line"
    return elsewhere / "smoke" / "countdown" / "tiny-base2"


def stamps(folder: Path) -> dict[str, int]:
    kept = ("*.safetensors", "*.parquet", "training/*/log.jsonl", "forgetting/*.json", "*manifest.json")
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for k in kept for p in folder.rglob(k)}


def test_a_finished_reproduction_is_recognised(elsewhere: Path, reproduced: Path) -> None:
    executed = sorted(reproduced.glob("notebooks/*.ipynb"))
    before = {f: f.stat().st_mtime_ns for f in executed}
    again = pipeline(elsewhere)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "everything was done already" in again.stdout and "\nC2  training lifts accuracy" in again.stdout
    assert executed and {f: f.stat().st_mtime_ns for f in executed} == before


def test_a_second_run_makes_nothing_anew(reproduced: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The stages that the chapters start, once more: no weights, attempts, episodes or log lines are written again."
    from r3_repro import controls, datasets, episodes, failures, forgetting, train

    for key, value in environment(elsewhere).items():
        monkeypatch.setenv(key, value)
    first = stamps(elsewhere)
    assert {Path(k).name for k in first} >= {"model.safetensors", "failures.parquet", "log.jsonl", "vanilla.json"}
    common = ["--profile", "smoke", "--root", str(elsewhere)]
    evaluated = [(stage, arm) for stage in (episodes, controls) for arm in ("vanilla", "r3")]
    for stage, arm in [(datasets, "r3"), (failures, "r3"), (train, "r3"), *evaluated]:
        stage.main([*common, "--arm", arm])
    forgetting.main(common)
    assert stamps(elsewhere) == first
    run = open_run("smoke", root=str(elsewhere))
    assert train.is_trained(run) and not train.is_trained(replace(run, seed=1))
    with pytest.raises(SettingsError, match="begun with something else"):
        train.is_trained(open_run("smoke", root=str(elsewhere), learning_rate=0.5))


def test_every_chapter_runs_under_nbdev_test(reproduced: Path, elsewhere: Path) -> None:
    "With its examples, which the pipeline passes over, and with what the pipeline has made."
    before = stamps(elsewhere)
    args = ["nbs", "--file-re", "^(0[1-6]_|index|details)", "--n-workers", "0"]
    done = command("nbdev-test", *args, cwd=REPOSITORY, env=environment(elsewhere, OMP_NUM_THREADS="1"))
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert stamps(elsewhere) == before, "what the pipeline had made was made again"


def test_the_pipeline_leaves_every_chapter_executed(reproduced: Path) -> None:
    executed = sorted((reproduced / "notebooks").glob("*.ipynb"))
    assert {n.name[:2] for n in executed} == {"01", "02", "03", "04", "05", "06"}
    for n in executed:
        code = [c for c in nbformat.read(n, 4).cells if c.cell_type == "code" and c.source.strip()]
        run = [c for c in code if SKIP not in c.metadata.get("tags", [])]
        assert all(c.execution_count for c in run) and any(c.outputs for c in run)
        assert len(run) < len(code) and not any(c.outputs for c in code if c not in run), "examples are passed over"


def test_figures_are_shown_as_pictures(reproduced: Path) -> None:
    "A bare figure is text, `<Figure size …>`, unless the notebook was told how to draw one."
    shown = [
        o for n in (reproduced / "notebooks").glob("*.ipynb") for c in nbformat.read(n, 4).cells for o in c.get("outputs", [])
    ]
    data = [o.data for o in shown if "data" in o]
    figures = [d for d in data if "<Figure size" in str(d.get("text/plain", ""))]
    assert figures and all("image/png" in d for d in figures) and sum("image/png" in d for d in data) > 5
    assert not [o for o in shown if "<Figure size" in str(o.get("text", ""))]


def test_every_result_has_its_manifest(reproduced: Path) -> None:
    manifests = [reproduced / "failures/manifest.json", reproduced / "training/r3-seed0/manifest.json"]
    manifests += [*sorted(reproduced.glob("episodes/*.manifest.json")), reproduced.parent / "dataset/manifest.json"]
    manifests += sorted(reproduced.glob("controls/*.manifest.json"))
    assert len(manifests) >= 7
    for m in manifests:
        known = json.loads(m.read_text())
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
        assert str(REPOSITORY) not in m.read_text(), f"{m.name} names the machine"


def test_a_trained_model_carries_a_card_with_its_scores(reproduced: Path) -> None:
    card = ModelCard.load(reproduced / "training/r3-seed0/model/README.md")
    assert card.data.library_name == "transformers" and "two tries, trained minus vanilla" in card.text
    manifest = json.loads((reproduced / "training/r3-seed0/manifest.json").read_text())
    assert manifest["hashes"]["model"] in card.text and str(REPOSITORY) not in card.text


def test_two_arms_were_trained_side_by_side(reproduced: Path) -> None:
    logs = [pd.read_json(reproduced / f"training/{arm}-seed0/log.jsonl", lines=True) for arm in ARMS]
    assert [len(log) for log in logs] == [load_profile("smoke").steps] * 2
    assert {n.name for n in (reproduced / "notebooks").glob("03_*.ipynb")} == {f"03_train-{arm}.ipynb" for arm in ARMS}
    assert {json.loads(m.read_text())["arm"] for m in reproduced.glob("training/*/manifest.json")} == set(ARMS)
    assert {f.stem for f in reproduced.glob("episodes/*.parquet")} == {"vanilla", *(f"{arm}-seed0" for arm in ARMS)}


# ── Plain papermill ────────────────────────────────────────────────────────────────────────────────────────────────


def test_plain_papermill_from_another_folder(reproduced: Path, elsewhere: Path) -> None:
    "As in the README: the notebook finds the repository, the settings and what is stored by itself."
    source = REPOSITORY / "nbs/01_datasets.ipynb"
    before = stamps(elsewhere)
    args = [str(source), "out.ipynb", "-p", "profile", "smoke", "-k", "python3", "--no-progress-bar"]
    done = command("papermill", *args, cwd=elsewhere, env=environment(elsewhere))
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
        (["--model", "nbs/model"], "is there, 'model' in it is not"),
        (["--model", "models/qwen"], "taken for a model of the hub"),
    ],
)
def test_a_wrong_run_is_refused_before_anything_is_written(args: list[str], said: str, tmp_path: Path) -> None:
    done = pipeline(tmp_path, *args)
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# ── A task of one's own ────────────────────────────────────────────────────────────────────────────────────────────


def own_task() -> str:
    "The example of the front page."
    found = [c.source for c in nbformat.read(REPOSITORY / "nbs/index.ipynb", 4).cells if c.source.startswith("# sorting.py")]
    assert len(found) == 1
    return found[0]


def test_the_example_task_goes_through_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The code of the README, saved as a file, mined, trained, evaluated and drawn with nothing else written."
    from r3_repro import datasets, episodes, failures, figures, train

    (tmp_path / "sorting.py").write_text(own_task())
    assert len(own_task().splitlines()) < 60
    monkeypatch.syspath_prepend(str(tmp_path))
    run = open_run("smoke", task="sorting:TASK", root=str(tmp_path))
    preflight(run)
    datasets.prepare(run)
    assert len(failures.mine(run)) == run.profile.max_failures
    assert (train.train(run) / "model.safetensors").is_file()
    for arm in ("vanilla", "r3"):
        assert len(episodes.evaluate(replace(run, arm=arm))) == run.profile.test_size * len(run.profile.modes)
    figures.make(run.model_dir)
    assert run.model_dir == tmp_path / "smoke" / "sorting.TASK" / "tiny-base2"
    assert "task sorting" in (run.model_dir / "tables/verdicts.md").read_text()
