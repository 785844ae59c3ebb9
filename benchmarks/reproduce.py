"""What a reproduction costs: wall time and peak memory of a first and of a second run.

    python benchmarks/reproduce.py                       # `make reproduce` without the installation, profile tiny
    python benchmarks/reproduce.py --profile smoke
    python benchmarks/reproduce.py --compare 2 --out results/benchmarks/reproduce   # beside generation as transformers does it

Runs `r3-repro reproduce` twice with a fresh run tree, and every half second adds up the memory of the process and
all that descend from it: resident pages, those shared between processes counted once (PSS) where the system tells them. Says how
the result stands to the limits that the documentation states for profile tiny on two cores: 12 minutes and 4 GB for the first
run, 90 seconds for the second.

With `--compare`, so many first runs of each of two sides take turns: as it is, and with every prompt run for each of its
completions and every retry from its beginning, as `transformers` and TRL generate. Prints both and the share of the medians.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
import psutil

from r3_repro.reporting.tables import save_table
from r3_repro.runs.layout import provenance
from r3_repro.utils.files import write_json

PLAIN = """
import importlib.machinery, sys

class Plain:
    "Switches off generation that runs each prompt once, as soon as its module is imported."
    def find_spec(self, name, path=None, target=None):
        if name != "r3_repro.engines.generation":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module
        def patched(module):
            execute(module)
            module._tried = lambda model: "switched off for a comparison"
        spec.loader.exec_module = patched
        return spec

sys.meta_path.insert(0, Plain())
"""
LIMITS = {"first": (12 * 60, 4.0), "second": (90, 4.0)}  # seconds, GB


def memory(process: psutil.Process) -> int:
    "Bytes that a process occupies: PSS, or RSS where that is not to be had."
    with contextlib.suppress(psutil.Error, AttributeError):
        return process.memory_full_info().pss
    with contextlib.suppress(psutil.Error):
        return process.memory_info().rss
    return 0


def watched(command: list[str], cwd: Path, every: float = 0.5, env: dict[str, str] | None = None) -> dict:
    "Run a command: exit code, wall time in seconds, peak of the memory over its process tree in GB, most processes at once."
    start, peak, most, stop = time.perf_counter(), 0, 0, threading.Event()
    process = subprocess.Popen(command, cwd=cwd, env=env)
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


def compared(command: list[str], home: Path, rounds: int, out: Path | None) -> None:
    "Print, and store, the seconds of first runs with and without prompts that are run once."
    found: dict[str, list[float]] = {"each prompt for each completion": [], "each prompt once": []}
    for _ in range(rounds):
        for side, seconds in found.items():
            with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as site:
                Path(site, "sitecustomize.py").write_text(PLAIN if "each completion" in side else "", "utf-8")
                env = os.environ | {"PYTHONPATH": os.pathsep.join([site, *filter(None, [os.environ.get("PYTHONPATH")])])}
                run = watched([*command, "--root", root], home, env=env)
            if run["exit"]:
                raise SystemExit(f"a run failed with exit code {run['exit']}")
            seconds.append(run["seconds"])
    middle = [statistics.median(seconds) for seconds in found.values()]
    rows = [
        {"generation": side, "seconds of first runs": " ".join(map(str, s)), "median": statistics.median(s)}
        for side, s in found.items()
    ]
    table = pd.DataFrame(rows).assign(**{"share of the time": [round(m / middle[0], 2) for m in middle]})
    print(table.to_markdown(index=False))
    if out:
        save_table(table, out, "reproduce", caption="`make reproduce` without the installation, profile tiny.")
        write_json(out / "reproduce.manifest.json", provenance() | {"measured": found})


def main() -> int:
    ap = argparse.ArgumentParser(description="Wall time and peak memory of a first and a second reproduction.")
    ap.add_argument("--profile", default="tiny")
    ap.add_argument("--task", default="")
    ap.add_argument("--root", default="", help="where to run; default: a temporary folder, removed afterwards")
    ap.add_argument("--json", default="", help="also write the numbers to this file")
    ap.add_argument("--compare", type=int, default=0, help="rounds of the comparison")
    ap.add_argument("--out", type=Path, help="folder for the table of the comparison and its manifest")
    a = ap.parse_args()
    home = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "r3_repro", "reproduce", "--profile", a.profile, "--task", a.task]
    if a.compare:
        compared(command, home, a.compare, a.out)
        return 0
    found: dict = {"profile": a.profile, "cores": len(os.sched_getaffinity(0)), "machine": platform.machine()}
    with tempfile.TemporaryDirectory() as scratch:
        root = a.root or scratch
        if any(Path(root).glob(f"{a.profile}/*")):
            raise SystemExit(f"{root} holds runs of {a.profile} already: a first run needs a fresh folder")
        for run in ("first", "second"):
            found[run] = watched([*command, "--root", root], home)
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
