"""Countdown: the verifier under attack and against an independent one, the solver, the generator, the loader."""

import ast
import importlib.util
import itertools
import json
import os
import random
import re
import signal
import time
from collections import Counter
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare
from support import DATA, patience

from r3_repro.tasks.base import Problem, get_task
from r3_repro.tasks.countdown import generator, task, verifier
from r3_repro.tasks.countdown.generator import MAX_LISTED, World, generate, make_countdown_problem, solvable, solve
from r3_repro.tasks.countdown.task import countdown_histograms, countdown_problems, countdown_prompt, load_problems
from r3_repro.tasks.countdown.verifier import (
    EXPRESSION_ERRORS,
    EXPRESSION_RULES,
    evaluate_expression,
    parse_expression,
    verify_expression,
)
from r3_repro.tasks.function_calling.matcher import verify_calls

REAL = DATA / "data/countdown/hf_rows_0_975.jsonl"
needs_real_rows = pytest.mark.skipif(not REAL.exists(), reason="no slice of the published rows: real data not compared")
ATTACKS = json.loads((Path(__file__).parent / "data/countdown_attacks.json").read_text("utf-8"))
SMALL = {"sizes": [3], "low": 1, "high": 12, "target_low": 1, "target_high": 100}


def message(attack: dict) -> str:
    "The text of an attack: given whole, as repeated parts, or as what stands in the answer tag."
    if "parts" in attack:
        return "".join(piece * times for piece, times in attack["parts"])
    return attack["text"] if "text" in attack else f"<answer>{attack['answer']}</answer>"


# --- an independent judge: recursive descent over characters, exact fractions, no use of Python's parser ---


def judge(expression: str, nums: list[int], target: int) -> bool:
    """Is the expression right and complete?

    sum := product ((+|-) product)*;  product := atom ((*|/) atom)*;  atom := number | (sum)
    """
    tokens = re.findall(r"\d+|\S", expression)
    used = []

    def atom(i):
        if i < len(tokens) and tokens[i] == "(":
            value, i = chain(i + 1, "+-")
            if tokens[i : i + 1] != [")"]:
                raise SyntaxError
            return value, i + 1
        if i >= len(tokens) or not re.fullmatch(r"0+|[1-9][0-9]*", tokens[i], re.ASCII):
            raise SyntaxError
        used.append(int(tokens[i]))
        return Fraction(used[-1]), i + 1

    def chain(i, level):
        deeper = (lambda j: chain(j, "*/")) if level == "+-" else atom
        value, i = deeper(i)
        while i < len(tokens) and tokens[i] in level:
            sign = tokens[i]
            right, i = deeper(i + 1)
            value = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}.get(sign, lambda a, b: a / b)(
                value, right
            )
        return value, i

    try:
        value, end = chain(0, "+-")
    except (SyntaxError, ZeroDivisionError):
        return False
    return end == len(tokens) and value == target and sorted(used) == sorted(nums)


def every_expression(nums):
    "All (text, value) over all numbers: every order, every bracketing, every operation."
    if len(nums) == 1:
        yield str(nums[0]), Fraction(nums[0])
        return
    for order in set(itertools.permutations(nums)):
        for cut in range(1, len(order)):
            if list(order[:cut]) != sorted(order[:cut]) or list(order[cut:]) != sorted(order[cut:]):
                continue  # each side orders its own numbers
            for (s, a), (t, b) in itertools.product(every_expression(order[:cut]), every_expression(order[cut:])):
                yield f"({s} + {t})", a + b
                yield f"({s} - {t})", a - b
                yield f"({s} * {t})", a * b
                if b:
                    yield f"({s} / {t})", a / b


# --- attacks ---


def test_the_corpus_is_large_and_meets_every_error():
    assert len(ATTACKS) >= 60 and len({a["name"] for a in ATTACKS}) == len(ATTACKS)
    met = {a[rule] for a in ATTACKS for rule in EXPRESSION_RULES}
    assert met == {"", *EXPRESSION_ERRORS}
    assert set(ATTACKS[0]) >= {"name", "target", "nums", *EXPRESSION_RULES}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a["name"])
def test_attack(attack):
    problem, text = make_countdown_problem(attack["nums"], attack["target"]), message(attack)
    for rule in EXPRESSION_RULES:
        seconds = []
        while not seconds or (len(seconds) < 5 and min(seconds) > 0.01):
            start = time.perf_counter()
            verdict = verify_expression(problem, text, rule)
            seconds.append(time.perf_counter() - start)
        assert (verdict.error, verdict.ok) == (attack[rule], attack[rule] == ""), f"{rule}: {verdict}"
        assert min(seconds) < patience(0.01), f"{rule}: {min(seconds):.3f} s"
        assert len(verdict.answer) < 10_000 and len(verdict.detail) < 500
        json.dumps([verdict.answer, verdict.detail], ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize("attack", [a for a in ATTACKS if not a["strict"]], ids=lambda a: a["name"])
def test_what_strict_accepts_in_the_corpus_the_independent_judge_accepts(attack):
    before_last_close = message(attack).rpartition("</answer>")[0]
    if "unclosed" not in attack["name"] and "nested tags" not in attack["name"]:
        expression = before_last_close.rpartition("<answer>")[2].partition("=")[0]
        assert judge(expression, attack["nums"], attack["target"])


def test_nothing_is_evaluated():
    called = set()
    for module in (verifier, generator, task):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called.add(node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func))
    assert "ast.parse" in called
    assert not called & {"eval", "exec", "compile", "__import__", "ast.literal_eval", "pickle.loads", "os.system"}


def test_bounds_come_before_the_parser(monkeypatch):
    def no_parser(*_, **__):
        raise AssertionError("parsed")

    monkeypatch.setattr(verifier.ast, "parse", no_parser)
    for answer in ("(" * 1000 + "3", "3" * 10_000, "((((" * 9 + "1", "3 × 5", "import os"):
        assert verify_expression(make_countdown_problem([3, 5], 8), f"<answer>{answer}</answer>").error in (
            "too_long",
            "not_an_expression",
        )
    with pytest.raises(AssertionError, match="parsed"):
        verify_expression(make_countdown_problem([3, 5], 8), "<answer>3+5</answer>")


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ValueError, match=r"'lenient'.*strict, tinyzero"):
        verify_expression(make_countdown_problem([3, 5], 8), "<answer>3+5</answer>", "lenient")


# --- properties of the verifier ---

numbers = st.lists(st.integers(1, 20), min_size=2, max_size=4)


@st.composite
def expressions(draw, nums):
    "A random expression over `nums`, written as people write: some brackets, some spaces."
    parts = [str(n) for n in draw(st.permutations(nums))]
    while len(parts) > 1:
        i = draw(st.integers(0, len(parts) - 2))
        gap = draw(st.sampled_from(["", " "]))
        both = parts[i] + gap + draw(st.sampled_from("+-*/")) + gap + parts[i + 1]
        parts[i : i + 2] = [f"({both})" if draw(st.booleans()) else both]
    return parts[0]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_strict_agrees_with_the_independent_judge(data):
    nums = data.draw(numbers)
    text = data.draw(expressions(nums))
    given_nums = data.draw(st.sampled_from([nums, nums, nums, nums[:-1], [*nums, 3], [*nums[:-1], nums[-1] + 1]]))
    try:
        value = evaluate_expression(parse_expression(text, "strict"), "strict")
    except ZeroDivisionError:
        value = Fraction(0)
    target = data.draw(st.sampled_from([round(value), round(value) + 1]))
    verdict = verify_expression(make_countdown_problem(given_nums, target), f"so <answer> {text} </answer>")
    assert verdict.ok == judge(text, given_nums, target), (text, verdict)
    if verdict.ok:  # whatever strict accepts, the looser rule accepts too
        assert verify_expression(make_countdown_problem(given_nums, target), f"<answer>{text}</answer>", "tinyzero").ok


@settings(max_examples=500, deadline=None)
@given(st.text("0123456789+-*/() 35", max_size=20), numbers, st.integers(1, 30))
def test_strict_agrees_with_the_judge_on_noise(text, nums, target):
    verdict = verify_expression(make_countdown_problem(nums, target), f"<answer>{text}</answer>")
    assert verdict.ok == judge(text, nums, target)


# --- thoughts, and the rule `notation` ---

RIGHT, OTHER = "<answer>3 * 2 + 5</answer>", "<answer>3 + 2 + 5</answer>"
THOUGHTS = {
    "in tags": ("<think>", "</think>"),
    "opened in the prompt": ("", "</think>"),
    "never closed": ("<think>", None),
    "opened in the prompt, tags of another family": ("", "[/THINK]"),
    "of gpt-oss": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    "of gpt-oss without special tokens": ("analysisSo ", "assistantfinal"),
    "of gpt-oss, never closed": ("<|channel|>analysis<|message|>", None),
    "of Gemma": ("<|channel>thought\n", "<channel|>"),
}


@pytest.mark.parametrize("kind", THOUGHTS)
@pytest.mark.parametrize("rule", ["strict", "notation"])
def test_an_answer_inside_thoughts_does_not_count(kind: str, rule: str) -> None:
    problem, (opens, closes) = make_countdown_problem([3, 5, 2], 11), THOUGHTS[kind]
    inside = f"{opens}Maybe {RIGHT}?{closes or ''}"
    assert verify_expression(problem, inside, rule).error == "no_answer"
    assert not verify_calls(Problem("c", CALLED), inside.replace(RIGHT, '{"name": "f", "arguments": {}}')).ok, "both tasks"
    if closes:
        assert verify_expression(problem, f"{inside} {OTHER}", rule).error == "missed_target"
        assert verify_expression(problem, f"{opens}Maybe {OTHER}?{closes}\n{RIGHT}", rule).ok


CALLED = {"tools": [{"name": "f", "parameters": {}}], "answers": [{"name": "f", "arguments": {}}]}


@pytest.mark.parametrize("rule", ["strict", "notation"])
def test_the_last_complete_answer_counts_and_words_take_none_back(rule: str) -> None:
    problem = make_countdown_problem([3, 5, 2], 11)
    assert verify_expression(problem, f"{OTHER} no: {RIGHT}", rule).ok
    assert verify_expression(problem, f"{RIGHT} I could not find one. <answer>3", rule).ok
    assert verify_expression(problem, f"{RIGHT} no: {OTHER}", rule).error == "missed_target"
    assert verify_expression(problem, f"{RIGHT} I take it back: <answer></answer>", rule).error == "no_answer"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_notation_accepts_what_strict_accepts_however_it_is_written(data: Any) -> None:
    nums = data.draw(numbers)
    text = data.draw(expressions(nums))
    value = judged_value(text)
    assume(value is not None and value == int(value) and 0 < value < 10**6)
    target = int(value)
    problem = make_countdown_problem(nums, target)
    assert verify_expression(problem, f"<answer>{text}</answer>", "notation").ok
    signs = {"*": data.draw(st.sampled_from(["×", r"\times ", r"\cdot ", "·"])), "/": data.draw(st.sampled_from(["÷", r"\div "]))}
    signs |= {"-": data.draw(st.sampled_from(["−", "–"])), " ": data.draw(st.sampled_from(["\u00a0", "\u2009", " "]))}
    written = "".join(signs.get(c, c) for c in text)
    frame = data.draw(
        st.sampled_from(["{}", "${}$", r"\boxed{{{}}}", r"\( {} \)", "{} = {:,}", "{} = {:.2f}", "{1} = {0}", "{}."])
    )
    message_ = f"<answer>{frame.format(written, target)}</answer>"
    assert verify_expression(problem, message_, "notation").ok, message_
    assert verify_expression(make_countdown_problem(nums, target + 1), message_, "notation").error == "missed_target"


def judged_value(text: str) -> Fraction | None:
    "The value of an expression of whole numbers in plain Python; None if it divides by zero."
    try:
        return eval(re.sub("([0-9]+)", r"Fraction(\1)", text), {"Fraction": Fraction})
    except ZeroDivisionError:
        return None


@pytest.mark.parametrize(
    "answer", ["2^3 + 5", "√9 + 5", "3! + 5", "3 + 5 = 4 + 4", "3 + 5 ≈ 8", "three + 5", "3, 5", r"\sqrt{3} + 5", "3**1 + 5"]
)
def test_notation_is_no_other_arithmetic(answer: str) -> None:
    assert not verify_expression(make_countdown_problem([3, 5], 8), f"<answer>{answer}</answer>", "notation").ok


def test_without_a_tag_notation_takes_the_last_box() -> None:
    problem = make_countdown_problem([3, 5], 8)
    for text, ok in {
        r"\boxed{9} no, \boxed{3 + 5}": True,
        r"\boxed{3 + 5} <answer>5 - 3</answer>": False,
        r"\boxed{3 + 5": False,
    }.items():
        assert verify_expression(problem, text, "notation").ok == ok and not verify_expression(problem, text).ok


@pytest.mark.parametrize(
    "piece", [r"\frac{", r"\frac{1}{", r"\boxed{", "{", "× ", "<think>", "</think>", r"\left(", "= 1,", "3 x ", "analysis"]
)
@pytest.mark.parametrize("inside", [True, False])
def test_notation_takes_no_long_time(piece: str, inside: bool) -> None:
    text = f"<answer>{piece * 5000}</answer>" if not inside else f"<answer>{(piece * 500)[:500]}</answer>" + piece * 20_000
    started = time.process_time()
    verify_expression(make_countdown_problem([3, 5], 8), text, "notation")
    assert time.process_time() - started < patience(0.5)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from([*"35+-*/().= \n\x00×", "<answer>", "</answer>", "**"])).map("".join)))
def test_no_text_raises_and_every_refusal_has_a_type(text):
    for rule in EXPRESSION_RULES:
        for message_ in (text, f"<answer>{text}</answer>"):
            verdict = verify_expression(make_countdown_problem([3, 5], 8), message_, rule)
            assert verdict.ok == (verdict.error == "") and (verdict.ok or verdict.error in EXPRESSION_ERRORS)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_order_of_the_given_numbers_does_not_matter(data):
    nums = data.draw(numbers)
    text, target = data.draw(expressions(nums)), data.draw(st.integers(1, 40))
    shuffled = data.draw(st.permutations(nums))
    a, b = make_countdown_problem(nums, target), make_countdown_problem(shuffled, target)
    assert a.id == b.id
    for rule in EXPRESSION_RULES:
        assert verify_expression(a, f"<answer>{text}</answer>", rule) == verify_expression(b, f"<answer>{text}</answer>", rule)


class TooSlow(BaseException):
    "Not an `Exception`: the original catches those."


@contextmanager
def within(seconds: float):
    "Raises `TooSlow` in the block after that time."

    def stop(*_):
        raise TooSlow

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def loose_expressions(rng: random.Random):
    "Random problems and answers of the kinds on which verifiers differ: signs, dots, powers, floors, noise."
    signs = ["+", "-", "*", "/", "**", "//", "+-", "--", "*-", ".", "**-", "+ (", "\t", "\xa0", "\x0c", "\r"]
    while True:
        nums = rng.choices([1, 2, 3, 4, 5, 7, 9, 12, 25, 64, 99], k=rng.randint(2, 4))
        parts = [str(n) for n in rng.sample(nums, len(nums))]
        while len(parts) > 1:
            i = rng.randrange(len(parts) - 1)
            both = parts[i] + rng.choice(signs) + parts[i + 1]
            both = f"({both})" if rng.random() < 0.5 else both
            parts[i : i + 2] = [rng.choice("+-") + both if rng.random() < 0.15 else both]
        text = parts[0]
        if rng.random() < 0.2:
            i = rng.randrange(len(text) + 1)
            text = text[:i] + rng.choice("0123456789.()+-*/ =x٣\n") + text[i:]
        yield nums, text


def test_tinyzero_agrees_with_the_original():
    "Verdicts that the original gave once: on answers of the kinds on which verifiers differ, and on random ones."
    rows = json.loads((Path(__file__).parent / "data/countdown_tinyzero.json").read_text("utf-8"))["rows"]
    differ = [r for r in rows if verify_expression(make_countdown_problem(r[0], r[1]), r[2], "tinyzero").ok != r[3]]
    assert differ == []
    assert len(rows) == 402 and sum(accepted for *_, accepted in rows) == 215
    stricter = [r for r in rows if r[3] and not verify_expression(make_countdown_problem(r[0], r[1]), r[2]).ok]
    assert len(stricter) > 100, "the table must tell the two rules apart"


@pytest.mark.skipif(
    "R3_TINYZERO_VERIFIER" not in os.environ,
    reason="R3_TINYZERO_VERIFIER does not name a copy of TinyZero's verl/utils/reward_score/countdown.py: "
    "the rule `tinyzero` is compared with stored verdicts only",
)
@pytest.mark.filterwarnings("ignore")
def test_tinyzero_agrees_with_a_copy_of_the_original(monkeypatch):
    spec = importlib.util.spec_from_file_location("tinyzero", os.environ["R3_TINYZERO_VERIFIER"])
    original = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(original)
    monkeypatch.setattr(original.random, "randint", lambda a, b: 2)  # it prints one answer in 800
    rng = random.Random(0)
    accepted = compared = 0
    frames = ["<answer>{}</answer>", "<answer>1</answer><answer>{}</answer>"]
    frames += ["hm\n<answer> {} </answer> ok", "<answer>{}</answer>\n"]
    for nums, text in itertools.islice(loose_expressions(rng), 5000):
        message_ = rng.choice(frames).format(text)
        try:
            with within(patience(0.1)):
                value = original.evaluate_equation(text)
            target = round(value.real) if value is not None and abs(value) < 1000 else 24
            theirs = original.compute_score(f"Assistant:{message_}", {"target": target, "numbers": nums}) == 1
        except (TooSlow, OverflowError, TypeError, ValueError):
            continue  # it hangs, or there is no target to ask for
        assert verify_expression(make_countdown_problem(nums, target), message_, "tinyzero").ok == theirs, (
            nums,
            target,
            message_,
        )
        compared, accepted = compared + 1, accepted + theirs
    assert compared > 4000 and accepted > 500


# --- the solver ---


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 13), min_size=2, max_size=3), st.integers(1, 60))
def test_solutions_against_brute_force(nums, target):
    brute = [text for text, value in every_expression(nums) if value == target]
    found = solve(nums, target)
    assert bool(found) == bool(brute) and len(found) <= len(brute) and len(set(found)) == len(found)
    problem = make_countdown_problem(nums, target)
    for text in [*brute, *found]:
        assert verify_expression(problem, f"<answer>{text}</answer>").ok and judge(text, nums, target), text
    if solvable([nums], [target])[0]:
        assert found


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(1, 13), min_size=4, max_size=4))
def test_four_numbers_against_brute_force(nums):
    brute = Counter(int(v) for _, v in every_expression(nums) if v.denominator == 1 and 10 <= v <= 40)
    for target in range(10, 41):
        assert bool(solve(nums, target)) == (target in brute)


def test_three_numbers_are_solved_fast():
    start = time.perf_counter()
    for n in range(200):
        solve([3, 5, 2 + n % 10], 11)
    assert (time.perf_counter() - start) / 200 < patience(0.001)


def test_solvable_refuses_what_overflows():
    with pytest.raises(ValueError, match="overflows 64 bits"):
        solvable([[10**6] * 4], [100])


# --- the generator ---


def test_generated_problems_keep_their_promises():
    made = generate(2000, seed=3)
    assert len({p.id for p in made}) == 2000
    for p in made:
        nums, target = p.data["nums"], p.data["target"]
        assert p == make_countdown_problem(nums, target) and len(nums) in (3, 4) and 10 <= target <= 100
        assert all(type(n) is int and 1 <= n <= 99 for n in nums)
    for p in made[:150]:
        assert any(v == p.data["target"] for _, v in every_expression(p.data["nums"])), p.id


def test_the_seed_and_nothing_else_decides():
    assert generate(300, seed=5) == generate(900, seed=5)[:300] != generate(300, seed=6)
    assert generate(50, seed=5, **SMALL) == generate(90, seed=5, **SMALL)[:50] != generate(50, seed=6, **SMALL)
    # a change here changes every generated data set: results made before and after cannot be compared
    assert [p.id for p in generate(3, seed=0)] == ["84:15-28-33-81", "26:24-43-44-49", "40:20-24-25-35"]
    assert [p.id for p in generate(3, seed=0, **SMALL)] == ["58:2-5-12", "34:4-6-7", "3:3-7-12"]


def test_targets_and_sizes_are_even_and_stay_so():
    made = generate(20_000, seed=1)
    assert chisquare(np.bincount([p.data["target"] for p in made])[10:]).pvalue > 1e-4
    assert chisquare(np.bincount([len(p.data["nums"]) for p in made])[3:]).pvalue > 1e-4


def test_both_ways_to_generate_follow_one_law(monkeypatch):
    world = {"sizes": [2, 3], "low": 1, "high": 6, "target_low": 4, "target_high": 9}
    counts = []
    for listed in (MAX_LISTED, 0):  # listing the world, and drawing from it
        monkeypatch.setattr(generator, "MAX_LISTED", listed)
        made = [p.id for seed in range(60) for p in generate(60, seed=seed, **world)]
        counts.append(Counter(made))
    ids = sorted(set(counts[0]) | set(counts[1]))
    assert len(ids) < 250  # old problems are often met again: the law without replacement is tested too
    table = np.array([[c[i] for i in ids] for c in counts])
    assert chi2_contingency(table[:, table.sum(axis=0) >= 10]).pvalue > 1e-4
    assert chisquare(table[0][table[0] >= 10]).pvalue < 1e-6  # and the test sees that the law is not uniform


def test_excluded_problems_do_not_come():
    for world in ({}, SMALL):
        first = {p.id for p in generate(200, **world)}
        assert not first & {p.id for p in generate(400, **world, exclude=first)}


def test_asking_for_too_many_is_an_error_at_once():
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"10,000 problems asked for, but only 4,\d\d\d found .* ask for fewer"):
        generate(10_000, **SMALL)
    assert time.perf_counter() - start < patience(1)
    with pytest.raises(ValueError, match="only 0 found"):  # a large world without a single solution
        generate(5, sizes=[3], low=1, high=300, target_low=10**8, target_high=10**8)
    every = generate(4758, **SMALL)
    assert len({p.id for p in every}) == 4758


@pytest.mark.parametrize(
    "world",
    [
        *({"sizes": sizes} for sizes in ([], [1], [3, 3], [7])),
        *({"low": 0}, {"low": 9, "high": 8}, {"high": 10**9}),
        *({"target_low": 0}, {"target_low": 9, "target_high": 8}),
    ],
    ids=str,
)
def test_impossible_worlds_are_refused(world):
    with pytest.raises(ValueError):
        generate(1, **world)


def test_450_000_problems_would_take_under_two_minutes():
    start = time.perf_counter()
    generate(20_000, seed=9)
    assert time.perf_counter() - start < patience(24) * 20_000 / 450_000


# --- splits ---


def test_train_and_test_share_nothing_and_follow_one_law():
    options = {"train_size": 3000, "test_size": 1200, "data_seed": 0, **SMALL}  # 88% of all there are
    train, test = countdown_problems("train", options), countdown_problems("test", options)
    assert (len(train), len(test)) == (3000, 1200) and not {p.id for p in train} & {p.id for p in test}
    counts = np.array([np.bincount([p.data["target"] for p in part], minlength=101) for part in (train, test)])
    assert chi2_contingency(counts[:, counts.sum(axis=0) > 0]).pvalue > 1e-4
    assert train == countdown_problems("train", options) and test != countdown_problems("test", options | {"data_seed": 1})


def test_the_description_counts_everything_and_is_json():
    made = generate(1200, seed=2)
    histograms = countdown_histograms(made)
    assert json.loads(json.dumps(histograms)) == histograms
    assert {k: sum(h.values()) for k, h in histograms.items()} == {
        "numbers in a problem": 1200,
        "number": sum(len(p.data["nums"]) for p in made),
        "target": 1200,
        "distinct solutions (of a sample of 400)": 400,
    }
    assert "0" not in histograms["distinct solutions (of a sample of 400)"]


def test_options_are_checked():
    with pytest.raises(ValueError, match="unknown data option hihg"):
        countdown_problems("train", {"hihg": 3})
    with pytest.raises(ValueError, match="'validation'"):
        countdown_problems("validation", {})


def test_the_task():
    found = get_task("countdown")
    assert found is task.TASK and found.prompt is countdown_prompt
    assert found.reflection_request.startswith("You tried solving the problem and got the wrong answer. Reflect on")
    assert found.rules == tuple(EXPRESSION_RULES) and found.errors == tuple(EXPRESSION_ERRORS)
    for p in found.problems("test", {"train_size": 5, "test_size": 5}):
        assert str(p.data["nums"]) in found.prompt(p) and str(p.data["target"]) in found.prompt(p)
        assert not found.verify(p, found.prompt(p)).ok  # repeating the prompt, example and all, is no answer


# --- the loader ---


def write(path: Path, rows: list) -> Path:
    if path.suffix == ".parquet":
        import pandas as pd

        pd.DataFrame(rows).to_parquet(path)
    else:
        texts = [r if isinstance(r, str) else json.dumps(r) for r in rows]
        path.write_text("\n".join(texts) if path.suffix == ".jsonl" else f"[{', '.join(texts)}]", "utf-8")
    return path


GOOD = [{"target": 11, "nums": [3, 5, 2]}, {"target": 24, "nums": [8, 8, 3, 3]}, {"target": 11, "nums": [5, 3, 2]}]


@pytest.mark.parametrize("name", ["own.jsonl", "own.json", "own.parquet"])
def test_local_files(tmp_path, name):
    loaded = load_problems(write(tmp_path / name, GOOD))
    assert [p.id for p in loaded.problems] == ["11:2-3-5", "24:3-3-8-8"]  # the second needs a fraction on the way
    assert (loaded.rows, loaded.duplicates, loaded.refused) == (3, 1, {})


def test_bad_rows_are_counted_with_their_reason(tmp_path):
    bad = [
        "{",
        "7",
        {"nums": [3]},
        {"target": 9.5, "nums": [3, 6]},
        {"target": 9, "nums": "36"},
        {"target": 9, "nums": [9]},
    ]
    bad += [{"target": 9, "nums": [3, 6.5]}, {"target": 9, "nums": [3, -6]}, {"target": 99, "nums": [1, 1]}]
    bad += [
        {"target": True, "nums": [1, 1]},
        {"target": 9, "nums": [10**30, 1]},
        "[" * 100_000,
        {"target": 9, "nums": []},
    ]
    loaded = load_problems(write(tmp_path / "own.jsonl", GOOD + bad))
    assert len(loaded.problems) == 2 and loaded.rows == 3 + len(bad)
    assert loaded.refused == {
        "not a record with target and nums": 2,
        "malformed json": 1,
        "too long": 1,
        "target is not a positive whole number": 2,
        "nums is not a list of 2 to 6": 3,
        "nums are not all positive whole numbers": 2,
        "numbers too large": 1,
        "no solution": 1,
    }
    loaded = load_problems(write(tmp_path / "own.jsonl", GOOD), World(sizes=(3,)))
    assert loaded.refused == {"outside the sizes or ranges asked for": 1} and len(loaded.problems) == 1


def test_sources_that_are_not_there(tmp_path):
    for source in (tmp_path / "none.jsonl", "none.parquet", "no-owner", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="not a hub name"):
            load_problems(source)
    with pytest.raises(FileNotFoundError, match=r"no \.json, \.jsonl, \.ndjson, \.parquet file in this folder"):
        load_problems(tmp_path)
    with pytest.raises(ValueError, match="no usable problem in 1 records"):
        load_problems(write(tmp_path / "own.jsonl", ["7"]))


def test_a_hub_name_goes_through_datasets(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def fake(name, split):
        asked.append((name, split))
        if name == "owner/gone":
            raise ConnectionError("offline")
        return datasets.Dataset.from_list([row | {"target": float(row["target"])} for row in GOOD])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert len(load_problems("Jiayi-Pan/Countdown-Tasks-3to4").problems) == 2
    assert asked == [("Jiayi-Pan/Countdown-Tasks-3to4", "train")]
    with pytest.raises(ValueError, match=r"owner/gone could not be loaded.*local file.*offline"):
        load_problems("owner/gone")


@pytest.mark.filterwarnings("ignore:.*duplicates dropped")
def test_a_file_that_holds_less_than_asked_for(tmp_path):
    rows = [p.data for p in generate(30)]
    source = str(write(tmp_path / "own.jsonl", [*rows, rows[0], 5]))
    with (
        pytest.warns(UserWarning, match="of 32 rows 1 duplicates dropped, refused {'not a record"),
        pytest.warns(UserWarning, match="only 20 problems are left"),
    ):
        train = countdown_problems("train", {"source": source, "train_size": 25, "test_size": 10})
    test = countdown_problems("test", {"source": source, "train_size": 25, "test_size": 10})
    assert len(train) == 20 and len(test) == 10 and {p.id for p in train + test} == {make_countdown_problem(**r).id for r in rows}
    assert test == countdown_problems("test", {"source": source, "train_size": 5, "test_size": 10})
    with pytest.raises(ValueError, match="leaves 0 for train_size = 25"):
        countdown_problems("test", {"source": source, "train_size": 25, "test_size": 30})


@needs_real_rows
def test_published_rows_load_without_loss():
    loaded = load_problems(REAL, World())
    assert loaded.rows == 976 and loaded.refused == {} and len(loaded.problems) + loaded.duplicates == 976
    nums, target = zip(*[(p.data["nums"], p.data["target"]) for p in loaded.problems], strict=True)
    for k in (3, 4):  # the generator's rule holds for every one of them
        rows = [i for i, n in enumerate(nums) if len(n) == k]
        assert solvable([nums[i] for i in rows], [target[i] for i in rows]).all()
    for p in loaded.problems[:50]:
        assert all(verify_expression(p, f"<answer>{s}</answer>").ok for s in solve(**p.data)) and solve(**p.data)


@needs_real_rows
def test_generated_numbers_are_distributed_like_published_ones():
    real, made = load_problems(REAL).problems, generate(5000, seed=4)
    for k in (3, 4):
        counts = [
            np.histogram([n for p in part if len(p.data["nums"]) == k for n in p.data["nums"]], range(1, 111, 10))[0]
            for part in (real, made)
        ]
        assert chi2_contingency(counts).pvalue > 1e-4, f"{k} numbers"
