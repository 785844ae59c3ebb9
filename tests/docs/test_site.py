"""The docs site builds without a warning, and every link of it leads somewhere."""

import base64
import gzip
import json
import os
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
from chromium import CONTRAST, PROGRAM, chromium
from support import NOTEBOOKS, REPOSITORY, patience

from r3_repro import __version__

new = nbformat.v4
PACKAGES = ["settings, data, arms", "tasks", "mining", "training", "evaluation", "engines", "runs", "planning", "analysis"]
PACKAGES += ["reporting", "utils", "workflow"]
CAPTIONS = ["Start", "Chapters", "Guides", "Details", "Reference", *(f"Library: {p}" for p in PACKAGES)]


def build(source: Path, out: Path) -> subprocess.CompletedProcess:
    "Build the site of a folder of notebooks into `out`/html, as `make docs` does."
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-d", str(out / "trees")]
    command = [*sphinx, "-c", str(REPOSITORY / "docs"), str(source), str(out / "html")]
    env = os.environ | {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "somebody/r3"}  # as in the workflow
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", timeout=patience(300), env=env)


class Page(HTMLParser):
    "What a page links to, what it loads, its anchors, and the words for its pictures."

    def __init__(self, file: Path):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.pictures: list[tuple[str, str]] = []
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := found.get(key))}
        if tag == "img":
            self.pictures.append((found.get("src") or "", found.get("alt") or ""))
        if tag == "a" and (link := found.get("href")):
            self.links.append(link)
        elif load := found.get("src") or (found.get("href") if tag == "link" else None):
            self.loads.append(load)


# ── The whole site ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(REPOSITORY / "nbs", out)
    assert done.returncode == 0 and "WARNING" not in done.stderr, (done.stdout + done.stderr)[-4000:]
    return out / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html")}


def page_of(site: Path, notebook: Path) -> Path:
    return (site / notebook.relative_to(REPOSITORY / "nbs")).with_suffix(".html")


def title_of(notebook: Path) -> str:
    found = re.match(r"# (.+)\n+> .+", nbformat.read(notebook, 4).cells[0].source)
    assert found, f"{notebook} does not open with a title and a subtitle"
    return found[1].replace("`", "")


def test_every_notebook_is_a_page(site: Path) -> None:
    for notebook in NOTEBOOKS:
        title = re.search(r"<title>(.+?)</title>", page_of(site, notebook).read_text("utf-8"))
        shown = unescape(title[1]).replace("’", "'") if title else ""
        assert shown == ("r3_repro" if notebook.stem == "index" else f"{title_of(notebook)} - r3_repro"), notebook


def test_the_side_bar_groups_the_notebooks_by_package(site: Path) -> None:
    side = (site / "index.html").read_text("utf-8").partition('class="sidebar-tree"')[2].partition("</aside>")[0]
    assert re.findall(r'class="caption-text">([^<]+)<', side) == CAPTIONS
    for notebook in NOTEBOOKS:
        link = "#" if notebook.stem == "index" else str(page_of(site, notebook).relative_to(site))
        assert f'href="{link}"' in side, notebook


def test_the_side_bar_folds_the_packages_but_that_of_the_page(site: Path) -> None:
    shown = lambda page: re.findall(r"<details open><summary .*?Library: ([^<]+)<", (site / page).read_text("utf-8"))  # noqa: E731
    assert shown("index.html") == shown("files/tests.html") == [] and shown("runs/layout.html") == ["runs"]
    assert (site / "index.html").read_text("utf-8").count('<summary class="caption"') == len(PACKAGES)


def test_the_side_bar_leads_to_what_is_made_from_no_notebook(site: Path) -> None:
    side = (site / "guides/metrics.html").read_text("utf-8").partition('class="sidebar-tree"')[2].partition("</aside>")[0]
    start, reference = (side.partition(f'caption-text">{c}<')[2].partition("</ul>")[0] for c in ("Start", "Reference"))
    assert (
        'href="../episodes.html"' in start and 'href="../modules.html"' in reference and 'href="../files/tests.html"' in reference
    )
    assert 'href="../index.html#Citation"' in start and 'href="../files/CHANGELOG.md.html"' in reference


def test_the_site_says_what_it_was_built_from(site: Path) -> None:
    "On every page, with a link to where older ones are kept."
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, encoding="utf-8").stdout[:10]
    for page in ("index", "03_train", "files/CHANGELOG.md", "modules"):
        line = re.search(r'<a class="r3-version" href="([^"]+)">([^<]+)', (site / f"{page}.html").read_text("utf-8"))
        assert line and line[2].startswith(f"{__version__}, commit {commit or 'unknown'}"), page
    changes = (site / "files/CHANGELOG.md.html").read_text("utf-8")
    assert "<code>versions/TAG</code>" in changes and "site.zip" in changes


def test_a_page_links_to_where_its_notebook_is_edited(site: Path, pages: dict[Path, Page]) -> None:
    folder = "https://github.com/somebody/r3/edit/main/nbs"
    edits = {page_of(site, n): f"{folder}/{n.relative_to(REPOSITORY / 'nbs')}" for n in NOTEBOOKS}
    assert {file: link for file, page in pages.items() for link in page.links if "/edit/" in link} == edits


KINDS = ["index", "method", "04_results", "verdicts", "status", "small_model", "reports", "guides/one_h100", "guides/commands"]
KINDS += ["config", "evaluation/benchmarks", "files/tests/docs/test_site.py", "modules"]


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: install chromium or google-chrome")
def test_pages_fit_every_screen_and_code_can_be_copied(site: Path, tmp_path: Path) -> None:
    "No text over an edge, from a telephone to a wide window, nor too pale; a button at each piece of code, and at no output."
    with chromium(tmp_path) as tab:
        for kind in KINDS:
            tab.visit((site / f"{kind}.html").as_uri())
            pieces, outputs = (f"document.querySelectorAll('{s}div.highlight pre').length" for s in ("", ".output > "))
            tab.wait(f"document.querySelectorAll('.copybtn').length === {pieces} - {outputs}")
            for width in (360, 700, 1280, 1900):
                tab.look(width, 900)
                assert tab.js("document.documentElement.scrollWidth") <= width, (kind, width)
            for dark in (False, True):
                tab.look(1280, 900, dark)
                assert tab.js(CONTRAST) == [], (kind, dark)
        tab.look(1280, 4000)  # a click needs no scrolling
        tab.visit((site / "index.html").as_uri())
        tab.js("document.addEventListener('copy', (e) => { window.copied = e.target.value }, true)")
        tab.wait("document.querySelector('.copybtn')")
        tab.click(".copybtn")
        tab.wait("window.copied.includes('make reproduce')")


def test_pages_show_no_directives_and_no_place_on_this_machine(site: Path) -> None:
    for notebook in NOTEBOOKS:
        page = page_of(site, notebook).read_text("utf-8")
        assert "#| export" not in page and "#| default_exp" not in page and f"{REPOSITORY}/" not in page, notebook


def test_formulas_are_drawn_by_the_browser(site: Path) -> None:
    "As MathML, without a script and without any TeX left over."
    drawn = [
        formula for page in site.rglob("*.html") for formula in re.findall(r"<math .*?</math>", page.read_text("utf-8"), re.S)
    ]
    assert len(drawn) > 50 and not [formula for formula in drawn if re.search(r"\\[a-z]+", formula)]
    assert 'display="block"' in "".join(re.findall(r"<math [^>]*>", (site / "03_train.html").read_text("utf-8")))


def test_every_link_leads_to_a_page_and_its_anchor(site: Path, pages: dict[Path, Page]) -> None:
    checked, dead = 0, []
    for file, page in pages.items():
        for link in (link for link in page.links + page.loads if not re.match(r"[a-z]+:|//", link)):
            path, fragment = urldefrag(link)
            to = (file.parent / unquote(path.partition("?")[0])).resolve() if path else file
            checked += 1
            if not to.is_file() or (fragment and to in pages and unquote(fragment) not in pages[to].anchors):
                dead.append((str(file.relative_to(site)), link))
    assert not dead and checked > 1000, dead[:20]


def says_nothing(source: str, alt: str) -> bool:
    "Whether the words for a picture are missing, a name of a file, or fit any picture."
    of_file = Path(source).stem.lower() in alt.lower() or re.search(r"\.(png|svg|jpe?g)\b|<Figure|IPython", alt)
    return bool(of_file) or len(re.findall(r"[a-z]{2,}", alt)) < 4


def test_every_picture_is_told_in_words(pages: dict[Path, Page]) -> None:
    wrong = [(file.name, *picture) for file, page in pages.items() for picture in page.pictures if says_nothing(*picture)]
    assert wrong == [] and sum(len(page.pictures) for page in pages.values()) > 50


def test_empty_words_for_a_picture_are_noticed() -> None:
    for alt in ("", "figure", "_images/0f3a.png", "<Figure size 900x440 with 6 Axes>", "accuracy of arms in a figure"):
        assert says_nothing("_images/accuracy.png", alt), alt
    assert not says_nothing("_images/0f3a.png", "problems solved (%) from 0 to 30: vanilla, r3; marked: 18.1, 19.8")


def test_pages_ask_no_other_host(pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        assert not [load for load in page.loads if re.match(r"[a-z]+:|//", load) and not load.startswith("data:")], file


def test_a_test_can_be_linked_to(site: Path, pages: dict[Path, Page]) -> None:
    here = Path(__file__)
    page = pages[site / "files" / f"{here.relative_to(REPOSITORY)}.html"]
    assert {"test_a_test_can_be_linked_to", "page_of", "line-1"} <= page.anchors
    details = Page(site / "details.html").links
    assert sum(link.startswith("files/tests/") and "#test_" in link for link in details) > 20


def test_a_table_of_the_results_is_a_page(site: Path) -> None:
    page = (site / "files/results/studies/tiny-study/tables/verdicts.md.html").read_text("utf-8")
    assert "<table>" in page and "<td>C1</td>" in page


def test_a_folder_is_a_list_of_its_files(site: Path) -> None:
    page = (site / "files/tests.html").read_text("utf-8")
    assert '<a href="tests/docs/test_site.py.html"><code>docs/test_site.py</code></a>' in page


def test_the_page_of_reflections_is_shaded(site: Path) -> None:
    "With the shades in results/, which are of the committed episodes: others would have been refused."
    packed = re.search(r'id="data">([^<]*)<', (site / "episodes.html").read_text("utf-8"))
    assert packed
    data = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    arms, shaded = data["columns"]["arm"], data["columns"]["shaded"]
    assert {arms["values"][c] for c, pieces in zip(arms["codes"], data["pieces"], strict=True) if pieces} == {"r3"}
    assert sum(map(bool, data["pieces"])) > 500 and set(shaded["values"]) == {"yes", "no"}
    stored = sorted((REPOSITORY / "results/shades").rglob("*.parquet"))
    assert len(stored) == 4 and sum(f.stat().st_size for f in stored) < 300_000
    assert all(f.with_suffix(".manifest.json").is_file() for f in stored)


def test_modules_page_names_what_is_exported(site: Path) -> None:
    page = (site / "modules.html").read_text("utf-8")
    for name in ("r3_repro.tasks.base", "get_task", "r3_repro.training.trainer", "R3Trainer", "wilson"):
        assert name in page
    for file in (REPOSITORY / "r3_repro").rglob("*.py"):
        if "# AUTOGENERATED" in file.read_text("utf-8")[:200] and file.name != "_modidx.py":
            module = ".".join(file.relative_to(REPOSITORY).with_suffix("").parts)
            assert f"<h2>{module}</h2>" in page, module


# ── A site of one page ─────────────────────────────────────────────────────────────────────────────────────────────


def one_page(folder: Path, *cells: nbformat.NotebookNode) -> subprocess.CompletedProcess:
    "Build a site of a front page that holds these cells."
    title = new.new_markdown_cell("# Title\n\n> Subtitle")
    (folder / "nbs").mkdir()
    python = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    nbformat.write(new.new_notebook(cells=[title, *cells], metadata=python), folder / "nbs/index.ipynb")
    return build(folder / "nbs", folder)


def code(source: str, *outputs: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return new.new_code_cell(source, outputs=list(outputs), execution_count=1 if outputs else None)


def markdown_output(text: str) -> nbformat.NotebookNode:
    return new.new_output("display_data", {"text/markdown": text, "text/plain": "<Markdown>"})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    "A front page with every kind of cell."
    folder = tmp_path_factory.mktemp("small")
    result = new.new_output("execute_result", {"text/plain": "'a docstring'"}, execution_count=1)
    done = one_page(
        folder,
        code("#| default_exp nowhere"),
        code("#| hide\nhidden_cell = 1"),
        code("#| echo: false\nsilent_cell = 1", markdown_output("## Made\n\nsee [Title](#Title)")),
        code("#| export\nimport folded_module"),
        code('#| export\nEXPORTED = 1\n"a docstring"', result),
        code("PLAIN = 1", result),
        new.new_markdown_cell("```text\n[x](no_such.ipynb)\n```\n\nand `[x](no_such.ipynb)`"),
    )
    assert done.returncode == 0, done.stderr
    return (folder / "html/index.html").read_text("utf-8")


def test_what_directives_do(small: str) -> None:
    assert not [text for text in ("hidden_cell", "silent_cell", "nowhere", "#| ") if text in small]
    folded = re.search(r'<details class="[^"]*hide[^"]*">.*?</details>', small, re.S)
    assert folded and "folded_module" in folded[0] and "EXPORTED" not in folded[0]
    assert len(re.findall(r'<div class="[^"]*tag_exported[^"]*"', small)) == 2
    assert small.count("a docstring") == 2  # in the exported source, and as the result of the other cell


def test_title_and_outputs_are_part_of_the_text(small: str) -> None:
    assert re.search(r"</h1>\s*<blockquote>\s*(<div>)?<p>Subtitle</p>", small)
    assert 'href="#title"' in small.partition("Made</p>")[2]


def test_links_in_code_are_left_alone(small: str) -> None:
    assert small.count("no_such.ipynb") == 2 and not re.search(r'href="[^"]*no_such', small)


def test_a_link_to_nothing_fails(tmp_path: Path) -> None:
    "In text and in outputs: a page, a section, a file, a test, a file that no page can show."
    here, binary = os.path.relpath(__file__, tmp_path / "nbs"), "results/shades/tiny-study/countdown/tiny-a/r3-seed0.parquet"
    named = {
        "no_such.ipynb": "[this](no_such.ipynb)",
        "No-such-section": "[this](index.ipynb#No-such-section)",
        "no_such_file": "[this](../no_such_file.csv)",
        "test_no_such": f"[test_site.py::test_no_such]({here})",
        "is not text": f"[this]({os.path.relpath(REPOSITORY / binary, tmp_path / 'nbs')})",
    }
    cells = [cell for link in named.values() for cell in (new.new_markdown_cell(link), code("1", markdown_output(link)))]
    done = one_page(tmp_path, *cells)
    assert done.returncode != 0
    for name in named:
        assert sum(name in line for line in done.stderr.splitlines()) == 2, (name, done.stderr)
