"""Commands and code in the text of pages can be run as they stand: names, options, profiles and parameters exist."""

import ast
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import CliRunner
from huggingface_hub.cli.hf import app as hub_program
from support import CHAPTERS, NOTEBOOKS, REPOSITORY

import r3_repro
from r3_repro.config import settings_files
from r3_repro.workflow.cli import app

COMMANDS: Any = typer.main.get_command(app)
PROFILES = {name for file in settings_files() for name in file.profiles()}
OWN = {"mine", "NAME", "paper-7b"}  # profiles that a page tells its reader to write
TARGETS = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.M))


def blocks(page: Path, language: str) -> list[str]:
    "The fenced blocks of a language in a page's text."
    text = page.read_text("utf-8")
    if page.suffix == ".ipynb":
        text = "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def lines(page: Path) -> list[list[str]]:
    "The words of every command in the shell blocks of a page."
    joined = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    parts = [part for line in joined.splitlines() for part in re.split(r"&&|;|\|", line.partition("   #")[0].partition("  #")[0])]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def wrong_options(words: list[str]) -> list[str]:
    "What is wrong with a call of r3-repro: the subcommand, an option, a profile."
    command = COMMANDS.commands.get(words[1]) if len(words) > 1 else None
    if words[1:2] in (["--help"], []):
        return []
    if command is None:
        return [f"no subcommand {words[1]}"]
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    passed_on = command.context_settings.get("ignore_unknown_options")
    out = [w for w in words[2:] if w.startswith("-") and w not in known and not passed_on]
    for option, value in pairwise(words):
        if option == "--profile" and value not in PROFILES | OWN:
            out.append(f"no profile {value}")
    return out


PAGES = [*NOTEBOOKS, REPOSITORY / "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_commands_exist_with_their_options(page: Path) -> None:
    wrong = []
    for words in lines(page):
        if words[0] in ("r3-repro", "cluster/submit.sh"):
            call = ["r3-repro", "submit", *words[1:]] if words[0].endswith(".sh") else words
            wrong += [f"{shlex.join(words)}: {w}" for w in wrong_options(call)]
        if words[0] == "make":
            wrong += [f"make {t}" for t in words[1:] if "=" not in t and t not in TARGETS]
        if words[0] == "papermill":
            names = [name for option, name in pairwise(words) if option == "-p"]
            ours = REPOSITORY / words[1]
            wrong += [
                f"papermill {words[1]}: no parameter {n}"
                for n in names
                if n not in ("profile", "task", "model", "arm", "seed", "root")
            ]
            wrong += [] if "$" in words[1] or ours in CHAPTERS else [f"papermill {words[1]}: no such chapter"]
        if words[0].startswith("cluster/"):
            wrong += [] if (REPOSITORY / words[0]).is_file() else [f"no {words[0]}"]
    assert wrong == []


def test_commands_are_found() -> None:
    "Else the test above says nothing."
    found = [words for page in PAGES for words in lines(page)]
    assert sum(words[0] == "r3-repro" for words in found) > 20 and sum(words[0] == "make" for words in found) > 2
    assert wrong_options(["r3-repro", "trian"]) and wrong_options(["r3-repro", "train", "--sed", "1"])
    assert wrong_options(["r3-repro", "plan", "--profile", "papr"]) == ["no profile papr"]


def hub_calls(page: Path) -> set[str]:
    "Every call of the hub's program in a page and its messages."
    return set(re.findall(r"`((?:hf|huggingface-cli) [^`]+)`", page.read_text("utf-8")))


def hub_fault(call: str) -> str:
    "What the hub's program says of a call if it is only asked for help; empty if it would do it."
    name, command, *words = shlex.split(call)
    if name != "hf" or command not in hub_program.commands:
        return f"no {name} {command}"
    said = CliRunner().invoke(hub_program, [command, *words, "--help"])
    return said.output if said.exit_code else ""


def test_calls_of_the_hubs_program_are_those_it_has() -> None:
    calls = set().union(*map(hub_calls, [*PAGES, REPOSITORY / "README.md"]))
    assert {call: fault for call in calls if (fault := hub_fault(call))} == {}
    assert any(c.startswith("hf download") for c in calls) and "hf auth login" in calls
    assert hub_fault("huggingface-cli download x") and hub_fault("hf fetch x") and hub_fault("hf download x --local-folder y")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_python_in_the_text_names_what_there_is(page: Path) -> None:
    "It is Python, and what it takes from r3_repro exists."
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "r3_repro":
                assert hasattr(r3_repro, node.attr), f"r3_repro.{node.attr}"
            if isinstance(node, ast.ImportFrom) and node.module == "r3_repro":
                assert all(hasattr(r3_repro, a.name) for a in node.names)


def test_the_front_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Its Python, as it stands, from an empty folder."
    (code,) = blocks(REPOSITORY / "nbs/index.ipynb", "python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "index.ipynb", "exec"), names)
    assert len(names["episodes"]) == 24  # type: ignore[arg-type]
