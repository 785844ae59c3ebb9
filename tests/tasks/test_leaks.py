"""What counts as a right answer inside a reflection."""

import itertools
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import patience

from r3_repro.tasks.base import Problem, Task, Verdict, get_task, leaks_answer
from r3_repro.tasks.countdown.generator import make_countdown_problem, solve
from r3_repro.tasks.function_calling.parser import Call
from r3_repro.tasks.function_calling.writer import STYLES, write_calls

COUNTDOWN, CALLS = get_task("countdown"), get_task("function_calling")
CALL: dict[str, Any] = {"name": "set_alarm", "arguments": {"hour": 7, "days": ["Monday", "Friday"], "loud": True, "volume": 0.5}}
ALARM = Problem("a", {"query": "", "tools": [{"name": "set_alarm", "parameters": {"type": "object"}}], "answers": [CALL]})


@pytest.mark.parametrize("nums, target", [([3, 8, 9], 99), ([2, 5, 7, 11], 24), ([6, 6, 6, 6], 24)])
def test_every_solution_is_seen_in_a_sentence_and_no_near_miss(nums: list[int], target: int) -> None:
    problem, other = make_countdown_problem(nums, target), make_countdown_problem(nums, target + 1)
    for expression in itertools.islice(solve(nums, target), 20):
        for text in (f"Try {expression}.", f"1. I wrote {expression} = {target}, no.", f"- {expression}", expression.strip("()")):
            assert leaks_answer(COUNTDOWN, problem, text), text
            assert not leaks_answer(COUNTDOWN, other, text), text


@pytest.mark.parametrize(
    "text", ["Use 3, 8 and 9.", "3 + 8 = 11, 11 * 9 = 99", "(3 + 8) * 9 + 1", "2 * (3 + 8) * 9", "3 + 8 * 9"]
)
def test_hints_steps_and_longer_expressions_are_no_leak(text: str) -> None:
    assert not leaks_answer(COUNTDOWN, make_countdown_problem([3, 8, 9], 99), text)


@given(st.text(alphabet="0123456789+-*/() =\n", max_size=200))
def test_any_text_has_an_answer(text: str) -> None:
    assert leaks_answer(COUNTDOWN, make_countdown_problem([1, 2, 3], 6), text) in (True, False)
    assert leaks_answer(CALLS, ALARM, text) is False


@pytest.mark.parametrize("text", ["1 2 3 " * 20_000, "(" * 100_000, "9" * 100_000, "1 + 2 + 3 + " * 20_000])
def test_long_texts_take_no_long_time(text: str) -> None:
    started = time.perf_counter()
    leaks_answer(COUNTDOWN, make_countdown_problem([1, 2, 3], 7), text)
    assert time.perf_counter() - started < patience(10)


@pytest.mark.parametrize("style", STYLES)
def test_a_call_is_seen_in_every_style(style: str) -> None:
    assert leaks_answer(CALLS, ALARM, write_calls([Call(CALL["name"], CALL["arguments"])], style))


def test_a_call_told_in_words_is_a_leak_and_a_hint_is_none() -> None:
    told = "Use set_alarm at 7 on monday and friday, with loud true and volume 0.5."
    assert leaks_answer(CALLS, ALARM, told)
    for left_out in ("set_alarm", "7", "monday", "true", "0.5"):
        assert not leaks_answer(CALLS, ALARM, told.replace(left_out, "x")), left_out
    assert not any(leaks_answer(CALLS, ALARM, told.replace("7", other)) for other in ("70", "17"))


def test_where_no_call_is_right_nothing_leaks() -> None:
    nothing = Problem("n", ALARM.data | {"answers": []})
    assert not any(leaks_answer(CALLS, nothing, t) for t in ("I should not call.", "[]", "set_alarm"))


def test_a_task_without_a_rule_of_its_own_asks_its_verifier() -> None:
    verify = lambda p, text, rule="strict": Verdict(text == "7") if text == "7" else Verdict(False, "no")  # noqa: E731
    task = Task("seven", lambda split, options: [], lambda p: "?", verify, "Reflect.")
    assert leaks_answer(task, Problem("7", {}), "The answer is\n 7 \nof course") and leaks_answer(task, Problem("7", {}), "7")
    assert not leaks_answer(task, Problem("7", {}), "Not 7.")
