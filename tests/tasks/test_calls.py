"""Tool calls: the verifier under attack, real rows in every style, mutated answers, an independent judge, BFCL's rule."""

import ast
import importlib.util
import itertools
import json
import os
import random
import sys
import time
import types
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support import DATA, patience

from r3_repro.tasks.base import Problem, Verdict
from r3_repro.tasks.function_calling import matcher, parser, reader, writer
from r3_repro.tasks.function_calling.matcher import CALL_ERRORS, CALL_RULES, kind_of, verify_calls
from r3_repro.tasks.function_calling.parser import CALL_KEYS, PLACES, Call, parse_calls
from r3_repro.tasks.function_calling.reader import JSON_WORDS, MAX_CALL_CHARS, MAX_CALLS
from r3_repro.tasks.function_calling.task import load_call_rows
from r3_repro.tasks.function_calling.writer import STYLES, write_calls

FOLDER = DATA / "data"
SCHEMA_FILES = [*sorted(FOLDER.glob("xlam/*.jsonl")), *FOLDER.glob("bfcl/bfcl_xlam_schema.jsonl")]
RAW_FILES = sorted(FOLDER.glob("bfcl/raw/possible_answer/*.jsonl"))
CORPUS = json.loads((Path(__file__).parent / "data/calls_attacks.json").read_text("utf-8"))
ATTACKS = CORPUS["attacks"]

needs_rows = pytest.mark.skipif(not SCHEMA_FILES, reason="no xLAM and BFCL rows: gold answers of real records are not tested")
needs_raw = pytest.mark.skipif(not RAW_FILES, reason="no raw BFCL rows: accepted alternatives of real records are not tested")
quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def steady(examples: int) -> settings:
    "The same examples at every run, without a deadline."
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=quiet)


# --- problems: real rows if they are there, and a handful of our own ---

KINDS = {"int": "integer", "float": "number", "str": "string", "bool": "boolean", "list": "array", "dict": "object"}
KINDS |= {"tuple": "array", **{kind: kind for kind in ("integer", "number", "string", "boolean", "array", "object")}}


def tool(name: str, /, **kinds: str | None) -> dict[str, Any]:
    properties = {p: {"type": k} if k else {} for p, k in kinds.items()}
    return {"name": name, "description": "", "parameters": {"type": "object", "properties": properties, "required": []}}


def problem(name: str, tools: list, answers: list, **more: Any) -> Problem:
    return Problem(name, {"query": "", "tools": tools, "answers": answers, **more})


def from_row(file: str, row: dict) -> Problem:
    "A row in xLAM's schema, straight from its file: names and JSON types only."
    tools = []
    for t in json.loads(row["tools"]):
        declared = {p: KINDS.get(str(s.get("type")).split(",")[0].split("[")[0].lower()) for p, s in t["parameters"].items()}
        tools.append(tool(t["name"], **{p: k for p, k in declared.items() if k}))
    return problem(f"{file}:{row['id']}", tools, json.loads(row["answers"]))


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]


def real_problems() -> list[Problem]:
    return [from_row(file.stem, row) for file in SCHEMA_FILES for row in records(file)]


def gold_of(p: Problem) -> list[Call]:
    return [Call(a["name"], a["arguments"]) for a in p.data["answers"]]


WEATHER, CLOCK = tool("get_weather", city="string", days="integer"), tool("get_time", city="string")
TOTAL = tool("math.total", values="array", exact="boolean", scale="number", options="object")
OWN = [
    problem("own-1", [WEATHER, CLOCK], [{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]),
    problem("own-2", [WEATHER, CLOCK], [{"name": "get_time", "arguments": {"city": c}} for c in ("Paris", "Lyon", "Paris")]),
    problem("own-3", [CLOCK, TOTAL], [{"name": "math.total", "arguments": {"values": [1, 2.5], "exact": True, "scale": 2}}]),
    problem("own-4", [CLOCK, TOTAL], [{"name": "math.total", "arguments": {"values": ["á"], "options": {"a": "x", "b": [1]}}}]),
]


def made_up(n: int) -> list[Problem]:
    "Problems like the real ones, so that there is variety where those are not at hand."
    rng, out = random.Random(0), []
    samples = [["Paris", "New York, NY", "john@example.com", "it's", "ä", "Xy", "<b>"], [3, 0, -7, 2.5, 1e16, 120], [True, False]]
    samples += [[[], [1, 2], ["a", "b"], [[1]], [0.5, "x"]], [{"a": 1}, {"k": "v", "n": [1]}]]
    for i in range(n):
        parameters = [[f"p{j}" for j in range(rng.randint(1, 4))] for _ in range(rng.randint(2, 6))]
        tools = [tool(f"{rng.choice(['get_', 'math.', 'search'])}{j}", **dict.fromkeys(p)) for j, p in enumerate(parameters)]
        called = rng.choices(tools, k=rng.choice([1, 1, 2, 3, 4]))
        arguments = [{p: rng.choice(rng.choice(samples)) for p in t["parameters"]["properties"]} for t in called]
        answers = [{"name": t["name"], "arguments": a} for t, a in zip(called, arguments, strict=True)]
        out.append(problem(f"made-up-{i}", tools, answers))
    return out


REAL = real_problems()
POOL = [p for p in [*OWN, *made_up(300), *REAL] if p.data["answers"]]
ROWS = 1660  # in the files above


# --- attacks ---


def message(attack: dict) -> str:
    "The text of an attack: given whole, or as repeated parts."
    return "".join(piece * times for piece, times in attack["parts"]) if "parts" in attack else attack["text"]


def test_the_corpus_is_large_and_meets_every_error():
    assert len(ATTACKS) >= 300 and len({a["name"] for a in ATTACKS}) == len(ATTACKS)
    for rule in CALL_RULES:
        assert {a[rule] for a in ATTACKS} == {"", *CALL_ERRORS}
    assert sum(bool(a["strict"]) for a in ATTACKS) >= 250


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a["name"])
def test_attack(attack):
    asked, text = Problem("attack", CORPUS["problems"][attack["problem"]]), message(attack)
    for rule in CALL_RULES:
        seconds = []
        while not seconds or (len(seconds) < 5 and min(seconds) > 0.05):
            start = time.perf_counter()
            verdict = verify_calls(asked, text, rule)
            seconds.append(time.perf_counter() - start)
        assert (verdict.error, verdict.ok) == (attack[rule], attack[rule] == ""), f"{rule}: {verdict}"
        assert min(seconds) < patience(0.1), f"{rule}: {min(seconds):.3f} s"  # 25 ms on the machine that wrote this
        assert len(verdict.answer) < 11_000 and len(verdict.detail) < 500 and bool(verdict.detail) != verdict.ok
        json.dumps([verdict.answer, verdict.detail], ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize("piece", [a["parts"] for a in ATTACKS if "parts" in a], ids=lambda parts: ascii(parts[:2]))
def test_time_grows_no_faster_than_the_text(piece):
    "A quarter of an attack takes at least a tenth of its processor time, or else next to none: nothing is quadratic."

    def seconds(share: float) -> float:
        text, best = "".join(p * (int(n * share) // 2 * 2 or 1) for p, n in piece), 9.0  # an even number of backslashes
        for _ in range(3):
            start = time.process_time()
            parse_calls(text[:MAX_CALL_CHARS])
            best = min(best, time.process_time() - start)
        return best

    assert seconds(1) < 10 * seconds(0.25) + 0.02


def test_nothing_is_evaluated():
    nodes = [n for m in (reader, parser, matcher, writer) for n in ast.walk(ast.parse(Path(m.__file__).read_text("utf-8")))]
    calls = [n.func for n in nodes if isinstance(n, ast.Call)]
    called = {f.id if isinstance(f, ast.Name) else ast.unparse(f) for f in calls}
    assert "TOKEN.match" in called
    assert not called & {"eval", "exec", "compile", "__import__", "ast.literal_eval", "ast.parse", "pickle.loads", "os.system"}
    imported = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    assert not imported & {"ast", "pickle", "os", "subprocess", "importlib", "torch"}


def test_an_unknown_rule_or_style_is_an_error():
    with pytest.raises(ValueError, match=r"'lenient'.*strict, bfcl"):
        verify_calls(OWN[0], "", "lenient")
    with pytest.raises(ValueError, match=r"'xml'.*json, json_lines"):
        write_calls([], "xml")


class Strange:
    def __eq__(self, other):
        raise RuntimeError("not comparable")


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if levels % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    "data",
    [
        *(
            {},
            {"answers": None},
            {"answers": 5},
            {"answers": [5, None, []]},
            {"answers": [{"name": 5, "arguments": {}}]},
            None,
            [],
        ),
        *({"answers": [{"name": "f", "arguments": a}]} for a in (None, [], "x", {"x": deep(3000)}, {"x": deep(3001)}, {5: 5})),
        {"answers": [{"name": "f", "arguments": {"x": Strange()}}]},
        {"answers": [{"name": "f", "arguments": {"x": float("nan")}}]},
        {"answers": [{"name": "f", "arguments": {"x": {1, 2}}}]},
        {"answers": [{"name": "f"}], "tools": 5},
        {"answers": [], "tools": [5, {"name": []}, {"name": "f", "parameters": 5}], "alternatives": [5]},
        {"answers": [], "alternatives": [{"name": "f", "arguments": {"x": 5}}]},
        {"answers": [{"name": "f", "arguments": {"x": 1}}] * 2000},
    ],
    ids=lambda d: repr(type(d)) if not d else "".join(d),
)
def test_no_row_raises_and_no_damaged_row_can_be_answered(data):
    answers = ["f(x=1)", "[f(x=[[1]])]", '[{"name": "f", "arguments": {"x": {"a": {"a": 1}}}}]', "f()", "f(x=5)"]
    for text in [*answers, "[" + "[" * 30 + "]" * 31, "no", "", ", ".join(["f(x=1)"] * 2000)]:
        for rule in CALL_RULES:
            verdict = verify_calls(Problem("bad", data), text, rule)
            assert verdict.ok == (not verdict.error) and (verdict.ok or verdict.error in CALL_ERRORS)
            listed = (
                rule == "bfcl" and isinstance(data, dict) and data.get("alternatives") == [{"name": "f", "arguments": {"x": 5}}]
            )
            empty = rule == "strict" and isinstance(data, dict) and data.get("answers") == []
            nothing = empty and parse_calls(text).error == "no_call" and text
            assert not verdict.ok or nothing or (listed and text == "f(x=5)"), (text, verdict)


# --- real rows, in every style ---


def is_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


@needs_rows
def test_the_gold_answer_of_every_row_in_every_style():
    written, verified, inexpressible = Counter(), 0, []
    for p in REAL:
        gold = gold_of(p)
        answer = json.dumps(p.data["answers"], sort_keys=True, ensure_ascii=False)
        for style in STYLES:
            try:
                text = write_calls(gold, style)
            except ValueError:
                inexpressible.append((p.id, style))
                assert not all(is_name(c.name) and all(is_name(a) for a in c.arguments) for c in gold)
                continue
            for rule in CALL_RULES:
                verdict = verify_calls(p, text, rule)  # whose answer is JSON with types and order as read
                assert verdict == Verdict(True, answer=answer), (p.id, style, text, verdict)
                verified += 1
            written[style] += 1
    print(f"{len(REAL)} rows, {sum(written.values())} texts, {verified} verdicts; inexpressible: {inexpressible}")
    assert len(REAL) == ROWS and len(STYLES) == 16 and sum(len(p.data["answers"]) for p in REAL) == 2258
    # three rows have names that Python cannot express (9WuTjwqnv, preferred-routes_get, preferred-routes_search_get)
    assert {style for _, style in inexpressible} == {"python", "python_lines"} and len(inexpressible) == 6
    assert written == {style: ROWS - 3 * (style in ("python", "python_lines")) for style in STYLES}


@needs_rows
def test_the_loaders_problems_verify():
    loaded = 0
    for file in SCHEMA_FILES:
        for p in load_call_rows(file)[0]:
            loaded += 1
            for style in ("json", "tool_call", "python_literals"):
                assert all(verify_calls(p, write_calls(gold_of(p), style), rule).ok for rule in CALL_RULES), p.id
    assert loaded > 1500


# --- mutated answers: each mutation differs from the gold answer in one way ---

Draw = Callable[..., Any]
FAR = "ZZ top"  # in no row


def other_type(value: Any, draw: Draw) -> Any:
    "A value of another JSON type, as near to the old one as can be."
    if isinstance(value, bool):
        near: list = [int(value), float(value), str(value).lower(), [value], None]
    elif isinstance(value, int | float):
        near = [str(value), [value], value != 0, {"value": value}, None]
    elif isinstance(value, str):
        near = [[value], {"value": value}, None, 1, True, len(value) + 0.5]
    elif isinstance(value, list):
        near = [json.dumps(value), None, {}, {str(i): v for i, v in enumerate(value)}, len(value), *value[:1]]
    elif isinstance(value, dict):
        near = [json.dumps(value), None, [], list(value.values()), [value]]
    else:
        near = ["", "null", 0, False, [], {}]
    if kind_of(value) == "array" and value and draw(st.booleans()):  # one item of another type
        i = draw(st.integers(0, len(value) - 1))
        return [*value[:i], other_type(value[i], draw), *value[i + 1 :]]
    if kind_of(value) == "object" and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        return value | {key: other_type(value[key], draw)}
    return draw(st.sampled_from([v for v in near if kind_of(v) != kind_of(value)]))


def other_value(value: Any, draw: Draw) -> Any:
    "Another value of the same JSON type, which `strict` has to tell apart."
    kind = kind_of(value)
    assume(kind != "null")
    if kind == "boolean":
        return not value
    if kind == "number":
        changed = [value + 1, value - 1, -value, value * 10, value + 0.5, value * (1 + 2**-50), 10**30]
    elif kind == "string":
        changed = [value + " ", " " + value, value + FAR, value.upper(), value.lower(), value.title(), value[1:], value[:-1]]
        changed += [value.replace(" ", ""), value.replace(",", ""), value.replace("'", '"'), value + "\u200b", value + "\x00"]
        changed += [unicodedata.normalize("NFD", value), value.replace("a", "а"), value[::-1], f'"{value}"', value + "\n", FAR]
    elif kind == "array":
        i = draw(st.integers(0, max(len(value) - 1, 0)))
        changed = [[*value, FAR], value[:i] + value[i + 1 :], [*value, *value], []]
        same_kinds = len({kind_of(v) for v in value}) == 1 and kind_of(value[0]) in ("number", "string", "boolean")
        if same_kinds:
            changed += [value[::-1], [*value[:i], other_value(value[i], draw), *value[i + 1 :]]]
    else:
        key = draw(st.sampled_from(sorted(value))) if value else FAR
        changed = [
            value | {FAR: None},
            {k: v for k, v in value.items() if k != key},
            {FAR if k == key else k: value[k] for k in value},
        ]
        if value and value[key] is not None:
            changed.append(value | {key: other_value(value[key], draw)})
    return draw(st.sampled_from([v for v in changed if not judged_equal(v, value)]))


def one_of(gold: list[Call], draw: Draw, having: Callable[[Call], bool] = lambda c: True) -> int:
    return draw(st.sampled_from([i for i, c in enumerate(gold) if having(c)]))


def put(gold: list[Call], i: int, name: str | None = None, arguments: dict | None = None) -> list[Call]:
    "The same calls with the name or the arguments of one of them replaced."
    changed = Call(gold[i].name if name is None else name, gold[i].arguments if arguments is None else arguments)
    return [*gold[:i], changed, *gold[i + 1 :]]


def listed_names(p: Problem) -> list[str]:
    return sorted({t["name"] for t in p.data["tools"]})


def unknown_tool(p, gold, draw):
    i = one_of(gold, draw)
    name = gold[i].name
    names = [
        name + "_",
        name.upper(),
        name.title(),
        "x." + name,
        name[:-1],
        name + "2",
        FAR.replace(" ", "_"),
        name.split(".")[0],
    ]
    return put(gold, i, draw(st.sampled_from([n for n in names if n and n not in {*listed_names(p), *(c.name for c in gold)}])))


def wrong_tool(p, gold, draw):
    i = one_of(gold, draw)
    name = draw(st.sampled_from([n for n in listed_names(p) if n != gold[i].name]))
    return put(gold, i, name, draw(st.sampled_from([gold[i].arguments, {}])))


def missing_call(p, gold, draw):
    i = one_of(gold, draw)
    left = gold[:i] + gold[i + 1 :]
    return left[: draw(st.integers(1, len(left)))]


def extra_call(p, gold, draw):
    more = draw(st.sampled_from([*gold, *(Call(n, {}) for n in listed_names(p)), *(Call(n, {FAR: 1}) for n in listed_names(p))]))
    return draw(st.permutations([*gold, more]))


def missing_parameter(p, gold, draw):
    i = one_of(gold, draw, lambda c: bool(c.arguments))
    gone = set(draw(st.lists(st.sampled_from(sorted(gold[i].arguments)), min_size=1)))
    renamed = {a.upper() + "_": gold[i].arguments[a] for a in gone} if draw(st.booleans()) else {}
    return put(gold, i, arguments={a: v for a, v in gold[i].arguments.items() if a not in gone} | renamed)


def extra_parameter(p, gold, draw):
    i = one_of(gold, draw)
    declared = next((t["parameters"]["properties"] for t in p.data["tools"] if t["name"] == gold[i].name), {})
    free = [a for a in [*declared, "extra", "_", "city2"] if a not in gold[i].arguments]
    value = draw(st.sampled_from([None, "", 0, False, [], {}, 1.5, "default"]))
    return put(gold, i, arguments={draw(st.sampled_from(free)): value, **gold[i].arguments})


def changed_parameter(change):
    def mutate(p, gold, draw):
        i = one_of(gold, draw, lambda c: bool(c.arguments))
        name = draw(st.sampled_from(sorted(gold[i].arguments)))
        return put(gold, i, arguments=gold[i].arguments | {name: change(gold[i].arguments[name], draw)})

    return mutate


def no_call(p, gold, draw):
    "What is said without a call: prose, thoughts, `[]`, a call in the middle of a sentence, JSON that is something else."
    calls = json.dumps(p.data["answers"])
    texts = ["", " \n", "[]", f"<think>{calls}</think>", f"{calls}</think>", f"<think>{calls}", json.dumps(calls)]
    texts += [f"I call {c.name}(x=1) now." for c in gold] + [f"None of [{c.name}] fits." for c in gold]
    texts += [json.dumps(c.arguments) for c in gold if not c.arguments.keys() & CALL_KEYS]
    prose = st.text(st.characters(exclude_characters="[]{}()<`", exclude_categories=["Cs"]), max_size=60)
    return draw(st.sampled_from(texts) | prose)


def not_json(p, gold, draw):
    "A call that was begun and cannot be read."
    text, i = json.dumps(p.data["answers"]), one_of(gold, draw)
    name, arguments = json.dumps(gold[i].name), json.dumps(gold[i].arguments)
    inner = arguments[1:-1]
    twice = f'"x": 1, "x": 1, {inner}'.rstrip(", ")
    wrong = [f'{{"name": {name}, "arguments": {{{twice}}}}}', f'{{"name": {name}, "why": 1, "arguments": {arguments}}}']
    wrong += [
        f'{{"name": {name}, "arguments": {v}}}' for v in ("NaN", "[1]", "5", '"x"', "{x: 1}", '{"x": 1e999}', '{"x": "\\d"}')
    ]
    wrong += [f'{{"name": {v}, "arguments": {arguments}}}' for v in ("5", "null", '""', "[]", "f")]
    wrong += [f'{{"name": {name}, "name": {name}}}', f'{{"arguments": {arguments}}}', f"{{name: {name}, arguments: {arguments}}}"]
    wrong += [
        f'{{"name": {name}, "arguments": {arguments} // so\n}}',
        f'[{{"name": {name}}}, 5]',
        f"[{gold[i].name.split('-')[0]}(1)]",
    ]
    cut = [text[: draw(st.integers(len('[{"name": '), len(text) - 1))]]
    frames = ["{}", "So: {} and no more", "```json\n{}\n```", "<tool_call>{}</tool_call>", text + " {}", "<tool_call>{}"]
    return draw(st.sampled_from(frames)).replace("{}", draw(st.sampled_from([*wrong, *cut, *cut, *cut])))


def too_long(p, gold, draw):
    "A right answer, buried."
    text, many = json.dumps(p.data["answers"]), MAX_CALLS + draw(st.integers(1, 9))
    padded = [text + " " * (MAX_CALL_CHARS + 1 - len(text)), "x" * MAX_CALL_CHARS + text, "[" * 40 + text + "]" * 40]
    padded += [json.dumps((p.data["answers"] * many)[:many]), "[0] " * 5000 + text, text + "{}" * 6000, text + "[" * 33]
    return draw(st.sampled_from(padded))


MUTATIONS: dict[str, tuple[Callable, Callable[[Problem], bool]]] = {
    "no_call": (no_call, lambda p: True),
    "not_json": (not_json, lambda p: True),
    "too_long": (too_long, lambda p: True),
    "unknown_tool": (unknown_tool, lambda p: True),
    "wrong_tool": (wrong_tool, lambda p: len(listed_names(p)) > 1),
    "missing_call": (missing_call, lambda p: len(p.data["answers"]) > 1),
    "extra_call": (extra_call, lambda p: True),
    "missing_parameter": (missing_parameter, lambda p: any(c.arguments for c in gold_of(p))),
    "extra_parameter": (extra_parameter, lambda p: True),
    "wrong_type": (changed_parameter(other_type), lambda p: any(c.arguments for c in gold_of(p))),
    "wrong_value": (changed_parameter(other_value), lambda p: any(c.arguments for c in gold_of(p))),
}
MUTANTS = 600  # of each kind


def expressed(calls: list[Call], draw: Draw) -> str:
    "Calls in a drawn style that can express them."
    python = all(is_name(c.name) and all(is_name(a) and "." not in a for a in c.arguments) for c in calls)
    text = write_calls(calls, draw(st.sampled_from([s for s in STYLES if python or s not in ("python", "python_lines")])))
    return draw(st.sampled_from(["", "", "<think>hm</think>\n"])) + text


@pytest.mark.parametrize("error", CALL_ERRORS)
def test_mutated_gold_answers_are_rejected_with_the_right_error(error):
    mutate, applies = MUTATIONS[error]
    pool, seen = [p for p in POOL if applies(p)], []

    @steady(MUTANTS)
    @given(st.data())
    def run(data):
        p = data.draw(st.sampled_from(pool))
        gold = gold_of(p)
        mutant = mutate(p, gold, data.draw)
        text = mutant if isinstance(mutant, str) else expressed(mutant, data.draw)
        verdict = verify_calls(p, text)
        assert (verdict.ok, verdict.error) == (False, error), (p.id, text[:2000], verdict)
        lenient = verify_calls(p, text, "bfcl")
        assert error == "wrong_value" or (lenient.ok, lenient.error) == (False, error), (p.id, text[:2000], lenient)
        seen.append(text)

    run()
    print(f"{error}: {len(seen)} mutants, {len(set(seen))} different, of {len(pool)} problems")
    assert len(seen) >= MUTANTS and len(set(seen)) > MUTANTS / 4 and len(pool) > 100


def test_there_is_a_mutation_for_every_error():
    assert set(MUTATIONS) == set(CALL_ERRORS) and MUTANTS * len(MUTATIONS) > 5000


# --- what equal means: an independent judge ---


def canonical(value: Any) -> Any:
    "A hashable form in which two JSON values are the same exactly if JSON Schema calls them equal."
    if isinstance(value, bool) or value is None:
        return type(value).__name__, value
    if isinstance(value, int | float):
        return "number", value
    if isinstance(value, str):
        return "string", tuple(map(ord, value))
    if isinstance(value, list):
        return "array", tuple(map(canonical, value))
    return "object", frozenset((key, canonical(v)) for key, v in value.items())


def judged_equal(a: Any, b: Any) -> bool:
    return canonical(a) == canonical(b)


scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, 0.5, -2.0, 2**53 + 1, float(2**53)])
scalars |= st.sampled_from(["", "1", "a", "A", "a ", "é", "e\u0301", "true", "null"])
small = st.recursive(
    scalars, lambda v: st.lists(v, max_size=2) | st.dictionaries(st.sampled_from("ab"), v, max_size=2), max_leaves=4
)
small_calls = st.lists(
    st.builds(Call, st.sampled_from("fg"), st.dictionaries(st.sampled_from("xy"), small, max_size=2)), max_size=4
)
FG = [tool("f"), tool("g"), tool("h")]


@steady(500)
@given(small_calls, st.data())
def test_strict_agrees_with_an_independent_judge(gold, data):
    wrote = data.draw(st.permutations(gold) | small_calls)
    if wrote and data.draw(st.booleans()):
        i = data.draw(st.integers(0, len(wrote) - 1))
        wrote = put(list(wrote), i, arguments=wrote[i].arguments | {"x": data.draw(small)})
    asked = problem("p", FG, [{"name": c.name, "arguments": c.arguments} for c in gold])
    right = Counter((c.name, canonical(c.arguments)) for c in gold) == Counter((c.name, canonical(c.arguments)) for c in wrote)
    verdict = verify_calls(asked, expressed(list(wrote), data.draw))
    assert verdict.ok == right, verdict
    if right:  # no declared integers here: whatever strict accepts, the looser rule accepts too
        assert verify_calls(asked, write_calls(wrote), "bfcl").ok


accepted = st.lists(st.sampled_from(["", "a", "A!", "b", 1, 2.0, True, None, [1], {"k": ["a", ""]}]), min_size=1, max_size=3)
listed_calls = st.lists(st.dictionaries(st.sampled_from("xy"), accepted, max_size=2), min_size=1, max_size=4)
given_values = st.sampled_from(["a", "A", "b", "", 1, 2, 2.0, True, None, [1], {"k": "a"}, {}])


def accepts(value: Any, choices: list) -> bool:
    "The `bfcl` rule for the few values above, written down case by case."
    for choice in choices:
        if isinstance(choice, dict):
            if value == {} or (isinstance(value, dict) and str(value["k"]).lower() == "a"):
                return True
        elif isinstance(value, str) and isinstance(choice, str):
            if value.lower() == choice.lower():
                return True
        elif (type(value) is type(choice) or {type(value), type(choice)} == {int, float}) and value == choice:
            return True
    return False


@steady(500)
@given(listed_calls, st.data())
def test_bfcl_finds_a_pairing_wherever_there_is_one(alternatives, data):
    one = st.dictionaries(st.sampled_from("xy"), given_values, max_size=2)
    size = len(alternatives)
    wrote = data.draw(st.lists(one, min_size=size, max_size=size))
    if data.draw(st.booleans()):  # mostly right ones
        right = [{k: data.draw(st.sampled_from(v)) for k, v in a.items()} for a in alternatives]
        wrote = [{k: {"k": "a"} if isinstance(v, dict) else v for k, v in a.items()} for a in data.draw(st.permutations(right))]
    asked = problem("p", FG, [], alternatives=[{"name": "f", "arguments": a} for a in alternatives])

    def fits(arguments: dict, wanted: dict) -> bool:
        given_ones = all(k in wanted and accepts(v, wanted[k]) for k, v in arguments.items())
        return given_ones and all(k in arguments or "" in v for k, v in wanted.items())

    found = any(all(map(fits, wrote, order)) for order in itertools.permutations(alternatives))
    verdict = verify_calls(asked, write_calls([Call("f", a) for a in wrote]), "bfcl")
    assert verdict.ok == found, (wrote, alternatives, verdict)


# --- reading and writing ---

markup = [
    *("<function=f>", "</function>", '<invoke name="f">', "<parameter=a>", "<arg_key>", "[THINK]", "<thinking>", "<channel|>"),
    "<tool_call>",
    "</tool_call>",
    "</think>",
    "<think>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "\n```\n",
    "</s>",
    "\\",
    "'",
    '"',
]
strings = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
strings |= st.lists(st.sampled_from([*markup, "{", "]", "f(x=1)", "\x00", "é", "\u2028", "<functioncall>", "😀"])).map("".join)
numbers = st.integers(-(10**300), 10**300) | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-5, 5)
values = st.recursive(
    st.none() | st.booleans() | numbers | strings,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(strings, v, max_size=3),
    max_leaves=8,
)
python_names = st.from_regex(r"[A-Za-zé_][A-Za-z0-9_]{0,5}", fullmatch=True).filter(lambda name: name not in JSON_WORDS)


@pytest.mark.parametrize("style", STYLES)
def test_what_is_written_is_read(style):
    names, parameters = strings.filter(bool), strings
    if style in ("python", "python_lines"):
        names, parameters = st.lists(python_names, min_size=1, max_size=3).map(".".join), python_names

    @steady(90)
    @given(st.lists(st.builds(Call, names, st.dictionaries(parameters, values, max_size=3)), max_size=3))
    def run(written):
        parsed = parse_calls(write_calls(written, style))
        assert parsed.error == ("" if written else "no_call") and parsed.style in PLACES
        # repr, since 1 == 1.0 == True in Python, and -0.0 == 0.0
        assert repr([(c.name, c.arguments) for c in parsed.calls]) == repr([(c.name, c.arguments) for c in written])

    run()


# --- the forms of model families that write no JSON: values without quotes get their type from the tool ---


def raw(value: Any) -> str:
    "As chat templates write a value between tags."
    return value if isinstance(value, str) else json.dumps(value)


def coder(call: Call) -> str:
    inside = "".join(f"<parameter={k}>\n{raw(v)}\n</parameter>\n" for k, v in call.arguments.items())
    return f"<tool_call>\n<function={call.name}>\n{inside}</function>\n</tool_call>"


def invoke(call: Call) -> str:
    inside = "".join(f'<x:parameter name="{k}">{raw(v)}</x:parameter>\n' for k, v in call.arguments.items())
    return f'<x:function_calls><x:invoke name="{call.name}">\n{inside}</x:invoke></x:function_calls>'


def glm(call: Call) -> str:
    pairs = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{raw(v)}</arg_value>\n" for k, v in call.arguments.items())
    return f"<tool_call>{call.name}\n{pairs}</tool_call>"


def gemma_value(value: Any) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{gemma_value(v)}" for k, v in value.items()) + "}"
    return "[" + ",".join(map(gemma_value, value)) + "]" if isinstance(value, list) else json.dumps(value)


def gemma(call: Call) -> str:
    return f"<|tool_call>call:{call.name}{gemma_value(call.arguments)}<tool_call|>"


def headed(before: str, after: str) -> Callable[[Call], str]:
    return lambda call: f"{before}{call.name}{after.replace('…', json.dumps(call.arguments))}"


NATIVE: dict[str, Callable[[Call], str]] = {
    "coder": coder,
    "coder alone": lambda call: coder(call)[12:-13],
    "invoke": invoke,
    "glm": glm,
    "gemma": gemma,
    "function tag": lambda call: f"<function={call.name}>{json.dumps(call.arguments)}</function>",
    "gpt-oss": headed("<|start|>assistant<|channel|>commentary to=functions.", " <|constrain|>json<|message|>…<|call|>"),
    "gpt-oss, its template": headed("<|start|>assistant to=functions.", "<|channel|>commentary json<|message|>…<|call|>"),
    "gpt-oss without special tokens": headed("assistantcommentary to=functions.", " json…"),
    "deepseek": headed("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n…\n```<｜tool▁call▁end｜>"),
    "deepseek 3.1": headed("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>…<｜tool▁call▁end｜>"),
    "kimi": headed("<|tool_call_begin|>functions.", ":0<|tool_call_argument_begin|>…<|tool_call_end|>"),
    "mistral": headed("[TOOL_CALLS]", "[CALL_ID]a1[ARGS]…"),
    "mistral without special tokens": headed("", "…"),
}
TYPED = tool("get.all-2", city="string", days="integer", share="number", exact="boolean", tags="array", where="object")
plain_text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(
    ["3", "true", "null", "", "[1]"]
)
plain_text |= st.sampled_from(["{a: 1}", '"x"', "<b>", "to=x", "call:y", "a\nb", "\n", "name: f(x=1)", "[f]"])
typed_values = {
    "city": plain_text,
    "days": st.integers(-(10**20), 10**20),
    "share": st.floats(allow_nan=False, allow_infinity=False),
    "exact": st.booleans(),
    "tags": st.lists(plain_text | st.integers(-5, 5), max_size=3),
    "where": st.dictionaries(python_names, plain_text | st.none() | st.booleans(), max_size=2),
}


@pytest.mark.parametrize("form", NATIVE)
def test_what_a_family_writes_is_read_with_its_types(form):
    @steady(120)
    @given(st.lists(st.fixed_dictionaries({}, optional=typed_values), min_size=1, max_size=3), st.booleans())
    def run(arguments, thinks):
        gold = [Call(TYPED["name"], a) for a in arguments]
        asked = problem("p", [TYPED], [{"name": c.name, "arguments": c.arguments} for c in gold])
        verdict = verify_calls(asked, ("<think>[get.all-2]</think>\n" if thinks else "") + "\n".join(map(NATIVE[form], gold)))
        assert verdict.ok, (verdict, "\n".join(map(NATIVE[form], gold)))

    run()


@pytest.mark.parametrize("form", NATIVE)
def test_no_text_near_a_familys_form_raises(form):
    text = NATIVE[form](Call("get.all-2", {"city": "Paris", "days": 3}))
    asked = problem("p", [TYPED], [{"name": "get.all-2", "arguments": {"city": "Paris", "days": 3}}])
    assert verify_calls(asked, text).ok
    for i in range(len(text)):
        for changed in (text[:i], text[i:], text[:i] + text[i + 1 :], text[:i] + "<" + text[i:], text[:i] + '"' + text[i:]):
            assert well_formed(verify_calls(asked, changed))


@pytest.mark.parametrize(
    "text",
    [
        *("[get_time]", '["get_time"]', "I will use:\n[get_time, get_weather].", "<get_time>", "<get_time/>", "</get_time>"),
        *('<get_time city="Paris">', '{"get_time": {"city": "Paris"}}', "[[get_time]]", "<tool_call>get_time</tool_call>"),
    ],
)
def test_a_bare_name_of_a_tool_is_an_attempt_to_call(text):
    nothing = problem("none", [WEATHER, CLOCK], [])
    for rule in CALL_RULES:
        assert not verify_calls(nothing, text, rule).ok
        assert verify_calls(nothing, text.replace("get_time", "no_tool").replace("get_weather", "no_tool"), rule).error in (
            "",
            "not_json",
        )


@pytest.mark.parametrize(
    "text", ["None of [get_time, get_weather] fits.", "`get_time` cannot do it.", "get_time (a clock)", "[]"]
)
def test_a_tool_that_is_only_talked_about_is_no_attempt(text):
    assert verify_calls(problem("none", [WEATHER, CLOCK], []), text).ok


def well_formed(verdict) -> bool:
    json.dumps([verdict.answer, verdict.detail], ensure_ascii=False).encode("utf-8")
    return verdict.ok == (verdict.error == "") and (verdict.ok or verdict.error in CALL_ERRORS)


noise = st.text(max_size=40) | st.lists(
    st.sampled_from(
        [*"[]{}(),:;=\"'\\ \n\ud83d", "name", "arguments", "f", "x", "1", "null", "None", *markup, "```json", "1e999"]
    )
).map("".join)


@steady(1000)
@given(noise)
def test_no_text_raises_and_every_refusal_has_a_type(text):
    for rule in CALL_RULES:
        assert well_formed(verify_calls(OWN[0], text, rule))


@steady(700)
@given(st.sampled_from(POOL), st.data())
def test_no_splice_of_valid_answers_raises(p, data):
    text = expressed(gold_of(p), data.draw)
    for _ in range(data.draw(st.integers(1, 3))):
        i, j = sorted(data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        text = text[:i] + data.draw(st.sampled_from(["", text[j:], text[i:j], *markup]) | noise) + text[j:]
    for rule in CALL_RULES:
        assert well_formed(verify_calls(p, text, rule))


@pytest.mark.parametrize("text", [None, 5, b"[f(x=1)]", ["f"]])
def test_what_is_not_a_text_is_no_call(text):
    assert verify_calls(OWN[0], text).error == "no_call" == verify_calls(problem("none", FG, []), text).error


def test_calls_are_read_with_little_stack_left():
    text = '{"name": "f", "arguments": ' * 40

    def down(levels: int) -> Any:
        return down(levels - 1) if levels else verify_calls(OWN[0], text)

    assert down(sys.getrecursionlimit() - 300).error == "too_long"


# --- BFCL's own rows and its own checker ---


def schema_of(spec: dict) -> dict:
    "BFCL's schema with JSON Schema's names of types."
    kinds = {"dict": "object", "float": "number", "tuple": "array"}
    out = {k: v for k, v in spec.items() if k in ("required", "description")} | {
        "type": kinds.get(spec.get("type"), spec.get("type"))
    }
    if out["type"] == "any":
        del out["type"]
    if isinstance(spec.get("items"), dict):
        out["items"] = schema_of(spec["items"])
    if isinstance(spec.get("properties"), dict):
        out["properties"] = {k: schema_of(v) for k, v in spec["properties"].items()}
    return out


def bfcl_rows() -> Iterator[tuple[dict, dict]]:
    for file in RAW_FILES:
        yield from zip(records(FOLDER / "bfcl/raw" / file.name), records(file), strict=True)


def from_bfcl(row: dict, truth: dict) -> Problem:
    tools = [{"name": f["name"], "description": "", "parameters": schema_of(f["parameters"])} for f in row["function"]]
    taken = {t["name"]: t["parameters"]["properties"] for t in tools}  # two rows list parameters that no tool takes
    calls = [(name, a) for call in truth["ground_truth"] for name, a in call.items()]
    alternatives = [{"name": name, "arguments": {k: v for k, v in a.items() if k in taken[name]}} for name, a in calls]
    return problem(row["id"], tools, [], alternatives=alternatives)


def choose(accepted: Any, pick: Callable[[list], Any], needed: bool = False) -> Any:
    "One accepted value, objects resolved in the same way; `...` where the parameter is left out."

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            chosen = {k: choose(v, pick) for k, v in value.items()}
            return {k: v for k, v in chosen.items() if v is not ...}
        return [resolve(v) for v in value] if isinstance(value, list) else value

    if not accepted:
        return ...
    value = pick([v for v in accepted if v != ""] or accepted if needed else accepted)
    return ... if value == "" and not needed else resolve(value)


def answers(p: Problem, pick: Callable[[list], Any]) -> list[Call]:
    out = []
    for call in p.data["alternatives"]:
        schema = next(t["parameters"] for t in p.data["tools"] if t["name"] == call["name"])
        needed = schema.get("required", [])
        chosen = {name: choose(accepted, pick, name in needed) for name, accepted in call["arguments"].items()}
        out.append(Call(call["name"], {k: v for k, v in chosen.items() if v is not ...}))
    return out


def first(accepted: list) -> Any:
    return accepted[0]


@needs_raw
def test_accepted_values_of_every_bfcl_row_verify():
    rows = texts = 0
    for row, truth in bfcl_rows():
        p, rng = from_bfcl(row, truth), random.Random(row["id"])
        rows += 1
        for pick in (first, lambda accepted: accepted[-1], *[rng.choice] * 4):
            calls = answers(p, pick)
            rng.shuffle(calls)
            verdict = verify_calls(p, write_calls(calls, "tool_call"), "bfcl")
            assert verdict.ok, (p.id, verdict)
            texts += 1
    print(f"{rows} BFCL rows with alternatives, {texts} texts")
    assert rows == 1298


@needs_raw
def test_answers_outside_the_alternatives_are_refused():
    "Every parameter of every row, one at a time: left out, of a wrong type, with a value that is nowhere accepted."
    checked = Counter()
    for row, truth in bfcl_rows():
        p = from_bfcl(row, truth)
        calls = answers(p, first)
        for i, c in enumerate(calls):
            twins = sum(d.name == c.name for d in calls) > 1  # then the mutant may be right for another call
            for name in () if twins else c.arguments:
                choices = p.data["alternatives"][i]["arguments"][name]
                rest = {k: v for k, v in c.arguments.items() if k != name}
                mutants = {"wrong_value": c.arguments | {name: FAR}} if any(isinstance(x, str) and x for x in choices) else {}
                mutants["wrong_type"] = c.arguments | {name: [[FAR]] if not isinstance(choices[0], list) else FAR}
                mutants["extra_parameter"] = c.arguments | {FAR: 1}
                if "" not in choices:
                    mutants["missing_parameter"] = rest
                for error, arguments in mutants.items():
                    verdict = verify_calls(p, write_calls(put(calls, i, arguments=arguments)), "bfcl")
                    lists = {type(x) for x in choices} & {list, str} if error == "wrong_type" else set()
                    allowed = {error, "wrong_value"} if lists else {error}
                    assert not verdict.ok and verdict.error in allowed, (p.id, name, choices, arguments, verdict)
                    checked[error] += 1
    print(dict(checked))
    assert sum(checked.values()) > 5000


def original_checker(path: str) -> Callable[..., dict]:
    "BFCL's `ast_checker`, loaded from a copy of its file, with stand-ins for the rest of its package."
    language = types.SimpleNamespace(JAVA=1, JAVASCRIPT=2, PYTHON=3)
    stands = {
        "bfcl_eval.constants.enums": {"Language": language},
        "bfcl_eval.constants.model_config": {"MODEL_CONFIG_MAPPING": {"m": types.SimpleNamespace(underscore_to_dot=False)}},
        "bfcl_eval.constants.type_mappings": {"JAVA_TYPE_CONVERSION": {}, "JS_TYPE_CONVERSION": {}},
        "bfcl_eval.eval_checker.ast_eval.type_convertor.java_type_converter": {"java_type_converter": None},
        "bfcl_eval.eval_checker.ast_eval.type_convertor.js_type_converter": {"js_type_converter": None},
    }
    for name, content in stands.items():
        for i in range(1, name.count(".") + 2):
            sys.modules.setdefault(".".join(name.split(".")[:i]), types.ModuleType(name))
        vars(sys.modules[name]).update(content)
    spec = importlib.util.spec_from_file_location("ast_checker", path)
    original = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(original)
    return lambda row, calls, truth: original.ast_checker(row["function"], calls, truth, 3, row["id"].rsplit("_", 1)[0], "m")


def varied(value: Any, rng: random.Random) -> Any:
    "A value as it is, or changed in one of the ways in which the rules may differ."
    if isinstance(value, bool):
        return rng.choice([value, not value, str(value), int(value)])
    if isinstance(value, int | float):
        return rng.choice([value, float(value), value + 1, str(value), int(value)])
    if isinstance(value, str):
        return rng.choice(
            [value, value.upper(), value.replace(" ", ""), value + ".", value + "x", [value], value.replace("'", '"')]
        )
    if isinstance(value, list) and value:
        return rng.choice([value, value[::-1], value[1:], [varied(value[0], rng), *value[1:]], str(value)])
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        return rng.choice([value, {k: v for k, v in value.items() if k != key}, value | {key: varied(value[key], rng)}])
    return rng.choice([value, None, ""])


EXPLAINED = {  # rows in which the two may differ, as the notebook's table says
    **dict.fromkeys(("live_simple_106-63-0", "live_simple_112-68-0"), "a parameter for which no value is accepted"),
    **dict.fromkeys(("live_simple_116-72-0", "simple_python_82"), "a whole number for a float in a list"),
    **dict.fromkeys(("live_simple_44-18-0", "live_simple_45-18-1", "simple_python_122"), "a float for a whole number, nested"),
    "parallel_multiple_21": "a text where the tool declares a list",
    "simple_python_149": "a text in a list in a list",
}


@needs_raw
@pytest.mark.skipif(
    "R3_BFCL_CHECKER" not in os.environ,
    reason="R3_BFCL_CHECKER does not name a copy of BFCL's ast_checker.py: the rule `bfcl` is not compared with the original",
)
def test_bfcl_agrees_with_the_original():
    check, compared, accepted, differ = original_checker(os.environ["R3_BFCL_CHECKER"]), 0, 0, []
    for row, truth in bfcl_rows():
        p, rng = from_bfcl(row, truth), random.Random(row["id"])
        for _ in range(10):
            calls = answers(p, rng.choice)
            for i, c in enumerate(calls):
                if c.arguments and rng.random() < 0.8:
                    name = rng.choice(list(c.arguments))
                    changed = c.arguments | {name: varied(c.arguments[name], rng)}
                    calls = put(calls, i, arguments={k: v for k, v in changed.items() if k != name or rng.random() < 0.9})
            theirs = check(row, [{c.name: c.arguments} for c in calls], truth["ground_truth"])
            ours = verify_calls(p, write_calls(calls), "bfcl")
            compared, accepted = compared + 1, accepted + ours.ok
            if ours.ok != theirs["valid"]:
                differ.append((row["id"], calls, ours.detail, str(theirs["error"])[:300]))
    print(f"{compared} answers compared, {accepted} accepted, {len(differ)} judged differently: {Counter(d[0] for d in differ)}")
    assert compared == 12_980 and 3000 < accepted < 10_000
    assert [d for d in differ if d[0] not in EXPLAINED] == [] and len(differ) < 30
