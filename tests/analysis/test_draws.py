"""Several draws a problem in the analysis: what is refused, means over draws, intervals over problems."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy_results import store, store_episodes

from r3_repro.analysis.accuracy import accuracy, error_shares, means_over_seeds, readable_errors
from r3_repro.analysis.differences import differences
from r3_repro.analysis.loading import check_episodes, load_episodes, load_transfer, outcomes, share_right
from r3_repro.analysis.reflection_effect import (
    in_place,
    load_controls,
    pair_retries,
    reflection_effect,
    same_words,
    store_controls,
    synthetic_controls,
)
from r3_repro.analysis.reflection_report import reflection_examples
from r3_repro.analysis.reflections import lengths, pick, reflected, success_by_length
from r3_repro.analysis.repetition import MEASURES, across, compressed, equal_sizes, repetition_measure, repetitiveness
from r3_repro.testing import TOY, synthetic_episodes
from r3_repro.utils.stats import wilson
from r3_repro.workflow.study import make_all_reports


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
    "errors": (lambda e: error_shares(e, TOY.errors), "count of_problems of_failures", "of_problems_low of_problems_high"),
    "lengths": (
        lambda e: lengths(reflected(e)),
        "tokens_mean words_mean tokens_change tokens_p50 clipped",
        "tokens_low tokens_high tokens_change_low tokens_change_high",
    ),
    "success": (lambda e: success_by_length(reflected(e), bins=2), "estimate", "low high"),
    "repetition": (lambda e: repetitiveness(reflected(e)), "estimate change kept", "low high change_low change_high"),
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


def test_accuracy_and_errors_are_means_over_draws(episodes: pd.DataFrame) -> None:
    e = episodes[(episodes.arm == "r3") & (episodes.seed == 1) & (episodes["mode"] == "sampled")]
    right = {"first": e.attempt_ok.astype(bool), "two": e.attempt_ok.astype(bool) | e.retry_ok.fillna(False).astype(bool)}
    table = accuracy(episodes).set_index(["arm", "mode", "seed", "column"])
    for column, yes in right.items():
        row = table.loc["r3", "sampled", 1, column]
        assert row.estimate == pytest.approx(yes.mean()) and row.right == pytest.approx(yes.sum() / 3) and row.problems == 60
        assert tuple(row[["estimate", "low", "high"]]) == share_right(yes.groupby(e.problem_id).mean().to_numpy())
    greedy = table.loc["r3", "greedy", 1, "first"]
    assert tuple(greedy[["estimate", "low", "high"]]) == wilson(int(greedy.right), 60)
    errors = error_shares(episodes, TOY.errors)
    of = errors[(errors.arm == "r3") & (errors.seed == 1) & (errors["mode"] == "sampled")].set_index(["column", "error"])
    missed = (e.attempt_error == "missed_target").sum()
    assert of.loc["first", "missed_target"]["count"] == pytest.approx(missed / 3)
    assert of.of_problems["first", "missed_target"] == pytest.approx(missed / 180)
    assert of.of_failures["first", "missed_target"] == pytest.approx(missed / (~right["first"]).sum())
    assert readable_errors(errors)["count"].dtype.kind == "i"


def test_every_reflection_counts_once_in_a_mean_length(episodes: pd.DataFrame) -> None:
    e = reflected(episodes)
    table = lengths(e).set_index(["mode", "arm", "seed"])
    a, b = pick(e, "sampled", "vanilla"), pick(e, "sampled", "r3", 1)
    row = table.loc["sampled", "r3", 1]
    assert row.reflections == len(b) > 60 and row.tokens_mean == pytest.approx(b.tokens.mean())
    assert row.tokens_change == pytest.approx(b.tokens.mean() - a.tokens.mean())
    assert (
        row.tokens_low < row.tokens_mean < row.tokens_high and row.tokens_change_low < row.tokens_change < row.tokens_change_high
    )
    both = b.assign(tokens=5.0, words=5.0)
    still = lengths(pd.concat([e[e.arm == "vanilla"], both])).set_index(["mode", "arm"]).loc["sampled", "r3"]
    assert 0 < still.tokens_high - still.tokens_low < 0.5, "all of one length"


def test_repetition_across_is_taken_in_each_draw(episodes: pd.DataFrame) -> None:
    "Three draws of a problem are three texts about the same, which one corpus would take for repetition."
    e = reflected(episodes)
    of_mode = e[e["mode"] == "sampled"]
    these, sizes = pick(of_mode, "sampled", "r3", 1), equal_sizes(of_mode)
    draws = [these[these.draw == d] for d in range(3)]
    for name in MEASURES[2:]:
        one = [compressed(d, sizes[name]) if name == "compression" else across(d, int(name[-1]), sizes[name]) for d in draws]
        got = repetition_measure(these, name, sizes[name])
        assert got == pytest.approx(np.mean(one, axis=0)) and np.isfinite(got).all()
    words = [
        pick(of_mode[of_mode.draw == d], "sampled", a, s).words.sum() for d in range(3) for a, s in (("vanilla", 0), ("r3", 1))
    ]
    assert sizes["across_1"] <= 0.8 * min(words)


def test_examples_are_of_the_first_draw(episodes: pd.DataFrame) -> None:
    e = reflected(episodes)
    for mode in ("greedy", "sampled"):
        assert reflection_examples(e, mode=mode).equals(reflection_examples(e[e.draw == 0], mode=mode))
    later = e[(e.draw > 0) | (e["mode"] == "greedy")]
    assert reflection_examples(later, mode="sampled").empty


# ── Controls ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_gain_over_a_control_is_a_mean_over_draws(episodes: pd.DataFrame) -> None:
    controls = controls_of(episodes)
    table = reflection_effect(episodes, controls).set_index(["mode", "arm", "seed", "retry"])
    key = ["problem_id", "draw"]
    own = episodes[(episodes.arm == "r3") & (episodes.seed == 1) & (episodes["mode"] == "sampled")].set_index(key)
    bare = controls[
        (controls.arm == "r3") & (controls.seed == 1) & (controls["mode"] == "sampled") & (controls.control == "bare")
    ]
    theirs = own.attempt_ok | bare.set_index(key).retry_ok.reindex(own.index).fillna(False)
    mine = own.attempt_ok | own.retry_ok.fillna(False)
    row = table.loc["sampled", "r3", "1", "bare"]
    assert row.two == pytest.approx(theirs.mean()) and row.gain == pytest.approx(mine.mean() - theirs.mean())
    assert row.gain_low < row.gain < row.gain_high and np.isnan([row.gained, row.lost, row.p]).all()
    assert row.retries == len(bare) and row.problems == 60
    greedy = table.loc["greedy", "r3", "1", "bare"]
    assert (greedy.gained - greedy.lost) / 60 == pytest.approx(greedy.gain) and 0 <= greedy.p <= 1
    one = reflection_effect(episodes[episodes.draw == 0], controls[controls.draw == 0])
    four = reflection_effect(copied(episodes), controls_of_copies(controls))
    for column in ("two", "gain", "retries_right", "same_words"):
        assert four[column].to_numpy(dtype=float) == pytest.approx(one[column].to_numpy(dtype=float), nan_ok=True)
    width = [(t.gain_high - t.gain_low).astype(float) for t in (one, four)]
    assert (width[1] >= 0.85 * width[0])[width[0].notna()].all()


def controls_of_copies(controls: pd.DataFrame) -> pd.DataFrame:
    first = controls[controls.draw == 0]
    return pd.concat([first, *(first[first["mode"] == "sampled"].assign(draw=d) for d in range(1, 4))], ignore_index=True)


def test_a_draw_without_a_control_is_left_out_on_both_sides(episodes: pd.DataFrame) -> None:
    "One draw of a problem has none to borrow from: its other draws stay, and are compared with the same draws."
    controls = controls_of(episodes[episodes.arm == "r3"])
    bare = controls[controls.control == "bare"]
    gone = bare[(bare.seed == 1) & (bare["mode"] == "sampled") & (bare.draw == 2)].iloc[0]
    fewer = bare.drop(index=gone.name)
    theirs, own = pair_retries(episodes, in_place(episodes, fewer, "bare"), "r3", "sampled")
    assert theirs.shape == own.shape == (2, 60) and theirs.dtypes.eq(float).all() and own.dtypes.eq(float).all()
    name = gone.problem_id
    e = episodes[(episodes.arm == "r3") & (episodes.seed == 1) & (episodes["mode"] == "sampled") & (episodes.problem_id == name)]
    kept = e[e.draw < 2]
    assert own.loc[1, name] == pytest.approx((kept.attempt_ok | kept.retry_ok.fillna(False)).mean())
    all_draws = outcomes(episodes, "r3", "sampled", "two")
    assert (own.drop(columns=name) == all_draws.drop(columns=name)).all(axis=None)


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


def test_tests_of_yes_and_no_take_the_first_draw(episodes: pd.DataFrame) -> None:
    assert differences(episodes).equals(differences(episodes[episodes.draw == 0]))


@pytest.mark.usefixtures("undrawn")
def test_all_tables_are_made_and_say_what_they_average(episodes: pd.DataFrame, tmp_path: Path) -> None:
    folder = store(tmp_path, episodes)
    for (_, _), run in episodes[episodes.arm == "r3"].groupby(["arm", "seed"]):
        store_controls(folder, synthetic_controls(run, {"bare": 0.15, "other": 0.2}))
    assert make_all_reports(tmp_path)
    for name in ("verdicts", "four_columns", "reflection_lengths", "repetitiveness", "success_by_length", "controls"):
        assert "means over 3 draws a problem" in (folder / f"tables/{name}.md").read_text("utf-8"), name
    for name in ("differences", "differences_over_seeds"):
        assert "Of several draws, the first." in (folder / f"tables/{name}.md").read_text("utf-8"), name
