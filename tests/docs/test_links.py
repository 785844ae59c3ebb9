"""Every link of notebooks, README and the like leads to a file that is there, and to a heading that it has, by the sources alone.

test_site.py follows the links of the built site, which takes most of a minute.
"""

import json
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from support import NOTEBOOKS, REPOSITORY

sys.path.insert(0, str(REPOSITORY / "docs"))

from r3_site import anchor

PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
MARKDOWN = MarkdownIt("commonmark").enable("table")


def texts(page: Path) -> list[str]:
    "The Markdown of a page: a file, or the cells and stored outputs of a notebook."
    if page.suffix != ".ipynb":
        return [page.read_text("utf-8")]
    cells = json.loads(page.read_text("utf-8"))["cells"]
    shown = [o["data"]["text/markdown"] for c in cells for o in c.get("outputs", []) if "text/markdown" in o.get("data", {})]
    return ["".join(text) for text in [c["source"] for c in cells if c["cell_type"] == "markdown"] + shown]


def links(text: str) -> Iterator[str]:
    "Where the links and pictures of a Markdown text lead; code is no link."
    for token in MARKDOWN.parse(text):
        for part in token.children or []:
            yield from (str(v) for k, v in part.attrs.items() if k in ("href", "src"))


def title(heading: Token) -> str:
    "The text of a heading, without its marks, as the site reads it."
    return "".join(part.content for part in heading.children or [] if part.type in ("text", "code_inline"))


@cache
def anchors(page: Path) -> set[str]:
    "The anchors of a page's headings, as Jupyter and the site make them (docs/conf.py: four levels)."
    tokens = [MARKDOWN.parse(text) for text in texts(page)]
    return {
        anchor(title(inline))
        for cell in tokens
        for mark, inline in pairwise(cell)
        if mark.type == "heading_open" and mark.tag <= "h4"
    }


def dead(page: Path) -> list[str]:
    "The links of a page that lead nowhere."
    found = []
    for link in (unquote(link) for text in texts(page) for link in links(text)):
        path, fragment = urldefrag(link)
        if "://" in link or link.startswith("mailto:"):
            continue
        to = (page.parent / path).resolve() if path else page
        has_headings = to.suffix in (".ipynb", ".md")
        if not to.exists() or (fragment and has_headings and fragment not in anchors(to)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", [*NOTEBOOKS, *PAGES], ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_links_lead_to_a_file_and_its_heading(page: Path) -> None:
    assert dead(page) == []


def test_most_links_to_sections_are_seen() -> None:
    found = [link for page in [*NOTEBOOKS, *PAGES] for text in texts(page) for link in links(text)]
    assert sum(".ipynb#" in link for link in found) > 80 and len(found) > 400


def test_a_heading_is_compared_to_the_letter(tmp_path: Path) -> None:
    "Its case, its marks, its level; a link in code, or in the output of code, counts as what it is."
    page, other = tmp_path / "a.md", tmp_path / "b.ipynb"
    cells = [
        {"cell_type": "markdown", "source": ["# T\n", "## The `x` of *y*: 1, 2?\n", "##### Too deep"]},
        {"cell_type": "code", "source": "# No heading", "outputs": [{"data": {"text/markdown": "[to](a.md#Gone)"}}]},
    ]
    other.write_text(json.dumps({"cells": cells}), "utf-8")
    good = ["b.ipynb", "b.ipynb#The-x-of-y:-1,-2?", "b.ipynb#T", "#Here", "https://x.org/#y"]
    bad = ["b.ipynb#the-x-of-y:-1,-2?", "b.ipynb#The-x-of-y", "b.ipynb#Too-deep", "b.ipynb#No-heading", "#here", "c.md"]
    page.write_text("# Here\n\n`[x](c.md)`\n\n" + "\n".join(f"[x]({link})" for link in good + bad), "utf-8")
    assert dead(page) == bad and dead(other) == ["a.md#Gone"]
