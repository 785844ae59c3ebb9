"""Execute notebooks in place, so that anyone who opens one on a code host sees its outputs.

    python docs/run_notebooks.py                        # all of them (`make notebooks`)
    python docs/run_notebooks.py nbs/04_results.ipynb   # these

Chapters show the committed study. What differs from run to run is not stored: execution counts, progress bars, warnings,
addresses, temporary folders, and the outputs of cells with the tag `volatile` (times, identifiers drawn at random). A second
run leaves no diff.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean

HOME = Path(__file__).resolve().parents[1]
STUDY = {"profile": "tiny-study", "root": "results"}  # what chapters are executed with: the stored study
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
VOLATILE = [
    (re.compile(re.escape(f"{HOME}/")), ""),
    (re.compile(re.escape(str(HOME))), "…"),
    (re.compile(re.escape(tempfile.gettempdir()) + r"/(?:tmp)?[\w.-]+"), "…"),
    (re.compile(r"\btmp[a-z0-9_]{8}\b"), "…"),
    (re.compile(r"\b0x[0-9a-f]{6,}\b"), "0x…"),
    (re.compile(r"//(?:localhost|127\.0\.0\.1):\d+"), "//…"),
    (re.compile(r"\(id \d+\)"), "(id …)"),
    (re.compile(r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(?:\+00:00)?"), "…"),
]


def directive(cell: Any, name: str) -> bool:
    "Whether a cell has nbdev's directive `#| name`."
    return bool(re.search(rf"^#\|\s*{name}\b", cell.source, re.M))


def prepared(notebook: Any) -> Any:
    "The notebook as it is executed: chapters with the study's parameters, and without cells that are not to be evaluated."
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "\n" + "\n".join(f"{k} = {v!r}" for k, v in STUDY.items())
        if directive(cell, r"eval:\s*false"):
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "skip-execution"]
    return notebook


def steady(value: Any) -> Any:
    "An output's text without what differs from run to run."
    if isinstance(value, str):
        for pattern, to in VOLATILE:
            value = pattern.sub(to, value)
    return value


def stored(outputs: list[Any]) -> list[Any]:
    "The outputs that are kept."
    kept: list[Any] = []
    for out in outputs:
        data = out.get("data", {})
        bar = "application/vnd.jupyter.widget-view+json" in data or "<progress" in data.get("text/html", "")
        if bar or out.get("name") == "stderr":
            continue
        out = nbformat.from_dict({k: steady(v) for k, v in out.items() if k != "transient"})
        out |= {"data": {k: steady(v) for k, v in data.items()}} if data else {}
        out |= {"execution_count": None} if out.output_type == "execute_result" else {}
        if kept and out.output_type == kept[-1].output_type == "stream":  # how a stream is cut is chance
            kept[-1].text += out.text
        else:
            kept.append(out)
    return kept


def run(path: Path) -> str:
    "Execute one notebook and store its outputs; what was done, in a line."
    began, source = time.perf_counter(), nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        executed = prepared(nbformat.read(path, as_version=4))
        how: dict[str, Any] = {"timeout": None, "kernel_name": "python3", "resources": {"metadata": {"path": folder}}}
        NotebookClient(executed, extra_arguments=["--IPKernelApp.log_level=40"], **how).execute()
    for cell, done in zip(source.cells, executed.cells, strict=True):
        if cell.cell_type == "code":
            cell.execution_count = None
            dropped = directive(cell, "exports?") or directive(cell, r"eval:\s*false")  # a docstring is no result
            cell.outputs = [] if dropped or "volatile" in cell.metadata.get("tags", []) else stored(done.outputs)
    nbformat.write(source, path)
    nbdev_clean(str(path))
    return f"{path.relative_to(HOME)}: {time.perf_counter() - began:.0f} s"


def main(argv: list[str] | None = None) -> int:
    "Execute the notebooks that are named; the number of those that fail."
    parser = argparse.ArgumentParser(description="Execute notebooks in place with the committed results.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all under nbs/")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="notebooks at the same time")
    a = parser.parse_args(argv)
    paths = [p.resolve() for p in a.notebooks] or sorted(
        p for p in (HOME / "nbs").rglob("*.ipynb") if not any(x.startswith(".") for x in p.parts)
    )
    os.environ |= QUIET | {"OMP_NUM_THREADS": "1", "R3_HOME": str(HOME)}
    failed = 0
    with ThreadPoolExecutor(a.jobs) as pool:
        for n, (path, job) in enumerate([(p, pool.submit(run, p)) for p in paths], 1):
            try:
                print(f"[{n}/{len(paths)}] {job.result()}", flush=True)
            except Exception as e:
                failed += 1
                print(f"[{n}/{len(paths)}] {path.relative_to(HOME)} FAILED: {str(e)[-2000:]}", file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
