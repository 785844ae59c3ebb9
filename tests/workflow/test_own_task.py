"""The example of a task of one's own goes through every stage."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from support import REPOSITORY, command, environment

from r3_repro.data import prepare
from r3_repro.evaluation.episodes import evaluate
from r3_repro.mining.failures import mine
from r3_repro.runs.layout import open_run
from r3_repro.runs.preflight import preflight
from r3_repro.training.train import train
from r3_repro.workflow.reports import make_reports

pytestmark = pytest.mark.slow


def own_task() -> str:
    "The example of the guide."
    cells = nbformat.read(REPOSITORY / "nbs/guides/own_task.ipynb", 4).cells
    found = [c.source for c in cells if c.source.startswith("# sorting.py")]
    assert len(found) == 1
    return found[0]


def test_the_example_task_goes_through_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The code of that page, saved as a file, mined, trained, evaluated and drawn with nothing else written."
    (tmp_path / "sorting.py").write_text(own_task(), "utf-8")
    assert len(own_task().splitlines()) < 60
    monkeypatch.syspath_prepend(str(tmp_path))
    run = open_run("smoke", task="sorting:TASK", root=str(tmp_path))
    preflight(run)
    prepare(run)
    assert len(mine(run)) == run.profile.max_failures
    assert (train(run) / "model.safetensors").is_file()
    for arm in ("vanilla", "r3"):
        assert len(evaluate(replace(run, arm=arm))) == run.profile.test_size * len(run.profile.modes)
    make_reports(run.model_dir)
    assert run.model_dir == tmp_path / "smoke" / "sorting.TASK" / "tiny-a"
    assert "| sorting |" in (run.model_dir / "tables/verdicts.md").read_text("utf-8")


def test_a_notebook_and_its_stage_take_relative_paths(tmp_path: Path, warm: dict[str, str]) -> None:
    "Settings, source, model, run tree and a task of one's own, from the folder in which papermill is started."
    (tmp_path / "sorting.py").write_text(own_task(), "utf-8")
    rows = [{"target": 2 * a + b, "nums": [a, 2, b]} for a in range(1, 12) for b in range(1, 11)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    shutil.copytree(REPOSITORY / "r3_repro/assets/tiny-a", tmp_path / "models" / "own")
    own = "[mine]\nbased_on = smoke\nmodel = models/own\n[mine.countdown]\nsource = rows.jsonl\ntrain_size = 40\ntest_size = 8\n"
    own += "sizes = 3\nlow = 1\nhigh = 100\ntarget_low = 1\ntarget_high = 200\n"
    (tmp_path / "own.ini").write_text(own, "utf-8")
    forked = {k: v for k, v in warm.items() if k.startswith(("WARM_", "PYTHONPATH"))}
    env = environment(tmp_path, R3_SETTINGS="own.ini", R3_ROOT="tree") | forked
    for more in ([], ["-p", "task", "sorting:TASK", "-p", "root", "other"]):
        args = [str(REPOSITORY / "nbs/01_datasets.ipynb"), "out.ipynb", "-p", "profile", "mine", *more]
        done = command("papermill", *args, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
    made = sorted(str(f.relative_to(tmp_path)) for f in tmp_path.glob("*/mine/*/dataset/train.parquet"))
    assert made == [f"{root}/dataset/train.parquet" for root in ("other/mine/sorting.TASK", "tree/mine/countdown")]
