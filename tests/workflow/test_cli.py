"""The command line: what it says, and how it ends."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from support import REPOSITORY, patience
from typer.main import get_command
from typer.testing import CliRunner

from r3_repro import config
from r3_repro.evaluation import benchmark_files
from r3_repro.runs.launch import stage_args
from r3_repro.runs.layout import Run, open_run
from r3_repro.utils.errors import ERROR_PREFIX, SettingsError
from r3_repro.workflow import cli, pipeline, slurm, study

STAGES = ("datasets", "mine", "train", "evaluate", "forgetting", "results", "card", "reproduce", "launch-training")
COMMANDS = sorted(get_command(cli.app).commands)  # type: ignore[attr-defined]


def invoke(*args: str):
    return CliRunner().invoke(cli.app, list(args))


def test_the_subcommands_are_there() -> None:
    wanted = {"datasets", "mine", "train", "evaluate", "forgetting", "results", "figures", "plan", "study", "reproduce", "curve"}
    assert wanted <= set(COMMANDS) and set(STAGES) <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_explains_itself(name: str) -> None:
    command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    assert command.help
    for inner in [] if command.hidden else [command, *getattr(command, "commands", {}).values()]:
        assert [p.name for p in inner.params if not getattr(p, "help", None)] == [] and inner.help
    assert invoke(name, "--help").exit_code == 0


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_takes_the_options_that_name_a_run(name: str) -> None:
    shown = invoke(name, "--help").stdout
    assert all(f"--{option}" in shown for option in ("profile", "task", "model", "root"))
    assert "[default: " in shown


@pytest.mark.parametrize(("fault", "said"), [("folder", "no-benchmarks"), ("package", "antlr4-python3-runtime 4.9 is installed")])
@pytest.mark.parametrize(
    "start",
    [pipeline.reproduce, lambda run: study.run_study(run, [0]), lambda run: slurm.submit(run, [0])],
    ids=["reproduce", "study", "submit"],
)
def test_the_last_chapter_is_looked_at_before_the_first_runs(
    fault: str, said: str, start: Callable[[Run], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((pipeline, "_run_all"), (study, "launch"), (slurm, "sbatch_command")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("something ran"))
    if fault == "package":
        monkeypatch.setattr(benchmark_files, "version", lambda _: "4.9")
    gone = str(tmp_path / "no-benchmarks") if fault == "folder" else ""
    with pytest.raises(SettingsError, match=said):
        start(open_run("smoke", root=str(tmp_path), forgetting_suite="paper", benchmarks=gone))


@pytest.mark.parametrize("name", ["gate", "mine", "doctor", "plan"])
@pytest.mark.parametrize("near", [False, True])
def test_a_model_that_a_command_makes_names_that_command(
    name: str, near: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(config, "find_home", lambda: tmp_path)  # where a developer may have made the model
    if near:
        (tmp_path / "models").mkdir()
    done = invoke(name, "--profile", "small")
    assert done.exit_code == 2 and done.stderr.rstrip().endswith(
        "`r3-repro models smollm2` makes models/SmolLM2-135M-Instruct"
    ), done.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["datasets", "--profile", "tinny"], "did you mean [tiny]"),
        (["datasets", "--task", "cuntdown"], "unknown task"),
        (["mine", "--model", "no/such/model"], "no such folder"),
        (["train", "--arm", "r4"], "unknown arm 'r4'"),
        (["train", "--set", "betta=0.1"], "did you mean 'beta'?"),
        (["train", "--set", "top_p=2"], "top_p"),
        (["train", "--seed", "-1"], "seed = -1 is not a whole number from 0 to 4294967295"),
        (["train", "--seed", "5000000000"], "seed = 5000000000 is not a whole number"),
        (["study", "--seeds", "0 -1"], "seed = -1 is not a whole number"),
        (["study", "--set", "betta=0.1"], "did you mean 'beta'?"),
        (["submit", "--seeds", "4294967296"], "seed = 4294967296 is not a whole number"),
        (["mine", "--set", "temperature=0"], "modes = greedy"),
        (["tiny-world", "--recipe", "steps=0"], "recipe steps = 0: give a number from 1"),
        (["tiny-world", "--recipe", "steps=x"], "--recipe steps=x: invalid literal"),
        (["tiny-world", "--recipe", "skills=nan"], "recipe skills = nan: give a number from 0 to 1"),
        (["mine", "--model", "."], "lacks config.json"),
        (["results", "--profile", "smoke", "--root", "no-such-root"], "no episodes under"),
        (["figures", "--root", "no-such-root"], "nothing to make"),
        (["plan", "--model", "Qwen/Qwen2.5-7B-Instruct", "--set", "sharding=none"], "it would fit with any of these"),
    ],
)
def test_a_mistake_of_the_user_is_one_message_and_exit_code_2(args: list[str], said: str, tmp_path: Path) -> None:
    more = [] if "--root" in args or args[0] in ("plan", "tiny-world") else ["--root", str(tmp_path)]
    done = invoke(*args, *more)
    assert done.exit_code == 2 and said in done.stderr, done.output
    assert all(line.startswith(ERROR_PREFIX) for line in done.stderr.splitlines())
    assert list(tmp_path.iterdir()) == []


MATH_ROW = {"problem": "1 + 1?", "solution": "It is $\\boxed{2}$.", "level": "Level 3", "type": "Algebra"}


@pytest.mark.parametrize("option", ["--check", "--fetch"])
def test_benchmark_files_need_neither_gpu_nor_model_nor_training_data(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    "With a profile for GPUs, its model and its data set on a hub that does not answer; and only the benchmarks of the profile."
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(benchmark_files, "hub_rows", lambda *_: [MATH_ROW])
    (tmp_path / "rows.json").write_text('{"math/test": 1}', "utf-8")
    args = ["--profile", "paper", "--root", str(tmp_path / "runs"), "--set", f"benchmarks={tmp_path}"]
    args += ["--set", "forgetting_tasks=MATH", "--set", "source=owner/no-such-data", "--model", "owner/no-such-model"]
    file = tmp_path / "math/test.jsonl"
    if option == "--check":
        file.parent.mkdir()
        file.write_text(json.dumps(MATH_ROW) + "\n", "utf-8")
    done = invoke("forgetting", *args, option, *([str(tmp_path)] if option == "--fetch" else []))
    assert done.exit_code == 0 and re.search(r"MATH +\| test +\| +1 \| a part of 5,000", done.stdout), done.output
    assert file.is_file() and not (tmp_path / "runs").exists()
    file.write_text("{}\n", "utf-8")
    done = invoke("forgetting", *args, "--check")
    assert done.exit_code == 2 and "has no text in column 'problem'" in done.stderr
    done = invoke("forgetting", *args, "--set", "engine=transformers")
    assert done.exit_code == 2 and "owner/no-such-data" not in done.stderr, "training data are not asked for"
    assert "wants a GPU" in done.stderr or "owner/no-such-model" in done.stderr


def test_a_suite_without_files_is_not_checked_in_silence(tmp_path: Path) -> None:
    for option in (["--check"], ["--fetch", str(tmp_path)]):
        done = invoke("forgetting", "--profile", "smoke", *option)
        assert done.exit_code == 2 and "have no files: name a profile whose forgetting_suite is paper" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["mine", "--set", "top_p"], "is not KEY=VALUE"),
        (["mine", "--set", "seed=3"], "use --seed"),
        (["mine", "--seed", "three"], "valid integer"),
        (["mine", "--sede", "3"], "No such option"),
        (["mien"], "No such command"),
        (["study", "--seeds", "0 x"], "numbers are wanted"),
        (["study", "--seeds", ""], "numbers are wanted"),
        (["study", "--seeds", "1 0 1"], "a seed is there twice"),
        (["submit", "--seeds", " "], "numbers are wanted"),
        (["submit", "--gpus-per-node", "0"], "greater than or equal to 1"),
        (["study", "--jobs", "-1"], "greater than or equal to 0"),
        (["study", "--set", "seeds"], "is not KEY=VALUE"),
        (["study", "--announced", "--set", "beta=0.1"], "leave out --set or --announced"),
        (["plan", "--prompt-tokens", "0"], "greater than or equal to 1"),
        *(
            (["plan", f"--{o}", v], f"{v} is not a number above 0")
            for o in ("gpu-memory", "host-memory", "disk")
            for v in ("nan", "-1", "0")
        ),
        *((["plan", "--price", v], f"{v} is not a number of at least 0") for v in ("nan", "-1")),
        *((["mine", "--seconds", v], f"{v} is not a number above 0") for v in ("nan", "-1", "0")),
        *((["doctor", "--limit", v], f"{v} is not a number above 0") for v in ("nan", "-1")),
        (["tiny-world", "--recipe", "stepz=3"], "the recipe has no 'stepz'"),
    ],
)
def test_wrong_options_are_usage_errors(args: list[str], said: str) -> None:
    done = invoke(*args)
    assert done.exit_code == 2 and said in done.stderr, done.output


@pytest.mark.parametrize(
    ("more", "beta", "arms", "controls"),
    [
        ([], 0.1, ("r3",), ("bare",)),
        (["--arms", " "], 0.1, ("r3",), ("bare",)),
        (["--arms", "plain_grpo r3"], 0.1, ("plain_grpo", "r3"), ("bare",)),
        (["--set", "arms=all_tokens", "--arms", "r3", "--controls"], 0.1, ("r3",), ("bare", "other", "empty")),
    ],
)
def test_a_study_takes_settings(
    more: list[str],
    beta: float,
    arms: tuple[str, ...],
    controls: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    "Each of its stages gets them, as single stages do."
    seen: list[Run] = []
    monkeypatch.setattr(study, "run_study", lambda run, *_: seen.append(run))
    done = invoke("study", "--profile", "smoke", "--root", str(tmp_path), "--no-publish", "--set", "beta=0.1", *more)
    assert done.exit_code == 0, done.output
    p = seen[0].profile
    assert (p.beta, p.arms, p.controls) == (beta, arms, controls)
    assert "--set=beta=0.1" in stage_args("train", seen[0])


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
    one = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, encoding="utf-8", timeout=limit)
    two = subprocess.run(
        [sys.executable, "-m", "r3_repro", "--help"], cwd=REPOSITORY, capture_output=True, encoding="utf-8", timeout=limit
    )
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert one.stdout == two.stdout and "reproduce" in two.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_can_complete(shell: str) -> None:
    env = {"_R3_REPRO_COMPLETE": f"source_{shell}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("r3-repro"))], env=env, capture_output=True, encoding="utf-8", timeout=patience(60)
    )
    assert done.returncode == 0 and "r3" in done.stdout.lower(), done.stderr


# ── What is written about commands ─────────────────────────────────────────────────────────────────────────────────


def written() -> dict[str, str]:
    "What a reader may type: texts of the repository by path, of notebooks their cells; the changelog names what was."
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, encoding="utf-8")
    if done.returncode:
        pytest.skip(f"no clone: {done.stderr.strip()}")
    kinds, texts = (".md", ".py", ".ipynb", ".sh", ".sbatch", ".yaml", ".yml", ".ini", ".toml"), {}
    for name in done.stdout.split("\0"):
        file = REPOSITORY / name
        if name.startswith(("results/", "tests/", "r3_repro/")) or name == "CHANGELOG.md" or not file.is_file():
            continue
        if name.endswith(kinds) or file.name in ("Makefile", "Dockerfile"):
            text = file.read_text("utf-8")
            cells = json.loads(text)["cells"] if name.endswith(".ipynb") else []
            texts[name] = "\n".join("".join(c["source"]) for c in cells) if cells else re.sub(r'"[$][^"]*"', "X", text)
    return texts


def mistakes(text: str) -> list[str]:
    "Commands in a text that there are not, or that lack an option that they are written with."
    out = re.findall(r"-m\s*r3_repro\.[\w.]+", text)
    for line in re.findall(r"(?:r3-repro|-m r3_repro) ([^`\n\"'|;#&)\\]+)", text):
        name, *words = line.split()
        if not re.fullmatch(r"[a-z][a-z-]*", name):
            continue  # an option, a variable, a file
        command = get_command(cli.app).commands.get(name)  # type: ignore[attr-defined]
        if words and (inner := getattr(command, "commands", None)):  # a group, such as report
            name, command = f"{name} {words[0]}", inner.get(words[0])
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} if command else set()
        own = words[: words.index("--")] if "--" in words else words
        options = [word.partition("=")[0].rstrip(".,:") for word in own if re.match(r"--?[a-z]", word)]
        out += (
            [f"r3-repro {name}"]
            if not command
            else [f"r3-repro {name} {o}" for o in options if o not in {*known, "-h", "--help"}]
        )
    return out


def test_every_command_that_is_written_down_exists() -> None:
    texts = written()
    assert {"README.md", "Makefile", "cluster/sky.yaml", "nbs/workflow/cli.ipynb"} <= texts.keys()
    assert sum(text.count("r3-repro ") for text in texts.values()) > 60
    assert {name: found for name, text in texts.items() if (found := mistakes(text))} == {}
    told = "`r3-repro result`; r3-repro mine --seeds 3; python -m r3_repro.results; `r3-repro plan --price 2 -- --partition=x`"
    told += "; `r3-repro report make FOLDER --name x --form y`; `r3-repro report send x`"
    wrong = ["r3-repro result", "r3-repro mine --seeds", "r3-repro report make --form", "r3-repro report send"]
    assert mistakes(told) == ["-m r3_repro.results", *wrong]


@pytest.mark.parametrize("name", ["config", "analysis.results", "workflow.cli", "runs", "no_such", "tasks.base"])
def test_a_module_that_is_run_says_that_it_is_no_command(name: str) -> None:
    "It ended silently with 0, and nothing was done."
    for line in (["-m", f"r3_repro.{name}"], ["-X", "utf8", f"-mr3_repro.{name}", "-m", "x"]):
        done = subprocess.run([sys.executable, *line], capture_output=True, encoding="utf-8", timeout=patience(60))
        assert done.returncode == 2 and not done.stdout
        assert (
            done.stderr
            == f"{ERROR_PREFIX}r3_repro.{name} is no command but a module to import; r3-repro --help names the commands\n"
        )


@pytest.mark.parametrize(
    "line", [["-m", "r3_repro.__main__", "--help"], ["-c", "import r3_repro.config", "-m", "r3_repro.config"]]
)
def test_what_is_not_run_as_a_module_is_not_refused(line: list[str]) -> None:
    done = subprocess.run([sys.executable, *line], capture_output=True, encoding="utf-8", timeout=patience(60))
    assert done.returncode == 0, done.stderr


def test_threads_do_not_spin_and_torch_is_not_loaded_before_that_is_said() -> None:
    "OpenMP reads it when torch is loaded."
    code = "import os, sys\nfrom r3_repro.workflow import cli\n"
    code += "def first(name, globals=None, locals=None, fromlist=(), level=0):\n"
    code += "    if name.partition('.')[0] == 'torch' and not seen:\n        seen.append(os.environ.get('OMP_WAIT_POLICY'))\n"
    code += "    return real(name, globals, locals, fromlist, level)\n"
    code += "import builtins\nseen, real, builtins.__import__ = [], builtins.__import__, first\n"
    code += "try:\n    cli.app(['train', '--profile', 'tiny', '--set', 'dtype=bfloat16'], prog_name='r3-repro')\n"
    code += "except SystemExit:\n    pass\nprint(seen)"
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    for given, said in ({}, "['passive']"), ({"OMP_WAIT_POLICY": "active"}, "['active']"):
        done = subprocess.run(
            [sys.executable, "-c", code], env=env | given, capture_output=True, encoding="utf-8", timeout=patience(60)
        )
        assert done.stdout.strip() == said, done.stderr


@pytest.mark.parametrize("name", ["R3_HOME", "R3_ROOT", "R3_SETTINGS"])
def test_variables_that_name_folders_are_absolute_for_what_is_started(name: str, tmp_path: Path) -> None:
    code = "import os\nfrom r3_repro.workflow import cli\n"
    code += f"cli.app(['plan', '--help'], standalone_mode=False)\nprint(os.environ['{name}'])"
    for given, means in ("a/b", tmp_path / "a/b"), ("~/b", Path.home() / "b"), ("../x", tmp_path.parent / "x"):
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {name: given}, cwd=tmp_path, capture_output=True, encoding="utf-8"
        )
        assert done.stdout.splitlines()[-1] == str(means), done.stderr
