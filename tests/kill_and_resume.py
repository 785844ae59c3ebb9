"""Start a stage again and again and kill it at chosen moments, then let it end.

    python tests/kill_and_resume.py STAGE ROOT MOMENTS SEED [--set KEY=VALUE ...]

STAGE is `failures` or `train`; MOMENTS are words with commas between, one for each kill:

    start    soon after the start, before anything more is done than was done before
    middle   a random while after some more work was done
    end      all the work is on disk, its results are not
    save     while the results are being written

The stage runs in forked children of this process, so that the imports are paid once; SIGKILL gives a child no chance to tidy
up. Prints one JSON object: for each kill that hit a running stage its moment, the progress then, and whether the manifest, which
is written last, was there.
"""

import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from r3_repro.attempts import segments
from r3_repro.runs import parse_run

FOLDER = {"failures": "*/*/*/failures", "train": "*/*/*/training/*"}
SAVED = {"failures": ["*/*/*/failures/*failures.parquet*"], "train": ["*/*/*/training/*/.model*", "*/*/*/training/*/model*"]}
GIVE_UP = 120  # seconds


def progress(stage: str, root: Path) -> int:
    "Units of finished work on disk: stored attempts, or logged training steps."
    if stage == "failures":
        return sum(s.rows for folder in root.glob("*/*/*/failures/attempts") for s in segments(folder))
    return sum(f.read_bytes().count(b"\n") for f in root.glob("*/*/*/training/*/log.jsonl"))


def work(stage: str, argv: list[str]) -> int:
    "Units of work in all."
    p = parse_run("", argv).profile
    return p.steps if stage == "train" else p.attempts_per_problem * p.train_size


def finished(stage: str, root: Path) -> bool:
    return any(root.glob(f"{FOLDER[stage]}/manifest.json"))


def start(main: Callable, argv: list[str]) -> int:
    "Fork a child that runs the stage; its process id."
    if pid := os.fork():
        return pid
    try:
        main(argv)
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


def killed(pid: int, moment: str, stage: str, root: Path, total: int, rng: random.Random) -> bool:
    "Let the child get to a moment, kill it there; False if it ended before."
    before = progress(stage, root)
    goal = min(total, max(1, before + rng.randint(0, 2)))
    ready = {
        "start": lambda: True,
        "middle": lambda: progress(stage, root) >= goal,
        "end": lambda: progress(stage, root) >= total,
        "save": lambda: any(any(root.glob(pattern)) for pattern in SAVED[stage]),
    }[moment]
    if not wait_for(ready, pid):
        return False
    time.sleep(rng.uniform(0, {"start": 0.5, "middle": 0.25}.get(moment, 0)))
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def main() -> None:
    stage, root, moments, seed, *more = sys.argv[1:]
    rng, folder, hits = random.Random(int(seed)), Path(root), []
    module = importlib.import_module(f"r3_repro.{stage}")
    if stage == "failures":
        importlib.import_module("r3_repro.engines")
    argv = ["--profile", "smoke", "--root", root, *more]
    total = work(stage, argv)
    for moment in filter(None, moments.split(",")):
        if killed(start(module.main, argv), moment, stage, folder, total, rng):
            hits.append([moment, progress(stage, folder), finished(stage, folder)])
    _, status = os.waitpid(start(module.main, argv), 0)
    print(json.dumps({"hits": hits, "exit": os.waitstatus_to_exitcode(status), "work": total}))


if __name__ == "__main__":
    main()
