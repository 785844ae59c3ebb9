"""Text is UTF-8 whatever the locale: every open says so, and commands work where the locale is C or Latin-1."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import NOTEBOOKS, REPOSITORY, patience

SCRIPTS = sorted(p for d in ("r3_repro", "tests", "benchmarks", "docs", "cluster") for p in (REPOSITORY / d).rglob("*.py"))


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def text_mode(call: ast.Call, position: int, default: str) -> bool:
    "Whether a call opens text: its mode, at a position or by keyword, has no b."
    given = keyword(call, "mode") or (call.args[position] if len(call.args) > position else None)
    return "b" not in (given.value if isinstance(given, ast.Constant) else default)  # type: ignore[operator]


def opens_text(call: ast.Call) -> bool:
    "Whether a call reads or writes text in the locale's encoding unless it is told another."
    method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(call.func.value, "id", "") if isinstance(call.func, ast.Attribute) else ""
    if name == "read_text":
        return method and not call.args
    if name == "write_text":
        return method and len(call.args) < 2
    if name == "open":
        of_a_path = method and owner not in ("gzip", "io")
        return owner not in ("os", "tarfile", "zipfile", "zipped", "webbrowser") and text_mode(call, 0 if of_a_path else 1, "r")
    if name in ("NamedTemporaryFile", "TemporaryFile"):
        return text_mode(call, 0, "w+b")
    as_text = [getattr(keyword(call, k), "value", None) for k in ("text", "universal_newlines")]  # of subprocess
    return name == "FileHandler" or True in as_text


def without_encoding(source: str) -> list[str]:
    "The calls in a source that leave the encoding to the locale."
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    return [ast.unparse(c) for c in calls if opens_text(c) and keyword(c, "encoding") is None]


def code(notebook: Path) -> Iterator[str]:
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            yield re.sub(r"(?m)^[%!].*", "pass", "".join(cell["source"]))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("p.read_text()", True), ("p.read_text('utf-8')", False), ("p.write_text(x)", True), ("p.write_text(x, 'utf-8')", False),
        ("open(p)", True), ("open(p, 'wb')", False), ("p.open('a')", True), ("p.open('rb')", False), ("open(p, encoding=e)", 0),
        ("run(c, text=True)", True), ("run(c, encoding='utf-8')", False), ("run(c)", False), ("TemporaryFile('w+')", True),
        ("TemporaryFile()", False), ("gzip.open(p, 'rt')", True), ("gzip.open(p, 'rb')", False), ("read_text(p)", False),
    ],
)  # fmt: skip
def test_the_search_sees_what_it_should(source: str, found: bool) -> None:
    assert bool(without_encoding(source)) == found


def test_every_open_says_utf_8() -> None:
    found = {str(p.relative_to(REPOSITORY)): without_encoding(p.read_text("utf-8")) for p in SCRIPTS}
    found |= {str(p.relative_to(REPOSITORY)): [c for source in code(p) for c in without_encoding(source)] for p in NOTEBOOKS}
    assert {k: v for k, v in found.items() if v} == {}, 'say "utf-8": elsewhere the locale decides'


# ── Other locales ──────────────────────────────────────────────────────────────────────────────────────────────────────

LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "Latin-1 output": {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "a Latin-1 locale": {"LC_ALL": "de_DE.ISO-8859-1", "PYTHONUTF8": "0"},
}


@pytest.fixture(params=LOCALES)
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    "The environment of a machine with another locale."
    more = dict(LOCALES[request.param])
    if request.param == "a Latin-1 locale":
        if shutil.which("localedef") is None:
            pytest.skip(
                "no localedef here, to make a Latin-1 locale with: the C locale and Latin-1 output are tried all the same"
            )
        subprocess.run(["localedef", "-c", "-i", "de_DE", "-f", "ISO-8859-1", tmp_path / "de_DE.ISO-8859-1"], capture_output=True)
        more["LOCPATH"] = str(tmp_path)
        said = python("import locale; print(locale.getpreferredencoding(False))", os.environ | more)
        if said.stdout.strip().lower() not in (b"iso-8859-1", b"iso8859-1"):
            pytest.skip("localedef could not make a Latin-1 locale here: the C locale and Latin-1 output are tried all the same")
    return os.environ | more | {"R3_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}


def python(program: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], env=env, cwd=REPOSITORY, capture_output=True, timeout=patience(60))


PROGRAM = """
import json, sys
from pathlib import Path
from r3_repro.config import load_profile
from r3_repro.tasks.function_calling.task import load_call_rows
from r3_repro.utils.errors import exit_on_user_error
from r3_repro.utils.files import write_json
from r3_repro.workflow.cli import app
home = Path(sys.argv[1])
assert load_profile("uni").retry_turn == "Bitte noch einmal \\u2013 f\\xfcr die L\\xf6sung", ascii(load_profile("uni").retry_turn)
assert load_call_rows(home / "own.jsonl")[0][0].data["query"] == "Weather in K\\xf6ln \\u2192 today?"
write_json(home / "out.json", {"\\u2192": "K\\xf6ln"})
print("49 \\u2192 54 \\u2502 \\u2713")
with exit_on_user_error():
    load_profile("\\u2192")
"""


@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig"])
def test_settings_rows_and_output_are_the_same_elsewhere(elsewhere: dict[str, str], tmp_path: Path, mark: str) -> None:
    own = "\n[uni]\nbased_on = smoke\nretry_turn = Bitte noch einmal – für die Lösung\n"
    (tmp_path / "settings.ini").write_text((REPOSITORY / "settings.ini").read_text("utf-8") + own, mark)
    tool = {"name": "weather", "parameters": {"city": {"type": "str"}}}
    row = {"query": "Weather in Köln → today?", "tools": [tool], "answers": [{"name": "weather", "arguments": {"city": "Köln"}}]}
    (tmp_path / "own.jsonl").write_text(json.dumps(row, ensure_ascii=False), mark)
    done = python(PROGRAM.replace("sys.argv[1]", repr(str(tmp_path))), elsewhere)
    assert done.returncode == 2 and done.stdout.rstrip() == b"49 ? 54 ? ?", done.stderr.decode("utf-8", "replace")
    assert b"r3_repro: " in done.stderr and b"Traceback" not in done.stderr
    assert json.loads((tmp_path / "out.json").read_text("utf-8")) == {"→": "Köln"}


@pytest.mark.parametrize("asked", [["--help"], ["train", "--help"], ["plan", "--profile", "paper"]])
def test_commands_print_elsewhere(elsewhere: dict[str, str], asked: list[str]) -> None:
    command = [sys.executable, "-m", "r3_repro", *asked]
    done = subprocess.run(command, env=elsewhere, cwd=REPOSITORY, capture_output=True, timeout=patience(60))
    assert b"UnicodeEncodeError" not in done.stderr and b"Traceback" not in done.stderr, done.stderr.decode("utf-8", "replace")
    assert len(done.stdout) > 100
