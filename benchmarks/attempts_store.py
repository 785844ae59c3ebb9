"""What the store of attempts costs at the paper's scale: disk, seconds and memory, beside the same done with pandas.

    python benchmarks/attempts_store.py                            # ten million attempts; some minutes, 3 GB of temporary disk
    python benchmarks/attempts_store.py --attempts 1000000
    python benchmarks/attempts_store.py --out results/benchmarks/attempts_store   # and stores the table

Each task runs in a process of its own, so that its peak of resident memory is its own; the first line of the table is what a
process takes that only imports. pandas reads everything into memory, so it is asked at a smaller size (`--naive`), and the store
at that size too.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from r3_repro.mining.store.reader import connect, count_attempts, fetch, read_outcomes
from r3_repro.mining.store.segments import Attempt, segments
from r3_repro.mining.store.writer import Writer, compact
from r3_repro.runs.layout import provenance
from r3_repro.utils.files import write_json

SAMPLES, WANTED = 64, 25_000
ERRORS = ["wrong_value", "wrong_numbers", "no_answer", "unfinished_answer", "not_an_expression"]

# ── What is stored ─────────────────────────────────────────────────────────────────────────────────────────────────


def texts(rng: np.random.Generator, n: int) -> Iterator[str]:
    "Answers to Countdown problems, of about 200 characters."
    for a, b, c, d, t, *steps in rng.integers(1, 100, (n, 9)).tolist():
        tried = f"Let me try {a} + {b} = {a + b}, then {a + b} - {c} = {a + b - c}. That is not {t}. "
        tried += f"What about {c} * {steps[0] % 9 + 1} = {c * (steps[0] % 9 + 1)}, and {d} - {steps[1]} gives {d - steps[1]}? "
        near = "So the closest that I can get with these numbers is this one."
        tried += f"{near if steps[2] % 2 else 'I think that this works now.'}\n"
        yield f"{tried}<answer>({a} + {b}) * {c} - {d} * {steps[3]}</answer>"


def attempts(n: int) -> Iterator[Attempt]:
    "Every problem once, then every problem again: the order that has each problem's attempts far apart."
    problems, rng = n // SAMPLES, np.random.default_rng(0)
    for first in range(0, problems * SAMPLES, 20_000):
        size = min(20_000, problems * SAMPLES - first)
        right, kinds = (rng.random(size) < 0.3).tolist(), rng.integers(0, len(ERRORS), size).tolist()
        for i, text in enumerate(texts(rng, size)):
            sample, place = divmod(first + i, problems)
            error = "" if right[i] else ERRORS[kinds[i]]
            finish = "stop" if kinds[i] else "length"
            yield Attempt(place, f"countdown-{place:06d}", sample, text, right[i], error, 60 + kinds[i], finish)


def make(folder: Path, n: int) -> None:
    with Writer(folder / "attempts", {"benchmark": n}, {"engine": "none"}) as writer:
        for a in attempts(n):
            writer.add(a)
    problems = n // SAMPLES
    ids = [f"countdown-{i:06d}" for i in range(problems)]
    data = [json.dumps({"numbers": [i % 90, 7, 12, 3], "target": i % 999}) for i in range(problems)]
    pd.DataFrame({"problem_id": ids, "problem": data}).to_parquet(folder / "train.parquet")


# ── What is asked, of the store and with pandas ────────────────────────────────────────────────────────────────────


def one_failure_each(failed: np.ndarray) -> list[tuple[int, int]]:
    "One failed attempt of each problem that has one, for some thousand problems."
    rng, places = np.random.default_rng(0), np.flatnonzero(failed.any(axis=1))
    places = np.sort(rng.permutation(places)[:WANTED])
    pick = rng.integers(failed[places].sum(axis=1))
    return list(zip(places.tolist(), (failed[places].cumsum(axis=1) > pick[:, None]).argmax(axis=1).tolist(), strict=True))


def ask_store(what: str, folder: Path, n: int) -> Any:
    store, problems = folder / "attempts", n // SAMPLES
    if what == "count":
        return count_attempts(store)["errors"]
    if what == "resume":
        return read_outcomes(store, problems, SAMPLES).drawn
    if what == "join":
        sql = "select error, count(*), avg(length(problem)) from attempts join '{}' using (problem_id) where not ok group by all"
        return {error: k for error, k, _ in connect(store).sql(sql.format(folder / "train.parquet")).fetchall()}
    chosen = one_failure_each(read_outcomes(store, problems, SAMPLES).codes > 0)
    return int(fetch(store, chosen).attempt.str.len().sum())


def ask_pandas(what: str, folder: Path, n: int) -> Any:
    table = pd.concat([pd.read_parquet(f) for f in sorted(folder.glob("attempts/part-*.parquet"))], ignore_index=True)
    if what == "count":
        table.groupby("problem_id", observed=True).ok.mean().round(4).value_counts()
        return table.error[~table.ok].value_counts().loc[ERRORS].to_dict()
    if what == "resume":
        return len(set(zip(table.problem_id, table["sample"], strict=True)))
    if what == "join":
        both = table.merge(pd.read_parquet(folder / "train.parquet"), on="problem_id")
        return both[~both.ok].groupby("error", observed=True).size().loc[ERRORS].to_dict()
    failed = np.zeros((n // SAMPLES, SAMPLES), bool)
    failed[table.place, table["sample"]] = ~table.ok
    chosen = pd.DataFrame(one_failure_each(failed), columns=["place", "sample"])
    return int(chosen.merge(table, on=["place", "sample"]).attempt.str.len().sum())


def work(what: str, how: str, folder: Path, n: int) -> dict[str, Any]:
    "Do one thing in this process, and say what it took."
    start, answer = time.perf_counter(), None
    if what == "write":
        make(folder, n)
    elif what == "merge":
        answer = compact(folder / "attempts")
    elif what == "open":
        with Writer(folder / "attempts", {"benchmark": n}) as writer:
            answer = writer.stored
    elif what != "nothing":
        answer = (ask_store if how == "store" else ask_pandas)(what, folder, n)
    seconds, scale = time.perf_counter() - start, 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale, "answer": answer}


# ── The table ──────────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = {
    "nothing": "only import", "write": "make texts and write them", "open": "open for writing",
    "count": "count attempts, errors, pass rates",
    "resume": "know what is drawn (resume)", "join": "join with the problems, count by error",
    "choose": f"choose a failure a problem, fetch {WANTED:,} texts", "merge": "merge the segments",
}  # fmt: skip


def measure(what: str, how: str, folder: Path, n: int) -> tuple[dict[str, Any], Any]:
    "A row of the table, and the answer."
    command = [sys.executable, __file__, "--work", what, how, str(folder), str(n)]
    done = json.loads(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.splitlines()[-1])
    row = {"task": NAMES[what], "attempts": n, "with": how}
    row |= {"seconds": round(done["seconds"], 1), "peak MB": round(done["peak"] / 1e6)}
    print(f"{row['task']}: {n:,} attempts, {how}: {row['seconds']} s, {row['peak MB']:,} MB", file=sys.stderr)
    return row, done["answer"]


def measure_all(n: int, folder: Path, naive: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    "Rows of the table for one size, and the size on disk; with `naive` the answers of both ways must agree."
    rows = [measure("write", "store", folder, n)[0]]
    written = segments(folder / "attempts")
    disk = {"attempts": n, "segments": len(written), "bytes": sum(s.size for s in written)}
    rows.append(measure("open", "store", folder, n)[0])
    for what in ("count", "resume", "join", "choose"):
        row, answer = measure(what, "store", folder, n)
        rows.append(row)
        if naive:
            row, other = measure(what, "pandas", folder, n)
            rows.append(row)
            assert answer == other, (what, answer, other)
    rows.append(measure("merge", "store", folder, n)[0])
    after = segments(folder / "attempts")
    return rows, disk | {"segments merged": len(after), "bytes merged": sum(s.size for s in after)}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--attempts", type=int, default=10_000_000)
    ap.add_argument("--naive", type=int, default=1_000_000, help="attempts at which pandas is asked too; 0 = never")
    ap.add_argument("--folder", type=Path, help="where the temporary store is made; default: the system's folder for such")
    ap.add_argument("--out", type=Path, help="folder for the table and its manifest")
    ap.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.work:
        print(json.dumps(work(a.work[0], a.work[1], Path(a.work[2]), int(a.work[3]))))
        return
    rows, disks = [measure("nothing", "store", Path(), 0)[0]], list[dict[str, Any]]()
    for n in sorted({n // SAMPLES * SAMPLES for n in (a.naive, a.attempts) if n}):
        with tempfile.TemporaryDirectory(dir=a.folder) as d:
            more, disk = measure_all(n, Path(d), n <= a.naive)
            rows, disks = rows + more, [*disks, disk]
    table, disk_table = pd.DataFrame(rows), pd.DataFrame(disks)
    print(table.to_markdown(index=False), disk_table.to_markdown(index=False), sep="\n\n")
    if a.out:
        from r3_repro.reporting.tables import save_table  # here, so that no measured process pays for it

        a.out.mkdir(parents=True, exist_ok=True)
        save_table(table, a.out, "attempts_store", caption="What the store of attempts costs, beside the same with pandas.")
        save_table(disk_table, a.out, "attempts_store_disk", caption="The store of attempts on disk.")
        made_with = {"pyarrow": pa.__version__, "duckdb": duckdb.__version__}
        write_json(a.out / "attempts_store.manifest.json", provenance() | {"store": made_with})


if __name__ == "__main__":
    main()
