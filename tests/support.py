"""What tests in several folders share."""

import os
import subprocess
import sys
from pathlib import Path

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
    return subprocess.run(program, cwd=cwd, env=env, capture_output=True, text=True, timeout=patience(540))
