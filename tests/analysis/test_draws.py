"""Several draws a problem in the analysis: what is refused, means over draws, intervals over problems."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy_results import store_episodes

from r3_repro.analysis.loading import check_episodes, load_episodes, load_transfer, outcomes, share_right
from r3_repro.testing import synthetic_episodes
from r3_repro.utils.stats import wilson


@pytest.fixture(scope="module")
def episodes() -> pd.DataFrame:
    "Vanilla and two seeds of r3, three draws a problem in mode sampled."
    runs = [("vanilla", 0, 0.15, 0.15, 14), ("r3", 0, 0.2, 0.4, 8), ("r3", 1, 0.2, 0.4, 8)]
    return check_episodes(pd.concat([synthetic_episodes(*run, problems=60, draws=3) for run in runs]))


# ── What is refused, by name ───────────────────────────────────────────────────────────────────────────────────────


def at(e: pd.DataFrame, draw: int = 1) -> pd.Series:
    "One episode of r3: seed 1, sampled, problem 7."
    return (e.arm == "r3") & (e.seed == 1) & (e["mode"] == "sampled") & (e.problem_id == "toy-00007") & (e.draw == draw)


def blank(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda e: e.assign(**{column: e[column].mask(at(e))})


NAMED = r"'arm': 'r3', 'seed': 1, 'mode': 'sampled', 'problem_id': 'toy-00007'"
BROKEN: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "an episode twice": (lambda e: pd.concat([e, e[at(e)]]), rf"stored twice: {{{NAMED}, 'draw': 1}}"),
    "a draw missing": (lambda e: e[~at(e)], rf"{{{NAMED}}} has the draws 0, 2 and not 0 to 2"),
    "the last draw missing": (lambda e: e[~at(e, 2)], rf"{{{NAMED}}} has the draws 0, 1 and not 0 to 2"),
    "a seed with fewer draws": (
        lambda e: e[(e.arm != "r3") | (e.seed != 1) | (e.draw == 0)],
        r"'arm': 'r3', 'seed': 1, 'mode': 'sampled', 'problem_id': 'toy-00000'} has the draws 0 and not 0 to 2",
    ),
    "a draw that nobody has": (lambda e: e[e.draw != 1], r"has the draws 0, 2 and not 0 to 2"),
    "draws from 1": (lambda e: e.assign(draw=e.draw + 1), r"has the draws 1 and not 0 to 1"),
    "a negative draw": (lambda e: e.assign(draw=e.draw.mask(at(e), -1)), rf"{{{NAMED}}} has the draws -1, 0, 2"),
    "no verdict on an attempt": (blank("attempt_ok"), rf"no verdict where it needs one: {{{NAMED}, 'draw': 1}}"),
    "no verdict on a retry": (
        lambda e: e.assign(attempt_ok=e.attempt_ok.mask(at(e), False), retry_ok=e.retry_ok.mask(at(e))),
        rf"no verdict where it needs one: {{{NAMED}, 'draw': 1}}",
    ),
    "no draw": (blank("draw"), "1 episodes have no draw"),
    "no seed": (blank("seed"), "1 episodes have no seed"),
    "no arm": (blank("arm"), "1 episodes have no arm"),
    "no problem": (blank("problem_id"), "1 episodes have no problem_id"),
    "a problem missing": (lambda e: e[(e.seed != 1) | (e.problem_id != "toy-00007")], "was evaluated on 59 problems"),
    "a mode missing": (lambda e: e[(e.seed != 1) | (e["mode"] == "greedy")], "arm r3, seed 1, was not evaluated in mode sampled"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_no_comparison_may_use_is_refused_by_name(name: str, episodes: pd.DataFrame, tmp_path: Path) -> None:
    broken, said = BROKEN[name]
    with pytest.raises(ValueError, match=said):
        check_episodes(broken(episodes))
    assert check_episodes(episodes.sample(frac=1, random_state=1)).equals(episodes)


def test_tables_of_an_earlier_version_are_the_first_draw(episodes: pd.DataFrame, tmp_path: Path) -> None:
    "Also where only one of them is: a table with several draws beside it is refused."
    first = episodes[episodes.draw == 0]
    store_episodes(tmp_path, first)
    file = tmp_path / "episodes/r3-seed1.parquet"
    pd.read_parquet(file).drop(columns="draw").to_parquet(file)
    assert load_episodes(tmp_path).equals(first.reset_index(drop=True))
    (tmp_path / "transfer").mkdir()
    moved = first[(first.arm == "r3") & (first.seed == 0)].assign(arm="other:r3").drop(columns="draw")
    moved.to_parquet(tmp_path / "transfer/other-r3-seed0.parquet")
    assert load_transfer(tmp_path).draw.eq(0).all()
    episodes[(episodes.arm == "r3") & (episodes.seed == 0)].to_parquet(tmp_path / "episodes/r3-seed0.parquet")
    with pytest.raises(ValueError, match=r"'arm': 'vanilla'.* has the draws 0 and not 0 to 2"):
        load_episodes(tmp_path)


# ── Outcomes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("column", ["first", "two"])
def test_outcomes_are_shares_of_draws(column: str, episodes: pd.DataFrame) -> None:
    got = outcomes(episodes, "r3", "sampled", column)
    assert got.shape == (2, 60) and got.dtypes.eq(float).all()
    e = episodes[(episodes.arm == "r3") & (episodes["mode"] == "sampled")]
    for seed, problem in [(0, "toy-00007"), (1, "toy-00059")]:
        rows = e[(e.seed == seed) & (e.problem_id == problem)]
        second = rows.retry_ok.fillna(False).tolist() if column == "two" else [False] * 3
        right = [bool(a) or bool(b) for a, b in zip(rows.attempt_ok, second, strict=True)]
        assert got.loc[seed, problem] == pytest.approx(sum(right) / 3)
    one = outcomes(episodes[episodes.draw == 0], "r3", "sampled", column)
    assert one.dtypes.eq(bool).all() and outcomes(episodes, "r3", "greedy", column).dtypes.eq(bool).all()


def test_the_interval_of_a_share_counts_problems() -> None:
    yes = np.random.default_rng(3).random(400) < 0.3
    assert share_right(yes) == wilson(int(yes.sum()), 400)
    copied, noisy = share_right(yes.astype(float)), share_right(np.clip(yes * 0.5 + 0.25, 0, 1))
    width = share_right(yes).high - share_right(yes).low
    assert copied.high - copied.low == pytest.approx(width, rel=0.03) and noisy.high - noisy.low < 0.6 * width
    assert (share_right(np.zeros(50)).low, share_right(np.ones(50)).high) == (0, 1) and share_right(np.zeros(50)).high > 0.01
