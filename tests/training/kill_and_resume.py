"""Start a stage again and again and kill it at chosen moments, then let it end.

    python tests/training/kill_and_resume.py STAGE ROOT MOMENTS SEED [--arm ARM] [--set KEY=VALUE ...] [--then …]

STAGE is `mine` or `train`; MOMENTS are words with commas between, one for each kill:

    start    as soon as the run has its folder, before anything more is done than was done before
    middle   a random while after some more work was done
    end      all the work is on disk, its results are not
    save     while the results are being written
    keep     while the weights of a step are being kept

The stage runs in forked children of this process, so that the imports are paid once; SIGKILL gives a child no chance to tidy
up. Prints one JSON object for each run, between which stands `--then`: for each kill that hit a running stage its moment, the
progress then, and whether the manifest, which is written last, was there.
"""

import atexit
import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import typer

from r3_repro.mining.store.segments import segments
from r3_repro.runs.layout import Run
from r3_repro.workflow.cli import app
from r3_repro.workflow.run_commands import _named

SAVED = {"mine": ["*failures.parquet*"], "train": [".model*", "model*"]}
IMPORTED = {"mine": ["r3_repro.engines.hf", "r3_repro.mining.failures"], "train": ["r3_repro.training.train"]}
GIVE_UP = 120 * float(os.environ.get("R3_PATIENCE", "5"))  # seconds


def run_of(argv: list[str]) -> Run:
    "The run that a stage's arguments name."
    reader = typer.Typer()
    reader.command()(_named)
    return reader(argv, standalone_mode=False)


def progress(stage: str, folder: Path) -> int:
    "Units of finished work on disk: stored attempts, or logged training steps."
    if stage == "mine":
        return sum(s.rows for s in segments(folder / "attempts"))
    log = folder / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def work(stage: str, run: Run) -> int:
    "Units of work in all."
    p = run.profile
    return p.max_steps if stage == "train" else p.attempts_per_problem * p.train_size


def start(stage: str, argv: list[str]) -> int:
    "Fork a child that runs the stage; its process id."
    if pid := os.fork():
        return pid
    try:
        app([stage, *argv], standalone_mode=False)
        atexit._run_exitfuncs()  # as Python does at its end: curves are sent by one of them
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait_for(what: Callable[[], bool], pid: int) -> bool:
    "Wait until something is so; False if the child ended before, or nothing came of it."
    until = time.monotonic() + GIVE_UP
    while not what():
        if os.waitpid(pid, os.WNOHANG)[0] or time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True


def keeps(folder: Path, since: float) -> bool:
    "Whether weights of a step are half written, by a process that began after this time."
    with contextlib.suppress(FileNotFoundError):
        return any(part.stat().st_mtime > since for part in folder.glob("curve/.step-*.part"))
    return False


def killed(pid: int, moment: str, stage: str, folder: Path, total: int, rng: random.Random) -> bool:
    "Let the child get to a moment, kill it there; False if it ended before."
    before, began = progress(stage, folder), time.time()
    goal = min(total, max(1, before + rng.randint(0, 2)))
    ready = {
        "start": folder.is_dir,
        "middle": lambda: progress(stage, folder) >= goal,
        "end": lambda: progress(stage, folder) >= total,
        "save": lambda: any(any(folder.glob(pattern)) for pattern in SAVED[stage]),
        "keep": lambda: keeps(folder, began),
    }[moment]
    if not wait_for(ready, pid):
        return False
    time.sleep(rng.uniform(0, 0.25 if moment == "middle" else 0))
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def kill_and_resume(stage: str, moments: list[str], rng: random.Random, argv: list[str]) -> dict:
    "Kill one run at each of the moments, and let it end."
    run = run_of(argv)
    folder, total, hits = run.failures if stage == "mine" else run.training, work(stage, run), []
    for moment in moments:
        if killed(start(stage, argv), moment, stage, folder, total, rng):
            hits.append([moment, progress(stage, folder), (folder / "manifest.json").exists()])
    _, status = os.waitpid(start(stage, argv), 0)
    return {"hits": hits, "exit": os.waitstatus_to_exitcode(status), "work": total}


def main() -> None:
    stage, root, moments, seed, *more = sys.argv[1:]
    rng = random.Random(int(seed))
    for module in IMPORTED[stage]:
        importlib.import_module(module)
    for then, words in groupby(more or [""], lambda word: word == "--then"):
        if not then:
            argv = ["--profile", "smoke", "--root", root, *filter(None, words)]
            print(json.dumps(kill_and_resume(stage, moments.split(","), rng, argv)), flush=True)


if __name__ == "__main__":
    main()
