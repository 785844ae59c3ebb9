"""What a reproduction costs: wall time and peak memory of a first and of a second run.

    python benchmarks/reproduce.py                       # `make reproduce` without the installation, profile tiny
    python benchmarks/reproduce.py --profile smoke

Runs `r3-repro reproduce` twice with a fresh run tree, and every half second adds up the memory of the process and
all that descend from it: resident pages, those shared between processes counted once (PSS) where the system tells them. Says how
the result stands to the limits that the documentation states for profile tiny on two cores: 12 minutes and 4 GB for the first
run, 90 seconds for the second.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

LIMITS = {"first": (12 * 60, 4.0), "second": (90, 4.0)}  # seconds, GB


def memory(process: psutil.Process) -> int:
    "Bytes that a process occupies: PSS, or RSS where that is not to be had."
    with contextlib.suppress(psutil.Error, AttributeError):
        return process.memory_full_info().pss
    with contextlib.suppress(psutil.Error):
        return process.memory_info().rss
    return 0


def watched(command: list[str], cwd: Path, every: float = 0.5) -> dict:
    "Run a command: exit code, wall time in seconds, peak of the memory over its process tree in GB, most processes at once."
    start, peak, most, stop = time.perf_counter(), 0, 0, threading.Event()
    process = subprocess.Popen(command, cwd=cwd)
    root = psutil.Process(process.pid)

    def watch() -> None:
        nonlocal peak, most
        while not stop.is_set():
            with contextlib.suppress(psutil.Error):
                tree = [root, *root.children(recursive=True)]
                peak, most = max(peak, sum(map(memory, tree))), max(most, len(tree))
            stop.wait(every)

    thread = threading.Thread(target=watch)
    thread.start()
    code = process.wait()
    stop.set()
    thread.join()
    return {"exit": code, "seconds": round(time.perf_counter() - start, 1), "peak_gb": round(peak / 1e9, 2), "processes": most}


def main() -> int:
    ap = argparse.ArgumentParser(description="Wall time and peak memory of a first and a second reproduction.")
    ap.add_argument("--profile", default="tiny")
    ap.add_argument("--task", default="")
    ap.add_argument("--root", default="", help="where to run; default: a temporary folder, removed afterwards")
    ap.add_argument("--json", default="", help="also write the numbers to this file")
    a = ap.parse_args()
    home = Path(__file__).resolve().parents[1]
    found: dict = {"profile": a.profile, "cores": len(os.sched_getaffinity(0)), "machine": platform.machine()}
    with tempfile.TemporaryDirectory() as scratch:
        root = a.root or scratch
        if any(Path(root).glob(f"{a.profile}/*")):
            raise SystemExit(f"{root} holds runs of {a.profile} already: a first run needs a fresh folder")
        command = [sys.executable, "-m", "r3_repro", "reproduce", "--profile", a.profile, "--task", a.task, "--root", root]
        for run in ("first", "second"):
            found[run] = watched(command, home)
            if found[run]["exit"]:
                raise SystemExit(f"the {run} run failed with exit code {found[run]['exit']}")
    print(f"\nprofile {a.profile}, {found['cores']} cores")
    for run, (seconds, gb) in LIMITS.items():
        f = found[run]
        within = f["seconds"] <= seconds and f["peak_gb"] <= gb
        stated = f"  ({'within' if within else 'BEYOND'} {seconds} s and {gb:.0f} GB)" if a.profile == "tiny" else ""
        print(f"{run:6} run: {f['seconds']:7.1f} s, peak {f['peak_gb']:.2f} GB in up to {f['processes']} processes{stated}")
    if a.json:
        Path(a.json).write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
