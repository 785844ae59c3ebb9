"""What the docs site adds to Sphinx and MyST-NB: nbdev's directives, links to files of the repository, a list of all modules."""

import ast
import json
import re
from binascii import a2b_base64
from collections.abc import Callable, Iterator
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from pygments.lexers import guess_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

HOME = Path(__file__).resolve().parents[1]
PACKAGES = [
    "tasks",
    "mining",
    "training",
    "evaluation",
    "engines",
    "runs",
    "planning",
    "analysis",
    "reporting",
    "utils",
    "workflow",
]
SHOWN_ARMS = ["vanilla", "r3", "permuted_reward", "plain_grpo"]
GUIDES = ["one_h100", "cluster", "air_gapped", "own_task", "own_model", "own_trl_script", "metrics", "replication_report"]
DIRECTIVE = re.compile(r"^#\|[ \t]*(\w+)[ \t]*:?[ \t]*(.*)\n?", re.M)
MARKDOWN = MarkdownIt("commonmark").enable("table")
Page = tuple[str, dict[str, Any], str]  # name, context and template of a page that is made from no document


def anchor(heading: str) -> str:
    "The anchor of a heading as Jupyter makes it."
    return heading.strip().replace(" ", "-")


def only_imports(source: str) -> bool:
    "Whether a cell does nothing but import."
    try:
        return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source).body)
    except SyntaxError:  # a magic
        return False


def prepare(cell: dict[str, Any]) -> bool:
    "Turn the nbdev directives of a code cell into tags; whether the page shows the cell."
    source = "".join(cell["source"])
    directives, cell["source"] = dict(DIRECTIVE.findall(source)), DIRECTIVE.sub("", source).strip("\n")
    tags = cell["metadata"].setdefault("tags", [])
    if directives.keys() & {"export", "exports", "exporti"}:
        tags.append("exported")
        cell["outputs"] = [o for o in cell["outputs"] if o["output_type"] != "execute_result"]  # the docstring of a constant
    if directives.get("echo") == "false":
        tags.append("remove-input")
    elif only_imports(cell["source"]):
        tags.append("hide-input")
    return bool(cell["source"]) and "hide" not in directives


CONTENTS = {
    "Start": ["index", "method", "verdicts", "status", "small_model", "reports"],
    "Chapters": ["01_datasets", "02_failures", "03_train", "04_results", "05_reflections", "06_forgetting"],
    "Guides": [f"guides/{g}" for g in GUIDES],
    "Details": ["details", "input"],
    "Reference": ["guides/commands", "config", "guides/files", "guides/packages"],
}
"The pages that are read first, by caption, in the order of the side bar."


def by_caption(docs: set[str]) -> dict[str, list[str]]:
    "All pages in the order of the side bar, by caption: those of `CONTENTS`, then each package."
    found = {name: [d for d in listed if d in docs] for name, listed in CONTENTS.items()}
    rest = sorted(docs - {d for listed in CONTENTS.values() for d in listed}, key=lambda d: (not d.endswith("/base"), d))
    for doc in rest:
        package = doc.partition("/")[0] if "/" in doc else "settings, data, arms"
        found.setdefault(f"Library: {package}", []).append(doc)
    order = [*CONTENTS, *(f"Library: {p}" for p in ("settings, data, arms", *PACKAGES))]
    return {name: found[name] for name in (*order, *found) if found.get(name)}


def read_notebook(app: Sphinx, docname: str, source: list[str]) -> None:
    "Prepare one notebook for MyST-NB; the front page also holds the contents of the side bar."
    notebook = json.loads(source[0])
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["cell_type"] != "code" or prepare(cell)]
    app.env.r3_alternatives = alternatives(notebook)
    if docname == "index":
        parts = by_caption(app.env.found_docs)
        parts["Start"][0] = "Front page <self>"
        trees = ["\n".join(["```{toctree}", ":hidden:", f":caption: {name}", "", *parts[name], "```", ""]) for name in parts]
        notebook["cells"].append({"cell_type": "markdown", "id": "contents", "metadata": {}, "source": "\n".join(trees)})
    source[0] = json.dumps(notebook)


def alternatives(notebook: dict[str, Any]) -> dict[str, str]:
    "Pictures among the outputs, by the name that MyST-NB gives their files: what they show, in words."
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    name = lambda o: sha256(a2b_base64("".join(o["data"]["image/png"]))).hexdigest()  # noqa: E731
    return {name(o): o.get("metadata", {}).get("image/png", {}).get("alt", "") for o in outputs}


def describe_pictures(app: Sphinx, doctree: nodes.document) -> None:
    "Give pictures of outputs their alternative text, which Jupyter keeps for each output and MyST-NB knows for whole cells only."
    for node in doctree.findall(nodes.image):
        if said := app.env.r3_alternatives.get(Path(node["uri"]).stem):
            node["alt"] = said


def link_files(app: Sphinx, doctree: nodes.document) -> None:
    "Point links to files and folders outside nbs/ to pages that show them; MyST warns of what leads nowhere."
    here = app.env.docname
    for node in list(doctree.findall(lambda n: isinstance(n, addnodes.download_reference | addnodes.pending_xref))):
        target = node["reftarget"] + (".md" if node["reftarget"].startswith("/") else "")  # MyST takes a table for a document
        path = Path(app.srcdir, here).parent.joinpath(target).resolve()
        if node.get("reftype") != "myst" or not path.exists() or not path.is_relative_to(HOME):
            continue
        if path.is_file() and b"\0" in path.read_bytes():
            logging.getLogger(__name__).warning("%s is not text: link to its folder", path.relative_to(HOME), location=node)
            continue
        to = app.builder.get_relative_uri(here, f"files/{path.relative_to(HOME)}")
        if test := node.astext().partition("::")[2]:  # the label of a test: FILE::NAME
            to += f"#{test}"
            if not re.search(rf"^def {test}\(", path.read_text("utf-8"), re.M):
                logging.getLogger(__name__).warning("%s has no %s", path.relative_to(HOME), test, location=node)
        app.env.r3_files.add(path)
        node.replace_self(nodes.reference("", "", *node.children, refuri=to, internal=True))


def source_html(app: Sphinx, path: Path) -> str:
    "A text file in colours; in Python each function has its name as anchor."
    text = path.read_text("utf-8")
    try:
        language = guess_lexer_for_filename(path.name, text).aliases[0]
    except ClassNotFound:
        language = "text"
    html = app.builder.highlighter.highlight_block(text, language, force=True, lineanchors="line")  # type: ignore[attr-defined]
    html = re.sub(r'(<a id="line-\d+" name="line-\d+") href="#line-\d+"', r"\1", html)  # an anchor, not a link without a text
    for node in ast.walk(ast.parse(text)) if path.suffix == ".py" else []:
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            html = html.replace(f'<a id="line-{first}"', f'<a id="{node.name}"', 1)
    return html


def folder_html(app: Sphinx, folder: Path) -> str:
    "The files of a folder, with links to those that the site shows."
    items = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        name = f"<code>{escape(str(file.relative_to(folder)))}</code>"
        to = app.builder.get_relative_uri(*(f"files/{p.relative_to(HOME)}" for p in (folder, file)))
        items.append(f'<li><a href="{to}">{name}</a></li>' if file in app.env.r3_files else f"<li>{name}</li>")
    return f"<ul>{''.join(items)}</ul>"


def from_files(app: Sphinx, path: Path, html: str) -> str:
    "The links of a Markdown file outside nbs/, as they must be on the page that shows it."

    def turned(link: re.Match[str]) -> str:
        target = (path.parent / link[1]).resolve()
        inside = target.is_relative_to(HOME / "nbs") and target.suffix == ".ipynb"
        page = str(target.relative_to(HOME / "nbs").with_suffix("")) if inside else f"files/{target.relative_to(HOME)}"
        if not inside:
            app.env.r3_files.add(target)
        return f'href="{app.builder.get_relative_uri(f"files/{path.relative_to(HOME)}", page)}{link[2] or ""}"'

    return re.sub(r'href="(?![a-z]+:|#)([^"#]+)(#[^"]*)?"', turned, html)


def is_whole(app: Sphinx) -> bool:
    "Whether this is the site of all notebooks: one of a few pages is made without tests and episodes."
    return Path(app.srcdir) == HOME / "nbs"


def file_pages(app: Sphinx) -> Iterator[Page]:
    "A page for every file and folder that a notebook, or such a file, links to, and for every test."
    if is_whole(app):
        app.env.r3_files |= {HOME / "CHANGELOG.md", HOME / "tests", *(HOME / "tests").rglob("*.py")}
    written = set[Path]()
    while left := sorted(app.env.r3_files - written):
        for path in left:
            if path.suffix == ".md":
                body = from_files(app, path, MARKDOWN.render(path.read_text("utf-8")))
            else:
                body = folder_html(app, path) if path.is_dir() else source_html(app, path)
            name = str(path.relative_to(HOME))
            heading = "" if body.startswith("<h1>") else f"<h1>{escape(name)}</h1>"
            yield f"files/{name}", {"title": name, "body": heading + body}, "page.html"
        written |= set(left)


def definitions(file: Path) -> Iterator[str]:
    "Every public function and class of a module with the first line of its docstring, from the source alone."
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            arguments = f"({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef) else ""
            summary = MARKDOWN.renderInline((ast.get_docstring(node) or "").partition("\n")[0])
            yield f"<dt><code><b>{node.name}</b>{escape(arguments)}</code></dt><dd>{summary}</dd>"


def module_page(app: Sphinx) -> Iterator[Page]:
    "One page with what each notebook exports, by package."
    contents, sections = "", ""
    for caption, docs in by_caption(app.env.found_docs).items():
        files = {doc.replace("/", "."): (doc, file) for doc in docs if (file := HOME / "r3_repro" / f"{doc}.py").is_file()}
        links = [f'<a href="#{module}"><code>{module.partition(".")[2] or module}</code></a>' for module in files]
        contents += f"<li>{caption}: {', '.join(links)}</li>" if links else ""
        for module, (doc, file) in files.items():
            notebook = f'<a href="{app.builder.get_relative_uri("modules", doc)}">{escape(app.env.titles[doc].astext())}</a>'
            listed = f"<h2>r3_repro.{module}</h2><p>{notebook}</p><dl>{''.join(definitions(file))}</dl>"
            sections += f'<section id="{module}">{listed}</section>'
    yield "modules", {"title": "Modules", "body": f"<h1>Modules</h1><ul>{contents}</ul>{sections}"}, "page.html"


MADE = {
    "episodes": ("Start", "Reflections: browse what the models said"),
    "modules": ("Reference", "Modules"),
    "files/tests": ("Reference", "Tests"),
    "files/CHANGELOG.md": ("Reference", "Changelog"),
    "index#Citation": ("Start", "Cite"),
}
"What the contents list beside documents: the caption in the side bar under which it comes last, and its title there."
CAPTION = r'<p class="caption" role="heading"(><span class="caption-text">Library: .*?</span>)</p>'
LIBRARY = re.compile(CAPTION + r"\s*(<ul.*?</ul>)(?=\s*(?:<p|</div|$))", re.S)


def with_made_pages(tree: str, to: Callable[[str], str]) -> str:
    "The contents in the side bar, with the pages that are made from no document."
    for target, (caption, title) in MADE.items():
        page, _, place = target.partition("#")
        link = to(page) + (f"#{place}" if place else "")
        item = f'<li class="toctree-l1"><a class="reference internal" href="{link}">{title}</a></li>'
        tree = re.sub(rf'(caption-text">{caption}<.*?)</ul>', rf"\g<1>{item}</ul>", tree, count=1, flags=re.S)
    return tree


def folded(tree: str) -> str:
    "The contents with each package of the library folded, but that of the page."

    def fold(found: re.Match[str]) -> str:
        shown = " open" if "current-page" in found[2] else ""
        return f'<details{shown}><summary class="caption"{found[1]}</summary>{found[2]}</details>'

    return LIBRARY.sub(fold, tree)


def for_readers_of_all_kinds(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    "What screen readers and keyboards need and the theme leaves out."
    if tree := context.get("furo_navigation_tree"):
        told = with_made_pages(tree, lambda to: app.builder.get_relative_uri(page, to))
        context["furo_navigation_tree"] = folded(told).replace('role="heading"', 'role="heading" aria-level="2"')
    if body := context.get("body"):
        body = body.replace("<pre>", '<pre tabindex="0">').replace(' aria-label="Toggle hidden content"', "")
        context["body"] = body.replace('<th class="head"><p></p></th>', "<td></td>").replace("<th></th>", "<td></td>")


def write_inline_formula(writer: Any, node: nodes.math) -> None:
    "A formula as MathML, which browsers draw by themselves."
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def write_formula(writer: Any, node: nodes.math_block) -> None:
    "A formula on a line of its own."
    writer.body.append(f'<div class="math" tabindex="0">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def name_landmarks(app: Sphinx, exception: Exception | None) -> None:
    "The theme's two asides, with names by which a screen reader tells them apart."
    names = {"sidebar-drawer": "Contents of the site", "toc-drawer": "Contents of this page"}
    for file in Path(app.outdir).rglob("*.html") if exception is None and app.builder.format == "html" else []:
        text = file.read_text("utf-8")
        named = re.sub(
            r'<aside class="((?:sidebar|toc)-drawer)', lambda m: f'<aside aria-label="{names[m[1]]}" class="{m[1]}', text
        )
        file.write_text(named, "utf-8")


def share_contents(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    "Make the side bar once a folder for pages of no document, which are not marked in it: it takes longer than the page."
    if page in app.env.found_docs or "toctree" not in context:
        return
    make, folder, made = context["toctree"], page.rpartition("/")[0], vars(app).setdefault("r3_contents", {})

    def toctree(**how: Any) -> str:
        key = folder, *sorted(how.items())
        if key not in made:
            made[key] = make(**how)
        return made[key]

    context["toctree"] = toctree


def write_browser(app: Sphinx, exception: Exception | None) -> None:
    "The committed episodes on one page, some seeds and arms of each base."
    study = HOME / "results/studies/tiny-study"
    if exception is None and app.builder.format == "html" and study.is_dir() and is_whole(app):
        from r3_repro.analysis.browser import write_page

        out = Path(app.outdir) / "episodes.html"
        choice = {"arms": SHOWN_ARMS, "seeds": [0], "limit": 12_000, "shades": sorted(HOME.glob("results/shades/**/*.parquet"))}
        write_page(sorted(study.glob("*/tiny-*")), out, "Episodes of the tiny study", **choice)


def setup(app: Sphinx) -> dict[str, bool]:
    "Connect all this with Sphinx."
    app.add_html_math_renderer("mathml", (write_inline_formula, None), (write_formula, None))
    app.connect("builder-inited", lambda app: vars(app.env).setdefault("r3_files", set()))
    app.connect("source-read", read_notebook)
    app.connect("doctree-read", describe_pictures, priority=400)  # before Sphinx gives them other names
    app.connect("doctree-read", link_files, priority=400)  # before Sphinx collects the files as downloads
    app.connect("html-collect-pages", file_pages)
    app.connect("html-collect-pages", module_page)
    app.connect("build-finished", name_landmarks)
    app.connect("build-finished", write_browser)
    app.connect("html-page-context", share_contents, priority=100)  # before the theme
    app.connect("html-page-context", for_readers_of_all_kinds, priority=900)  # after the theme
    return {"parallel_read_safe": False, "parallel_write_safe": True}
