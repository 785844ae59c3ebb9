"""Turn notebooks into pages: directives off, links turned, progress bars and machine noise out.

One rule for links: a notebook links to files of the repository relative to itself, as Jupyter and code hosts expect it.
Here each link is resolved to a path from the repository's root, and the page decides what to make of it.
"""

import ast
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat

HOME = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
DIRECTIVE = re.compile(r"^#\|[ \t]*(\w+)[ \t]*:?[ \t]*(.*)\n?", re.M)

Turn = Callable[[str, str, str], str]  # (text, path from the repository's root, anchor) -> what the link points to


def notebooks(nbs: Path = HOME / "nbs") -> list[Path]:
    "All notebooks, chapters first."
    return sorted(nbs.glob("*.ipynb")) + sorted(nbs.glob("lib/*.ipynb"))


def turn_links(
    text: str,  # Markdown
    folder: str,  # of the notebook, from the repository's root
    turn: Turn,
) -> str:
    "Hand every link to a file of the repository to `turn`; links to elsewhere stay as they are."

    def one(m: re.Match[str]) -> str:
        image, label, target = m.groups()
        if re.match(r"[a-z]+:", target):
            return m[0]
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(folder, path)) if path else ""
        to = turn(label, path, anchor)
        if not image and "files/" in to and not to.endswith(".md"):  # MyST would make a download of it
            shown = re.sub("`([^`]*)`", r"<code>\1</code>", label)
            return f'<a href="{to}">{shown}</a>'
        return f"{image}[{label}]({to})"

    fences = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else LINK.sub(one, part) for part in fences)


def directives(source: str) -> tuple[dict[str, str], str]:
    "nbdev's `#|` directives of a cell, and its source without them."
    found = dict(DIRECTIVE.findall(source))
    return found, DIRECTIVE.sub("", source).strip("\n")


def only_imports(source: str) -> bool:
    "Whether a cell does nothing but import."
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    return bool(body) and all(isinstance(node, ast.Import | ast.ImportFrom) for node in body)


def plain(text: str) -> str:
    "Text without the place of the repository on this machine."
    return text.replace(f"{HOME}/_docs/home/", "").replace(f"{HOME}/", "")


def clean_outputs(outputs: list[Any]) -> list[Any]:
    "Outputs without progress bars, warnings and machine paths."
    kept = []
    for out in outputs:
        data = out.get("data", {})
        if out.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in data:
            continue
        if "text" in out:
            out.text = plain(out.text)
        for kind in ("text/plain", "text/markdown", "text/html"):
            if kind in data:
                data[kind] = plain(data[kind])
        out.pop("execution_count", None)
        kept.append(nbformat.from_dict({**out, "execution_count": None}) if out.output_type == "execute_result" else out)
    return kept


def stage_cell(cell: Any, folder: str, turn: Turn) -> Any | None:
    "One cell as the site shows it; None if it is not shown."
    if cell.cell_type != "code":
        cell.source = turn_links(cell.source, folder, turn)
        cell.metadata = {}
        return cell
    found, source = directives(cell.source)
    if "hide" in found or not source:
        return None
    tags = set(cell.metadata.get("tags", [])) & {"parameters", "injected-parameters"}
    if found.keys() & {"export", "exports", "exporti"}:
        tags.add("exported")
    if found.get("echo") == "false":
        tags.add("remove-input")
    elif only_imports(source):
        tags.add("hide-input")
    cell.source, cell.execution_count, cell.outputs = source, None, clean_outputs(cell.outputs)
    if "exported" in tags:  # the docstring of a constant is no result
        cell.outputs = [o for o in cell.outputs if o.output_type != "execute_result"]
    for out in cell.outputs:
        if "text/markdown" in out.get("data", {}):
            turned = turn_links(out.data["text/markdown"], folder, turn)
            out.data["text/markdown"] = re.sub(r"(\]\([^)#:]+)\.(?:md|ipynb)\b", r"\1.html", turned)  # MyST leaves these alone
    cell.metadata = {"tags": sorted(tags)}
    return cell


def stage(
    notebook: Any,  # as nbformat reads it
    folder: str,  # of the notebook, from the repository's root
    turn: Turn,
) -> Any:
    "A notebook as a page of the site; its `> subtitle` becomes a paragraph of its own kind."
    cells = [c for c in (stage_cell(c, folder, turn) for c in notebook.cells) if c is not None]
    head = cells[0]
    head.source = re.sub(
        r"\A(# .+)\n+((?:> .*\n?)+)",
        lambda m: f"{m[1]}\n\n:::{{container}} subtitle\n{re.sub('^> ', '', m[2], flags=re.M).strip()}\n:::\n\n",
        head.source,
    )
    notebook.cells = cells
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def title_of(notebook: Path) -> tuple[str, str]:
    "Title and subtitle of a notebook."
    source = nbformat.read(notebook, 4).cells[0].source
    found = re.match(r"# (.+)\n+((?:> .*\n?)*)", source + "\n")
    if not found:
        raise ValueError(f"{notebook.name} does not open with '# Title' in a Markdown cell")
    return found[1].strip(), " ".join(found[2].replace("> ", "").split())


def slug(heading: str) -> str:
    "The anchor of a heading as GitHub and MyST make it."
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(notebook: Path) -> set[str]:
    "Anchors of all headings of a notebook."
    cells = [c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "markdown"]
    return {slug(h) for source in cells for h in re.findall(r"^#+ (.+)$", source, re.M)}
