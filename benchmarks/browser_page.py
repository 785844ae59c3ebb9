"""How large the page of episodes is, and how soon a browser can use it: from opening the file to a table that can be searched.

    python benchmarks/browser_page.py
    python benchmarks/browser_page.py --episodes 100000 --runs 9
    python benchmarks/browser_page.py --out results/benchmarks/browser_page/browser_page.json     # and stores it

The episodes are made up: two arms, reflections of about 60 words, few of them alike. Needs Chromium. 20,000 episodes should open
in under two seconds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from chromium import chromium

from r3_repro.analysis.browser import browsed_episodes, make_page
from r3_repro.runs.layout import provenance
from r3_repro.testing import synthetic_episodes
from r3_repro.utils.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=20000)
    parser.add_argument("--words", type=float, default=60.0, help="mean length of a reflection")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for what was measured, .json")
    args, manifest = parser.parse_args(), provenance()
    each = {"problems": args.episodes // 2, "modes": ("greedy",), "words": args.words}
    table = pd.concat([synthetic_episodes(**each), synthetic_episodes("r3", 0, 0.4, 0.4, **each)])
    made = time.perf_counter()
    page = make_page(browsed_episodes([table], limit=args.episodes)[0], "Benchmark")
    print(f"{len(table):,} episodes: {len(page) / 1e6:.2f} MB, written in {time.perf_counter() - made:.1f} s")
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder) / "profile") as tab:
        (file := Path(folder) / "page.html").write_text(page, "utf-8")
        tab.look(1280, 900)
        opened, searched = [], []
        for _ in range(args.runs):
            tab.visit(file.as_uri())
            opened.append(tab.js("performance.getEntriesByName('usable')[0].startTime / 1000"))
            start = time.perf_counter()
            tab.write_text("#text", '"target again"')
            tab.wait(f"!document.getElementById('count').textContent.startsWith('{len(table):,} of')")
            searched.append(time.perf_counter() - start)
    for what, seconds in (("usable after", opened), ("search after typing", searched)):
        print(
            f"{what}: median {statistics.median(seconds):.2f} s, {min(seconds):.2f} to {max(seconds):.2f} s in {args.runs} runs"
        )
    if args.out:
        told = {"episodes": len(table), "words": args.words, "megabytes": len(page.encode()) / 1e6}
        write_json(args.out, told | {"usable": opened, "searched": searched} | manifest)


if __name__ == "__main__":
    main()
