"""Write README.md from nbs/index.ipynb: execute it, keep prose, shown code and outputs, point links at the repository.

python docs/readme.py            # writes README.md
"""

import sys
import tempfile
from pathlib import Path

import nbformat
import papermill
from stage import HOME, clean_outputs, directives, turn_links

NOTE = "<!-- Made from nbs/index.ipynb by docs/readme.py: change the notebook, not this file. -->"


def link(label: str, path: str, anchor: str) -> str:
    "A link of the README: a path from the repository's root."
    return (path or "") + (f"#{anchor}" if anchor else "")


def shown(outputs: list) -> list[str]:
    "Outputs as Markdown."
    parts = []
    for out in clean_outputs(outputs):
        data = out.get("data", {})
        if "text/markdown" in data:
            parts.append(turn_links(data["text/markdown"], "nbs", link).strip())
        elif text := (out.get("text") or data.get("text/plain", "")).strip():
            parts.append(f"```text\n{text}\n```")
    return parts


def readme() -> str:
    "The text of README.md, with the numbers that `results/` holds now."
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "index.ipynb"
        papermill.execute_notebook(
            str(HOME / "nbs/index.ipynb"), str(out), kernel_name="python3", progress_bar=False, cwd=HOME / "nbs"
        )
        notebook = nbformat.read(out, 4)
    parts = [NOTE]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(turn_links(cell.source, "nbs", link))
        elif cell.cell_type == "code":
            found, source = directives(cell.source)
            if source and found.get("echo") != "false":
                parts.append(f"```python\n{source}\n```")
            parts += shown(cell.outputs)
    return "\n\n".join(p for p in parts if p) + "\n"


if __name__ == "__main__":
    (HOME / "README.md").write_text(readme())
    print("README.md written", file=sys.stderr)
