"""The docs site builds without a warning, README.md is what the front page says, and every named holder exists."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "docs"))

import build  # noqa: E402
import stage  # noqa: E402
from readme import readme  # noqa: E402

DETAILS = REPOSITORY / "nbs" / "details.ipynb"


def text(notebook: Path) -> str:
    return "\n\n".join(c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "markdown")


# ── The site ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "docs/build.py", "--no-execute", "--no-mathjax", "--out", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "WARNING" not in done.stderr.replace("[IPKernelApp] WARNING", "")
    return out


def test_every_notebook_is_a_page(site: Path) -> None:
    for nb in stage.notebooks():
        page = (site / nb.relative_to(REPOSITORY / "nbs")).with_suffix(".html")
        title = stage.title_of(nb)[0]
        assert (page.is_file() and f"<title>{title} - r3_repro</title>" in page.read_text()) or nb.stem == "index", nb


def test_pages_show_no_directives_and_have_formulas(site: Path) -> None:
    for nb in stage.notebooks():
        page = (site / nb.relative_to(REPOSITORY / "nbs")).with_suffix(".html").read_text()
        assert "#| export" not in page and "#| default_exp" not in page, nb
    train = (site / "03_train.html").read_text()
    assert r"\mathcal" in train and "mathjax" in train.lower()


def test_modules_page_names_what_is_exported(site: Path) -> None:
    page = (site / "modules.html").read_text()
    for name in ("r3_repro.tasks", "get_task", "r3_repro.train", "R3Trainer", "wilson"):
        assert name in page


def test_a_link_to_nothing_fails(tmp_path: Path) -> None:
    pages = build.Pages(tmp_path / "staged")
    with pytest.raises(FileNotFoundError, match="no_such"):
        stage.turn_links("see [this](no_such.ipynb)", "nbs", pages.turn("index.ipynb"))


def test_a_table_of_the_results_becomes_a_page(tmp_path: Path) -> None:
    "Sphinx would otherwise warn of a document that no contents list, as soon as results are committed."
    pages = build.Pages(tmp_path / "staged")
    file = tmp_path / "verdicts.md"
    file.write_text("| claim |\n| --- |\n| C1 |\n")
    assert pages.keep(file, "results/verdicts.md") == "files/results/verdicts.md"
    staged = (tmp_path / "staged/files/results/verdicts.md").read_text()
    assert staged.startswith("---\norphan: true\n---") and staged.endswith(file.read_text())


def test_links_in_code_are_left_alone() -> None:
    seen = []
    turned = stage.turn_links("a [b](c.ipynb#D)\n\n```\n[x](y)\n```\n", "nbs/lib", lambda *link: seen.append(link) or "!")
    assert turned == "a [b](!)\n\n```\n[x](y)\n```\n" and seen == [("b", "nbs/lib/c.ipynb", "D")]
    assert stage.turn_links("[a](https://x.org/y) ![i](../f.png)", "nbs", lambda label, path, anchor: path).endswith("(f.png)")


def test_progress_bars_and_machine_paths_do_not_reach_a_page() -> None:
    new = nbformat.v4
    outputs = [
        new.new_output("stream", name="stderr", text="100%|####"),
        new.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "bar"}),
        new.new_output("stream", name="stdout", text=f"see {REPOSITORY}/runs/x"),
    ]
    assert [o.text for o in stage.clean_outputs(outputs)] == ["see runs/x"]


# ── README ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def made() -> str:
    return readme()


def test_readme_is_what_the_front_page_says_now(made: str) -> None:
    "Also after results/ has changed: the numbers of the README are read from there."
    assert (REPOSITORY / "README.md").read_text() == made, "run `python docs/readme.py`"


def test_links_of_the_readme_lead_somewhere(made: str) -> None:
    prose = re.sub(r"(?s)```.*?```", "", made)
    links = [m[3].partition("#") for m in stage.LINK.finditer(prose) if not m[3].startswith("http")]
    assert len(links) > 10
    for path, _, anchor in links:
        target = REPOSITORY / path
        assert target.exists(), path
        if anchor and target.suffix == ".ipynb":
            assert stage.slug(anchor.replace("-", " ")) in stage.anchors(target), (path, anchor)


def test_the_readme_says_what_was_not_run(made: str) -> None:
    for what in (
        "Not run yet",
        "`paper`",
        "GPU",
        "vLLM",
        "APIGen",
        "MMLU-Pro",
        "make reproduce",
        "make test",
        "2505.24726",
    ):
        assert what in made


def test_no_number_of_the_results_is_typed() -> None:
    "Prose of the front page holds no percentage and no p value: such numbers come from results/ when the page is made."
    prose = re.sub(r"(?s)```.*?```", "", text(REPOSITORY / "nbs" / "index.ipynb"))
    prose = prose.replace("Intervals are 95%", "").replace("an\nexact McNemar p < 0.01", "").replace("exact McNemar p < 0.01", "")
    assert re.findall(r"\d+(?:\.\d+)? ?%|p ?[<=] ?0\.\d+|\d\.\d+ points", prose) == []


# ── Details that matter ────────────────────────────────────────────────────────────────────────────────────────────


def details() -> list[tuple[int, str]]:
    found = re.findall(r"^(\d+)\. ((?:.+\n?(?!\d+\. ))+)", text(DETAILS), re.M)
    return [(int(n), body) for n, body in found]


def functions_of(file: Path) -> set[str]:
    return {n.name for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef)}


def test_details_are_numbered_and_each_has_a_holder() -> None:
    assert [n for n, _ in details()] == list(range(1, len(details()) + 1)) and len(details()) >= 30
    for n, body in details():
        assert "→" in body and stage.LINK.search(body.split("→", 1)[1]), f"detail {n} names no holder"


def test_every_holder_exists() -> None:
    "A test that is named is there; a section that is named is there, and has a cell that asserts."
    checked = 0
    for n, body in details():
        for m in stage.LINK.finditer(body):
            label, (path, _, anchor) = m[2].strip("`"), m[3].partition("#")
            file = (DETAILS.parent / path).resolve()
            assert file.is_file(), (n, path)
            if file.suffix == ".py":
                name, _, test = label.partition("::")
                assert name == file.name and test in functions_of(file), (n, label)
                assert not skipped(file, test), (n, label, "may be skipped: then nothing holds this detail")
            else:
                assert stage.slug(anchor.replace("-", " ")) in stage.anchors(file), (n, path, anchor)
                assert asserts_in(file, anchor), (n, path, anchor, "asserts nothing")
            checked += 1
    assert checked > 40


def skipped(file: Path, test: str) -> list[str]:
    "What may skip a test: marks of its module, and marks or calls in it or in a function or fixture of the file that it uses."
    tree = ast.parse(file.read_text())
    functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    named = {t.id: n for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    todo, seen, found = [test, "pytestmark"], set(), []
    while todo:
        name = todo.pop()
        node: ast.AST | None = functions.get(name) or named.get(name)
        if name in seen or node is None:
            continue
        seen.add(name)
        for n in ast.walk(node):
            if isinstance(n, ast.Attribute) and n.attr in ("skip", "skipif", "importorskip", "xfail"):
                found.append(f"{name}: {n.attr}")
            todo += [n.id] if isinstance(n, ast.Name) else [n.arg] if isinstance(n, ast.arg) else []
    return found


def test_the_search_for_skipped_holders_finds_them(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.write_text(
        "needs = pytest.mark.skipif(True, reason='')\n\n@needs\ndef test_a():\n    pass\n\n"
        "def helper():\n    pytest.skip('')\n\ndef test_b():\n    helper()\n\n"
        "@pytest.fixture\ndef real():\n    pytest.importorskip('x')\n\ndef test_c(real):\n    pass\n\ndef test_d():\n    pass\n"
    )
    assert [bool(skipped(file, f"test_{x}")) for x in "abcd"] == [True, True, True, False]


def asserts_in(notebook: Path, anchor: str) -> bool:
    "Whether a section (up to the next heading of its level) holds an assert or an expected error."
    inside, level = False, 0
    for c in nbformat.read(notebook, 4).cells:
        for mark, heading in re.findall(r"^(#+) (.+)$", c.source, re.M) if c.cell_type == "markdown" else []:
            if stage.slug(heading) == stage.slug(anchor.replace("-", " ")):
                inside, level = True, len(mark)
            elif inside and len(mark) <= level:
                inside = False
        if inside and c.cell_type == "code" and re.search(r"\bassert\b|AssertionError", c.source):
            return True
    return False
