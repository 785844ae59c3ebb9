"""Write README.md from nbs/index.ipynb: its prose, its code unless `echo: false`, and what its cells show when they run now.

python docs/readme.py
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HOME = Path(__file__).resolve().parents[1]
NOTE = "<!-- Made from nbs/index.ipynb by docs/readme.py: change the notebook, not this file. -->"


def from_root(
    text: str,  # Markdown of a notebook in nbs/
) -> str:
    "Make relative links start from the repository's root; code is left as it is."

    def turned(m: re.Match[str]) -> str:
        return f"]({posixpath.normpath(posixpath.join('nbs', m[1]))})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    return "".join(p if p.startswith("```") else re.sub(r"\]\((?![a-z]+:|#)([^)\s]+)\)", turned, p) for p in parts)


def output_text(
    output: Any,  # of a cell, as nbformat reads it
) -> str:
    "One output as Markdown; progress bars and warnings are left out."
    data = output.get("data", {})
    if "text/markdown" in data:
        return from_root(data["text/markdown"]).strip()
    text = output.get("text", "") if output.get("name") == "stdout" else data.get("text/plain", "")
    return f"```text\n{text.strip()}\n```" if text.strip() else ""


def readme() -> str:
    "The text of README.md, with the numbers that `results/` holds now."
    notebook = nbformat.read(HOME / "nbs/index.ipynb", 4)
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(HOME / "nbs")}}).execute()
    parts = [NOTE]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(from_root(cell.source))
            continue
        if "#| echo: false" not in cell.source:
            parts.append(f"```python\n{cell.source}\n```")
        parts += [output_text(output) for output in cell.outputs]
    return "\n\n".join(filter(None, parts)) + "\n"


if __name__ == "__main__":
    (HOME / "README.md").write_text(readme(), "utf-8")
    print("README.md written")
