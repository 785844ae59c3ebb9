"""Contrasts against independent code, and verdicts that change with the data and with nothing else."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as sps

from r3_repro.analysis.contrasts import Contrast, combination, contrast, power, side
from r3_repro.analysis.protocol import (
    ANNOUNCED,
    OWN_QUESTIONS,
    QUESTIONS,
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    Answer,
    Base,
    Question,
    above,
    attempt_errors,
    base_of,
    compare_bases,
    decide,
    departures,
    first_try,
    holm,
    protocol_digest,
    reflection_distinct,
    reflection_tokens,
    skill_scores,
    two_tries,
)
from r3_repro.analysis.text_metrics import distinct
from r3_repro.testing import synthetic_episodes

RNG = np.random.default_rng(7)


def test_with_many_equal_problems_it_is_welchs_test() -> None:
    "Only seeds differ then; what two added problems do vanishes with the number of problems."
    a, b = RNG.normal(0.4, 0.05, 6), RNG.normal(0.3, 0.02, 4)
    c = contrast(*(side(np.tile(x[:, None], 200_000)) for x in (a, b)))
    welch = sps.ttest_ind(a, b, equal_var=False)
    assert c.p_above() == pytest.approx(welch.pvalue / 2, rel=1e-3)
    low, high = welch.confidence_interval()
    assert (c.interval().low, c.interval().high) == pytest.approx((low, high), abs=1e-4)
    assert c.df == pytest.approx(welch.df, rel=1e-3)


def test_without_seeds_it_is_the_paired_test_with_two_more_problems() -> None:
    "Agresti and Min: half a problem gained and half lost, one unchanged, in the variance alone."
    a, b = (RNG.random((1, 300)) < x for x in (0.5, 0.4))
    d = (a.astype(float) - b)[0]
    c = contrast(*(side(x, trained=False) for x in (a, b)))
    variance = (((d - d.mean()) ** 2).sum() + 1) / 302 / 300
    assert (c.estimate, c.variance, c.df, c.seeds) == (pytest.approx(d.mean()), pytest.approx(variance), pytest.approx(299), 0)


def test_weights_make_a_ratio() -> None:
    "What exists only for some problems: its mean and the variance of a ratio by the delta method."
    values, weights = RNG.normal(8, 2, (1, 5000)), (RNG.random((1, 5000)) < 0.6).astype(float)
    c = contrast(side(values, weights, trained=False), spread=0.0)
    kept = values[weights > 0]
    assert c.estimate == pytest.approx(kept.mean()) and np.sqrt(c.variance) == pytest.approx(
        kept.std() / np.sqrt(len(kept)), rel=0.02
    )


def test_seeds_and_problems_are_the_components_of_a_two_way_table() -> None:
    "The variance of a mean over random rows and columns, from the mean squares of an analysis of variance."
    y = RNG.normal(0, 0.5, (6, 1)) + RNG.normal(0, 2, (1, 40)) + RNG.normal(0, 1, (6, 40))
    c, (s, p) = contrast(side(y), spread=0.0), y.shape
    rows, columns = y.mean(1), y.mean(0)
    rest = ((y - rows[:, None] - columns + y.mean()) ** 2).sum() / ((s - 1) * p)
    squares = rows.var(ddof=1) / s, columns.var() / (p + 2)
    assert rest / (s * p) > 0.02 * sum(squares), "or the last term could be anything"
    assert c.variance == pytest.approx(sum(squares) - rest / (s * p))


@pytest.mark.parametrize("seeds", [1, 2, 8])
def test_an_interval_is_no_point_when_everything_is_right(seeds: int) -> None:
    c = contrast(side(np.ones((seeds, 150))), side(np.ones((1, 150)), trained=False))
    assert c.estimate == 0 and c.interval().high > 0.5 / 150


def test_the_mean_over_bases_is_that_of_one_base_with_averaged_values() -> None:
    "Two untrained bases on the same problems: what makes a problem hard is the same for both, and is not divided by two."
    hard = RNG.normal(0, 1, 400)
    one, two, other = (side((hard + RNG.normal(0, 0.3, 400))[None], trained=False) for _ in range(3))
    c = combination([(0.5, one), (0.5, two), (-1.0, other)])
    mean = side((one.values + two.values) / 2, trained=False)
    x = contrast(mean, other)
    assert (c.estimate, c.variance, c.df) == pytest.approx((x.estimate, x.variance, x.df))


def test_seeds_of_several_bases_add_up() -> None:
    "The variance of a mean of means; its degrees of freedom by Satterthwaite."
    y = [np.tile(RNG.normal(0, 0.05, n)[:, None], 100_000) for n in (8, 4)]
    c = combination([(0.5, side(x)) for x in y])
    v = [x[:, 0].var(ddof=1) / len(x) / 4 for x in y]
    assert c.variance == pytest.approx(sum(v), rel=1e-2) and c.seeds == 4
    assert c.df == pytest.approx(sum(v) ** 2 / (v[0] ** 2 / 7 + v[1] ** 2 / 3), rel=1e-2)


def test_a_gain_above_another_gain_has_a_wider_range() -> None:
    "With nothing but right answers, two problems are added that differ by twice as much."
    right = side(np.ones((2, 100)))
    gain, more = contrast(right, right), combination([(1.0, right), (-1.0, right), (-1.0, right), (1.0, right)])
    assert more.variance == pytest.approx(4 * gain.variance)


def test_power_grows_with_seeds() -> None:
    grows = [power(0.04, 0.0012, 0.15, n, 1200) for n in (2, 3, 5, 8, 20)]
    assert grows == sorted(grows) and grows[0] < 0.3 and grows[-1] > 0.8
    assert power(0.0, 0.0012, 0.15, 8, 1200) == pytest.approx(0.025, abs=1e-6)


# ── Quantities ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def episodes() -> pd.DataFrame:
    "Vanilla, and four seeds of r3 and permuted reward, two draws a problem; r3 is better."
    parts = []
    for draw in range(2):
        for arm, seeds, first, retry, words in (
            ("vanilla", 1, 0.15, 0.15, 12.0), ("r3", 4, 0.25, 0.4, 8.0), ("permuted_reward", 4, 0.15, 0.15, 12.0),
        ):  # fmt: skip
            for seed in range(seeds):
                e = synthetic_episodes(f"{arm}{'!' * draw}", seed, first, retry, words, problems=400, modes=("sampled",))
                parts.append(e.assign(arm=arm, draw=draw))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("arm", ["vanilla", "r3"])
def test_quantities_are_plain_averages(episodes: pd.DataFrame, arm: str) -> None:
    base, e = base_of("toy", episodes), episodes[episodes.arm == arm]
    by_seed = e.groupby("seed")
    assert first_try(base, arm).by_seed == pytest.approx(by_seed.attempt_ok.mean().astype(float).to_numpy())
    two = (e.attempt_ok | e.retry_ok.fillna(False)).astype(float).groupby(e.seed).mean()
    assert two_tries(base, arm).by_seed == pytest.approx(two.to_numpy())
    failed = e[~e.attempt_ok.astype(bool)]
    tokens = failed.groupby("seed").reflection_tokens.mean().astype(float)
    assert reflection_tokens(base, arm).by_seed == pytest.approx(tokens.to_numpy())
    errors = (e.attempt_error == "wrong_numbers").groupby(e.seed).mean()
    assert attempt_errors(base, arm, ["wrong_numbers"]).by_seed == pytest.approx(errors.to_numpy())
    said = failed.assign(d=[distinct(t, 2, 6) for t in failed.reflection]).groupby("seed").d.mean()
    assert reflection_distinct(base, arm).by_seed == pytest.approx(said.to_numpy())


def test_a_fresh_try_is_another_draw_of_the_same_problem(episodes: pd.DataFrame) -> None:
    base = base_of("toy", episodes)
    e = episodes[episodes.arm == "vanilla"].pivot(index="problem_id", columns="draw", values="attempt_ok").astype(bool)
    assert two_tries(base, "vanilla", "again").by_seed == pytest.approx([(e[0] | e[1]).mean()])


def test_a_control_must_be_there_for_every_failed_try(episodes: pd.DataFrame) -> None:
    failed = episodes[(episodes.arm == "r3") & ~episodes.attempt_ok.astype(bool)]
    controls = failed.assign(control="bare")
    assert two_tries(base_of("toy", episodes, controls), "r3", "bare").by_seed == pytest.approx(
        two_tries(base_of("toy", episodes), "r3").by_seed
    )
    with pytest.raises(LookupError, match="control bare of arm r3 was not run"):
        two_tries(base_of("toy", episodes, controls.iloc[1:]), "r3", "bare")


def test_a_seed_without_a_problem_is_refused(episodes: pd.DataFrame) -> None:
    lost = episodes.drop(episodes.index[(episodes.arm == "r3") & (episodes.seed == 2) & (episodes.problem_id == "toy-00003")])
    with pytest.raises(ValueError, match="arm r3: a seed lacks problems"):
        first_try(base_of("toy", lost), "r3")


# ── Verdicts ───────────────────────────────────────────────────────────────────────────────────────────────────────


def question(**more: float) -> Question:
    two = lambda arm: (arm, two_tries)  # noqa: E731
    return Question("C2", "", "", lambda task: {a: above(two("r3"), two(a)) for a in ("vanilla", "permuted_reward")}, **more)


def verdict(e: pd.DataFrame, q: Question | None = None) -> str:
    return decide([compare_bases(q or question(), "toy", [base_of("toy", e)])])[0][0]


def test_a_clear_difference_is_supported_and_what_is_dealt_out_anew_is_not(episodes: pd.DataFrame) -> None:
    assert verdict(episodes) == SUPPORTED
    dealt, order = episodes.copy(), RNG.permutation(len(episodes))
    for column in ("attempt_ok", "retry_ok"):
        dealt[column] = dealt[column].to_numpy()[order]
    assert verdict(dealt) == UNDECIDED


def test_flipped_verdicts_of_one_arm_change_the_words(episodes: pd.DataFrame) -> None:
    "With 5% of the outcomes of r3 turned to wrong, a difference that was supported at a margin is so no more."
    base = base_of("toy", episodes)
    least = min(c.interval().low for c in compare_bases(question(), "toy", [base]).contrasts.values()) - 0.005
    flipped = episodes.copy()
    hit = (flipped.arm == "r3") & (RNG.random(len(flipped)) < 0.05)
    flipped.loc[hit, ["attempt_ok", "retry_ok"]] = False
    assert (verdict(episodes, question(least=least)), verdict(flipped, question(least=least))) == (SUPPORTED, UNDECIDED)


def test_no_difference_is_refuted_where_it_is_known_well_enough(episodes: pd.DataFrame) -> None:
    same = episodes.copy()
    r3, other = same.arm == "r3", same.arm == "permuted_reward"
    same.loc[r3, ["attempt_ok", "retry_ok"]] = same.loc[other, ["attempt_ok", "retry_ok"]].to_numpy()
    assert verdict(same) == UNDECIDED, "400 problems cannot show a difference below one point"
    assert verdict(same, question(matters=0.1)) == REFUTED


def test_every_comparison_must_hold() -> None:
    "One that is clear does not carry one that is not, and one that is refuted is enough to refute."
    clear, unclear, none = (Contrast(x, 0.01**2, 60, 0, 0, 8, 1200) for x in (0.1, 0.01, -0.05))
    said = [decide([Answer("t", question(), {"a": clear, "b": other})])[0][0] for other in (clear, unclear, none)]
    assert said == [SUPPORTED, UNDECIDED, REFUTED]


def test_the_form_of_reflections_is_no_question_once_they_say_nothing(episodes: pd.DataFrame) -> None:
    "One string for most problems; or reflections that help no more than another problem's."
    shorter = next(q for q in QUESTIONS if q.form)
    failed = episodes[(episodes.arm == "r3") & ~episodes.attempt_ok.astype(bool)].assign(control="other")
    worse = failed.assign(retry_ok=False)
    assert compare_bases(shorter, "toy", [base_of("toy", episodes, worse)]).reason == ""
    as_good = compare_bases(shorter, "toy", [base_of("toy", episodes, failed)])
    assert "not shown to help more than another problem's" in as_good.reason
    same = episodes.copy()
    same.loc[(same.arm == "r3") & (same.seed == 1) & same.reflection.notna(), "reflection"] = "I made a mistake."
    collapsed = compare_bases(shorter, "toy", [base_of("toy", same, worse)])
    assert "seed 1: one reflection makes up 100% of all" in collapsed.reason and decide([collapsed])[0][0] == UNDECIDED


def test_one_seed_decides_nothing(episodes: pd.DataFrame) -> None:
    alone = episodes[(episodes.arm != "r3") | (episodes.seed == 0)]
    answer = compare_bases(question(), "toy", [base_of("toy", alone)])
    assert "one seed of training" in answer.reason and decide([answer])[0][0] == UNDECIDED


def test_more_seeds_never_turn_a_clear_claim_down() -> None:
    "The rule `in every seed` lost power with every seed."
    each = {n: Contrast(0.04, 0.0012 / n + 0.0001, 2 * n, 0, 0, n, 1200) for n in (3, 5, 10, 20)}
    p = [Answer("t", question(), {"a": c}).p_supported for c in each.values()]
    assert p == sorted(p, reverse=True)


def test_holm_against_the_definition() -> None:
    p = RNG.random(9) ** 3
    order = np.argsort(p)
    expected = np.empty(9)
    for rank, i in enumerate(order):
        expected[i] = max(min(1, (9 - k) * p[j]) for k, j in enumerate(order[: rank + 1]))
    assert holm(p) == pytest.approx(expected)


# ── What is announced ──────────────────────────────────────────────────────────────────────────────────────────────


def test_every_departure_is_named(episodes: pd.DataFrame) -> None:
    extra = pd.concat([episodes, episodes[(episodes.arm == "r3") & (episodes.seed == 0)].assign(seed=9)])
    said = departures(base_of("toy", extra))
    assert "toy: r3 has seed 9, which was not announced" in said and "toy: r3 lacks the announced seed 4" in said
    assert "toy: plain_grpo lacks the announced seed 0" in said and "toy: 400 held-out problems, 1200 were announced" in said
    assert "toy: 2 draws a problem, 4 were announced" in said
    fine = ANNOUNCED.seeds | {"r3": 4, "permuted_reward": 4, "plain_grpo": 0, "all_tokens": 0, "no_leak": 0}
    p = type(ANNOUNCED)(seeds=fine, draws=2, problems=400)
    assert departures(base_of("toy", episodes), p) == []


def test_the_questions() -> None:
    assert [q.claim for q in QUESTIONS] == ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C7", "C8", "C9", "C10"]
    assert len(OWN_QUESTIONS) == 4
    for q in QUESTIONS + OWN_QUESTIONS:
        for task in ANNOUNCED.tasks:
            assert q.comparisons(task) and all(sum(t.weight for t in terms) == 0 for terms in q.comparisons(task).values())
            named = {t.base for terms in q.comparisons(task).values() for t in terms} - {""}
            assert named <= {*ANNOUNCED.ladder, *ANNOUNCED.ability} and bool(named) == (q.claim in ("C3", "C6", "C9"))


# ── Size, ability, forgetting ──────────────────────────────────────────────────────────────────────────────────────


def ladder_base(name: str, before: float, after: float) -> Base:
    "Vanilla and four seeds of r3, whose two tries are right about as often as told."
    parts = [synthetic_episodes("vanilla", 0, before, 0.0, problems=500, modes=("sampled",))]
    parts += [synthetic_episodes("r3", seed, after, 0.0, problems=500, modes=("sampled",)) for seed in range(4)]
    return base_of(name, pd.concat(parts))


def claim(name: str) -> Question:
    return next(q for q in QUESTIONS if q.claim == name)


@pytest.mark.parametrize(
    ("after", "c3", "c6", "c9"),
    [
        ({}, REFUTED, REFUTED, REFUTED),  # nobody gains
        ({"ladder-200k": 0.5}, SUPPORTED, SUPPORTED, REFUTED),  # the base of 0.5 million does not gain more than the smallest
        ({"ladder-500k": 0.5, "ladder-200k": 0.5}, SUPPORTED, SUPPORTED, SUPPORTED),
        ({"ladder-50k": 0.5}, SUPPORTED, SUPPORTED, REFUTED),
    ],
)
def test_sizes_are_compared(after: dict[str, float], c3: str, c6: str, c9: str) -> None:
    names = dict.fromkeys([*ANNOUNCED.ladder, *ANNOUNCED.ability])
    ladder = [ladder_base(name, 0.2, after.get(name, 0.2)) for name in names]
    answers = {q: compare_bases(claim(q), "toy", [], ladder) for q in ("C3", "C6", "C9")}
    assert {k: a.reason for k, a in answers.items() if a.reason} == {}
    for (name, answer), expected in zip(answers.items(), (c3, c6, c9), strict=True):
        q = answer.question
        loose = Answer("toy", type(q)(**{**q.__dict__, "matters": max(q.matters, 0.08)}), answer.contrasts)
        assert decide([loose])[0][0] == expected, (name, answer.contrasts)
    assert "base ladder-1500k was not studied" in compare_bases(claim("C6"), "toy", [], ladder[:3]).reason


def test_one_comparison_is_enough_only_where_the_question_says_so() -> None:
    high, low = (Contrast(x, 0.01**2, 60, 0, 0, 8, 1200) for x in (0.2, 0.0))
    said = {k: Answer("t", question(one_is_enough=k), {"a": high, "b": low}) for k in (True, False)}
    assert said[True].p_supported < 1e-6 < 0.4 < said[False].p_supported
    assert said[True].p_refuted > 0.999 and said[False].p_refuted == pytest.approx(2 * (1 - low.p_above(0.01)))


def test_skills_count_alike_whatever_their_number_of_items(episodes: pd.DataFrame) -> None:
    rows = [
        {"arm": arm, "seed": seed, "skill": skill, "item": i, "right": RNG.random() < rate}
        for arm, seeds in (("vanilla", 1), ("r3", 4))
        for seed in range(seeds)
        for skill, n, rate in (("a", 30, 0.9), ("b", 120, 0.3))
        for i in range(n)
    ]
    skills = pd.DataFrame(rows)
    base = base_of("toy", episodes, None, skills)
    expected = skills[skills.arm == "r3"].groupby(["seed", "skill"]).right.mean().groupby("seed").mean()
    assert skill_scores(base, "r3").by_seed == pytest.approx(expected.to_numpy())
    assert compare_bases(claim("C8"), "toy", [base]).contrasts["vanilla"].problems == 150
    assert "skills of arm r3 were not measured on toy" in compare_bases(claim("C8"), "toy", [base_of("toy", episodes)]).reason


def test_bases_with_other_problems_are_not_compared(episodes: pd.DataFrame) -> None:
    some = base_of("b", episodes[episodes.problem_id != "toy-00003"])
    with pytest.raises(ValueError, match="different held-out problems"):
        compare_bases(question(), "toy", [base_of("a", episodes), some])


def test_the_hash_does_not_depend_on_when_it_is_asked_for() -> None:
    assert protocol_digest() == protocol_digest() and len(protocol_digest()) == 25
