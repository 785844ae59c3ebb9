"""Notebooks hold their outputs: those of the committed study, and nothing that differs from run to run."""

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from support import CHAPTERS, NOTEBOOKS, REPOSITORY

sys.path.insert(0, str(REPOSITORY / "docs"))

import run_notebooks

RESULTS = REPOSITORY / "results"
MACHINE = re.compile(r"/(?:tmp|root|home/\w+|Users/\w+|work)/|0x[0-9a-f]{6,}")


def names(path: Path) -> str:
    return str(path.relative_to(REPOSITORY / "nbs"))


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    return [c for c in json.loads(notebook.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]


def outputs(notebook: Path, kind: str) -> list[str]:
    "Stored outputs of one MIME type, joined."
    data = [o.get("data", {}) for c in code_cells(notebook) for o in c["outputs"]]
    return ["".join(d[kind]) for d in data if kind in d]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=names)
def test_outputs_are_stored_and_steady(notebook: Path) -> None:
    "No error, no progress bar or warning, no place of a machine, no count of executions."
    for cell in code_cells(notebook):
        assert cell["execution_count"] is None
        for out in cell["outputs"]:
            assert out["output_type"] != "error" and out.get("name") != "stderr", out
            assert "application/vnd.jupyter.widget-view+json" not in out.get("data", {})
            text = "".join(out.get("text", [])) + "".join(
                "".join(v) for k, v in out.get("data", {}).items() if k.startswith("text/")
            )
            assert not MACHINE.search(text), MACHINE.search(text)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=names)
def test_every_picture_says_what_it_shows(notebook: Path) -> None:
    "In the place where Jupyter keeps it; test_site.py looks at the words."
    shown = [
        o
        for c in run_notebooks.nbformat.read(notebook, 4).cells
        for o in c.get("outputs", [])
        if "image/png" in o.get("data", {})
    ]
    assert all(o.metadata.get("image/png", {}).get("alt") for o in shown), "run `make notebooks` and commit what it changes"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=names)
def test_a_chapter_shows_pictures_and_tables(chapter: Path) -> None:
    assert outputs(chapter, "image/png"), "run `make notebooks` and commit what it changes"
    assert outputs(chapter, "text/markdown") or outputs(chapter, "text/html")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=names)
def test_tables_of_a_chapter_are_those_in_results(chapter: Path) -> None:
    "To the byte: a number shown in a chapter stands in the tables of results/."
    stored = {f.read_text("utf-8").strip() for f in RESULTS.glob("**/tables/*.md")}
    shown = [text.strip() for text in outputs(chapter, "text/markdown") if "| ---" in text]
    assert [text[:200] for text in shown if text not in stored] == [], "run `make notebooks` and commit what it changes"
    assert shown or chapter.stem[:2] in ("01", "02")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=names)
def test_pictures_of_a_chapter_are_those_in_results(chapter: Path) -> None:
    stored = {f.read_bytes() for f in RESULTS.glob("**/figures/*.png")}
    shown = [base64.b64decode(picture) for picture in outputs(chapter, "image/png")]
    assert sum(picture in stored for picture in shown) >= max(1, len(shown) - 1), (
        "run `make notebooks` and commit what it changes"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["02_failures.ipynb", "reporting/tables.ipynb"])
def test_a_second_run_leaves_no_diff(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = REPOSITORY / "nbs" / name
    copy = tmp_path / source.name
    copy.write_bytes(source.read_bytes())
    monkeypatch.setattr(run_notebooks, "HOME", tmp_path)
    for key, value in (run_notebooks.QUIET | {"R3_HOME": str(REPOSITORY)}).items():
        monkeypatch.setenv(key, value)
    run_notebooks.run(copy)
    assert copy.read_bytes() == source.read_bytes(), "run `make notebooks` and commit what it changes"


def test_what_is_volatile_is_not_stored() -> None:
    new = run_notebooks.nbformat.v4
    kept = run_notebooks.stored([
        new.new_output("stream", name="stderr", text="100%|####"),
        new.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "bar"}),
        new.new_output("stream", name="stdout", text=f"see {REPOSITORY}/runs/x and "),
        new.new_output("stream", name="stdout", text="<f at 0x7f0123456789>"),
        new.new_output("execute_result", {"text/plain": "1"}, execution_count=7),
    ])  # fmt: skip
    assert [k.get("text", k.get("data")) for k in kept] == ["see runs/x and <f at 0x…>", {"text/plain": "1"}]
    assert kept[-1].execution_count is None
