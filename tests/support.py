"""What tests in several folders share."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@contextlib.contextmanager
def warm_python(folder: Path, python: str = sys.executable, modules: list[str] = STAGES) -> Iterator[dict[str, str]]:
    """Variables with which stages start as forks of one process that has imported these modules: warm/server.py.

    An interpreter that imports them takes ten seconds of a processor, longer than most trainings of tests."""
    here, address = REPOSITORY / "tests/warm", str(folder / "warm")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("R3_", "PYTHON"))}
    env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    how: dict[str, Any] = {"env": env, "cwd": folder, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([python, str(here / "server.py"), address, *modules], **how) as server:
        assert server.stdout and server.stdout.readline() == b"ready\n"
        yield os.environ | env | {"PYTHONPATH": str(here), "WARM_SERVER": address, "WARM_PREFIX": str(Path(python).parents[1])}
