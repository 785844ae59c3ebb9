"""Layout: the package is what the notebooks export, imports run downward, notebooks are clean and short, nothing is unsafe."""

import ast
import collections
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import CHAPTERS, NOTEBOOKS, REPOSITORY, patience

PARAMETERS = {"profile": "smoke", "task": "", "model": "", "arm": "r3", "seed": 0, "root": ""}
BY_HAND = ("__init__", "__main__")
PACKAGE = sorted(p for p in (REPOSITORY / "r3_repro").rglob("*.py"))
MODULES = [p for p in PACKAGE if p.stem not in (*BY_HAND, "_modidx")]

Cell = dict[str, Any]


def names(path: Path) -> str:
    return "/".join(path.relative_to(REPOSITORY).parts[1:]).rpartition(".")[0]


def cells(notebook: Path, kind: str = "code") -> list[Cell]:
    return [c for c in json.loads(notebook.read_text("utf-8"))["cells"] if c["cell_type"] == kind]


def source(cell: Cell) -> str:
    return "".join(cell["source"])


def exported(cell: Cell) -> bool:
    return bool(re.search(r"^#\|\s*exports?i?\b", source(cell), re.M))


def tool(name: str, folder: Path, *args: str) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name(name)), *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=patience(300))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A copy of what nbdev reads and writes, so that the working tree stays as it is."
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(REPOSITORY / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copytree(REPOSITORY / "r3_repro", folder / "r3_repro", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    for name in ("pyproject.toml", "export.toml"):
        shutil.copyfile(REPOSITORY / name, folder / name)
    return folder


# ── Export and cleaning ────────────────────────────────────────────────────────────────────────────────────────────


def exported_as(folder: Path) -> dict[str, str]:
    "What `make export` writes in a copy that holds no module yet."
    for module in (folder / "r3_repro").rglob("*.py"):
        if module.stem not in BY_HAND:
            module.unlink()
    tool("nbdev-export", folder)
    tool("ruff", folder, "check", "--quiet", "--config", "export.toml", "--fix", "--unsafe-fixes", "r3_repro")
    return {str(p.relative_to(folder / "r3_repro")): p.read_text("utf-8") for p in (folder / "r3_repro").rglob("*.py")}


def test_the_package_is_what_the_notebooks_export(copied: Path) -> None:
    ours, made = {str(p.relative_to(REPOSITORY / "r3_repro")): p.read_text("utf-8") for p in PACKAGE}, exported_as(copied)
    assert made.keys() == ours.keys(), "a module without its notebook, or the other way round"
    assert [n for n in ours if ours[n] != made[n]] == [], "run `make export` and commit what it changes"


def test_notebooks_are_clean(copied: Path) -> None:
    tool("nbdev-clean", copied)
    changed = [n for n in NOTEBOOKS if n.read_bytes() != (copied / n.relative_to(REPOSITORY)).read_bytes()]
    assert changed == [], "run `make export` and commit what it changes"


def test_the_parameters_tag_survives_cleaning(copied: Path) -> None:
    tool("nbdev-clean", copied)
    assert all(len(tagged(copied / c.relative_to(REPOSITORY))) == 1 for c in CHAPTERS)


def test_without_the_setting_the_tag_would_be_lost(copied: Path, tmp_path: Path) -> None:
    "The guard is real: nbdev does delete the tag once `allowed_cell_metadata_keys` is gone."
    shutil.copytree(copied, tmp_path / "x")
    project = tmp_path / "x" / "pyproject.toml"
    text = project.read_text("utf-8")
    assert 'allowed_cell_metadata_keys = ["tags"]' in text
    project.write_text(text.replace('allowed_cell_metadata_keys = ["tags"]', ""), "utf-8")
    chapter = tmp_path / "x" / "nbs" / CHAPTERS[0].name
    tool("nbdev-clean", tmp_path / "x", "--fname", str(chapter))
    assert tagged(chapter) == []


# ── Floors ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def imported(module: Path) -> list[tuple[str, str]]:
    "(module, name) of every import from this package, wherever it stands in a module."
    found = [n for n in ast.walk(ast.parse(module.read_text("utf-8"))) if isinstance(n, ast.ImportFrom)]
    assert not any(n.level for n in found), f"{module.name}: relative import"
    return [(n.module or "", a.name) for n in found if (n.module or "").split(".")[0] == "r3_repro" for a in n.names]


def test_imports_only_run_downward() -> None:
    "The contracts in pyproject.toml, which `make lint` runs too."
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))], cwd=REPOSITORY, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout[-3000:]


def package_of(module: Path) -> str:
    return ".".join(["r3_repro", *module.relative_to(REPOSITORY / "r3_repro").parts[:-1]])


def test_no_private_name_crosses_a_package() -> None:
    crossing = [
        (names(m), name)
        for m in MODULES
        for source, name in imported(m)
        if name.startswith("_") and source.rpartition(".")[0] != package_of(m)
    ]
    assert crossing == []


def public(module: Path) -> set[str]:
    "What a module defines for others."
    found: set[str] = set()
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        found |= {t.id for top in targets for t in ast.walk(top) if isinstance(t, ast.Name)}
    return {n for n in found if not n.startswith("_")}


def test_a_public_name_has_one_meaning() -> None:
    "`TASK` apart, by which each task's module is found."
    holders = collections.defaultdict(list)
    for module in MODULES:
        for name in public(module) - {"TASK"}:
            holders[name].append(names(module))
    assert {name: where for name, where in holders.items() if len(where) > 1} == {}


# ── Parameters ─────────────────────────────────────────────────────────────────────────────────────────────────────


def tagged(notebook: Path) -> list[Cell]:
    return [c for c in cells(notebook) if "parameters" in c["metadata"].get("tags", [])]


def test_there_are_six_chapters() -> None:
    assert [c.stem[:2] for c in CHAPTERS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=names)
def test_a_chapter_has_the_agreed_parameters(chapter: Path) -> None:
    (cell,) = tagged(chapter)
    assert not exported(cell), "exported parameters would be constants of the package"
    body = ast.parse(source(cell)).body
    assert all(isinstance(a, ast.Assign) and len(a.targets) == 1 for a in body)
    assert {a.targets[0].id: ast.literal_eval(a.value) for a in body} == PARAMETERS  # type: ignore[attr-defined]


def test_only_chapters_have_parameters() -> None:
    assert [n.stem for n in NOTEBOOKS if n not in CHAPTERS and tagged(n)] == []


# ── Form ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=names)
def test_a_notebook_opens_with_title_and_subtitle(notebook: Path) -> None:
    first = json.loads(notebook.read_text("utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown" and re.match(r"# .+\n+> .+", source(first))


LIMIT, LONGEST = 30, 40  # lines of code that an exported cell stays below; lines of a function, blank ones and comments included
WHOLE = {"Recipe"}  # a dataclass of 26 settings, which would not read better in two
ANNOUNCED = "analysis/protocol"  # written down before the study: nothing in it is moved, and its cells stay as long as they are


def lines_of_code(cell: Cell) -> int:
    "Lines without blank ones, directives and comments of their own."
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in source(cell).split("\n"))


def defines(cell: Cell) -> bool:
    "Whether a cell is exported and more than imports."
    return exported(cell) and not all(isinstance(n, ast.Import | ast.ImportFrom) for n in parsed(cell))


def too_long(cell: Cell) -> list[str]:
    "What of an exported cell should be cut: the cell between definitions, or a function."
    functions = [n for n in ast.walk(ast.Module(parsed(cell), [])) if isinstance(n, ast.FunctionDef)]
    out = [f"{n.name}: {n.end_lineno - n.lineno + 1} lines" for n in functions if n.end_lineno - n.lineno >= LONGEST]  # type: ignore[operator]
    whole = any(isinstance(n, ast.ClassDef) and n.name in WHOLE for n in parsed(cell))
    if lines_of_code(cell) >= LIMIT and not whole:
        out.append(f"{lines_of_code(cell)} lines of code: {source(cell)[:80]}")
    return out


def unshown(notebook: list[Cell]) -> list[str]:
    "Exported cells that are not followed by one that shows or asserts something."
    after = [*notebook[1:], {"cell_type": "markdown", "source": ""}]
    code = [(c, then) for c, then in zip(notebook, after, strict=True) if c["cell_type"] == "code" and defines(c)]
    return [source(c)[:80] for c, then in code if then["cell_type"] != "code" or exported(then)]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=names)
def test_a_chapter_defines_nothing_for_the_package(chapter: Path) -> None:
    assert not [source(c) for c in cells(chapter) if exported(c)]
    assert len(json.loads(chapter.read_text("utf-8"))["cells"]) <= 40


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=names)
def test_cells_are_short_and_notebooks_too(notebook: Path) -> None:
    assert len(json.loads(notebook.read_text("utf-8"))["cells"]) <= 60
    assert names(notebook) == ANNOUNCED or [x for c in cells(notebook) if defines(c) for x in too_long(c)] == []


def test_half_of_the_exported_cells_are_shorter_still() -> None:
    lengths = sorted(lines_of_code(c) for n in NOTEBOOKS for c in cells(n) if exported(c))
    assert lengths[len(lengths) // 2] <= 20


@pytest.mark.parametrize("notebook", [n for n in NOTEBOOKS if names(n) != ANNOUNCED], ids=names)
def test_every_exported_cell_is_followed_by_an_example(notebook: Path) -> None:
    assert unshown(json.loads(notebook.read_text("utf-8"))["cells"]) == [], "show or assert what it defines in the next cell"


def test_cells_that_break_the_rules_are_found() -> None:
    kinds = {"code": "#| export\nx = 1", "example": "x", "imports": "#| export\nimport os", "text": "## Next"}
    made = {k: {"cell_type": "markdown" if k == "text" else "code", "source": text} for k, text in kinds.items()}
    for order, wrong in (("code example", 0), ("code text example", 1), ("code code example", 1), ("imports code", 1)):
        assert len(unshown([made[k] for k in order.split()])) == wrong, order
    long = {"cell_type": "code", "source": "#| export\n" + "y = 1\n" * LIMIT}
    assert len(too_long(long)) == 1 and too_long(long | {"source": long["source"].replace("y = 1\n", "", 1)}) == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=names)
def test_imports_are_alone_in_their_cells(notebook: Path) -> None:
    "nbdev runs a cell that imports even where it is told not to run anything."
    mixed = []
    for c in cells(notebook):
        if exported(c) and (body := parsed(c)):
            at_top = [isinstance(n, ast.Import | ast.ImportFrom) for n in body]
            mixed += [source(c)] if any(at_top) and not all(at_top) else []
    assert mixed == []


def parsed(cell: Cell) -> list[ast.stmt]:
    return ast.parse(re.sub(r"^[%!].*$", "", source(cell), flags=re.M)).body


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=names)
def test_a_notebook_does_not_rewrite_the_package(notebook: Path) -> None:
    assert not any("nbdev_export" in source(c) for c in cells(notebook))


# ── Safety ─────────────────────────────────────────────────────────────────────────────────────────────────────────

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def unsafe(text: str) -> Iterator[str]:
    "What a module does that untrusted text or weights could abuse."
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                yield f"line {node.lineno}: {node.func.id}()"
            if any(k.arg in ("trust_remote_code", "shell") for k in node.keywords):
                yield f"line {node.lineno}: {ast.unparse(node)[:60]}"
        imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"line {node.lineno}: imports {m}" for m in imported if m.split(".")[0] in FORBIDDEN_MODULES)  # type: ignore[attr-defined]
        if isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            yield f"line {node.lineno}: names trust_remote_code"


@pytest.mark.parametrize("module", MODULES, ids=names)
def test_nothing_evaluates_unpickles_or_trusts_remote_code(module: Path) -> None:
    assert list(unsafe(module.read_text("utf-8"))) == []


def test_the_search_for_unsafe_code_finds_it() -> None:
    bad = "import pickle\nfrom joblib import load\neval('1')\nf(trust_remote_code=True)\nrun('x', shell=True)"
    bad += "\ng(**{'trust_remote_code': 1})"
    assert len(list(unsafe(bad))) == 6
    assert list(unsafe("import ast\nmodel.eval()\nast.literal_eval('1')\nre.compile('x')")) == []


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True)
    if done.returncode or not done.stdout:
        pytest.skip("not a git work tree: which files are tracked is not known")
    files = [REPOSITORY / f for f in done.stdout.decode().split("\0") if f]
    return [f for f in files if f.is_file() and f != Path(__file__).resolve()]


MACHINE = re.compile(
    rb"/(?:work|root|home/\w+|Users/\w+)/|https?://[\w.-]*(?:registry|mirror|proxy|artifactory|nexus)"
    rb"|://(?:localhost|127\.|10\.|192\.168\.)"
)


def test_no_tracked_file_names_a_machine() -> None:
    "No path of somebody's machine and no package mirror in what is committed."
    found = {}
    for f in tracked():
        if f.suffix not in (".parquet", ".png", ".pdf", ".safetensors") and (m := MACHINE.search(f.read_bytes())):
            found[str(f.relative_to(REPOSITORY))] = m[0]
    assert found == {}


def test_tracked_files_are_small() -> None:
    "Weights of the tiny bases may be 3 MB; nothing else needs half of it."
    large = {str(f.relative_to(REPOSITORY)): f.stat().st_size for f in tracked() if f.stat().st_size > 1_500_000}
    weights = re.compile(r"(r3_repro/assets|results/bases)/[\w-]+/model\.safetensors")
    assert all(weights.fullmatch(name) and size <= 3_000_000 for name, size in large.items()), large
