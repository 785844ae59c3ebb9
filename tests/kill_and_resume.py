"""Start a stage again and again and kill it at random moments, then let it end.

    python tests/kill_and_resume.py STAGE ROOT KILLS SEED [--set KEY=VALUE ...]

STAGE is `failures` or `train`. The stage runs in forked children of this process, so that the imports are paid once; SIGKILL
gives a child no chance to tidy up. Prints one JSON object: how many kills hit a running stage, and at which progress.
"""

import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path


def progress(stage: str, root: Path) -> int:
    "Units of finished work on disk: parts of attempts, or logged training steps."
    if stage == "failures":
        return len(list(root.glob("*/*/*/failures/attempts/part-*.parquet")))
    return sum(f.read_bytes().count(b"\n") for f in root.glob("*/*/*/training/*/log.jsonl"))


def start(main, argv: list[str]) -> int:
    "Fork a child that runs the stage; its process id."
    if pid := os.fork():
        return pid
    try:
        main(argv)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def killed(pid: int, stage: str, root: Path, rng: random.Random) -> int | None:
    "Let the child get a little further than it was, kill it; the progress then, or None if it ended before."
    goal, give_up = progress(stage, root) + rng.randint(0, 2), time.monotonic() + 120
    while progress(stage, root) < goal or progress(stage, root) == 0:
        if os.waitpid(pid, os.WNOHANG)[0] or time.monotonic() > give_up:
            return None
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.25))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return progress(stage, root) if os.WIFSIGNALED(status) else None


def main() -> None:
    stage, root, kills, seed, *more = sys.argv[1:]
    rng, folder, hits = random.Random(int(seed)), Path(root), []
    module = importlib.import_module(f"r3_repro.{stage}")
    if stage == "failures":
        importlib.import_module("r3_repro.engines")
    argv = ["--profile", "smoke", "--root", root, *more]
    for _ in range(int(kills)):
        hit = killed(start(module.main, argv), stage, folder, rng)
        if hit is not None:
            hits.append(hit)
    _, status = os.waitpid(start(module.main, argv), 0)
    print(json.dumps({"hits": hits, "exit": os.waitstatus_to_exitcode(status)}))


if __name__ == "__main__":
    main()
