"""A mining run of 100,000 attempts that is killed 1,000 times: what is lost, what is doubled.

    python benchmarks/mining_kills.py                  # some minutes
    python benchmarks/mining_kills.py --kills 50 --problems 600

The real loop and the real store, with an engine that answers at once. Each life is a forked process that gets SIGKILL after
a random number of answers; the engine counts, in memory that both share, how many answers it has handed out. What was handed
out and is not in the store after the kill is lost: at most the buffer, and the answers of one round of the engine. Every so
often the segments are merged, as somebody would who looks after such a run. The script fails if more is lost, if anything is
doubled, or if the finished store differs from what an uninterrupted run would hold.
"""

import argparse
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from r3_repro.data import load_split
from r3_repro.engines.base import MockEngine, derive_seed
from r3_repro.mining.sampler import sample_attempts
from r3_repro.mining.store.reader import read_outcomes, relation
from r3_repro.mining.store.segments import segments
from r3_repro.mining.store.writer import compact
from r3_repro.runs.layout import open_run, provenance
from r3_repro.utils.files import write_json

BUFFER, ROUND, SAMPLES = 32, 8, 8


class Counting(MockEngine):
    "Answers at once, and counts the answers in shared memory."

    def __init__(self, count: Any):
        super().__init__(lambda prompt, seed: f"answer {seed}", size=ROUND)
        self.count = count

    def collect(self) -> list:
        done = super().collect()
        self.count.value += len(done)
        time.sleep(0.001)
        return done


def life(run: Any, problems: list, folder: Path, count: Any, until: int | None) -> bool:
    "One process that mines, killed once it has handed out `until` answers; whether it ended by itself."
    count.value = 0
    if not (pid := os.fork()):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its progress bar
            sample_attempts(run, problems, folder, Counting(count))
            os._exit(0)
        except BaseException:
            os._exit(1)
    while until is not None and count.value < until:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.0003)
    if until is not None:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "a life failed by itself"
    return not os.WIFSIGNALED(status)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--kills", type=int, default=1000)
    ap.add_argument("--problems", type=int, default=12_500, help=f"each with {SAMPLES} attempts")
    ap.add_argument("--out", type=Path, help="JSON file for the record")
    a = ap.parse_args()
    rng, count = random.Random(0), multiprocessing.Value("q", 0, lock=False)
    mean = max(1, int(0.9 * a.problems * SAMPLES / a.kills))  # so that the work outlasts the kills
    kills = handed_out = most_lost = lost = merged = 0
    with tempfile.TemporaryDirectory() as d:
        options = {"train_size": a.problems, "test_size": 1, "high": 60, "attempts_per_problem": SAMPLES, "flush_rows": BUFFER}
        run, folder = open_run("smoke", root=d, **options), Path(d, "attempts")
        problems, stored, began = load_split(run, "train"), 0, time.perf_counter()
        for _ in tqdm(range(a.kills), desc="kills", unit="kill"):
            if life(run, problems, folder, count, rng.randint(0, 2 * mean)):
                break
            kills += 1
            now = sum(s.rows for s in segments(folder))
            missing = count.value - (now - stored)
            handed_out, lost, most_lost, stored = handed_out + count.value, lost + missing, max(most_lost, missing), now
            assert 0 <= missing <= BUFFER + ROUND, f"{missing} attempts lost at kill {kills}"
            if len(segments(folder)) > 200:
                merged += compact(folder)
        assert life(run, problems, folder, count, None)
        end = read_outcomes(folder, a.problems, SAMPLES)
        assert end.drawn == a.problems * SAMPLES and end.doubled == 0 and (end.codes >= 0).all()
        rows = relation(folder).project("problem_id, sample, attempt").fetchall()
        assert all(text == f"answer {derive_seed('attempts', i) + k}" for i, k, text in rows) and len(rows) == end.drawn
        seconds = time.perf_counter() - began
    print(
        f"{kills} kills over {end.drawn:,} attempts in {seconds:.0f} s: 0 doubled, 0 missing in the end; kills lost {lost:,} of "
        f"{handed_out:,} answers, at most {most_lost} by one (buffer {BUFFER} + round {ROUND}); {merged} segments merged away"
    )
    assert kills == a.kills, "the work ended before the kills: raise --problems"
    if a.out:
        told = {"kills": kills, "attempts": end.drawn, "doubled": end.doubled, "missing_in_the_end": 0, "handed_out": handed_out}
        told |= {"lost": lost, "most_lost_by_one": most_lost, "buffer": BUFFER, "round": ROUND, "seconds": round(seconds, 1)}
        write_json(a.out, told | provenance())


if __name__ == "__main__":
    main()
