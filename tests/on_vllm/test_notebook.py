"""The page on the vLLM engine, with its cells that need vLLM."""

from pathlib import Path

import nbformat
import papermill
import pytest
from support import REPOSITORY, patience

NOTEBOOK = REPOSITORY / "nbs/engines/vllm.ipynb"


def test_the_page_runs_with_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # a kernel that sees it has no file behind its output, and vLLM wants one
    done = tmp_path / "executed.ipynb"
    papermill.execute_notebook(NOTEBOOK, done, kernel_name="python3", progress_bar=False, execution_timeout=int(patience(300)))
    said = "".join(str(o.get("text", "")) for c in nbformat.read(done, 4).cells for o in c.get("outputs", []))
    assert "prompt tokens were not computed" in said and "left out" not in said
