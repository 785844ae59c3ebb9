"""Mining in one batch that holds everything: attempts are counted and stored as they end, and a kill loses only the others."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tqdm.auto import tqdm

from r3_repro.config import model_path
from r3_repro.data import load_split
from r3_repro.engines import hf
from r3_repro.engines.hf import Transformers
from r3_repro.mining import sampler
from r3_repro.mining.sampler import sample_attempts
from r3_repro.mining.store.reader import relation
from r3_repro.runs.layout import open_run

ATTEMPTS = 48
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    "Rows of each batch that is generated in this process."
    rows, usual = list[int](), hf.stream_rows
    monkeypatch.setattr(hf, "stream_rows", lambda m, t, prompts, *how: rows.append(len(prompts)) or usual(m, t, prompts, *how))
    return rows


def opened(root: Path) -> tuple[Any, list[Any]]:
    "A run whose attempts, of different lengths, fit into one batch and are stored one by one; and its problems."
    own = {"train_size": ATTEMPTS, "attempts_per_problem": 1, "generation_batch": 1000, "flush_rows": 1}
    run = open_run("smoke", "function_calling", root=str(root), **own)
    return run, load_split(run, "train")


class Mortal(Transformers):
    "Dies without a chance to tidy up, once it has handed out finished rows three times."

    rounds = 0

    def collect(self) -> Any:
        if self.rounds == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        self.rounds += 1
        return super().collect()


def test_a_kill_within_the_batch_loses_only_what_had_not_ended(batches: list[int], tmp_path: Path) -> None:
    run, problems = opened(tmp_path)
    plain, cut = tmp_path / "plain", tmp_path / "cut"
    assert sample_attempts(run, problems, plain) == ATTEMPTS and batches == [ATTEMPTS]
    if not (pid := os.fork()):
        try:
            sample_attempts(run, problems, cut, Mortal.load(model_path(run.profile), batch=1000))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    kept = len(relation(cut).df())
    assert 3 <= kept < ATTEMPTS
    assert sample_attempts(run, problems, cut) == ATTEMPTS - kept and batches == [ATTEMPTS, ATTEMPTS - kept]
    whole, mended = (relation(folder).order("place, sample").df().drop(columns="engine") for folder in (plain, cut))
    assert len(mended) == ATTEMPTS and mended.equals(whole)


def test_the_progress_bar_moves_within_the_batch(batches: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[float, int]]()

    class Watched(tqdm):
        def set_postfix(self, *args: Any, **more: Any) -> None:
            seen.append((self.n, len(relation(tmp_path / "store").df())))
            super().set_postfix(*args, **more)

    monkeypatch.setattr(sampler, "tqdm", Watched)
    run, problems = opened(tmp_path)
    sample_attempts(run, problems, tmp_path / "store")
    assert batches == [ATTEMPTS] and seen[-1] == (ATTEMPTS, ATTEMPTS)
    assert [n for n, _ in seen] == sorted({n for n, _ in seen}) and len(seen) > 5, "a step of the bar whenever rows have ended"
    assert all(n == stored for n, stored in seen)
