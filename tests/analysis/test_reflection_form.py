"""What reflections are made of, on texts that can be judged by eye."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from r3_repro.analysis.contrasts import contrast, side
from r3_repro.analysis.loading import check_episodes, typed_episodes
from r3_repro.analysis.reflection_form import (
    collapse_sentences,
    form_table,
    is_copied,
    make_reflection_form,
    mark_reflections,
    plot_form,
    readable_form,
    scripts_of,
)
from r3_repro.tasks.base import Problem, Task, get_task

COUNTDOWN = get_task("countdown")
PROBLEM = {"nums": [3, 4, 18], "target": 30}
RIGHT, WRONG = "<answer> (3 * 4) + 18 </answer>", "<answer> 3 + 4 + 18 </answer>"


def episodes(said: dict[tuple[str, int], list[tuple[str, str]]], modes: tuple[str, ...] = ("sampled",)) -> pd.DataFrame:
    "A run -> reflection and retry of each problem; one more problem is right at once."
    rows = []
    for mode in modes:
        for (arm, seed), pairs in said.items():
            for i, (reflection, retry) in enumerate([*pairs, ("", "")]):
                row = {"arm": arm, "seed": seed, "mode": mode, "draw": 0, "problem_id": f"p{i}", "problem": json.dumps(PROBLEM)}
                row |= {"attempt": WRONG, "attempt_ok": i == len(pairs), "attempt_error": "missed_target"}
                row |= {"reflection": reflection, "retry": retry, "retry_ok": retry == RIGHT, "retry_error": "missed_target"}
                row |= {k: None for k in ("reflection", "retry", "retry_ok", "retry_error") if i == len(pairs)}
                rows.append(row)
    same = dict.fromkeys(["attempt_finish", "reflection_finish", "retry_finish"], "stop")
    same |= dict.fromkeys(["attempt_tokens", "reflection_tokens", "retry_tokens"], 1)
    return check_episodes(typed_episodes(pd.DataFrame(rows).assign(**same)))


SAID = {
    ("vanilla", 0): [("Try 3 * 4 = 12.", RIGHT), ("Try 3 + 4 = 7.", WRONG), ("12 + 18", WRONG), ("", WRONG)],
    ("r3", 0): [("(3*4)+18 = 30", RIGHT), ("Say (3 * 4) + 18", WRONG), ("3 + 4 + 18", WRONG), ("Умножь 3, then add", RIGHT)],
    ("r3", 1): [("again", RIGHT), ("again", WRONG), ("again", WRONG), ("think", WRONG)],
}


@pytest.fixture
def marked() -> pd.DataFrame:
    return mark_reflections(episodes(SAID), COUNTDOWN)


def of(table: pd.DataFrame, arm: str, mode: str = "sampled") -> pd.DataFrame:
    return table[(table.arm == arm) & (table["mode"] == mode)].set_index("measure")


# ── Scripts ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "scripts"),
    [
        ("", set()), ("12 + 3 = 15 ✓ →", set()), ("naïve Größe", {"LATIN"}), ("Ｗｉｄｅ and 𝐛𝐨𝐥𝐝", {"LATIN"}),
        ("ラーメンは日本のもの", {"CJK"}), ("ответ answer", {"CYRILLIC", "LATIN"}), ("don't, donʼt", {"LATIN"}),
    ],
)  # fmt: skip
def test_scripts_are_those_of_letters(text: str, scripts: set[str]) -> None:
    assert scripts_of(text) == scripts


# ── Copied answers ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("retry", "reflection", "copied"),
    [
        (RIGHT, "It is (3 * 4) + 18.", True),
        (RIGHT, "(3*4)+18", True),
        (RIGHT, "use (3 * 4) + 180", False),
        (RIGHT, "use 3 * 4, then + 18", False),
        (RIGHT, "", False),
        ("<answer> 3 + 4 </answer>", "13 + 4", False),
        ("<answer> 3 * 4 + 18 = 30 </answer>", "Try 3 * 4 + 18!", True),
        ("no answer at all", "no answer at all", False),
        ("<answer>__import__('os').getcwd()</answer>", "say __import__('os').getcwd()", True),
    ],
)
def test_an_expression_is_copied_word_by_word(retry: str, reflection: str, copied: bool) -> None:
    assert is_copied(COUNTDOWN, Problem("", PROBLEM), retry, reflection) is copied


TOOLS = [
    {"name": name, "description": "", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    for name in ("weather", "news")
]
ASKED = {"query": "?", "tools": TOOLS, "answers": [{"name": "weather", "arguments": {"city": "Rome"}}]}
CALL = '[{"name": "news", "arguments": {"city": "Rome"}}]'


@pytest.mark.parametrize(
    ("retry", "reflection", "copied"),
    [
        (CALL, 'Better: {"arguments": {"city":"Rome"},\n "name": "news"}', True),
        (CALL, "news(city='Rome')", True),
        (CALL, 'Better: {"name": "news", "arguments": {"city": "Oslo"}}', False),
        (CALL, "Ask for news in Rome.", False),
        ("I cannot.", "I cannot.", False),
        ("[]", "There is nothing to call.", False),
    ],
)
def test_a_call_is_copied_in_any_notation(retry: str, reflection: str, copied: bool) -> None:
    assert is_copied(get_task("function_calling"), Problem("", ASKED), retry, reflection) is copied


# ── Marks and table ────────────────────────────────────────────────────────────────────────────────────────────────


def test_marks_are_missing_where_there_is_no_reflection(marked: pd.DataFrame) -> None:
    r3 = marked[(marked.arm == "r3") & (marked.seed == 0)].set_index("problem_id")
    assert r3.leak.tolist()[:4] == [1, 1, 0, 0] and r3.copied.tolist()[:4] == [1, 0, 1, 0]
    assert r3.copied_right.dropna().to_dict() == {"p0": 1, "p3": 0}
    assert r3.several_scripts.tolist()[:4] == [0, 0, 0, 1] and r3.no_letter.tolist()[:4] == [1, 0, 1, 0]
    assert r3.loc["p4", "empty":].isna().all()
    vanilla = marked[marked.arm == "vanilla"]
    assert vanilla["empty"].tolist()[:4] == [0, 0, 0, 1] and vanilla.no_letter.tolist()[:4] == [0, 0, 1, 0]


def test_measures_are_means_over_seeds(marked: pd.DataFrame) -> None:
    r3 = of(form_table(marked), "r3")
    shares = {"most_common": (1 / 4 + 3 / 4) / 2, "distinct": (1 + 2 / 4) / 2, "leak": 1 / 4, "copied": 1 / 4,
              "copied_right": (1 / 2 + 0) / 2, "several_scripts": 1 / 8, "no_letter": 1 / 4, "empty": 0}  # fmt: skip
    assert r3.estimate.to_dict() == pytest.approx(shares) and set(r3.seeds) == {2}
    assert r3.each["most_common"] == (0.25, 0.75) and (r3.least["leak"], r3.most["leak"]) == (0, 0.5)
    assert r3["count"].to_dict() == dict.fromkeys(shares, 8) | {"copied_right": 3} and r3.text["most_common"] == "again"


def test_only_means_over_reflections_have_an_interval(marked: pd.DataFrame) -> None:
    r3 = of(form_table(marked), "r3")
    assert r3.low.isna().to_dict() == {m: m in ("most_common", "distinct") for m in r3.index}
    weights = np.array([[1.0, 1, 1, 1, 0]] * 2)
    whole = contrast(side(np.array([[1.0, 1, 0, 0, 0], [0] * 5]), weights)).interval()
    assert (r3.low["leak"], r3.high["leak"]) == pytest.approx((max(whole.low, 0), min(whole.high, 1)))


def test_draws_count_as_reflections_and_not_as_problems() -> None:
    one = episodes(SAID)
    twice = check_episodes(pd.concat([one, one.assign(draw=1)]))
    a, b = (of(form_table(mark_reflections(e, COUNTDOWN)), "r3") for e in (one, twice))
    assert b["count"].tolist() == (2 * a["count"]).tolist()
    for column in ("estimate", "low", "high"):
        same = a.index.difference(["distinct"])
        assert b.loc[same, column].to_numpy() == pytest.approx(a.loc[same, column].to_numpy(), nan_ok=True)
    assert b.estimate["distinct"] == pytest.approx(a.estimate["distinct"] / 2)


def test_a_seed_without_right_retries_has_no_share_of_them() -> None:
    said = {("r3", 0): [("a", RIGHT), ("b", WRONG)], ("r3", 1): [("a", WRONG), ("b", WRONG)]}
    r3 = of(form_table(mark_reflections(episodes(said), COUNTDOWN)), "r3")
    assert (r3.seeds["copied_right"], r3.seeds["copied"]) == (1, 2)
    none = of(form_table(mark_reflections(episodes({("r3", 0): [("a", WRONG)]}), COUNTDOWN)), "r3").loc["copied_right"]
    assert none.seeds == 0 and math.isnan(none.estimate)


def test_readers_see_arms_side_by_side(marked: pd.DataFrame) -> None:
    shown = readable_form(form_table(marked)).set_index("what")
    assert shown.r3["most common text, %"] == "50.0 (25.0 to 75.0)" and shown.vanilla["most common text, %"] == "25.0"
    assert (shown.r3["reflections"], shown.r3["most common text"]) == ("8", "again")
    assert shown.vanilla["empty, %"].startswith("25.0 [")


# ── Sentences ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sentences_say_what_is_odd(marked: pd.DataFrame) -> None:
    told = collapse_sentences(form_table(marked), "countdown, tiny-a")
    assert told[:3] == [
        "countdown, tiny-a: in mode sampled one text makes up more than half of the reflections of r3 (1 of 2 seeds), "
        "such as 'again'.",
        "countdown, tiny-a: the most common reflection makes up 25% in vanilla, 50% in r3 (25 to 75 over seeds).",
        "countdown, tiny-a: reflections that hold the right answer make up 0% in vanilla, 25% in r3 (0 to 50 over seeds).",
    ]
    assert len(told) == 8 and told[-1] == "countdown, tiny-a: empty reflections make up 25% in vanilla, 0% in r3."


def test_nothing_is_said_where_nothing_is_odd() -> None:
    fine = {(a, s): [(f"Thought {chr(97 + i)}.", WRONG) for i in range(12)] for a, s in (("vanilla", 0), ("r3", 0), ("r3", 1))}
    assert collapse_sentences(form_table(mark_reflections(episodes(fine), COUNTDOWN))) == []


def test_a_collapse_in_another_mode_is_told_too() -> None:
    same = {("vanilla", 0): [("\x1b[31mno", WRONG)] * 3}
    table = form_table(mark_reflections(episodes(same, ("greedy",)), COUNTDOWN))
    fine = form_table(mark_reflections(episodes({("vanilla", 0): [(f"Thought {c}.", WRONG) for c in "abcdefghijkl"]}), COUNTDOWN))
    assert collapse_sentences(pd.concat([table, fine], ignore_index=True)) == [
        "In mode greedy one text makes up more than half of the reflections of vanilla, such as '\\x1b[31mno'."
    ]


# ── Files ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("task", [COUNTDOWN, None])
def test_without_the_task_the_caption_says_what_is_left_out(task: Task | None, tmp_path: Path) -> None:
    made = make_reflection_form(tmp_path, episodes(SAID), task)
    text = (tmp_path / "tables/reflection_form.md").read_text("utf-8")
    assert len(made) == 6 and made[-1] == tmp_path / "figures/reflection_form.png" and all(p.is_file() for p in made)
    assert ("cannot be imported" in text) == (task is None) == ("right answer in it" not in text)
    assert make_reflection_form(tmp_path, episodes({("r3", 0): []}), task) == []


def test_the_figure_has_a_point_a_seed(marked: pd.DataFrame) -> None:
    first, second = plot_form(form_table(marked)).axes
    points = [sorted(line.get_xdata()) for line in first.lines if line.get_marker() == "o" and line.get_markersize() == 3]
    assert points == [[25.0, 75.0]] and second.get_title().startswith("the right answer")
    assert len(plot_form(form_table(marked.drop(columns=["leak", "copied", "copied_right"]))).axes) == 1
