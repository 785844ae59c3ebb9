"""Every detail names what enforces it, and that exists."""

import ast
import re
from pathlib import Path

import nbformat
from support import REPOSITORY

DETAILS = REPOSITORY / "nbs" / "details.ipynb"
LINK = re.compile(r"\[([^\[\]]+)\]\(([^)\s]+)\)")


def details() -> list[tuple[int, str]]:
    text = "\n\n".join(c.source for c in nbformat.read(DETAILS, 4).cells if c.cell_type == "markdown")
    found = re.findall(r"^(\d+)\. ((?:.+\n?(?!\d+\. ))+)", text, re.M)
    return [(int(n), body) for n, body in found]


def functions_of(file: Path) -> set[str]:
    return {n.name for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef)}


def sections(notebook: Path) -> dict[str, str]:
    "The code of each section (up to the next heading of its level), by its anchor as Jupyter makes it."
    code: dict[str, str] = {}
    inside: list[tuple[int, str]] = []
    for cell in nbformat.read(notebook, 4).cells:
        for mark, heading in re.findall(r"^(#+) (.+)$", cell.source, re.M) if cell.cell_type == "markdown" else []:
            inside = [(level, name) for level, name in inside if level < len(mark)] + [
                (len(mark), heading.strip().replace(" ", "-"))
            ]
            code.setdefault(inside[-1][1], "")
        for _, name in inside if cell.cell_type == "code" else []:
            code[name] += cell.source + "\n"
    return code


def asserts(code: str) -> bool:
    "Whether code holds an assert or an expected error."
    return bool(re.search(r"\bassert\b|AssertionError", code))


def test_details_are_numbered_and_each_names_what_enforces_it() -> None:
    assert [n for n, _ in details()] == list(range(1, len(details()) + 1)) and len(details()) >= 30
    for n, body in details():
        assert "→" in body and LINK.search(body.split("→", 1)[1]), f"detail {n} names no test and no section"


def test_what_enforces_a_detail_exists() -> None:
    "A test that is named is there; a section that is named is there, and has a cell that asserts."
    checked = 0
    for n, body in details():
        for label, link in LINK.findall(body):
            path, _, anchor = link.partition("#")
            file = (DETAILS.parent / path).resolve()
            assert file.is_file(), (n, path)
            if file.suffix == ".py":
                name, _, test = label.strip("`").partition("::")
                assert name == file.name and test in functions_of(file), (n, label)
                assert not skipped(file, test), (n, label, "may be skipped: then nothing enforces this detail")
            else:
                assert anchor in sections(file), (n, path, anchor)
                assert asserts(sections(file)[anchor]), (n, path, anchor, "asserts nothing")
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


def test_the_search_for_skipped_tests_finds_them(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.write_text(
        "needs = pytest.mark.skipif(True, reason='')\n\n@needs\ndef test_a():\n    pass\n\n"
        "def helper():\n    pytest.skip('')\n\ndef test_b():\n    helper()\n\n"
        "@pytest.fixture\ndef real():\n    pytest.importorskip('x')\n\ndef test_c(real):\n    pass\n\ndef test_d():\n    pass\n"
    )
    assert [bool(skipped(file, f"test_{x}")) for x in "abcd"] == [True, True, True, False]


def test_the_search_for_sections_without_an_assert_finds_them(tmp_path: Path) -> None:
    new = nbformat.v4
    text = ["# T", "## One part", "x = 1", "### Inner", "assert x", "## Other part", "y = 1"]
    cells = [new.new_markdown_cell(t) if t.startswith("#") else new.new_code_cell(t) for t in text]
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "x.ipynb")
    found = {name: asserts(code) for name, code in sections(tmp_path / "x.ipynb").items()}
    assert found == {"T": True, "One-part": True, "Inner": True, "Other-part": False}
