"""Every detail names what enforces it, and that exists."""

import ast
import re
from functools import cache
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
    return {name for name, node in definitions(file.read_text("utf-8")).items() if isinstance(node, ast.FunctionDef)}


@cache
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


@cache
def definitions(code: str) -> dict[str, ast.AST]:
    "Functions and constants of a file's code by name."
    tree = ast.parse(code)
    named = {t.id: n for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    return named | {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


def is_autouse(node: ast.AST) -> bool:
    "Whether a fixture applies to every test in its reach."
    decorators = [d for d in getattr(node, "decorator_list", []) if isinstance(d, ast.Call)]
    return any(k.arg == "autouse" and ast.unparse(k.value) == "True" for d in decorators for k in d.keywords)


def skipped(file: Path, test: str) -> list[str]:
    """What may skip a test: marks of its module, and marks or calls in it or in a function or fixture that it uses.

    Fixtures may be of the file or of a conftest.py above it, asked for by a parameter, by `usefixtures`, or automatic."""
    conftests = [c for folder in reversed(file.parents) if (c := folder / "conftest.py").is_file()]
    known: dict[str, ast.AST] = {}
    for source in (*conftests, file):
        known |= definitions(source.read_text("utf-8"))
    todo, seen, found = [test, "pytestmark", *(name for name, node in known.items() if is_autouse(node))], set(), []
    while todo:
        name = todo.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        for n in ast.walk(known[name]):
            if isinstance(n, ast.Attribute) and n.attr in ("skip", "skipif", "importorskip", "xfail"):
                found.append(f"{name}: {n.attr}")
            if (
                isinstance(n, ast.Call)
                and isinstance(n.func, ast.Attribute)
                and n.func.attr in ("usefixtures", "getfixturevalue")
            ):
                todo += [str(a.value) for a in n.args if isinstance(a, ast.Constant)]
            todo += [n.id] if isinstance(n, ast.Name) else [n.arg] if isinstance(n, ast.arg) else []
    return found


def test_the_search_for_skipped_tests_finds_them(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.write_text(
        "needs = pytest.mark.skipif(True, reason='')\n\n@needs\ndef test_a():\n    pass\n\n"
        "def helper():\n    pytest.skip('')\n\ndef test_b():\n    helper()\n\n"
        "@pytest.fixture\ndef real():\n    pytest.importorskip('x')\n\ndef test_c(real):\n    pass\n\ndef test_d():\n    pass\n",
        "utf-8",
    )
    assert [bool(skipped(file, f"test_{x}")) for x in "abcd"] == [True, True, True, False]


def test_the_search_for_skipped_tests_knows_fixtures_of_conftest(tmp_path: Path) -> None:
    "Of every conftest.py above a test; the nearest one counts."
    (tmp_path / "below").mkdir()
    (tmp_path / "conftest.py").write_text(
        "@pytest.fixture\ndef far(near):\n    pass\n\n@pytest.fixture\ndef near():\n    pytest.skip('')\n\n"
        "@pytest.fixture\ndef again():\n    pytest.skip('')\n",
        "utf-8",
    )
    (tmp_path / "below/conftest.py").write_text("@pytest.fixture\ndef again():\n    pass\n", "utf-8")
    file = tmp_path / "below/test_x.py"
    file.write_text(
        "def test_a(far):\n    pass\n\n@pytest.mark.usefixtures('near')\ndef test_b():\n    pass\n\n"
        "def test_c(request):\n    request.getfixturevalue('near')\n\ndef test_d(again):\n    pass\n",
        "utf-8",
    )
    assert [bool(skipped(file, f"test_{x}")) for x in "abcd"] == [True, True, True, False]
    with (tmp_path / "below/conftest.py").open("a", encoding="utf-8") as f:
        f.write("\n@pytest.fixture(autouse=True)\ndef real():\n    pytest.importorskip('x')\n")
    assert skipped(file, "test_d") == ["real: importorskip"]


def test_the_search_for_sections_without_an_assert_finds_them(tmp_path: Path) -> None:
    new = nbformat.v4
    text = ["# T", "## One part", "x = 1", "### Inner", "assert x", "## Other part", "y = 1"]
    cells = [new.new_markdown_cell(t) if t.startswith("#") else new.new_code_cell(t) for t in text]
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "x.ipynb")
    found = {name: asserts(code) for name, code in sections(tmp_path / "x.ipynb").items()}
    assert found == {"T": True, "One-part": True, "Inner": True, "Other-part": False}
