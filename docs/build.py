"""Build the docs site into _site/: every notebook as a page with its outputs, the modules, the tests.

    python docs/build.py                   # execute (cached in _docs/), then build
    python docs/build.py --profile tiny    # chapters 01 to 03 show the run of `make reproduce` instead of the smoke run
    python docs/build.py --no-execute      # structure only: seconds
    python docs/build.py --readme          # README.md from nbs/index.ipynb

Chapters 04 to 06 show the committed results, if there are any. Quarto is not needed.
"""

import argparse
import ast
import hashlib
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
from stage import HOME, notebooks, slug, stage, title_of

WORK = HOME / "_docs"
RESULTS = "tiny"  # the profile of the committed results
FRONT = ("index", "details")


# ── Executing ──────────────────────────────────────────────────────────────────────────────────────────────────────


def prepare_home(home: Path, profile: str) -> None:
    "A stand-in for the repository: the same code and settings, a copy of results/, runs of its own."
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for name in (
        "settings.ini",
        "nbs",
        "r3_repro",
        "tests",
        "pyproject.toml",
        "constraints.txt",
        "Makefile",
        "LICENSE",
    ):
        if (HOME / name).exists():
            (home / name).symlink_to(HOME / name)
    if (HOME / "results").is_dir():
        shutil.copytree(HOME / "results", home / "results")
    runs = HOME / "runs"
    if profile == "smoke":  # other code, settings or weights begin anew
        runs = WORK / "runs" / code_hash()[:12]
        for old in (WORK / "runs").glob("*"):
            if old != runs:
                shutil.rmtree(old)
    runs.mkdir(parents=True, exist_ok=True)
    (home / "runs").symlink_to(runs)


def parameters_of(notebook: Path, profile: str) -> dict[str, str]:
    "With which parameters a page is executed."
    number = notebook.stem[:2]
    if number in ("01", "02", "03"):
        return {"profile": profile}
    stored = list((HOME / "results" / RESULTS).glob("*/*/episodes/vanilla.parquet"))
    if number in ("04", "05", "06"):
        return {"profile": RESULTS, "root": "results"} if stored else {"profile": profile}
    return {}


def code_hash() -> str:
    "Hash of package, settings and the shipped model."
    h = hashlib.sha256()
    for f in [HOME / "settings.ini", *sorted((HOME / "r3_repro").rglob("*"))]:
        if f.is_file() and f.suffix != ".pyc":
            h.update(f.name.encode() + f.read_bytes())
    return h.hexdigest()


def key_of(notebook: Path, parameters: dict[str, str]) -> str:
    "Hash of all that an executed page depends on."
    h = hashlib.sha256((repr(sorted(parameters.items())) + code_hash()).encode())
    files = [notebook]
    if parameters.get("root") == "results" or notebook.stem == "index":
        files += sorted(p for p in (HOME / "results").rglob("*") if p.is_file() and p.parent.name not in ("figures",))
    for f in files:
        h.update(f.name.encode() + f.read_bytes())
    return h.hexdigest()


def execute(notebook: Path, home: Path, profile: str) -> Path:
    "The executed copy of a notebook; made only if something that it depends on has changed."
    import papermill

    out = WORK / "executed" / notebook.relative_to(HOME / "nbs")
    parameters = parameters_of(notebook, profile)
    mark, key = out.with_suffix(".key"), key_of(notebook, parameters)
    if out.is_file() and mark.is_file() and mark.read_text() == key:
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as cwd:
        where = home / "nbs" if notebook.stem == "index" else cwd
        papermill.execute_notebook(str(notebook), str(out), parameters, kernel_name="python3", progress_bar=False, cwd=str(where))
    mark.write_text(key)
    print(f"executed {notebook.name} in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return out


# ── Pages ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Pages:
    "The folder of staged pages that Sphinx reads."

    def __init__(self, folder: Path):
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def turn(self, page: str) -> Any:
        "What links of a page (path in the staged folder) point to."
        here = posixpath.dirname(page)

        def target(label: str, path: str, anchor: str) -> str:
            if not path:
                return f"#{slug(anchor.replace('-', ' '))}"
            full = HOME / path
            if not full.exists():
                raise FileNotFoundError(f"{page} links to {path}, which does not exist")
            if path.startswith("nbs/") and path.endswith(".ipynb"):
                to, anchor = path.removeprefix("nbs/"), slug(anchor.replace("-", " "))
            elif path.startswith("tests/") and path.endswith(".py"):
                to, anchor = path.removesuffix(".py") + ".md", label.strip("`").partition("::")[2]
            else:
                to, anchor = self.keep(full, path), ""
            return posixpath.relpath(to, here or ".") + (f"#{anchor}" if anchor else "")

        return target

    def keep(self, file: Path, path: str) -> str:
        "Take a file of the repository into the site; a folder is represented by a list of what it holds."
        to = f"files/{path}"
        if file.is_dir():
            to = f"{to}/contents.txt"
            listed = subprocess.run(["git", "ls-files", path], cwd=HOME, capture_output=True, text=True).stdout
            text = listed or "\n".join(sorted(str(p.relative_to(HOME)) for p in file.rglob("*") if p.is_file()))
            (self.folder / to).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / to).write_text(text)
        elif file.suffix == ".md":  # a table for readers: a page of its own
            self.write(to, f"---\norphan: true\n---\n\n# {file.stem}\n\n{file.read_text()}")
        else:
            to = to if file.suffix else f"{to}.txt"
            (self.folder / to).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, self.folder / to)
        return to

    def write(self, page: str, text: str) -> None:
        "Write one page of text."
        path = self.folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def notebook(self, source: Path, executed: Path, profile: str = "smoke") -> None:
        "Stage one notebook; a chapter that shows a run of its own says of which profile."
        page = str(source.relative_to(HOME / "nbs"))
        folder = str(source.parent.relative_to(HOME))
        staged = stage(nbformat.read(executed, 4), folder, self.turn(page))
        if source.stem[:2] in ("01", "02", "03"):
            text = f"The outputs on this page are those of the profile `{profile}`. The committed study is in"
            note = f":::{{note}}\n{text} [chapter 04](04_results.ipynb).\n:::"
            staged.cells.insert(1, nbformat.v4.new_markdown_cell(note))
        if page == "index.ipynb":
            staged.cells.append(nbformat.v4.new_markdown_cell(contents()))
        self.write(page, nbformat.writes(staged))


def contents() -> str:
    "The table of contents, for the front page."
    chapters = [p.stem for p in notebooks() if p.parent.name == "nbs" and p.stem not in FRONT]
    library = [f"lib/{p.stem}" for p in notebooks() if p.parent.name == "lib"]
    parts = {"Chapters": chapters, "Library": library, "Reference": ["details", "modules", "tests/index"]}
    trees = [
        f"```{{toctree}}\n:hidden:\n:maxdepth: 1\n:caption: {name}\n\n" + "\n".join(pages) + "\n```"
        for name, pages in parts.items()
    ]
    return "\n\n".join(trees)


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    "Name and argument names."
    if isinstance(node, ast.ClassDef):
        return node.name
    a = node.args
    names = [x.arg for x in a.posonlyargs + a.args] + ([f"*{a.vararg.arg}"] if a.vararg else [])
    names += ([] if a.vararg or not a.kwonlyargs else ["*"]) + [x.arg for x in a.kwonlyargs]
    return f"{node.name}({', '.join(names + ([f'**{a.kwarg.arg}'] if a.kwarg else []))})"


def modules_page() -> str:
    "Every public function and class with its first line, by module, linked to the notebook that holds it."
    out = [
        "# Modules",
        "",
        "What each notebook exports. Definitions, worked examples and reasons are in the notebooks.",
        "",
    ]
    for nb in notebooks():
        exp = [
            v.split()[0]
            for c in nbformat.read(nb, 4).cells
            if c.cell_type == "code" and "#| default_exp" in c.source
            for v in [c.source.split("default_exp")[1]]
        ]
        if not exp or not (HOME / "r3_repro" / f"{exp[0]}.py").is_file():
            continue
        title, subtitle = title_of(nb)
        out += [f"## r3_repro.{exp[0]}", "", f"[{title}]({nb.relative_to(HOME / 'nbs')}). {subtitle}", ""]
        out += ["| | |", "| --- | --- |"]
        for node in ast.parse((HOME / "r3_repro" / f"{exp[0]}.py").read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                doc = (ast.get_docstring(node) or "").split("\n")[0].replace("|", "\\|")
                out.append(f"| `{signature(node)}` | {doc} |")
        out.append("")
    return "\n".join(out)


def test_page(file: Path) -> str:
    "A test file with a heading for each test, so that a test can be linked to."
    text = file.read_text()
    lines, tree = text.splitlines(), ast.parse(text)
    doc = ast.get_docstring(tree) or ""
    out, done = [f"# {file.name}", "", doc, ""], 0
    body = tree.body[1:] if doc else tree.body
    for node in body:
        start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        end = node.end_lineno or node.lineno
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            before = "\n".join(lines[done:start]).strip("\n") if done else ""
            out += [f"```python\n{before}\n```", ""] if before.strip() else []
            out += [f"## `{node.name}`", "", "```python", *lines[start:end], "```", ""]
            done = end
        elif not done:
            done = start
    rest = "\n".join(lines[done:]).strip("\n")
    return "\n".join(out + ([f"```python\n{rest}\n```"] if rest else [])) + "\n"


def stage_all(folder: Path, executed: dict[Path, Path], profile: str = "smoke") -> Pages:
    "Stage notebooks, modules and tests."
    pages = Pages(folder)
    for source, copy in executed.items():
        pages.notebook(source, copy, profile)
    pages.write("modules.md", modules_page())
    top = HOME / "tests"
    tests = [f.relative_to(top).with_suffix("") for f in [*sorted(top.glob("test_*.py")), *sorted(top.glob("on_*/test_*.py"))]]
    for name in tests:
        pages.write(f"tests/{name}.md", test_page((top / name).with_suffix(".py")))
    listed = "\n".join(map(str, tests))
    about = "What is awkward in a notebook. `make test` runs all but the folders `on_…`, each of which has a command of its own."
    pages.write("tests/index.md", f"# Tests\n\n{about}\n\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n")
    return pages


# ── The site ───────────────────────────────────────────────────────────────────────────────────────────────────────


def vendor_mathjax(folder: Path) -> bool:
    "Put MathJax 3 from npm into `folder`; False if npm or the package cannot be had."
    kept = WORK / "mathjax"
    if not (kept / "tex-chtml.js").is_file():
        with tempfile.TemporaryDirectory() as d:
            try:
                subprocess.run(["npm", "pack", "--silent", "mathjax@3"], cwd=d, check=True, capture_output=True, timeout=120)
                with tarfile.open(next(Path(d).glob("*.tgz"))) as tar:
                    wanted = ("package/es5/tex-chtml.js", "package/es5/output/chtml/fonts/")
                    tar.extractall(d, [m for m in tar if m.name.startswith(wanted)], filter="data")
            except (OSError, subprocess.SubprocessError, StopIteration, tarfile.TarError) as e:
                print(
                    f"MathJax not vendored ({type(e).__name__}): formulas will be fetched when a page is read",
                    file=sys.stderr,
                )
                return False
            shutil.rmtree(kept, ignore_errors=True)
            shutil.move(Path(d) / "package/es5", kept)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    return True


def broken_links(site: Path) -> int:
    "Print links of the site that lead to no file of it; 1 if there are any."
    dead = []
    for page in site.rglob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text()):
            if not re.match(r"[a-z]+:|//", target) and not (page.parent / unquote(target)).exists():
                dead.append(f"{page.relative_to(site)} links to {target}, which is not there")
    print("\n".join(f"WARNING: {d}" for d in dead), file=sys.stderr, end="\n" if dead else "")
    return 1 if dead else 0


def build(out: Path, execute_pages: bool = True, profile: str = "smoke", mathjax: bool = True) -> int:
    "Build the site into `out`; returns Sphinx's exit code, in which a warning is an error."
    from sphinx.cmd.build import main as sphinx

    sources = notebooks()
    executed = {nb: nb for nb in sources}
    if execute_pages:
        home = WORK / "home"
        prepare_home(home, profile)
        os.environ |= {"R3_HOME": str(home), "PYTHONWARNINGS": "ignore"}
        executed = {nb: execute(nb, home, profile) for nb in sources}
    with tempfile.TemporaryDirectory() as scratch:
        pages, html = Path(scratch) / "pages", Path(scratch) / "built" / "html"
        stage_all(pages, executed, profile)
        local = mathjax and vendor_mathjax(html / "_static" / "mathjax")
        os.environ["R3_MATHJAX"] = "1" if local else "0"
        strict = ["-q", "-E", "-W", "--keep-going", "-b", "html", "-d", f"{scratch}/trees"]
        code = sphinx([*strict, "-c", str(Path(__file__).parent), str(pages), str(html)])
        shutil.copytree(pages / "files", html / "files", ignore=shutil.ignore_patterns("*.md"), dirs_exist_ok=True)
        code = code or broken_links(html)
        if (out / ".buildinfo").is_file():  # an older site; nothing else is ever removed
            shutil.rmtree(out)
        shutil.copytree(html, out, dirs_exist_ok=True)
    return code


def main(argv: list[str] | None = None) -> int:
    "Build what the command line asks for."
    ap = argparse.ArgumentParser(description="Build the docs site.")
    ap.add_argument("--out", type=Path, default=HOME / "_site")
    ap.add_argument("--profile", default="smoke", help="profile that chapters 01 to 03 show")
    ap.add_argument("--no-execute", action="store_true", help="pages without outputs")
    ap.add_argument("--no-mathjax", action="store_true", help="do not ask npm for MathJax")
    ap.add_argument("--readme", action="store_true", help="write README.md and stop")
    a = ap.parse_args(argv)
    if a.readme:
        from readme import readme

        (HOME / "README.md").write_text(readme())
        return 0
    code = build(a.out, not a.no_execute, a.profile, not a.no_mathjax)
    print(f"docs: {a.out}/index.html" if code == 0 else "docs: failed, see the warnings above", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
