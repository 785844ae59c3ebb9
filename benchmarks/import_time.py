"""How long imports take: a plain interpreter, `import r3_repro`, settings, and the command line's help.

    python benchmarks/import_time.py
    python benchmarks/import_time.py --runs 21

Each measurement starts a new interpreter. The commands take turns, so that a busy machine slows all of them, and the medians are
shown. `import r3_repro` should add little to the interpreter and load no torch.
"""

import argparse
import statistics
import subprocess
import sys
import time

HEAVY = ["torch", "transformers", "trl", "datasets", "accelerate", "pandas", "numpy", "matplotlib", "pydantic"]
COMMANDS = {
    "interpreter": ["-c", "pass"],
    "import r3_repro": ["-c", "import r3_repro"],
    "r3_repro.load_profile": ["-c", "import r3_repro; r3_repro.load_profile('smoke')"],
    "r3-repro --help": ["-m", "r3_repro", "--help"],
}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def heavy_modules(command: list[str]) -> list[str]:
    "Which of the heavy packages a command loads, by the interpreter's own report."
    report = subprocess.run(
        [sys.executable, "-X", "importtime", *command], check=True, capture_output=True, encoding="utf-8"
    ).stderr
    loaded = {line.rpartition("|")[2].strip() for line in report.splitlines()}
    return [name for name in HEAVY if name in loaded]


def main() -> None:
    ap = argparse.ArgumentParser(description="Import times, medians of new interpreters.")
    ap.add_argument("--runs", type=int, default=9)
    runs = ap.parse_args().runs
    measured: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):
        for name, command in COMMANDS.items():
            measured[name].append(seconds(command))
    print(f"{'':24}{'median, s':>10}{'least':>8}{'most':>8}   heavy packages that it loads")
    for name, times in measured.items():
        kept = times[1:]  # the first round reads files that the others find in memory
        loaded = ", ".join(heavy_modules(COMMANDS[name])) or "none"
        print(f"{name:24}{statistics.median(kept):10.3f}{min(kept):8.3f}{max(kept):8.3f}   {loaded}")


if __name__ == "__main__":
    main()
