"""The choice of failures: against the definition, against exact likeness, for any order of storage; its funnel."""

import re
from collections import Counter
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from r3_repro.config import load_profile
from r3_repro.mining.selection import (
    FUNNEL_STAGES,
    PERMUTATIONS,
    FailureRule,
    NearDuplicateFilter,
    bands,
    choose,
    failure_rule,
    funnel_table,
    plot_funnel,
    shingles,
)
from r3_repro.tasks.base import get_task
from r3_repro.utils.hashing import digest

ERRORS = ["no_answer", "wrong_numbers", "missed_target"]
few = settings(max_examples=60, deadline=None)


# --- what to choose from ---


@st.composite
def worlds(draw, most: int = 12) -> SimpleNamespace:
    "Outcomes of some problems, all drawn to the same length, with a text for each attempt from few words."
    n, samples = draw(st.integers(0, most)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return world(rng, n, samples, draw(st.integers(1, 4)), rng.random())


def world(rng: np.random.Generator, n: int, samples: int, words: int = 4, right: float = 0.4) -> SimpleNamespace:
    "Outcomes of n problems, and texts of one to six words out of `words`."
    outcomes = np.where(rng.random((n, samples)) < right, 0, rng.integers(1, len(ERRORS) + 1, (n, samples))).astype(np.int16)
    ids = [f"{i}:{a}" for i, a in enumerate(rng.integers(0, 10**6, n))]
    texts = {
        (i, k): " ".join(f"w{x}" for x in rng.integers(0, words, rng.integers(1, 7))) for i in range(n) for k in range(samples)
    }
    lengths = np.full(n, samples)
    return SimpleNamespace(outcomes=outcomes, cut=rng.random((n, samples)) < 0.3, ids=ids, texts=texts, lengths=lengths)


rules = st.builds(
    FailureRule,
    failure_rule=st.sampled_from(["any", "all"]),
    max_failures=st.integers(0, 6),
    keep_truncated=st.booleans(),
    keep_unparseable=st.booleans(),
    near_duplicates=st.sampled_from([1.0, 0.9, 0.5, 0.2]),
    max_per_error=st.integers(0, 3),
    pass_rate_min=st.sampled_from([0.0, 0.2, 0.5]),
    pass_rate_max=st.sampled_from([0.5, 0.8, 1.0]),
    seed=st.integers(0, 5),
)


def pick(w: SimpleNamespace, rule: FailureRule, **more) -> tuple[pd.DataFrame, pd.DataFrame]:
    "The choice, with the ids of the problems instead of their places."
    options = {"unparseable": ["no_answer"], "fetch": lambda keys: [w.texts[key] for key in keys]} | more
    rows, funnel = choose(w.outcomes, w.cut, w.lengths, w.ids, ERRORS, rule, **options)
    return rows.assign(place=[w.ids[i] for i in rows.place]), funnel


def by_hand(w: SimpleNamespace, rule: FailureRule) -> list[tuple[str, int]]:
    "The definition of the choice in loops, with exact likeness: problem and sample."
    found = []
    for row, cut, length, name in zip(w.outcomes.tolist(), w.cut.tolist(), w.lengths.tolist(), w.ids, strict=True):
        row = row[:length]
        rate = sum(x == 0 for x in row) / max(1, len(row))
        may = [
            k
            for k, x in enumerate(row)
            if x > 0 and (rule.keep_truncated or not cut[k]) and (rule.keep_unparseable or ERRORS[x - 1] != "no_answer")
        ]
        some = any(x > 0 for x in row) if rule.failure_rule == "any" else bool(row) and all(x > 0 for x in row)
        if some and may and rule.pass_rate_min <= rate <= rule.pass_rate_max:
            place = digest([rule.seed, name], 12)
            sample = may[int(place, 16) % len(may)]
            found.append((place, name, sample, row[sample], w.texts.get((w.ids.index(name), sample), "")))
    kept: list[tuple] = []
    for one in sorted(found):
        full = rule.max_per_error and sum(k[3] == one[3] for k in kept) >= rule.max_per_error
        alike = rule.near_duplicates < 1 and any(likeness(k[4], one[4]) >= rule.near_duplicates for k in kept)
        if not full and not alike and len(kept) < (rule.max_failures or len(found)):
            kept.append(one)
    return [(name, sample) for _, name, sample, *_ in kept]


@cache
def triples(text: str) -> frozenset[tuple[str, ...]]:
    words = ["", "", *re.findall(r"\w+|[^\w\s]", text.casefold()), "", ""]
    return frozenset(tuple(words[i : i + 3]) for i in range(len(words) - 2))


def likeness(a: str, b: str) -> float:
    "Jaccard similarity of two texts' padded triples of words, as sets of tuples."
    return len(triples(a) & triples(b)) / len(triples(a) | triples(b))


def keep_failures_before(attempts: pd.DataFrame, rule: str, limit: int = 0, seed: int = 0) -> pd.DataFrame:
    "How failures were chosen in version 1, when all attempts were one table."
    rows = []
    for problem_id, group in attempts.groupby("problem_id", sort=True):
        failed = group[~group.ok]
        if len(failed) == 0 or (rule == "all" and len(failed) < len(group)):
            continue
        place = digest([seed, problem_id], 12)
        row = failed.iloc[int(place, 16) % len(failed)]
        rows.append(row.to_dict() | {"pass_rate": float(group.ok.mean()), "_place": place})
    kept = pd.DataFrame(rows, columns=[*attempts.columns, "pass_rate", "_place"])
    kept = kept.sort_values("_place", ignore_index=True).drop(columns="_place")
    return kept.head(limit) if limit else kept


# --- the choice ---


@few
@given(worlds(), rules)
def test_choice_is_its_definition(w: SimpleNamespace, rule: FailureRule) -> None:
    rows, funnel = pick(w, rule)
    wanted = by_hand(w, rule)
    assert list(zip(rows.place, rows["sample"], strict=True)) == wanted
    assert funnel.stage.tolist() == list(FUNNEL_STAGES)
    assert funnel.problems.iloc[-1] == len(wanted) and funnel.problems.iloc[0] == len(w.ids)
    assert (funnel.lost >= 0).all() and funnel.lost.sum() == len(w.ids) - len(wanted)


@few
@given(worlds(), st.sampled_from(["any", "all"]), st.integers(0, 5), st.integers(0, 3))
def test_default_settings_choose_what_they_chose_before(w: SimpleNamespace, failure_rule: str, limit: int, seed: int) -> None:
    table = pd.DataFrame(
        [(w.ids[i], k, int(x) == 0, ERRORS[x - 1] if x else "") for (i, k), x in np.ndenumerate(w.outcomes)],
        columns=["problem_id", "sample", "ok", "error"],
    )
    before = keep_failures_before(table, failure_rule, limit, seed)
    rows, _ = pick(w, FailureRule(failure_rule, limit, seed=seed), fetch=None)
    assert rows.place.tolist() == before.problem_id.tolist() and rows["sample"].tolist() == before["sample"].tolist()
    assert rows.pass_rate.tolist() == before.pass_rate.tolist() and rows.error.tolist() == before.error.tolist()


@few
@given(worlds(), rules, st.randoms())
def test_order_of_storage_is_indifferent(w: SimpleNamespace, rule: FailureRule, random) -> None:
    order = list(range(len(w.ids)))
    random.shuffle(order)
    texts = {(at, k): w.texts[i, k] for at, i in enumerate(order) for k in range(w.outcomes.shape[1])}
    ids = [w.ids[i] for i in order]
    turned = SimpleNamespace(outcomes=w.outcomes[order], cut=w.cut[order], ids=ids, texts=texts, lengths=w.lengths[order])
    (rows, funnel), (again, funnel_again) = pick(w, rule), pick(turned, rule)
    assert rows.equals(again) and funnel.equals(funnel_again)


@few
@given(worlds(), rules, st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_further_samples_change_nothing(w: SimpleNamespace, rule: FailureRule, more: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w.lengths = rng.integers(0, w.outcomes.shape[1] + 1, len(w.ids))
    inside = np.arange(w.outcomes.shape[1]) < w.lengths[:, None]
    bare = SimpleNamespace(**vars(w) | {"outcomes": np.where(inside, w.outcomes, -1), "cut": w.cut & inside})
    extra = rng.integers(-1, 4, (len(w.ids), more)).astype(np.int16)
    full = SimpleNamespace(
        **vars(w) | {"outcomes": np.hstack([w.outcomes, extra]), "cut": np.hstack([w.cut, rng.random(extra.shape) < 0.5])}
    )
    (rows, funnel), (again, funnel_again) = pick(bare, rule), pick(full, rule)
    assert rows.equals(again) and funnel.equals(funnel_again)
    assert list(zip(rows.place, rows["sample"], strict=True)) == by_hand(w, rule)


@few
@given(worlds(most=40), rules, st.integers(1, 7))
def test_bounds_hold_however_texts_are_read(w: SimpleNamespace, rule: FailureRule, chunk: int) -> None:
    sizes: list[int] = []

    def fetch(keys: list[tuple[int, int]]) -> list[str]:
        sizes.append(len(keys))
        return [w.texts[key] for key in keys]

    rows, _ = pick(w, rule, fetch=fetch, chunk=chunk)
    assert rows.equals(pick(w, rule)[0]) and max(sizes, default=0) <= chunk
    assert rows.place.is_unique and rows.pass_rate.between(rule.pass_rate_min, rule.pass_rate_max).all()
    assert rule.max_failures == 0 or len(rows) <= rule.max_failures
    assert rule.max_per_error == 0 or max(Counter(rows.error).values(), default=0) <= rule.max_per_error
    assert rule.keep_unparseable or not (rows.error == "no_answer").any()
    at = [w.ids.index(name) for name in rows.place]
    assert (w.outcomes[at, rows["sample"]] > 0).all() and (rule.keep_truncated or not w.cut[at, rows["sample"]].any())
    assert not sizes or rule.near_duplicates < 1


def test_choice_prefers_no_sample_and_no_problem() -> None:
    n, failed = 20_000, [1, 2, 4, 7, 8, 11]
    outcomes = np.zeros((n, 12), np.int16)
    outcomes[:, failed] = 3
    ids = [f"{i}:2-3-5" for i in range(n)]
    rows, _ = choose(outcomes, np.zeros_like(outcomes, bool), np.full(n, 12), ids, ERRORS, FailureRule(seed=4))
    seen = rows["sample"].value_counts()
    assert sorted(seen.index) == failed and chisquare(seen).pvalue > 0.001
    assert chisquare(np.bincount(rows.place[:5000] * 10 // n)).pvalue > 0.001  # the first quarter comes from everywhere
    other, _ = choose(outcomes, np.zeros_like(outcomes, bool), np.full(n, 12), ids, ERRORS, FailureRule(seed=5))
    both = rows.merge(other, on="place")
    table = pd.crosstab(both.sample_x, both.sample_y).to_numpy().ravel()
    assert chisquare(table).pvalue > 0.001  # another seed, another choice, independent of the first


def test_texts_are_read_a_chunk_at_a_time_and_no_more_than_needed() -> None:
    w = world(np.random.default_rng(0), 3000, 2, words=1000, right=0.3)
    asked: list[int] = []

    def fetch(keys: list[tuple[int, int]]) -> list[str]:
        asked.append(len(keys))
        return [f"{i} {k} x{i}" for i, k in keys]

    rows, _ = pick(w, FailureRule(near_duplicates=0.99, max_failures=300), fetch=fetch)
    assert len(rows) == 300 and asked == [1024]
    asked.clear()
    pick(w, FailureRule(near_duplicates=0.99), fetch=fetch, chunk=1000)
    assert asked[:2] == [1000, 1000] and len(asked) == 3
    asked.clear()
    rows, funnel = pick(w, FailureRule(near_duplicates=0.99, max_per_error=1), fetch=fetch, chunk=1000)
    assert len(rows) == 3 and asked == [1000]  # texts of types that are full are not read
    assert funnel.set_index("stage").lost["under the cap"] == funnel.problems.tolist()[4] - 3


def test_what_cannot_be_chosen_from_is_refused() -> None:
    w = world(np.random.default_rng(0), 5, 4)
    with pytest.raises(ValueError, match="of its first 4 samples only 3 are drawn"):
        gap = w.outcomes.copy()
        gap[2, 1] = -1
        pick(SimpleNamespace(**vars(w) | {"outcomes": gap}), FailureRule())
    with pytest.raises(ValueError, match="4 distinct ids"):
        pick(SimpleNamespace(**vars(w) | {"ids": [*w.ids[:4], w.ids[0]]}), FailureRule())
    with pytest.raises(ValueError, match="no error types"):
        pick(w, FailureRule(), unparseable=["nonsense"])
    with pytest.raises(ValueError, match="'any' or 'all'"):
        pick(w, FailureRule(failure_rule="most"))
    with pytest.raises(ValueError, match="compares texts"):
        pick(w, FailureRule(near_duplicates=0.5), fetch=None)
    rows, funnel = pick(SimpleNamespace(**vars(w) | {"outcomes": np.full((5, 4), -1)}), FailureRule())
    assert rows.empty and funnel.problems.tolist() == [5, 0, 0, 0, 0, 0, 0, 0]


def test_rule_is_in_the_profile() -> None:
    p = load_profile("tiny", failure_rule="all", near_duplicates="0.8", keep_truncated="false", max_per_error=7, data_seed=9)
    assert failure_rule(p) == FailureRule("all", 2000, False, True, 0.8, 7, 0.0, 1.0, 9)
    for name in ("countdown", "function_calling"):
        assert set(get_task(name).unparseable) < set(get_task(name).errors)


# --- near-duplicates ---


@given(st.text(max_size=60), st.text(max_size=60))
@few
def test_likeness_is_that_of_sets_of_words(a: str, b: str) -> None:
    own, other = shingles(a), shingles(b)
    both = len(np.intersect1d(own, other))
    assert both / (len(own) + len(other) - both) == likeness(a, b)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 0.95])
def test_nothing_unlike_is_dropped_and_next_to_nothing_alike_kept(threshold: float) -> None:
    rng = np.random.default_rng(1)
    stories = [[f"w{x}" for x in rng.integers(0, 400, 80)] for _ in range(25)]
    texts = []
    for _ in range(250):  # versions of 25 stories with up to 29 words changed
        words = list(stories[rng.integers(25)])
        for i in rng.integers(0, 80, rng.integers(0, rng.integers(1, 31))):
            words[i] = f"v{rng.integers(1000)}"
        texts.append(" ".join(words))
    unlike, kept, missed = NearDuplicateFilter(threshold, seed=3), list[str](), 0
    for text in texts:
        most = max((likeness(text, k) for k in kept), default=0.0)
        if unlike.add(text):
            kept.append(text)
            missed += most >= threshold
        else:
            assert most >= threshold  # exactly: never below
    assert 25 <= len(kept) < 250 and missed <= 2
    again = NearDuplicateFilter(threshold, seed=3)
    assert [again.add(t) for t in texts].count(True) == len(kept)
    assert not any(again.add(t) for t in kept)  # the same text is always found


def test_bands_miss_few() -> None:
    for threshold in np.linspace(0.06, 0.99, 40):
        number, width = bands(threshold)
        assert number * width <= PERMUTATIONS and number >= 2 and (1 - threshold**width) ** number <= 1e-3 + 1e-12


def test_lone_surrogates_and_long_texts_do_no_harm() -> None:
    unlike = NearDuplicateFilter(0.9)
    assert unlike.add("\ud800 x") and not unlike.add("\ud800  x") and unlike.add("y " * 100_000) and unlike.add("z")


# --- the funnel ---

FUNNEL = funnel_table({s: 40 for s in list(FUNNEL_STAGES)[:5]}, Counter(alike=4, cap=3), 30)


def test_figure_shows_what_was_lost() -> None:
    axes = plot_funnel(FUNNEL[["stage", "problems", "lost"]]).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["kept", "unlike", "under the cap", "problems"]
    assert [t.get_text() for t in axes.texts] == ["30   (−3)", "33   (−4)", "37   (−3)", "40"]
