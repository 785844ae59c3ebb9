"""README.md is what the front page says now; test_links.py follows its links."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from support import REPOSITORY, patience

from r3_repro.workflow import front_page

sys.path.insert(0, str(REPOSITORY / "docs"))

from readme import from_root, output_text, readme

FENCE = re.compile(r"(?s)```.*?```")


@pytest.fixture(scope="module")
def made() -> str:
    return readme()


def test_readme_is_what_the_front_page_says_now(made: str) -> None:
    "Also after results/ has changed: the numbers of the README are read from there."
    assert (REPOSITORY / "README.md").read_text("utf-8") == made, "run `python docs/readme.py`"


def page(name: str) -> str:
    "The prose of a notebook, and the Markdown that its cells show."
    parts = []
    for c in nbformat.read(REPOSITORY / f"nbs/{name}.ipynb", 4).cells:
        parts += [c.source] if c.cell_type == "markdown" else [o.get("data", {}).get("text/markdown", "") for o in c.outputs]
    return "\n\n".join(parts)


def test_the_readme_says_at_once_what_was_run_and_what_not(made: str) -> None:
    first = made.partition("## Start")[0]
    for what in (
        "2505.24726",
        "**Run:**",
        "**Not run:**",
        "no evidence about large ones",
        "overview.png",
        "**Decoding matters.**",
    ):
        assert what in first, what
    assert "make reproduce" in made and "make test" in made


def test_the_status_says_what_was_not_run() -> None:
    not_run = page("status").partition("## Not run yet")[2].partition("\n## ")[0]
    for what in ("`paper`", "GPU", "vLLM", "APIGen", "MMLU-Pro", "GSM8K", "HellaSwag", "MATH"):
        assert what in not_run, what


def test_every_package_is_named() -> None:
    listed, packages = page("guides/packages"), {p.parent.name for p in (REPOSITORY / "nbs").glob("*/*.ipynb")} - {"guides"}
    assert len(packages) > 10 and not [p for p in packages if f"[{p}](../{p}/" not in listed]


def test_no_number_of_the_results_is_typed() -> None:
    "Prose of the pages on results holds no percentage and no p value: such numbers come from results/ when a page is made."
    for name in ("index", "verdicts", "status"):
        cells = nbformat.read(REPOSITORY / f"nbs/{name}.ipynb", 4).cells
        prose = FENCE.sub("", "\n\n".join(c.source for c in cells if c.cell_type == "markdown"))
        prose = prose.replace("intervals are 95%", "").replace("a 95% t interval", "")
        assert re.findall(r"\d+(?:\.\d+)? ?%|p ?[<=] ?0\.\d+|\d\.\d+ points", prose) == [], name


def test_the_front_page_only_calls_the_library() -> None:
    cells = [c for name in ("index", "verdicts", "status") for c in nbformat.read(REPOSITORY / f"nbs/{name}.ipynb", 4).cells]
    code = [c.source for c in cells if c.cell_type == "code"]
    assert code and all(source.startswith("#| echo: false\n") and source.count("\n") == 1 for source in code)


def test_the_front_page_needs_no_torch() -> None:
    names = ("status_line", "overview", "claim_rows", "findings", "scope_line", "in_short", "verdict_table", "task_figures")
    calls = ", ".join(f"front.{name}()" for name in (*names, "beside_the_verdicts", "collapsed")) + ", measured.measurements()"
    heavy = "{'torch', 'transformers', 'trl', 'datasets'}"
    modules = "from r3_repro.workflow import front_page as front, measured"
    source = f"import sys; {modules}; {calls}; assert not {heavy} & set(sys.modules)"
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


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        ([True], "1 supervised start, which passed its gate. "),
        ([False, True], "2 supervised starts, one of which passed its gate. "),
        ([False, False], "2 supervised starts, none of which passed its gate. "),
    ],
)
def test_starts_are_counted_from_their_tables(
    passed: list[bool], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, both in enumerate(passed):
        (folder := tmp_path / f"results/benchmarks/capability_gate/start{i}").mkdir(parents=True)
        (folder / "start.csv").write_text(f"criterion,passed\none,True\nother,{both}\n", "utf-8")
    monkeypatch.setattr(front_page, "find_home", lambda: tmp_path)
    assert front_page._small_model().endswith(f": {said}")
    for arm in ("r3", "plain_grpo"):
        (folder := tmp_path / f"results/studies/small/countdown/start/training/{arm}-seed0").mkdir(parents=True)
        (folder / "manifest.json").write_text("{}", "utf-8")
    assert front_page._small_model().endswith(f": {said[:-2]}; 2 trainings from a start. ")
