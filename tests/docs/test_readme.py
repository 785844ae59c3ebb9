"""README.md is what the front page says now; test_links.py follows its links."""

import re
import subprocess
import sys

import nbformat
import pytest
from support import REPOSITORY, patience

sys.path.insert(0, str(REPOSITORY / "docs"))

from readme import from_root, output_text, readme

FENCE = re.compile(r"(?s)```.*?```")


@pytest.fixture(scope="module")
def made() -> str:
    return readme()


def test_readme_is_what_the_front_page_says_now(made: str) -> None:
    "Also after results/ has changed: the numbers of the README are read from there."
    assert (REPOSITORY / "README.md").read_text("utf-8") == made, "run `python docs/readme.py`"


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


def test_the_readme_names_every_package(made: str) -> None:
    layout = made.partition("## How the repository is laid out")[2].partition("\n## ")[0]
    packages = [p.parent.name for p in (REPOSITORY / "nbs").glob("*/*.ipynb")]
    assert len(packages) > 10 and not [p for p in packages if f"[{p}](nbs/{p}/" not in layout]


def test_no_number_of_the_results_is_typed() -> None:
    "Prose of the front page holds no percentage and no p value: such numbers come from results/ when the page is made."
    cells = nbformat.read(REPOSITORY / "nbs/index.ipynb", 4).cells
    prose = FENCE.sub("", "\n\n".join(c.source for c in cells if c.cell_type == "markdown"))
    prose = prose.replace("Intervals are 95%", "").replace("an exact McNemar p < 0.01", "")
    assert re.findall(r"\d+(?:\.\d+)? ?%|p ?[<=] ?0\.\d+|\d\.\d+ points", prose) == []


def test_the_front_page_only_calls_the_library() -> None:
    code = [c.source for c in nbformat.read(REPOSITORY / "nbs/index.ipynb", 4).cells if c.cell_type == "code"]
    assert code and all(source.startswith("#| echo: false\n") and source.count("\n") == 1 for source in code)


def test_the_front_page_needs_no_torch() -> None:
    names = ("scope_line", "in_short", "verdict_table", "what_happened", "task_figures", "measurements")
    calls = ", ".join(f"front.{name}()" for name in names)
    heavy = "{'torch', 'transformers', 'trl', 'datasets'}"
    source = f"import sys; from r3_repro.workflow import front_page as front; {calls}; assert not {heavy} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=REPOSITORY, capture_output=True, encoding="utf-8", timeout=patience(120)
    )
    assert done.returncode == 0, done.stderr


def test_links_start_from_the_root_of_the_repository() -> None:
    text = "a [b](c.ipynb#D) ![i](../f.png) [`x`](https://x.org/y) [z](#z)\n\n```\n[x](y)\n```\n"
    assert from_root(text) == "a [b](nbs/c.ipynb#D) ![i](f.png) [`x`](https://x.org/y) [z](#z)\n\n```\n[x](y)\n```\n"


def test_progress_bars_do_not_reach_the_readme() -> None:
    new = nbformat.v4.new_output
    outputs = [
        new("stream", name="stderr", text="100%|####"),
        new("stream", name="stdout", text="printed\n"),
        new("display_data", {"text/markdown": "[a](b.ipynb)", "text/plain": "<Markdown>"}),
    ]
    assert [output_text(o) for o in outputs] == ["", "```text\nprinted\n```", "[a](nbs/b.ipynb)"]
