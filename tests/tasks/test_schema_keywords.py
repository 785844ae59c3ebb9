"""JSON Schema's keywords in tools: kept and shown, references resolved, rows refused for the true reason alone."""

import json
from collections import Counter
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from r3_repro.tasks.function_calling.rows import call_row
from r3_repro.tasks.function_calling.schema import MOST_SCHEMAS, Unusable, make_tools
from r3_repro.tasks.function_calling.task import TASK, sort_out

STRING = {"type": "string"}
UNIT = {"type": "string", "enum": ["celsius", "fahrenheit"]}
NODE = {"type": "object", "properties": {"name": STRING, "below": {"type": "array", "items": {"$ref": "#/$defs/Node"}}}}
EVEN = {"type": "object", "properties": {"odd": {"$ref": "#/$defs/Odd"}}}
ODD = {"type": "object", "properties": {"even": {"$ref": "#/$defs/Even"}}}


def taking(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


# kind: (the parameters of a tool, the arguments of the right call, what a model has to be shown)
KINDS: dict[str, tuple[dict, dict, list[str]]] = {
    "anyOf with null": (
        taking(unit={"anyOf": [UNIT, {"type": "null"}], "default": None}),
        {"unit": "celsius"},
        ["fahrenheit", "null"],
    ),
    "anyOf of two types": (
        taking(x={"anyOf": [{"type": "integer"}, {"type": "array", "items": STRING}]}),
        {"x": ["a"]},
        ["integer", "array"],
    ),
    "oneOf of const": (taking(mode={"oneOf": [{"const": "on"}, {"const": "off"}]}), {"mode": "on"}, ["on", "off"]),
    "const": (taking(version={"const": 2}), {"version": 2}, ["const"]),
    "allOf with one reference": (
        taking(unit={"allOf": [{"$ref": "#/$defs/U"}]}) | {"$defs": {"U": UNIT}},
        {"unit": "celsius"},
        ["celsius"],
    ),
    "enum behind a reference": (taking(unit={"$ref": "#/$defs/U"}) | {"$defs": {"U": UNIT}}, {"unit": "celsius"}, ["fahrenheit"]),
    "object behind a reference": (
        taking(pax={"type": "array", "items": {"$ref": "#/$defs/P"}})
        | {"$defs": {"P": taking(name=STRING, age={"type": "integer"})}},
        {"pax": [{"name": "A", "age": 3}]},
        ["name", "age"],
    ),
    "reference with words beside it": (
        taking(unit={"$ref": "#/$defs/U", "description": "which scale", "default": "celsius"}) | {"$defs": {"U": UNIT}},
        {"unit": "celsius"},
        ["which scale", "fahrenheit"],
    ),
    "reference with a keyword beside it": (
        taking(unit={"$ref": "#/$defs/U", "enum": ["celsius"]}) | {"$defs": {"U": UNIT}},
        {"unit": "celsius"},
        ["allOf", "fahrenheit"],
    ),
    "references in a row": (
        taking(a={"$ref": "#/$defs/A"}) | {"$defs": {"A": {"$ref": "#/$defs/B"}, "B": UNIT}},
        {"a": "celsius"},
        ["fahrenheit"],
    ),
    "definitions of draft 7": (
        taking(u={"$ref": "#/definitions/U"}) | {"definitions": {"U": UNIT}},
        {"u": "celsius"},
        ["fahrenheit"],
    ),
    "a reference to a property": (taking(a=UNIT, b={"$ref": "#/properties/a"}), {"a": "celsius", "b": "celsius"}, ["celsius"]),
    "an anchor": (taking(u={"$ref": "#unit"}) | {"$defs": {"U": UNIT | {"$anchor": "unit"}}}, {"u": "celsius"}, ["fahrenheit"]),
    "additionalProperties with a schema": (
        taking(labels={"type": "object", "additionalProperties": STRING}),
        {"labels": {"a": "b"}},
        ["additionalProperties"],
    ),
    "additionalProperties of the tool": ({"type": "object", "additionalProperties": {"type": "integer"}}, {"x": 1}, ["integer"]),
    "additionalProperties false": (taking(a=STRING) | {"additionalProperties": False}, {"a": "x"}, ["additionalProperties"]),
    "patternProperties": (
        taking(env={"type": "object", "patternProperties": {"^[A-Z]+$": STRING}}),
        {"env": {"HOME": "/"}},
        ["^[A-Z]+$"],
    ),
    "patternProperties of the tool": ({"type": "object", "patternProperties": {"^x-": STRING}}, {"x-a": "1"}, ["^x-"]),
    "nullable": (taking(note=STRING | {"nullable": True}), {"note": "x"}, ["nullable"]),
    "a list of types": (taking(x={"type": ["string", "integer", "null"]}), {"x": 3}, ["string", "integer", "null"]),
    "no top-level type": ({"properties": {"city": STRING}, "required": ["city"]}, {"city": "Rome"}, ["city"]),
    "no top-level type and no parameters": ({"properties": {}, "additionalProperties": False}, {}, ["additionalProperties"]),
    "a list as the top-level type": ({"type": ["object", "null"], "properties": {"city": STRING}}, {"city": "Rome"}, ["city"]),
    "a top-level reference": ({"$ref": "#/$defs/Args", "$defs": {"Args": taking(city=STRING)}}, {"city": "Rome"}, ["city"]),
    "a top-level allOf": (
        {"allOf": [{"$ref": "#/$defs/Base"}, taking(city=STRING)], "$defs": {"Base": taking(key=STRING)}},
        {"key": "k", "city": "Rome"},
        ["key", "city"],
    ),
    "a top-level oneOf": ({"type": "object", "oneOf": [taking(a=STRING), taking(b=STRING)]}, {"b": "x"}, ['"a"', '"b"']),
    "prefixItems": (
        taking(at={"type": "array", "prefixItems": [{"type": "number"}, STRING]}),
        {"at": [1.5, "N"]},
        ["prefixItems"],
    ),
    "not": (taking(x=STRING | {"not": {"enum": ["root"]}}), {"x": "me"}, ["root"]),
    "if and then": (
        taking(a=STRING) | {"if": {"required": ["a"]}, "then": {"properties": {"b": UNIT}}},
        {"a": "x"},
        ["fahrenheit"],
    ),
    "what only then holds": (
        taking(a=STRING) | {"if": {"required": ["a"]}, "then": {"properties": {"b": UNIT}}},
        {"a": "x", "b": "celsius"},
        ["fahrenheit"],
    ),
    "dependencies of draft 7": (
        taking(a=STRING) | {"dependencies": {"a": {"properties": {"b": UNIT}}, "b": ["a"]}},
        {"a": "x", "b": "celsius"},
        ["dependentSchemas", "dependentRequired", "fahrenheit"],
    ),
    "patterns and nothing else": (
        {"type": "object", "patternProperties": {"^x": STRING}, "additionalProperties": False},
        {"x1": "a"},
        ["patternProperties", "additionalProperties"],
    ),
    "keywords filled with null": (
        taking(unit=UNIT | {"anyOf": None, "const": None, "$ref": None, "items": None}) | {"$defs": None, "oneOf": None},
        {"unit": "celsius"},
        ["fahrenheit"],
    ),
    "bounds": (
        taking(n={"type": "integer", "exclusiveMinimum": 0, "multipleOf": 5}),
        {"n": 5},
        ["exclusiveMinimum", "multipleOf"],
    ),
    "lengths": (taking(s=STRING | {"minLength": 2, "maxLength": 4}), {"s": "abc"}, ["minLength", "maxLength"]),
    "a tree": (
        taking(root={"$ref": "#/$defs/Node"}) | {"$defs": {"Node": NODE}},
        {"root": {"name": "a", "below": []}},
        ["$defs", "below"],
    ),
    "two that refer to each other": (
        taking(e={"$ref": "#/$defs/Even"}, o={"$ref": "#/$defs/Odd"}) | {"$defs": {"Even": EVEN, "Odd": ODD}},
        {"e": {"odd": {}}, "o": {}},
        ["$defs", "even", "odd"],
    ),
    "the whole, as a tree": (
        {"type": "object", "properties": {"name": STRING, "child": {"$ref": "#"}}},
        {"child": {"name": "b"}},
        ["$defs", "child"],
    ),
}


def row(parameters: Any, arguments: dict, key: str = "parameters") -> dict[str, Any]:
    tool = {"name": "f", "description": "", key: parameters}
    return {"query": "q", "tools": json.dumps([tool]), "answers": json.dumps([{"name": "f", "arguments": arguments}])}


def loose_references(value: Any, root: dict) -> list[str]:
    "References in a schema that lead to nothing in it."
    if isinstance(value, list):
        return [r for v in value for r in loose_references(v, root)]
    if not isinstance(value, dict):
        return []
    own = value.get("$ref")
    loose = [own] if isinstance(own, str) and own.removeprefix("#/$defs/") not in root.get("$defs", {}) else []
    return loose + [r for v in value.values() for r in loose_references(v, root)]


@pytest.mark.parametrize("key", ["parameters", "inputSchema", "input_schema"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_source_says_is_shown_and_the_right_call_is_right(kind: str, key: str) -> None:
    parameters, arguments, shown = KINDS[kind]
    notes: Counter[tuple[str, str]] = Counter()
    problem = call_row(row(parameters, arguments, key), notes)
    assert not notes, "nothing is odd about it"
    made = problem.data["tools"][0]["parameters"]
    assert [word for word in shown if word not in json.dumps(made)] == []
    assert made["type"] == "object" and isinstance(made["properties"], dict) and isinstance(made["required"], list)
    Draft202012Validator.check_schema(made)
    Draft202012Validator(made).validate(arguments)
    assert loose_references(made, made) == []
    assert make_tools([{"name": "f", "parameters": made}], Counter())[0]["parameters"] == made, "what is finished stays as it is"
    said = json.dumps([{"name": "f", "arguments": arguments}])
    assert all(TASK.verify(problem, said, rule).ok for rule in TASK.rules)


def doubling(n: int) -> dict[str, Any]:
    "n definitions, each with two references to the next one: 2**n schemas when written out."
    defs = {f"d{i}": {"properties": {k: {"$ref": f"#/$defs/d{i + 1}"} for k in "ab"}} for i in range(n)}
    return taking(x={"$ref": "#/$defs/d0"}) | {"$defs": defs | {f"d{n}": STRING}}


LOOP = {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}
CHAIN = {f"c{i}": {"$ref": f"#/$defs/c{i + 1}"} for i in range(2000)} | {"c2000": STRING}
BROKEN: dict[str, tuple[Any, str, str]] = {
    "nowhere": (taking(u={"$ref": "#/$defs/U"}), "broken_reference", '"#/$defs/U" leads to nothing'),
    "another document": (
        taking(u={"$ref": "https://example.com/u.json"}),
        "broken_reference",
        "leads to nothing in the parameters",
    ),
    "a file": (taking(u={"$ref": "file:///etc/passwd"}), "broken_reference", "leads to nothing in the parameters"),
    "into a text": (taking(u={"$ref": "#/type/0/x"}), "broken_reference", "leads to nothing"),
    "no text": (taking(u={"$ref": 5}), "broken_reference", "5 leads to nothing"),
    "itself": (taking(u={"$ref": "#/$defs/A"}) | {"$defs": {"A": {"$ref": "#/$defs/A"}}}, "broken_reference", "but itself"),
    "round in a circle": (taking(u={"$ref": "#/$defs/A"}) | {"$defs": LOOP}, "broken_reference", "but itself"),
    "the whole is itself": ({"$ref": "#"}, "too_long", "nested more than 20 levels"),
    "doubling": (doubling(18), "too_long", f"more than {MOST_SCHEMAS:,} schemas"),
    "doubling at the top": ({"allOf": [{"$ref": "#"}] * 10}, "too_long", "nested more than 20 levels"),
    "a long chain": (taking(u={"$ref": "#/$defs/c0"}) | {"$defs": CHAIN}, "too_long", "nested more than 20 levels"),
    "not an object": ({"$ref": "#/$defs/U", "$defs": {"U": UNIT}}, "wrong_shape", "nor the JSON schema of an object"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_reference_that_cannot_be_followed_refuses_its_row_alone(kind: str) -> None:
    parameters, reason, detail = BROKEN[kind]
    good = row(taking(city=STRING), {"city": "Rome"})
    loaded = sort_out([("a:1", good), ("a:2", row(parameters, {}))])
    assert [(r.row, r.reason) for r in loaded.refused] == [("a:2", reason)] and detail in loaded.refused[0].detail
    assert len(loaded.problems) == 1


@pytest.mark.parametrize(
    ("parameters", "arguments", "reason"),
    [
        (taking(a=STRING) | {"additionalProperties": False}, {"a": "x", "b": 1}, "unknown_parameter"),
        (taking(a=STRING), {"a": "x", "b": 1}, "unknown_parameter"),
        ({"allOf": [taking(key=STRING), taking(city=STRING)]}, {"city": "Rome"}, "missing_required"),
        (taking(x={"anyOf": [{"type": "integer"}, {"type": "null"}]}), {"x": [1]}, "wrong_type"),
        (taking(x={"$ref": "#/$defs/X"}) | {"$defs": {"X": {"type": "array"}}}, {"x": 1}, "wrong_type"),
    ],
)
def test_a_call_that_contradicts_them_is_refused(parameters: dict, arguments: dict, reason: str) -> None:
    with pytest.raises(Unusable) as raised:
        call_row(row(parameters, arguments))
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("schema", "value", "note"),
    [
        ({"$ref": "#/$defs/U"}, "kelvin", "outside_enum"),
        ({"anyOf": [UNIT, {"type": "null"}]}, "kelvin", "outside_enum"),
        ({"const": 2}, 3, "outside_enum"),
        ({"anyOf": [{"type": "integer"}, {"type": "boolean"}]}, "x", "argument_type"),
        ({"type": ["integer", "null"]}, "x", "argument_type"),
        ({"type": "integer"}, None, "null_argument"),
        ({"type": "string", "x-order": 1}, "a", "dropped_keyword"),
    ],
)
def test_what_is_odd_behind_a_keyword_is_noted(schema: dict, value: Any, note: str) -> None:
    notes: Counter[tuple[str, str]] = Counter()
    call_row(row(taking(x=schema) | {"$defs": {"U": UNIT}}, {"x": value}), notes)
    assert [n for n, _ in notes] == [note]


# ── What the matcher makes of it, under BFCL's rule ────────────────────────────────────────────────────────────────────


def accepts(schema: dict, accepted: list, written: Any) -> bool:
    truth = [{"f": {"x": accepted}}]
    problem = call_row(
        {"id": "1", "question": "q", "function": [{"name": "f", "parameters": taking(x=schema)}], "ground_truth": truth}
    )
    return TASK.verify(problem, json.dumps([{"name": "f", "arguments": {"x": written}}]), "bfcl").ok


INTEGER, NUMBER, NULL = {"type": "integer"}, {"type": "number"}, {"type": "null"}


@pytest.mark.parametrize(
    "whole", [INTEGER, {"anyOf": [INTEGER, NULL]}, {"type": ["integer", "null"]}, INTEGER | {"nullable": True}]
)
def test_a_float_for_an_integer(whole: dict) -> None:
    assert accepts(whole, [5], 5) and not accepts(whole, [5], 5.0)


@pytest.mark.parametrize(
    "number", [NUMBER, {"anyOf": [INTEGER, NUMBER]}, {"oneOf": [NUMBER, NULL]}, {"type": ["number", "null"]}]
)
def test_a_float_for_a_number(number: dict) -> None:
    assert accepts(number, [5], 5) and accepts(number, [5], 5.0)


@pytest.mark.parametrize("items", [INTEGER, {"anyOf": [INTEGER, NULL]}])
def test_a_float_for_an_integer_in_a_list(items: dict) -> None:
    for schema in ({"type": "array", "items": items}, {"anyOf": [{"type": "array", "items": items}, NULL]}):
        assert accepts(schema, [[5]], [5]) and not accepts(schema, [[5]], [5.0])


@pytest.mark.parametrize("union", [{"anyOf": [INTEGER, NULL]}, {"type": ["integer", "boolean"]}])
def test_an_empty_text_is_a_value_only_where_texts_are(union: dict) -> None:
    assert not accepts(union, [5, ""], "")
    assert accepts({"anyOf": [INTEGER, STRING]}, [5, ""], "") and accepts(STRING, ["a", ""], "")
