"""First error and end of the retry, on episodes that can be counted by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from r3_repro.analysis.accuracy import error_shares, plot_errors
from r3_repro.analysis.contrasts import contrast, side
from r3_repro.analysis.error_flow import RIGHT, error_flow, fold_rare, make_error_flow, plot_flow, readable_flow
from r3_repro.analysis.loading import check_episodes, typed_episodes
from r3_repro.testing import TOY, synthetic_episodes

A, B = TOY.errors[:2]

# (arm, seed) -> problem -> the tries of its draws: None is right at once, else the first error and how the retry ended
RUNS: dict[tuple[str, int], list[list[tuple[str, str] | None]]] = {
    ("vanilla", 0): [[(A, A), (A, RIGHT)], [None, None]],
    ("r3", 0): [[None, (A, RIGHT)], [(A, A), (B, A)]],
    ("r3", 1): [[(B, B), None], [None, None]],
}


def episode(arm: str, seed: int, problem: int, draw: int, end: tuple[str, str] | None) -> dict[str, object]:
    row = {"arm": arm, "seed": seed, "mode": "sampled", "draw": draw, "problem_id": f"p{problem}", "problem": "{}"}
    row |= {"attempt": "x", "attempt_ok": end is None, "attempt_error": end[0] if end else "", "attempt_tokens": 1}
    if end:
        ok = end[1] == RIGHT
        row |= {"reflection": "r", "reflection_tokens": 1, "retry": "y", "retry_ok": ok, "retry_error": "" if ok else end[1]}
    return dict.fromkeys(["reflection", "reflection_tokens", "retry", "retry_ok", "retry_error", "retry_tokens"]) | row


@pytest.fixture
def episodes() -> pd.DataFrame:
    rows = [
        episode(*run, p, d, end)
        for run, problems in RUNS.items()
        for p, ends in enumerate(problems)
        for d, end in enumerate(ends)
    ]
    finish = dict.fromkeys(["attempt_finish", "reflection_finish", "retry_finish"], "stop")
    return check_episodes(typed_episodes(pd.DataFrame(rows).assign(**finish)))


def test_shares_are_of_the_failures_and_means_over_seeds(episodes: pd.DataFrame) -> None:
    table = error_flow(episodes, TOY.errors)
    pairs = table[["arm", "first", "second"]].itertuples(index=False, name=None)
    got = dict(zip(pairs, zip(table.share, table["count"], strict=True), strict=True))
    assert got == {
        ("vanilla", A, RIGHT): (0.5, 1), ("vanilla", A, A): (0.5, 1), ("vanilla", B, A): (0, 0), ("vanilla", B, B): (0, 0),
        ("r3", A, RIGHT): (pytest.approx(1 / 6), 1), ("r3", A, A): (pytest.approx(1 / 6), 1),
        ("r3", B, A): (pytest.approx(1 / 6), 1), ("r3", B, B): (0.5, 1),
    }  # fmt: skip
    assert table.set_index("arm").seeds.to_dict() == {"vanilla": 1, "r3": 2}


def test_the_interval_counts_seeds_and_problems_by_their_failures(episodes: pd.DataFrame) -> None:
    row = error_flow(episodes, TOY.errors).set_index(["arm", "first", "second"]).loc["r3", A, A]
    values, weights = np.array([[0.0, 0.5], [0.0, 0.0]]), np.array([[0.5, 1.0], [0.5, 0.0]])
    whole = contrast(side(values, weights)).interval()
    assert (row.share, row.low, row.high) == pytest.approx((whole.estimate, max(whole.low, 0), min(whole.high, 1)))


def test_a_seed_without_failures_does_not_count(episodes: pd.DataFrame) -> None:
    perfect = episodes.assign(attempt_ok=episodes.attempt_ok | (episodes.seed == 1))
    table = error_flow(perfect, TOY.errors).query("arm == 'r3'")
    assert set(table.seeds) == {1} and table.share.sum() == pytest.approx(1) and len(table) == 3


def test_rare_errors_are_other_and_named() -> None:
    shares = [(A, RIGHT, 0.5), (A, "too_long", 0.004), (B, B, 0.49), ("too_long", A, 0.006)]
    table = pd.DataFrame([["sampled", "r3", 1, *s[:2], 5, s[2], 0, 1] for s in shares],
                         columns=["mode", "arm", "seeds", "first", "second", "count", "share", "low", "high"])  # fmt: skip
    kept, rare = fold_rare(table)
    assert rare == ["too_long"]
    assert dict(zip(zip(kept["first"], kept.second, strict=True), kept.share, strict=True)) == {
        (A, RIGHT): 0.5, (A, "other"): 0.004, (B, B): 0.49, ("other", A): 0.006,
    }  # fmt: skip
    assert readable_flow(table)[["1st try", "retry"]].to_numpy().tolist() == [[A, RIGHT], [B, B]]


def test_the_figure_shows_the_shares_with_right_first(episodes: pd.DataFrame) -> None:
    figure = plot_flow(error_flow(episodes, TOY.errors), "sampled")
    vanilla, r3 = ([t.get_text() for t in ax.texts if t.get_text() not in ("", "first try")] for ax in figure.axes)
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["right", "wrong numbers", "missed target", "all"]
    assert r3 == ["16.7", "16.7", "16.7", "50.0", "33.3", "66.7", "16.7", "33.3", "50.0"]  # squares, rows, columns
    assert vanilla == ["50.0", "50.0", "100.0", "0.0", "50.0", "50.0", "0.0"]


def test_table_and_figure_are_stored_without_the_task_too(episodes: pd.DataFrame, tmp_path: Path) -> None:
    made = make_error_flow(tmp_path, episodes.assign(mode="greedy"), None)
    kinds = [("tables", k) for k in ("csv", "md", "tex")] + [("figures", k) for k in ("svg", "pdf", "png")]
    assert made == [tmp_path / folder / f"error_flow.{kind}" for folder, kind in kinds] and all(p.is_file() for p in made)
    assert make_error_flow(tmp_path, episodes.assign(attempt_ok=True), TOY) == []


# ── Errors of first tries ──────────────────────────────────────────────────────────────────────────────────────────


def test_error_shares_are_means_over_seeds(episodes: pd.DataFrame) -> None:
    table = error_shares(episodes, TOY.errors).set_index(["arm", "column", "error"])
    of_r3 = table.loc["r3"]
    assert of_r3.of_problems["first", A] == pytest.approx((2 / 4 + 0) / 2) and of_r3["count"]["first", A] == 2
    assert of_r3.of_failures["first", A] == pytest.approx((2 / 3 + 0) / 2) and of_r3.seeds["first", A] == 2
    assert of_r3.of_problems["two", A] == pytest.approx((2 / 4 + 0) / 2) and of_r3.of_problems["two", B] == pytest.approx(1 / 8)
    whole = contrast(side(np.array([[0.5, 0.5], [0, 0]]))).interval()
    assert of_r3.of_problems_high["first", A] == pytest.approx(min(whole.high, 1)) and of_r3.of_problems_low["first", A] == 0


def test_the_figure_of_errors_shows_first_tries_of_one_mode() -> None:
    both = pd.concat([synthetic_episodes("vanilla", 0), synthetic_episodes("r3", 0, 0.5), synthetic_episodes("r3", 1, 0.5)])
    table = error_shares(both, TOY.errors)
    figure = plot_errors(table)
    (ax,) = figure.axes
    drawn = [line.get_xdata().tolist() for line in ax.lines if line.get_label() != "_child0" and len(line.get_xdata()) == 3]
    of = table[(table["mode"] == "sampled") & (table.column == "first")]
    assert drawn == [(100 * of.of_problems[of.arm == arm]).tolist() for arm in ("vanilla", "r3")]
    assert "sampled" in ax.get_xlabel()
