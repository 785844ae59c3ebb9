"""The command line: what it says, and how it ends."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY, patience
from typer.main import get_command
from typer.testing import CliRunner

from r3_repro.runs.layout import Run
from r3_repro.utils.errors import ERROR_PREFIX
from r3_repro.workflow import cli, pipeline

STAGES = ("datasets", "mine", "train", "evaluate", "forgetting", "results", "card", "reproduce", "launch-training")
COMMANDS = sorted(get_command(cli.app).commands)  # type: ignore[attr-defined]


def invoke(*args: str):
    return CliRunner().invoke(cli.app, list(args))


def test_the_subcommands_are_there() -> None:
    wanted = {"datasets", "mine", "train", "evaluate", "forgetting", "results", "figures", "plan", "study", "reproduce"}
    assert wanted <= set(COMMANDS) and set(STAGES) <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_explains_itself(name: str) -> None:
    command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    assert command.help
    if not command.hidden:
        assert [p.name for p in command.params if not getattr(p, "help", None)] == []
    assert invoke(name, "--help").exit_code == 0


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_takes_the_options_that_name_a_run(name: str) -> None:
    shown = invoke(name, "--help").stdout
    assert all(f"--{option}" in shown for option in ("profile", "task", "model", "root"))
    assert "[default: " in shown


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["datasets", "--profile", "tinny"], "did you mean [tiny]"),
        (["datasets", "--task", "cuntdown"], "unknown task"),
        (["mine", "--model", "no/such/model"], "no such folder"),
        (["train", "--arm", "r4"], "unknown arm 'r4'"),
        (["train", "--set", "kl=0.1"], "is called 'beta' now"),
        (["train", "--set", "top_p=2"], "top_p"),
        (["results", "--profile", "smoke", "--root", "no-such-root"], "no episodes under"),
        (["figures", "--root", "no-such-root"], "nothing to make"),
        (["plan", "--model", "Qwen/Qwen2.5-7B-Instruct", "--set", "sharding=none"], "it would fit with any of these"),
    ],
)
def test_a_mistake_of_the_user_is_one_message_and_exit_code_2(args: list[str], said: str, tmp_path: Path) -> None:
    more = [] if "--root" in args or args[0] == "plan" else ["--root", str(tmp_path)]
    done = invoke(*args, *more)
    assert done.exit_code == 2 and said in done.stderr, done.output
    assert all(line.startswith(ERROR_PREFIX) for line in done.stderr.splitlines())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["mine", "--set", "top_p"], "is not KEY=VALUE"),
        (["mine", "--set", "seed=3"], "use --seed"),
        (["mine", "--seed", "three"], "valid integer"),
        (["mine", "--sede", "3"], "No such option"),
        (["mien"], "No such command"),
        (["study", "--seeds", "0 x"], "numbers are wanted"),
        (["tiny-world", "--recipe", "stepz=3"], "the recipe has no 'stepz'"),
    ],
)
def test_wrong_options_are_usage_errors(args: list[str], said: str) -> None:
    done = invoke(*args)
    assert done.exit_code == 2 and said in done.stderr, done.output


def test_a_stage_that_fails_ends_with_1_and_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(run: Run) -> None:
        raise RuntimeError("stage 'mine' failed with exit code 3")

    monkeypatch.setattr(pipeline, "reproduce", fails)
    done = invoke("reproduce", "--profile", "smoke", "--root", str(tmp_path))
    assert done.exit_code == 1 and done.stderr.strip() == f"{ERROR_PREFIX}stage 'mine' failed with exit code 3"


def test_the_module_is_the_same_command_and_help_loads_no_torch() -> None:
    code = "import sys; sys.argv = ['r3-repro', '--help']; from r3_repro.workflow.cli import app\n"
    code += "try:\n    app(prog_name='r3-repro')\nexcept SystemExit:\n    pass\n"
    code += "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules), 'help waits for them'"
    limit = patience(60)
    one = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=limit)
    two = subprocess.run(
        [sys.executable, "-m", "r3_repro", "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=limit
    )
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert one.stdout == two.stdout and "reproduce" in two.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_can_complete(shell: str) -> None:
    env = {"_R3_REPRO_COMPLETE": f"source_{shell}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("r3-repro"))], env=env, capture_output=True, text=True, timeout=patience(60)
    )
    assert done.returncode == 0 and "r3" in done.stdout.lower(), done.stderr
