"""What tests in several folders share."""

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (REPOSITORY / "nbs").rglob("*.ipynb") if not any(x.startswith(".") for x in p.parts))
CHAPTERS = sorted((REPOSITORY / "nbs").glob("0[1-6]_*.ipynb"))

DATA = Path(os.environ.get("R3_TEST_DATA", REPOSITORY.parent / "shared"))
"Real rows and the fact sheet, which are not part of this repository; tests say what they skip without them."


def patience(seconds: float) -> float:
    "A time limit for something that would hang: generous, and `R3_PATIENCE` times as long on a slow machine."
    return seconds * float(os.environ.get("R3_PATIENCE", "5"))


def environment(root: Path, **more: str) -> dict[str, str]:
    "Offline, with a run tree of its own, and with the settings that are in it, if any."
    if (own := root / "settings.ini").is_file():
        more["R3_SETTINGS"] = str(own)
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | offline | {"R3_ROOT": str(root), "OMP_WAIT_POLICY": "passive"} | more


def command(name: str, *args: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess:
    "Run a program of this environment."
    program = [str(Path(sys.executable).with_name(name)), *args]
    return subprocess.run(program, cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=patience(540))


STAGES = ["r3_repro.training.train", "r3_repro.mining.failures", "r3_repro.evaluation.reflection_controls"]
STAGES += ["r3_repro.evaluation.benchmarks", "r3_repro.engines.hf", "r3_repro.workflow.pipeline"]
STAGES += ["accelerate.commands.launch", "transformers.models.llama.modeling_llama"]
"What stages and their launcher import."
SHARED = [*STAGES, "lm_eval.models.huggingface", "nbdev.test", "r3_repro.analysis.results", "r3_repro.workflow.doctor"]
SHARED += ["r3_repro.engines.server", "r3_repro.workflow.local_models", "torch.distributed.run"]
"And what else is imported by the programs of tests."


def warm_environment(address: str, python: str = sys.executable) -> dict[str, str]:
    "Variables with which programs that warm/sitecustomize.py knows start as forks of a server of this Python."
    path = [str(REPOSITORY / "tests/warm"), os.environ.get("PYTHONPATH") if python == sys.executable else None]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "WARM_SERVER": address, "WARM_PREFIX": str(Path(python).parents[1])}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | offline | {"OMP_NUM_THREADS": "1"} | own


@contextlib.contextmanager
def warm_python(folder: Path, python: str = sys.executable, modules: list[str] = STAGES) -> Iterator[dict[str, str]]:
    """Variables with which stages start as forks of one process that has imported these modules: warm/server.py.

    An interpreter that imports them takes ten seconds of a processor, longer than most trainings of tests."""
    address = str(folder / "warm")
    warm = warm_environment(address, python)
    env = {k: v for k, v in warm.items() if k == "PYTHONPATH" or not k.startswith(("R3_", "PYTHON", "WARM_"))}
    how: dict[str, Any] = {"env": env, "cwd": folder, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([python, str(REPOSITORY / "tests/warm/server.py"), address, *modules], **how) as server:
        assert server.stdout and server.stdout.readline() == b"ready\n"
        yield warm


@contextlib.contextmanager
def shared_python(folder: Path, modules: list[str] = SHARED) -> Iterator[dict[str, str]]:
    "`warm_python` for all processes of a test run: the first that needs it starts it, and ends it when no other needs it."
    with contextlib.ExitStack() as own, open(folder / "warm.users", "a", encoding="utf-8") as users:
        with FileLock(folder / "warm.lock"):
            if first := not (folder / "warm").exists():
                own.enter_context(warm_python(folder, modules=modules))
            fcntl.flock(users, fcntl.LOCK_SH)
        yield warm_environment(str(folder / "warm"))
        if first:
            with FileLock(folder / "warm.lock"):
                fcntl.flock(users, fcntl.LOCK_EX)
                own.close()
                (folder / "warm").unlink()
