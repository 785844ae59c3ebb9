"""A training is shown as its files are at any moment: none yet, half a row, resumed, stopped, finished, several seeds."""

import io
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from attacks import ATTACKS
from rich.console import Console
from support import REPOSITORY, patience

from r3_repro.analysis import watch
from r3_repro.analysis.health import STOP_SIGNS, check_health, sign_states
from r3_repro.analysis.training_curves import plot_training
from r3_repro.analysis.watch import (
    Watched,
    figure_svg,
    progress_line,
    read_training,
    sample_texts,
    training_folders,
    training_page,
    training_view,
    visible,
    watch_training,
    watched_log,
)
from r3_repro.profiles import StoppingSettings

COLLAPSED = REPOSITORY / "tests/training/collapsed_run"
ROW = {"reward": 0.1, "retry_success": 0.1, "kl": 0.1, "entropy": 1.0, "loss": 0.0, "grad_norm": 0.5, "frac_reward_zero_std": 0.4}
ROW |= {f"seconds_{k}": 0.5 for k in ("reflect", "retry", "verify", "update")} | {"reflect_tokens": 10, "retry_tokens": 5}


def store(folder: Path, steps: int, torn: str = "", finished: bool = False, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(json.dumps({"step": s} | ROW) + "\n" for s in range(1, steps + 1))
    (folder / "log.jsonl").write_text(rows + torn, "utf-8")
    said = json.dumps({"profile": {"max_steps": 10} | settings, "token_budget": 0})
    (folder / ("manifest.json" if finished else "settings.json")).write_text(said, "utf-8")
    return folder


def text_of(what: Any, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False, color_system=None)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


def watched(folder: Path, **how: Any) -> str:
    console = Console(width=80, file=io.StringIO(), force_terminal=False, color_system=None)
    watch_training(folder, console=console, **how)
    return console.file.getvalue()  # type: ignore[attr-defined]


# ── Signs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_shown_is_what_stops() -> None:
    "Over in as many rows as stop a run, for every sign, if and only if the rule stops it."
    p = StoppingSettings(stop_after=3)
    beyond = {s.column: s.limit(p) * (0.5 if s.below else 1.5) for s in STOP_SIGNS}
    for column, x in beyond.items():
        for rows in (2, 3):
            log = [{"step": i} | ROW | ({column: x} if i > 3 - rows else {}) for i in range(1, 4)]
            (state,) = (s for s in sign_states(log, p) if s.column == column)
            assert (state.state, state.rows) == ("over", rows)
            assert bool(check_health(log, p)) == (rows == 3), column


def test_the_collapsed_run_is_shown_as_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "r3-seed0"
    folder.mkdir()
    for name in ("log.jsonl", "samples.jsonl"):
        (folder / name).write_bytes((COLLAPSED / name).read_bytes())
    (folder / "settings.json").write_text(json.dumps({"profile": {"stop_after": 20}}), "utf-8")
    w = read_training(folder)
    assert w.stopped and "kl is above stop_kl = 3.0" in w.stopped
    shown = text_of(training_view(w, time.time()), 120)
    assert "stops by itself: steps" in shown and "over, " in shown and "I made a mi" in shown
    (folder / "settings.json").write_text(json.dumps({"profile": {"stop_after": 20, "stop_kl": 0}}), "utf-8")
    assert read_training(folder).stopped is None, "the limits are those with which it was resumed"


def test_values_that_are_not_finite_are_named() -> None:
    log = [{"step": 1} | ROW | {"loss": math.nan}]
    assert sign_states(log, StoppingSettings())[0].column == "loss" and sign_states(log, StoppingSettings())[0].state == "over"


# ── Files ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_log_that_is_being_written_has_its_whole_rows(tmp_path: Path) -> None:
    for torn in ("", '{"step": 4, "rew', '{"step": 4, "text": "\u00e9'):
        w = read_training(store(tmp_path / "r3-seed0", 3, torn))
        assert [r["step"] for r in w.rows] == [1, 2, 3] and w.steps == 10
    (tmp_path / "r3-seed0/log.jsonl").write_bytes('{"step": 1}\n{"step": 2, "text": "\u00e9'.encode()[:-1])
    assert [r["step"] for r in read_training(tmp_path / "r3-seed0").rows] == [1], "cut in the middle of a letter"


def test_a_resumed_log_counts_each_step_once(tmp_path: Path) -> None:
    folder = store(tmp_path / "r3-seed0", 5)
    with open(folder / "log.jsonl", "a", encoding="utf-8") as f:
        f.write("".join(json.dumps({"step": s} | ROW | {"kl": 0.9}) + "\n" for s in (4, 5, 6)))
    w = read_training(folder)
    assert [r["step"] for r in w.rows] == [1, 2, 3, 4, 5, 6] and [r["kl"] for r in w.rows] == [0.1] * 3 + [0.9] * 3


def test_progress_has_rate_estimate_and_silence(tmp_path: Path) -> None:
    w = read_training(store(tmp_path / "r3-seed0", 4))
    assert progress_line(w, w.changed + 1) == "step 4 of 10, 2 s a step, about 12 s left"
    assert progress_line(w, w.changed + 300).endswith("no row for 5 min: has it ended?")
    budget = Watched(**vars(w) | {"steps": 0, "budget": 120})
    assert progress_line(budget, w.changed) == "step 4, 60 of 120 tokens, 2 s a step, about 8 s left"
    assert progress_line(read_training(store(tmp_path / "r3-seed1", 4, finished=True)), 1e12).endswith("finished")


def test_folders_of_a_model_by_arm_and_seed(tmp_path: Path) -> None:
    for name in ("permuted_reward-seed0", "r3-seed10", "r3-seed2", "notes"):
        store(tmp_path / "training" / name, 1)
    assert [f.name for f in training_folders(tmp_path)] == ["r3-seed2", "r3-seed10", "permuted_reward-seed0"]


# ── The loop ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_training_is_followed_from_nothing_to_its_end(tmp_path: Path) -> None:
    folder, page = tmp_path / "m/training/r3-seed0", tmp_path / "page.html"

    def train() -> None:
        for steps in (0, 1, 2):
            time.sleep(0.15)
            store(folder, steps, torn='{"st')
        time.sleep(0.15)
        store(folder, 2, finished=True)

    writer = threading.Thread(target=train)
    writer.start()
    lines = watched(folder, every=0.02, page=page).splitlines()
    writer.join()
    assert lines[0].startswith("r3-seed0: waiting for the first row of ")
    assert [x.split(";")[0] for x in lines][-1] == "r3-seed0: step 2 of 10, 2 s a step, finished"
    assert any(x.startswith("r3-seed0: step 1 of 10") for x in lines)
    assert "<svg" in (text := page.read_text("utf-8")) and "refresh" not in text


def test_once_prints_and_ends(tmp_path: Path) -> None:
    assert "no training under" in watched(tmp_path / "model", once=True)
    store(tmp_path / "model/training/r3-seed0", 2)
    store(tmp_path / "model/training/r3-seed1", 3)
    shown = watched(tmp_path / "model", once=True, page=tmp_path / "page.html")
    assert "r3-seed0" in shown and "step 3 of 10" in shown and "limits: settings.json" in shown
    assert (tmp_path / "page.html").read_text("utf-8").count("<h2>") == 2


def test_it_needs_no_torch(tmp_path: Path) -> None:
    store(tmp_path / "r3-seed0", 2)
    code = "import sys; from r3_repro.workflow.cli import app\ntry: app()\nexcept SystemExit as e: assert not e.code, e.code\n"
    code += "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    line = [sys.executable, "-c", code, "watch", str(tmp_path / "r3-seed0"), "--once"]
    done = subprocess.run(line, capture_output=True, encoding="utf-8", timeout=patience(60), env=os.environ, cwd=REPOSITORY)
    assert done.returncode == 0 and "step 2 of 10" in done.stdout, done.stderr


# ── Text of models ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    "The curves of two steps, which no text of a model changes."
    return figure_svg(plot_training(watched_log([read_training(store(tmp_path_factory.mktemp("drawn") / "r3-seed0", 2))])))


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_what_a_model_wrote_stays_text(attack: str, drawn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "plot_training", lambda log: None)
    monkeypatch.setattr(watch, "figure_svg", lambda fig: drawn)
    w = read_training(store(tmp_path / "r3-seed0", 2))
    sample = {"step": 1, "problem_id": attack, "attempt": attack, "reflection": attack, "retry": attack, "retry_ok": False}
    page = training_page([Watched(**vars(w) | {"sample": sample})], attack, w.changed)
    page.encode()  # no half of a pair is left
    tags = {t.split()[0].strip("/<>").lower() for t in page.split("<")[1:] if t[:1].isalpha()}
    assert not tags & {"script", "img", "iframe", "a", "details", "link", "base", "textarea"}
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/", "")
    shown = text_of(training_view(Watched(**vars(w) | {"sample": sample}), w.changed))
    assert not [c for c in shown if c != "\n" and visible(c) != c] and shown.encode()


def test_samples_are_cut_and_markup_of_the_terminal_is_text() -> None:
    assert len(sample_texts({"step": 1, "reflection": "x" * 10_000})["reflection"]) < 700
    w = Watched(
        Path("r3-seed0"),
        [{"step": 1} | ROW],
        {"reflection": "[bold]a[/bold] \x1b]0;t\x07"},
        StoppingSettings(),
        "",
        1,
        0,
        False,
        0,
    )
    assert "[bold]a[/bold] ␛]0;t␇" in text_of(training_view(w, 0))
