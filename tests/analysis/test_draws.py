"""Several draws a problem in the analysis: what is refused, means over draws, intervals over problems."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy_results import store, store_episodes

from r3_repro.analysis.accuracy import accuracy, means_over_seeds
from r3_repro.analysis.differences import differences
from r3_repro.analysis.loading import check_episodes, load_episodes, load_transfer, outcomes, share_right
from r3_repro.analysis.reflection_effect import load_controls, reflection_effect, same_words, store_controls, synthetic_controls
from r3_repro.analysis.reflection_report import reflection_examples
from r3_repro.analysis.reflections import reflection_measures, success_by_length
from r3_repro.testing import synthetic_episodes
from r3_repro.utils.stats import wilson
from r3_repro.workflow.reports import make_all_reports


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


# ── Tables ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def copied(e: pd.DataFrame, draws: int = 4) -> pd.DataFrame:
    "As if further draws had repeated the first: nothing more is known than from one."
    more = [e[(e["mode"] == "sampled") & (e.draw == 0)].assign(draw=d) for d in range(1, draws)]
    return check_episodes(pd.concat([e[e.draw == 0], *more]))


def controls_of(e: pd.DataFrame) -> pd.DataFrame:
    each = [run for _, run in e.groupby(["arm", "seed"])]
    return pd.concat([synthetic_controls(run, {"bare": 0.15, "other": 0.2}) for run in each], ignore_index=True)


TABLES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str, str]] = {
    "accuracy": (accuracy, "estimate", "low high"),
    "means over seeds": (means_over_seeds, "estimate", "low high"),
    "differences": (differences, "difference of_arm of_other", "low high"),
    "reflections": (reflection_measures, "mean change kept truncated", "mean_low mean_high change_low change_high"),
    "success": (lambda e: success_by_length(e, bins=2), "estimate", "low high"),
}


@pytest.mark.parametrize("name", TABLES)
def test_draws_that_repeat_the_first_tell_nothing_new(name: str, episodes: pd.DataFrame) -> None:
    "The same estimates as from one draw, and intervals that are no narrower: draws are not further problems."
    make, same, ends = TABLES[name]
    one, four = make(episodes[episodes.draw == 0]), make(copied(episodes))
    assert len(one) == len(four) > 0
    for column in same.split():
        assert four[column].to_numpy(dtype=float) == pytest.approx(one[column].to_numpy(dtype=float), nan_ok=True), column
    limits = ends.split()
    for low, high in zip(limits[::2], limits[1::2], strict=True):
        before, after = (t[high].astype(float) - t[low].astype(float) for t in (one, four))
        assert (after >= 0.85 * before)[before.notna()].all() and (after <= 1.5 * before + 0.1)[before.notna()].all(), low


def test_accuracy_is_a_mean_over_draws(episodes: pd.DataFrame) -> None:
    e = episodes[(episodes.arm == "r3") & (episodes.seed == 1) & (episodes["mode"] == "sampled")]
    right = {"first": e.attempt_ok.astype(bool), "two": e.attempt_ok.astype(bool) | e.retry_ok.fillna(False).astype(bool)}
    table = accuracy(episodes).set_index(["arm", "mode", "seed", "column"])
    for column, yes in right.items():
        row = table.loc["r3", "sampled", 1, column]
        assert row.estimate == pytest.approx(yes.mean()) and row.right == pytest.approx(yes.sum() / 3) and row.problems == 60
        assert tuple(row[["estimate", "low", "high"]]) == share_right(yes.groupby(e.problem_id).mean().to_numpy())
    greedy = table.loc["r3", "greedy", 1, "first"]
    assert tuple(greedy[["estimate", "low", "high"]]) == wilson(int(greedy.right), 60)


def test_an_interval_over_seeds_is_no_narrower_than_what_seeds_differ_by() -> None:
    "Three seeds that are far apart on many problems: almost the t interval over their means."
    rates = (0.2, 0.4, 0.6)
    far = check_episodes(pd.concat([synthetic_episodes("r3", seed, rate, 0.0, problems=400) for seed, rate in enumerate(rates)]))
    row = means_over_seeds(far).query("mode == 'greedy' and column == 'first'").iloc[0]
    of_seed = far[far["mode"] == "greedy"].groupby("seed").attempt_ok.mean().astype(float)
    assert row.seeds == 3 and row.estimate == pytest.approx(of_seed.mean())
    assert row.high - row.estimate > 0.95 * min(4.303 * of_seed.std() / 3**0.5, 1 - of_seed.mean())


def test_every_reflection_counts_once_in_a_mean_length(episodes: pd.DataFrame) -> None:
    table = reflection_measures(episodes).set_index(["mode", "arm", "measure"])
    e = episodes[(episodes["mode"] == "sampled") & episodes.reflection.notna()]
    a, b = e[e.arm == "vanilla"].reflection_tokens.astype(float), e[e.arm == "r3"]
    row, of_seed = table.loc["sampled", "r3", "tokens"], b.groupby("seed").reflection_tokens.mean().astype(float)
    assert row.reflections == len(b) > 120 and row["mean"] == pytest.approx(of_seed.mean())
    assert row.change == pytest.approx(of_seed.mean() - a.mean())
    assert row.mean_low < row["mean"] < row.mean_high and row.change_low < row.change < row.change_high
    fives = episodes.assign(reflection_tokens=episodes.reflection_tokens.mask(episodes.arm == "r3", 5))
    still = reflection_measures(fives).set_index(["mode", "arm", "measure"]).loc["sampled", "r3", "tokens"]
    assert still["mean"] == pytest.approx(5) and 0 < still.mean_high - still.mean_low < 2, "all of one length"


def test_examples_are_of_the_first_draw(episodes: pd.DataFrame) -> None:
    for mode in ("greedy", "sampled"):
        first = reflection_examples(episodes[episodes.draw == 0], mode=mode)
        assert reflection_examples(episodes, mode=mode).equals(first) and len(first)
    later = episodes[(episodes.draw > 0) | (episodes["mode"] == "greedy")]
    assert reflection_examples(later, mode="sampled").empty


# ── Controls ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_gain_over_a_control_is_a_mean_over_draws(episodes: pd.DataFrame) -> None:
    controls = controls_of(episodes)
    table = reflection_effect(episodes, controls).set_index(["mode", "arm", "retry"])
    key = ["seed", "problem_id", "draw"]
    own = episodes[(episodes.arm == "r3") & (episodes["mode"] == "sampled")].set_index(key)
    bare = controls[(controls.arm == "r3") & (controls["mode"] == "sampled") & (controls.control == "bare")]
    theirs = own.attempt_ok | bare.set_index(key).retry_ok.reindex(own.index).fillna(False)
    mine = own.attempt_ok | own.retry_ok.fillna(False)
    row = table.loc["sampled", "r3", "bare"]
    assert row.two == pytest.approx(theirs.mean()) and row.gain == pytest.approx(mine.mean() - theirs.mean())
    assert row.gain_low < row.gain < row.gain_high and row.problems == 60 and row.seeds == 2
    fresh = table.loc["sampled", "r3", "again"]  # the next draw of the same problem
    again = own.attempt_ok.groupby(["seed", "problem_id"]).transform(lambda ok: np.roll(ok, 1))
    assert fresh.two == pytest.approx((own.attempt_ok | again).mean()) and "again" not in table.loc["greedy", "r3"].index
    one = reflection_effect(episodes[episodes.draw == 0], controls[controls.draw == 0])
    four = reflection_effect(copied(episodes), controls_of_copies(controls)).query("retry != 'again'").reset_index(drop=True)
    for column in ("two", "gain", "retries_right", "same_words"):
        assert four[column].to_numpy(dtype=float) == pytest.approx(one[column].to_numpy(dtype=float), nan_ok=True)
    width = [(t.gain_high - t.gain_low).astype(float) for t in (one, four)]
    assert (width[1] >= 0.85 * width[0])[width[0].notna()].all()


def controls_of_copies(controls: pd.DataFrame) -> pd.DataFrame:
    first = controls[controls.draw == 0]
    return pd.concat([first, *(first[first["mode"] == "sampled"].assign(draw=d) for d in range(1, 4))], ignore_index=True)


def test_a_control_that_one_draw_lacks_is_not_compared(episodes: pd.DataFrame) -> None:
    "Its other draws are easier than the one that has none to borrow from."
    controls = controls_of(episodes[episodes.arm == "r3"])
    gone = controls[(controls.control == "bare") & (controls["mode"] == "sampled") & (controls.draw == 2)].index[0]
    table = reflection_effect(episodes, controls.drop(index=gone))
    assert set(table.retry[table["mode"] == "sampled"]) == {"own", "other", "again"}
    assert set(table.retry[table["mode"] == "greedy"]) == {"own", "bare", "other"}


def test_borrowed_words_are_those_of_the_same_draw(episodes: pd.DataFrame, tmp_path: Path) -> None:
    "The same words in every draw of a problem's partner but another draw's: not the own ones."
    run = episodes[(episodes.arm == "r3") & (episodes.seed == 0)].reset_index(drop=True)
    controls = synthetic_controls(run, {"other": 0.2})
    lent = same_words(run, controls)
    assert len(lent) == len(controls) and not lent.same.any()
    by_draw = run.assign(reflection=run.reflection.mask(run.reflection.notna(), "draw " + run.draw.astype("string")))
    assert same_words(by_draw, controls).same.all(), "looked up in another draw"
    store_episodes(tmp_path, run)
    store_controls(tmp_path, controls)
    found, left_out = load_controls(tmp_path, run)
    assert len(found) == len(controls) and not left_out
    store_controls(tmp_path, controls.assign(draw=controls.draw + 1))
    assert "names an attempt that did not fail" in load_controls(tmp_path, run)[1][0]


# ── All of it ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("undrawn")
def test_all_tables_are_made_and_say_what_they_average(episodes: pd.DataFrame, tmp_path: Path) -> None:
    folder = store(tmp_path, episodes)
    for (_, _), run in episodes[episodes.arm == "r3"].groupby(["arm", "seed"]):
        store_controls(folder, synthetic_controls(run, {"bare": 0.15, "other": 0.2}))
    assert make_all_reports(tmp_path)
    for name in ("accuracy", "reflections", "success_by_length", "controls"):
        assert "means over 3 draws a problem" in (folder / f"tables/{name}.md").read_text("utf-8"), name
