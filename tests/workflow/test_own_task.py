"""The example of a task of one's own goes through every stage."""

from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from support import REPOSITORY

from r3_repro.data import prepare
from r3_repro.evaluation.episodes import evaluate
from r3_repro.mining.failures import mine
from r3_repro.runs.layout import open_run
from r3_repro.runs.preflight import preflight
from r3_repro.training.train import train
from r3_repro.workflow.study import make_reports

pytestmark = pytest.mark.slow


def own_task() -> str:
    "The example of the page on tasks."
    cells = nbformat.read(REPOSITORY / "nbs/tasks/base.ipynb", 4).cells
    found = [c.source for c in cells if c.source.startswith("# sorting.py")]
    assert len(found) == 1
    return found[0]


def test_the_example_task_goes_through_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The code of that page, saved as a file, mined, trained, evaluated and drawn with nothing else written."
    (tmp_path / "sorting.py").write_text(own_task())
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
    assert run.model_dir == tmp_path / "smoke" / "sorting.TASK" / "tiny-base2"
    assert "task sorting" in (run.model_dir / "tables/verdicts.md").read_text()
