"""An installed wheel: what it carries, and that it works in an empty folder, without a clone.

workflow/test_pipeline.py runs a whole reproduction with it.
"""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from support import CHAPTERS, REPOSITORY, patience

pytestmark = pytest.mark.slow

NEEDED = ["r3_repro", "nbs", "cluster", "results/published", "settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
"What a build reads."


def run(command: list[str], cwd: Path, seconds: float = 120, **more: str) -> subprocess.CompletedProcess:
    "A command without the variables that would lead it to a clone, to settings, or to a network."
    env = {k: v for k, v in os.environ.items() if not k.startswith(("R3_", "PYTHON")) and k != "VIRTUAL_ENV"}
    env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=env | more, capture_output=True, encoding="utf-8", timeout=patience(seconds))


def checked(*args: object, **more: object) -> str:
    done = run(*args, **more)  # type: ignore[arg-type]
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A copy of the working tree: a build takes up what an earlier one left in build/, and leaves files of its own."
    folder = tmp_path_factory.mktemp("source") / "r3_repro"
    for name in NEEDED:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        else:
            shutil.copyfile(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    checked([*pip, "--wheel-dir", str(out), "."], source)
    (built,) = out.glob("r3_repro-*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The folder of programs of a new environment with the wheel, and with the other packages of the running one."
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps", "--no-index"]
    checked([*pip, str(wheel)], folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A path that is added in this way has no .pth files of its own: the clone's editable install is not among the packages.
    others = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n", "utf-8")
    return folder / "bin"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as z:
        return set(z.namelist())


def content(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as z:
        return z.read(name)


# ── What it carries ────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_carries_every_module_and_asset_as_it_is(wheel: Path) -> None:
    package = REPOSITORY / "r3_repro"
    ours = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {p.name for p in ours} >= {"cli.py", "__init__.pyi", "py.typed", "model.safetensors"}
    for file in ours:
        assert content(wheel, f"r3_repro/{file.relative_to(package)}") == file.read_bytes(), file


def test_it_carries_what_is_outside_of_the_package(wheel: Path) -> None:
    published = sorted((REPOSITORY / "results/published").iterdir())
    assert "claims.json" in {p.name for p in published}
    for file in [REPOSITORY / "settings.ini", REPOSITORY / "cluster/chapter.sbatch", *published]:
        assert content(wheel, f"r3_repro/assets/{file.relative_to(REPOSITORY)}") == file.read_bytes()


def test_it_carries_the_chapters_without_outputs(wheel: Path) -> None:
    assert len(CHAPTERS) == 6
    for chapter in CHAPTERS:
        ours, shipped = json.loads(chapter.read_text("utf-8")), json.loads(content(wheel, f"r3_repro/assets/nbs/{chapter.name}"))
        assert [c["source"] for c in shipped["cells"]] == [c["source"] for c in ours["cells"]]
        assert [c["metadata"] for c in shipped["cells"]] == [c["metadata"] for c in ours["cells"]], "tags, parameters among them"
        assert not any(c.get("outputs") or c.get("execution_count") for c in shipped["cells"])


def test_it_carries_nothing_else_and_is_small(wheel: Path) -> None:
    allowed = (
        r"r3_repro/.*\.(py|pyi|typed|yaml|json|jinja|safetensors|ini|ipynb|csv|sbatch|html|css|js)|r3_repro-[^/]*\.dist-info/.*"
    )
    assert [n for n in names(wheel) if not re.fullmatch(allowed, n)] == []
    assert {n for n in names(wheel) if n.endswith(".ipynb")} == {f"r3_repro/assets/nbs/{c.name}" for c in CHAPTERS}
    assert wheel.stat().st_size < 3_000_000, "two thirds of it are the weights of the tiny base"


def test_an_editable_install_copies_nothing(source: Path, tmp_path: Path) -> None:
    before = {p for p in source.rglob("*") if "egg-info" not in str(p)}
    build = f"from setuptools import build_meta; print(build_meta.build_editable({str(tmp_path)!r}))"
    checked([sys.executable, "-c", build], source)
    (editable,) = tmp_path.glob("*.whl")
    assert not any("assets" in n for n in names(editable))
    made = {p for p in source.rglob("*") if "egg-info" not in str(p)} - before
    assert not any("assets" in p.parts for p in made)


# ── In an empty folder ─────────────────────────────────────────────────────────────────────────────────────────────


def test_no_clone_is_involved(programs: Path, empty: Path) -> None:
    show = "import r3_repro, r3_repro.utils.files as p; print(r3_repro.__file__, p.clone_folder(), p.find_home(), sep='\\n')"
    file, clone, home = checked([str(programs / "python"), "-c", show], empty).split("\n")[:3]
    assert Path(file).is_relative_to(programs.parent.resolve()) and clone == "None" and home == str(empty.resolve())


def test_its_commands_answer(programs: Path, empty: Path) -> None:
    r3 = str(programs / "r3-repro")
    assert "reproduce" in checked([r3, "--help"], empty)
    assert "memory of a GPU" in checked([r3, "plan", "--profile", "paper"], empty)
    assert "0.000" in checked([r3, "plan", "--profile", "tiny"], empty), "the tiny base is measured, so it was found"
    submitted = checked([r3, "submit", "--profile", "smoke", "--dry-run"], empty)
    (script,) = {word for word in submitted.split() if word.endswith("chapter.sbatch")}
    assert Path(script).read_bytes() == (REPOSITORY / "cluster/chapter.sbatch").read_bytes()
    assert list(empty.iterdir()) == []


def test_runs_go_to_the_folder_where_one_is(programs: Path, empty: Path) -> None:
    checked(["git", "init", "--quiet"], empty)
    checked(["git", "-c", "user.name=x", "-c", "user.email=x@y", "commit", "--quiet", "--allow-empty", "-m", "x"], empty)
    said = checked([str(programs / "r3-repro"), "datasets", "--profile", "smoke"], empty)
    assert said.startswith("datasets: 64 problems to train on")
    assert {p.name for p in empty.iterdir()} == {".git", "runs"}
    manifest = json.loads((empty / "runs/smoke/countdown/dataset/manifest.json").read_text("utf-8"))
    assert manifest["git_commit"] is None and manifest["git_dirty"] is None, "the commit of another repository"
    assert str(empty.resolve()) not in manifest["command"] and str(programs.parent) not in manifest["command"]


def test_settings_of_ones_own(programs: Path, empty: Path) -> None:
    "In the current folder, in one above it, and by `R3_SETTINGS`, which comes first."
    datasets = [str(programs / "r3-repro"), "datasets", "--profile", "mine"]
    refused = run(datasets, empty)
    shipped = configparser.ConfigParser(inline_comment_prefixes="#")
    shipped.read(REPOSITORY / "settings.ini")
    names = ", ".join(s for s in shipped.sections() if "." not in s)
    assert refused.returncode == 2 and f"has no profile [mine], only {names}" in refused.stderr and "paper, " in names
    (empty / "settings.ini").write_text("[mine]\nbased_on = smoke\ntrain_size = 32\n", "utf-8")
    (empty / "other.ini").write_text("[mine]\nbased_on = smoke\ntrain_size = 40\n[mine.countdown]\nhigh = 11\n", "utf-8")
    (empty / "below").mkdir()
    assert checked(datasets, empty / "below").startswith("datasets: 32 problems")
    assert (empty / "runs/mine/countdown/dataset/manifest.json").is_file() and list((empty / "below").iterdir()) == []
    other = checked([*datasets, "--root", "others"], empty, R3_SETTINGS="other.ini")
    assert other.startswith("datasets: 40 problems")
    stored = json.loads((empty / "others/mine/countdown/dataset/manifest.json").read_text("utf-8"))["profile"]
    assert stored["options"]["high"] == 11 and stored["batch_size"] == 16


def test_a_relative_path_means_the_same_in_a_notebook(programs: Path, empty: Path) -> None:
    "The stage that a chapter starts reads settings and problems from the folder where one is, which is not the home here."
    (empty / "settings.ini").touch()
    below = empty / "below"
    below.mkdir()
    rows = [{"target": 2 * a + b, "nums": [a, 2, b]} for a in range(1, 12) for b in range(1, 11)]
    (below / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    options = "low = 1\nhigh = 100\ntarget_low = 1\ntarget_high = 200\n"
    (below / "own.ini").write_text(
        f"[mine]\nbased_on = smoke\n[mine.countdown]\nsource = rows.jsonl\ntrain_size = 40\ntest_size = 8\n{options}", "utf-8"
    )
    checked([str(programs / "r3-repro"), "chapter", "01_datasets", "--profile", "mine"], below, R3_SETTINGS="own.ini")
    dataset = empty / "runs/mine/countdown/dataset"
    assert json.loads((dataset / "summary.json").read_text("utf-8"))["train"]["problems"] == 40
