"""Function calling: real rows of xLAM, ToolAlpaca and BFCL, broken rows of every kind, sources, split, statistics."""

import json
import random
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from support import DATA

from r3_repro.tasks.base import get_task
from r3_repro.tasks.function_calling import task
from r3_repro.tasks.function_calling.rows import NOTES, REASONS, call_row
from r3_repro.tasks.function_calling.schema import DEEPEST, LONGEST, Unusable, read_type
from r3_repro.tasks.function_calling.task import (
    CALL_OPTIONS,
    HUB,
    PAPER_STATISTICS,
    TASK,
    _file,
    _read,
    call_histograms,
    call_problems,
    call_statistics,
    compare_with_paper,
    load_call_rows,
    notes,
    refusals,
    sort_out,
    tool_schemas,
)

ROWS = DATA / "data"
RAW = ROWS / "bfcl/raw"


def real(path: str) -> Path:
    "A file of real rows, or a skip that says which one is missing."
    if not (ROWS / path).exists():
        pytest.skip(f"no {path}: these real rows are not compared")
    return ROWS / path


# ── Real rows ──────────────────────────────────────────────────────────────────────────────────────────────────────

# file: (rows loaded, {reason: rows refused}, {note: how often}); a change here changes what is trained and tested on
REAL: dict[str, tuple[int, dict[str, int], dict[str, int]]] = {
    "xlam/xlam_quoted_rows.jsonl": (10, {}, {"default_type": 4}),
    "xlam/hammer_masked_xlam_10.jsonl": (10, {}, {"default_type": 35, "argument_type": 3, "same_name": 1}),
    "xlam/hammer_toolalpaca_xlam_schema.jsonl": (106, {"unknown_tool": 6, "wrong_type": 2}, {"argument_type": 3}),
    "bfcl/bfcl_xlam_schema.jsonl": (
        1518,
        {"missing_required": 7, "wrong_type": 1},
        {"default_type": 42, "argument_type": 5},
    ),
    "bfcl/raw/BFCL_v4_simple_python.jsonl": (400, {}, {"default_type": 5}),
    "bfcl/raw/BFCL_v4_multiple.jsonl": (200, {}, {"default_type": 11}),
    "bfcl/raw/BFCL_v4_parallel.jsonl": (200, {}, {"default_type": 5}),
    "bfcl/raw/BFCL_v4_parallel_multiple.jsonl": (
        199,
        {"wrong_type": 1},
        {"default_type": 1, "argument_type": 5, "unknown_alternative": 2},
    ),
    "bfcl/raw/BFCL_v4_live_simple.jsonl": (256, {"missing_required": 2}, {}),
    "bfcl/raw/BFCL_v4_live_parallel.jsonl": (16, {}, {}),
    "bfcl/raw/BFCL_v4_live_parallel_multiple.jsonl": (24, {}, {"default_type": 5, "outside_enum": 1}),
    "bfcl/raw/BFCL_v4_irrelevance.jsonl": (240, {}, {"default_type": 17}),
    "bfcl/raw": (
        1535,
        {"missing_required": 2, "wrong_type": 1},
        {"default_type": 44, "argument_type": 5, "unknown_alternative": 2, "outside_enum": 1},
    ),
}


@pytest.mark.parametrize("path", REAL)
def test_real_rows_load_or_are_refused_with_a_reason(path: str) -> None:
    found, refused = load_call_rows(real(path))
    odd = notes(real(path)).groupby("note")["count"].sum().to_dict()
    counts = (len(found), dict(Counter(r.reason for r in refused)), odd)
    print(path, *counts)
    assert counts == REAL[path]
    if (ROWS / path).is_file():
        lines = [line for line in (ROWS / path).read_text("utf-8").split("\n") if line.strip()]
        assert len(found) + len(refused) == len(lines)
    table = refusals(real(path))
    assert list(table.columns) == ["row", "id", "reason", "detail"] and len(table) == len(refused)
    assert set(table["reason"]) <= set(REASONS) and set(odd) <= set(NOTES)


@pytest.mark.parametrize("path", REAL)
def test_what_is_loaded_has_the_promised_shape(path: str) -> None:
    for p in load_call_rows(real(path))[0]:
        assert json.loads(p.dumps()) == p.data and set(p.data) - {"alternatives"} == {"query", "tools", "answers"}
        assert ("alternatives" in p.data) == path.startswith("bfcl/raw")
        tools: dict[str, Any] = {t["name"]: t["parameters"] for t in p.data["tools"]}
        for tool in p.data["tools"]:
            assert set(tool) == {"name", "description", "parameters"} and isinstance(tool["description"], str)
            check_schema(tool["parameters"])
        for call in p.data["answers"]:
            assert set(call) == {"name", "arguments"}
            taken = tools[call["name"]]
            assert set(taken["required"]) <= set(call["arguments"]) <= set(taken["properties"])
        assert [s["function"] for s in tool_schemas(p)] == p.data["tools"]
        assert TASK.prompt(p) == p.data["query"] and p.data["query"].strip()


ANYTHING = ("enum", "default", "format", "minimum", "maximum", "minItems", "maxItems", "pattern", "example")  # kept as they are


def check_schema(schema: dict) -> None:
    "A normalised schema is JSON schema, and requires only what is there."
    Draft202012Validator.check_schema({k: v for k, v in schema.items() if k not in ANYTHING})  # and all schemas in it
    check_required(schema)


def check_required(schema: dict) -> None:
    assert set(schema.get("required", [])) <= set(schema.get("properties", schema.get("required", [])))
    for inner in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
        check_required(inner)


@pytest.mark.parametrize("path", REAL)
def test_the_verifier_accepts_the_answers_of_real_rows(path: str) -> None:
    for p in load_call_rows(real(path))[0]:
        said = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in p.data["answers"])
        said = said or "None of the tools fits."
        for rule in TASK.rules:
            verdict = TASK.verify(p, said, rule)
            assert verdict.ok, f"{p.id} under {rule}: {verdict} of {said}"


def test_known_real_rows() -> None:
    by_query = {p.data["query"]: p for p in load_call_rows(real("xlam/xlam_quoted_rows.jsonl"))[0]}
    peak = next(p for q, p in by_query.items() if q.startswith("Determine the peak"))
    first, second = (t["parameters"] for t in peak.data["tools"])
    assert first["properties"]["nums"] == {"type": "array", "items": {"type": "integer"}, "description": "The list of integers."}
    assert first["required"] == ["nums"] and second["required"] == []  # both parameters of the second have defaults
    assert peak.data["answers"][1] == {"name": "light_travel_time", "arguments": {"distance_in_light_years": 25}}


def test_the_mapped_bfcl_rows_agree_with_ours() -> None:
    "An independent mapping of BFCL to xLAM's schema differs only where it leaves out what the tool requires."
    mapped = {r["id"]: r for r in map(json.loads, real("bfcl/bfcl_xlam_schema.jsonl").read_text("utf-8").splitlines())}
    same, refused, different = 0, [], []
    for _, row in [r for f in sorted(real("bfcl/raw").glob("*.jsonl")) for r in _file(f)]:
        try:
            p = call_row(row)
        except Unusable:
            refused.append(row["id"])
            continue
        if row["id"] not in mapped:
            assert len(row["question"][0]) == 2, "only rows with a system message are left out of the mapping"
        elif json.loads(mapped[row["id"]]["answers"]) == p.data["answers"] and mapped[row["id"]]["query"] == p.data["query"]:
            same += 1
        else:
            different.append(row["id"])
    assert same == 1518 and len(mapped) == same + len(refused) + len(different)
    assert refused == ["live_simple_106-63-0", "live_simple_112-68-0", "parallel_multiple_21"]
    lacking = refusals(ROWS / "bfcl/bfcl_xlam_schema.jsonl").query("reason == 'missing_required'")["id"]
    assert sorted(different) == sorted(set(lacking) - set(refused))


def test_a_system_message_stands_before_the_query() -> None:
    found = {p.data["query"] for p in load_call_rows(real("bfcl/raw/BFCL_v4_live_simple.jsonl"))[0]}
    assert sum(q.startswith("Please act like the current date is 2024/02/21\n\n") for q in found) == 3


def test_a_bfcl_file_without_its_answers_is_not_one_where_nothing_is_right(tmp_path: Path) -> None:
    text = real("bfcl/raw/BFCL_v4_multiple.jsonl").read_text("utf-8")
    (tmp_path / "BFCL_v4_multiple.json").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"not one usable row of 200: {'no_ground_truth': 200}.*possible_answer/"):
        load_call_rows(tmp_path / "BFCL_v4_multiple.json")
    (tmp_path / "possible_answer").mkdir()
    answers = (RAW / "possible_answer/BFCL_v4_multiple.jsonl").read_text("utf-8").split("\n")
    (tmp_path / "possible_answer/BFCL_v4_multiple.json").write_text("\n".join(["{", *answers[1:]]), "utf-8")
    # read again: the answers beside the file are part of the source
    found, refused = load_call_rows(tmp_path / "BFCL_v4_multiple.json")
    assert len(found) == 199 and [(r.id, r.reason) for r in refused] == [("multiple_0", "no_ground_truth")]
    assert found == load_call_rows(RAW / "BFCL_v4_multiple.jsonl")[0][1:]
    assert load_call_rows(tmp_path)[0] == found  # and the folder


# ── Broken rows ────────────────────────────────────────────────────────────────────────────────────────────────────

TOOL = {"name": "f", "description": "d", "parameters": {"x": {"type": "int", "description": "x"}, "y": {"type": "str, optional"}}}
ROW = {"id": 1, "query": "Do f with 5.", "tools": [TOOL], "answers": [{"name": "f", "arguments": {"x": 5}}]}
LIST_TOOL = TOOL | {"parameters": {"x": {"type": "List[int]"}}}
OTHER_F = TOOL | {"parameters": {"z": {"type": "int"}}}
SCHEMA = {"type": "dict", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
BFCL = {
    "id": "simple_0",
    "question": [[{"role": "user", "content": "Do f with 5."}]],
    "function": [{"name": "f", "description": "d", "parameters": SCHEMA}],
    "ground_truth": [{"f": {"x": [5]}}],
}


def calling(*calls: Any) -> dict:
    return ROW | {"answers": list(calls)}


def f(**arguments: Any) -> dict:
    return {"name": "f", "arguments": arguments}


def said(*roles: str) -> dict:
    return BFCL | {"question": [[{"role": r, "content": "Do f."} for r in roles]]}


def without(row: dict, key: str) -> dict:
    return {k: v for k, v in row.items() if k != key}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# (line of the file or row, reason, what the detail must say)
BROKEN: list[tuple[Any, str, str]] = [
    ("{", "malformed_json", "Expecting property name"),
    ("query: f", "malformed_json", "Expecting value"),
    ('{"query": "x", "tools": [}', "malformed_json", "line 1 column 26"),
    (json.dumps(ROW) + ",", "malformed_json", "Extra data"),
    (ROW | {"tools": "[{'name': 'f'}]"}, "malformed_json", "tools: "),
    (ROW | {"answers": '[{"name": "f", "arguments": {"x": 5}]'}, "malformed_json", "answers: Expecting"),
    (ROW | {"answers": '[{"name": "f", "arguments": {"x": NaN}}]'}, "malformed_json", "answers: NaN is no finite number"),
    (ROW | {"answers": '[{"name": "f", "arguments": {"x": 1e999}}]'}, "malformed_json", "1e999 is no finite number"),
    (ROW | {"answers": '[{"name": "f", "arguments": {"x": -Infinity}}]'}, "malformed_json", "no finite number"),
    (ROW | {"answers": ""}, "malformed_json", "answers: Expecting value"),
    (calling({"name": "f", "arguments": "{x: 5}"}), "malformed_json", "arguments: "),
    ('{"query": "\\ud800", "tools": "[{\\"name\\": \\"g\\"}]", "answers": "[]"}', "malformed_json", "half of a surrogate pair"),
    (BFCL | {"ground_truth": [{"f": {"x": [5, "\ud800"]}}]}, "malformed_json", "half of a surrogate pair"),
    (BFCL | {"function": "[{"}, "malformed_json", "function: "),
    ('{"query": "a", "query": "b"}', "duplicate_key", "the key 'query' is there twice"),
    (ROW | {"answers": '[{"name": "f", "arguments": {"x": 5, "x": 6}}]'}, "duplicate_key", "answers: the key 'x'"),
    (ROW | {"tools": '[{"name": "f", "name": "g"}]'}, "duplicate_key", "tools: the key 'name'"),
    (ROW | {"tools": [TOOL | {"parameters": SCHEMA | {"properties": {"x": {"$ref": "#/$defs/X"}}}}]}, "broken_reference", "f: "),
    (without(ROW, "query"), "missing_field", "no query among id, tools, answers"),
    (without(ROW, "answers"), "missing_field", "no answers"),
    (ROW | {"tools": None}, "missing_field", "no tools"),
    (without(BFCL, "function"), "missing_field", "no query, tools, answers among id, question"),
    ({}, "missing_field", "no keys"),
    ({"target": 5, "nums": [2, 3]}, "missing_field", "among target, nums"),
    ("[1, 2]", "wrong_shape", "a record is an object, not a list"),
    ("5", "wrong_shape", "not a int"),
    ("null", "wrong_shape", "not a NoneType"),
    (ROW | {"query": ["Do f."]}, "wrong_shape", "the query is not a text"),
    (ROW | {"tools": "5"}, "wrong_shape", "the tools are not a list"),
    (ROW | {"tools": ["f"]}, "wrong_shape", "a tool is not an object with a name"),
    (ROW | {"tools": [{"name": ""}]}, "wrong_shape", "a tool is not an object with a name"),
    (ROW | {"tools": [{"name": "f", "parameters": []}]}, "wrong_shape", "f: parameters is not an object"),
    (ROW | {"tools": [{"name": "f", "parameters": {"x": "int"}}]}, "wrong_shape", 'a parameter is "int"'),
    (ROW | {"tools": [{"name": "f", "parameters": {"type": "string"}}]}, "wrong_shape", "nor the JSON schema of an object"),
    (ROW | {"tools": [{"name": "f", "parameters": SCHEMA | {"properties": []}}]}, "wrong_shape", "nor the JSON schema"),
    (ROW | {"tools": [{"name": "f", "parameters": SCHEMA | {"properties": [1]}}]}, "wrong_shape", "nor the JSON schema"),
    (ROW | {"tools": [{"name": "f", "parameters": SCHEMA | {"required": "x"}}]}, "wrong_shape", "nor the JSON schema"),
    (ROW | {"answers": {"name": "f", "arguments": {"x": 5}}}, "wrong_shape", "the answers are not a list of calls"),
    (calling("f(5)"), "wrong_shape", "a call is not an object with name and arguments"),
    (calling({"name": "f"}), "wrong_shape", "a call is not an object with name and arguments"),
    (calling({"name": 5, "arguments": {}}), "wrong_shape", "a call is not an object"),
    (calling({"name": "f", "arguments": [5]}), "wrong_shape", "f: the arguments are not an object"),
    (BFCL | {"question": [[{"role": "user"}]]}, "wrong_shape", "question is not made of messages"),
    (BFCL | {"question": 5}, "wrong_shape", "question is not made of messages"),
    (BFCL | {"ground_truth": {"f": {"x": [5]}}}, "wrong_shape", "the ground truth is not a list"),
    (BFCL | {"ground_truth": [{"f": [5]}]}, "wrong_shape", "f: the accepted arguments"),
    (BFCL | {"ground_truth": [{"f": {"x": 5}}]}, "wrong_shape", "the accepted values are 5, not a list"),
    (ROW | {"query": "f" * (LONGEST + 1)}, "too_long", "characters"),
    (ROW | {"answers": " " * (LONGEST + 1)}, "too_long", "answers: 100,001 characters"),
    (ROW | {"answers": "[" * 50_000}, "too_long", "answers: nested too deeply"),
    (calling(f(x=nested(DEEPEST))), "too_long", "nested more than 20 levels"),
    (ROW | {"answers": '[{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}]"}, "too_long", "a number of 5,000 digits"),
    (ROW | {"query": " \n"}, "no_query", "the query is empty"),
    (BFCL | {"question": ""}, "no_query", "the question is empty"),
    (BFCL | {"question": []}, "no_query", ""),
    (BFCL | {"question": [[]]}, "no_query", "no message"),
    (BFCL | {"question": [[{"role": "user", "content": ""}]]}, "no_query", "message is empty"),
    (said("user", "assistant", "user"), "several_turns", "messages of user, assistant, user"),
    (said("user", "user"), "several_turns", "messages of user, user"),
    (said("system"), "several_turns", "messages of system"),
    (BFCL | {"question": [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]}, "several_turns", "2 turns"),
    (ROW | {"tools": "[]"}, "no_tools", "the list of tools is empty"),
    (without(BFCL, "ground_truth"), "no_ground_truth", "possible_answer/"),
    (calling({"name": "F", "arguments": {"x": 5}}), "unknown_tool", "'F' is not among f"),
    (BFCL | {"ground_truth": [{"g": {"x": [5]}}]}, "unknown_tool", "'g' is not among f"),
    (ROW | {"tools": [TOOL, OTHER_F]}, "duplicate_tool", "2 tools named 'f' take different parameters"),
    (calling(f(x=5, z=1)), "unknown_parameter", "f does not take z"),
    (BFCL | {"ground_truth": [{"f": {"x": [5], "z": [1]}}]}, "unknown_parameter", "f does not take z"),
    (calling(f(x=5), f(y="a")), "missing_required", "f needs x"),
    (BFCL | {"ground_truth": [{"f": {"x": []}}]}, "missing_required", "f needs x"),
    (calling(f(x=[5])), "wrong_type", "f, x: integer given as array"),
    (calling(f(x={"a": 5})), "wrong_type", "f, x: integer given as object"),
    (ROW | {"tools": [LIST_TOOL]}, "wrong_type", "f, x: array given as integer"),
    (BFCL | {"ground_truth": [{"f": {"x": [[5]]}}]}, "wrong_type", "f, x: integer given as array"),
    (without(ROW, "id"), "duplicate", "the same as own.jsonl:1"),
]


def test_the_corpus_meets_every_reason() -> None:
    assert {reason for _, reason, _ in BROKEN} == set(REASONS) and len(BROKEN) >= 30


@pytest.mark.parametrize(("row", "reason", "detail"), BROKEN)
def test_a_broken_row_is_refused_alone(tmp_path: Path, row: Any, reason: str, detail: str) -> None:
    line = row if isinstance(row, str) else json.dumps(row)
    good = [json.dumps(ROW), json.dumps(BFCL)]
    (tmp_path / "own.jsonl").write_text("\n".join([good[0], line, good[1]]), "utf-8")
    found, refused = load_call_rows(tmp_path / "own.jsonl")
    assert [(r.row, r.reason) for r in refused] == [("own.jsonl:2", reason)] and detail in refused[0].detail
    assert len(found) == 2
    given = row.get("id", "") if isinstance(row, dict) else ""
    assert refused[0].id == str(given)
    table = refusals(tmp_path / "own.jsonl")
    table.to_csv(tmp_path / "refused.csv", index=False)
    table.to_parquet(tmp_path / "refused.parquet")
    assert pd.read_csv(tmp_path / "refused.csv", dtype=str).at[0, "reason"] == reason


def test_all_broken_rows_in_one_file(tmp_path: Path) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row, _, _ in BROKEN]
    order = random.Random(0).sample(range(len(lines)), len(lines))
    text = "\n".join([json.dumps(ROW), *(lines[i] for i in order), "", json.dumps(BFCL), ""])
    (tmp_path / "own.jsonl").write_text(text, "utf-8")
    found, refused = load_call_rows(tmp_path / "own.jsonl")
    assert len(found) == 2 and [r.reason for r in refused] == [BROKEN[i][1] for i in order]
    assert [r.row for r in refused] == [f"own.jsonl:{n}" for n in range(2, len(lines) + 2)]
    with pytest.warns(UserWarning, match=rf"{len(lines)} of {len(lines) + 2} rows refused \(wrong_shape .*refusals\('.*own"):
        call_problems("test", {"source": str(tmp_path / "own.jsonl"), "train_size": 1, "test_size": 1})


def test_in_a_json_list_too_a_bad_value_costs_its_own_row_alone(tmp_path: Path) -> None:
    bad = ['{"query": NaN}', '{"query": "a", "query": "b"}', "[[[[1e999]]]]", '{"query": "x", "tools": ' + "9" * 5000 + "}"]
    (tmp_path / "own.json").write_text(f"[{json.dumps(ROW)}, {', '.join(bad)}]", "utf-8")
    found, refused = load_call_rows(tmp_path / "own.json")
    assert len(found) == 1 and [r.row for r in refused] == [f"own.json:{i}" for i in (2, 3, 4, 5)]


def test_bytes_that_are_not_utf8_cost_their_line_alone(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b'\n{"query": "\xff"}\n')
    found, refused = load_call_rows(tmp_path / "own.jsonl")
    assert len(found) == 1 and refused[0].reason == "malformed_json" and "not UTF-8" in refused[0].detail
    (tmp_path / "own.json").write_bytes(b'[{"query": "\xff"}]')
    with pytest.raises(ValueError, match=r"own\.json is not UTF-8 \(byte 12 is 0xff.*save it as UTF-8"):
        load_call_rows(tmp_path / "own.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    "A good row with one value somewhere in it replaced, or removed."
    row = json.loads(json.dumps(draw(st.sampled_from([ROW, BFCL]))))
    here = row
    while True:
        key = draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
        if not isinstance(here[key], dict | list) or not here[key] or draw(st.booleans()):
            break
        here = here[key]
    if draw(st.booleans()):
        here[key] = draw(json_values)
    else:
        del here[key]
    return row


@settings(max_examples=1500, deadline=None)
@given(damaged())
def test_no_damage_makes_it_crash(row: Any) -> None:
    loaded = sort_out([("a:1", row)])
    assert len(loaded.problems) + len(loaded.refused) == 1
    for p in loaded.problems:
        p.dumps().encode()
        check_schema(p.data["tools"][0]["parameters"])
        json.dumps(compare_with_paper([p]).to_dict()), call_histograms([p])
    assert all(r.reason in REASONS and r.detail.encode() for r in loaded.refused)
    assert all(note in NOTES and detail.encode() for note, detail in loaded.notes)


def test_a_note_about_an_empty_name_says_so() -> None:
    tool = {"name": "f", "description": "d", "parameters": {"x": {"": None}, "y": {"type": "", "description": "d"}}}
    row = {"id": 1, "query": "Do f.", "tools": [tool], "answers": [{"name": "f", "arguments": {"x": 5, "y": 1}}]}
    assert {("dropped_keyword", "(empty)"), ("unknown_type", "(empty)")} <= set(sort_out([("a:1", row)]).notes)


@settings(max_examples=500, deadline=None)
@given(json_values)
def test_no_value_makes_it_crash(value: Any) -> None:
    for row in (
        value,
        ROW | {"tools": value},
        ROW | {"answers": value},
        BFCL | {"question": value},
        BFCL | {"ground_truth": value},
    ):
        loaded = sort_out([("a:1", row)])
        assert len(loaded.problems) + len(loaded.refused) == 1


# ── Types ──────────────────────────────────────────────────────────────────────────────────────────────────────────

INT, STR = {"type": "integer"}, {"type": "string"}
TYPES: list[tuple[Any, dict, bool]] = [  # declared, schema, may be left out
    ("str", STR, False),
    ("String", STR, False),
    ("string", STR, False),
    ("str, optional", STR, True),
    ("int, optional, default 5", INT, True),
    ("int, default: 5", INT, True),
    ("int (optional)", INT, True),
    ("int, required", INT, False),
    ("int", INT, False),
    ("integer", INT, False),
    ("float", {"type": "number"}, False),
    ("bool", {"type": "boolean"}, False),
    ("Boolean", {"type": "boolean"}, False),
    ("dict", {"type": "object"}, False),
    ("Dict[str, Any]", {"type": "object"}, False),
    ("Dict[str, int]", {"type": "object", "additionalProperties": INT}, False),
    ("HashMap", {"type": "object"}, False),
    ("list", {"type": "array"}, False),
    ("List", {"type": "array"}, False),
    ("ArrayList", {"type": "array"}, False),
    ("set", {"type": "array"}, False),
    ("tuple", {"type": "array"}, False),
    ("List[int]", {"type": "array", "items": INT}, False),
    ("List[int], optional", {"type": "array", "items": INT}, True),
    ("List[Dict[str, Any]]", {"type": "array", "items": {"type": "object"}}, False),
    ("List[List[int]]", {"type": "array", "items": {"type": "array", "items": INT}}, False),
    ("List[Union[int, float]]", {"type": "array", "items": {"type": "number"}}, False),
    ("List[Optional[str]]", {"type": "array", "items": STR}, False),
    ("Tuple[int, int]", {"type": "array", "items": INT}, False),
    ("Tuple[int, str]", {"type": "array"}, False),
    ("Tuple[int, ...]", {"type": "array", "items": INT}, False),
    ("typing.List[int]", {"type": "array", "items": INT}, False),
    ("Optional[str]", STR, True),
    ("Union[str, None]", STR, True),
    ("str | None", STR, True),
    ("Union[str, int]", {}, False),
    ("int or float", {"type": "number"}, False),
    ("any", {}, False),
    ("Any, optional", {}, True),
    (["string", "null"], {"type": ["string", "null"]}, True),
    (["string", "integer"], {"type": ["string", "integer"]}, False),
    (["integer", "number"], {"type": "number"}, False),
    (["dict"], {"type": "object"}, False),
    ("Union[int, int]", INT, False),
    ("List[None]", {"type": "array"}, False),
    ("None", {}, False),
]
UNKNOWN: list[Any] = ["Callable[[float], float]", "Callable", "np.ndarray", "datetime", "List[", "List]", "[int]", "", ",", "]"]
UNKNOWN += ["int int", "int, 5", "List[foo]", "x" * 300, "List[" * 30, None, 5, {}, [], [None], "__import__('os').system('true')"]


@pytest.mark.parametrize(("declared", "schema", "optional"), TYPES)
def test_a_known_type(declared: Any, schema: dict, optional: bool) -> None:
    assert read_type(declared) == (schema, optional, True)


@pytest.mark.parametrize("declared", UNKNOWN)
def test_an_unknown_type_is_any_and_noted(declared: Any) -> None:
    assert read_type(declared) == ({}, False, False)
    found = sort_out([("a:1", ROW | {"tools": [TOOL | {"parameters": {"x": {"type": declared}}}]})])
    assert found.problems[0].data["tools"][0]["parameters"] == {"type": "object", "properties": {"x": {}}, "required": ["x"]}
    assert list(found.notes) == [("unknown_type", str(declared)[:60] or "(empty)")]


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.sampled_from([*"[](),|. ", "...", "List", "int", "optional", "Union", "or", "Dict"]), max_size=30).map("".join)
)
def test_no_type_makes_it_crash(text: str) -> None:
    schema, _, known = read_type(text)
    check_schema(schema)
    assert known or schema == {}


# ── What may be left out, same names, and other decisions ──────────────────────────────────────────────────────────


def required(parameters: dict, **tool: Any) -> list[str]:
    found = sort_out([("a:1", {"query": "q", "tools": [{"name": "f", "parameters": parameters} | tool], "answers": []})])
    return found.problems[0].data["tools"][0]["parameters"]["required"]


def test_which_parameters_are_required() -> None:
    a, b = {"type": "str"}, {"type": "int"}
    assert required({"a": a, "b": b}) == ["a", "b"]
    assert required({"a": a, "b": b | {"default": None}}) == required({"a": a, "b": b | {"optional": True}}) == ["a"]
    assert required({"a": a, "b": b | {"required": True}}) == ["b"]
    assert required({"a": a | {"required": False}, "b": b}) == []
    assert required({"a": a | {"default": "x", "required": True}, "b": b}) == ["a"]
    assert required({"type": "object", "properties": {"a": a, "b": b}}) == []
    assert required({"type": "object", "properties": {"a": a, "b": b}, "required": ["b", "c"]}) == ["b"]
    assert required({"type": "object", "properties": {"a": a | {"required": True}, "b": b}}) == ["a"]
    assert required({"type": a, "properties": b, "required": a}) == ["type", "properties", "required"]


def test_tools_of_one_name() -> None:
    "Kept if a call means the same for all of them, or if none of them is called."
    twin = TOOL | {"description": "another"}
    kept = sort_out([("a:1", ROW | {"tools": [TOOL, twin]}), ("a:2", ROW | {"tools": [TOOL, OTHER_F], "answers": []})])
    assert len(kept.problems) == 2 and kept.notes["same_name", "f"] == 2
    assert [t["description"] for t in kept.problems[0].data["tools"]] == ["d", "another"]


def test_milder_contradictions_are_kept_and_noted() -> None:
    x = {"type": "int"}
    rows = [f(x="5"), f(x=5.5), f(x=True), f(x=5.0), f(x=None)]
    found = sort_out([(f"a:{i}", calling(c)) for i, c in enumerate(rows)])
    assert [p.data["answers"][0]["arguments"]["x"] for p in found.problems] == ["5", 5.5, True, 5.0, None]
    odd = {detail: n for (note, detail), n in found.notes.items() if note == "argument_type"}
    assert odd == {f"integer given as {kind}": 1 for kind in ("string", "number", "boolean")}
    enum = sort_out([("a:1", ROW | {"tools": [TOOL | {"parameters": {"x": x | {"enum": [1, 2]}}}]})])
    assert list(enum.notes) == [("outside_enum", "f, x: 5")]


# ── Sources ────────────────────────────────────────────────────────────────────────────────────────────────────────


def many(n: int) -> list[dict[str, Any]]:
    rows = [ROW | {"id": i, "query": f"Do f with {i}.", "answers": [f(x=i)]} for i in range(n)]
    return [r | {k: json.dumps(r[k]) for k in ("tools", "answers")} for r in rows]


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text(json.dumps(rows, indent=1) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)), "utf-8")
    return path


def test_all_formats_give_the_same_problems(tmp_path: Path) -> None:
    rows = many(20)
    found = [load_call_rows(write(tmp_path / name, rows))[0] for name in ("a.json", "a.jsonl", "a.parquet")]
    lists = [r | {k: json.loads(r[k]) for k in ("tools", "answers")} for r in rows]
    found.append(load_call_rows(write(tmp_path / "lists.jsonl", lists))[0])
    assert len(found[0]) == 20 and all(f == found[0] for f in found)


def test_ids_are_stable() -> None:
    "A change here changes every split: results made before and after cannot be compared."
    assert call_row(ROW).id == "a1156ca543b43626" and call_row(BFCL).id == "fc09b0beb806ba83"


@pytest.mark.parametrize("key", ["query", "tools", "answers"])
def test_another_query_tool_or_answer_is_another_problem(key: str) -> None:
    other = {"query": "Do f with 6.", "tools": [TOOL, {"name": "g"}], "answers": []}
    assert call_row(ROW | {key: other[key]}).id != call_row(ROW).id


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jsonl", b"", "not one usable row of 0: there are none"),
        ("empty.json", b"[]", "not one usable row of 0: there are none"),
        ("words.json", b"hello", "neither a JSON list nor JSON lines: words.json:1"),
        ("words.jsonl", b"hello\nthere", "neither a JSON list nor JSON lines: words.jsonl:1"),
        ("cut.json", json.dumps([ROW, ROW])[:-40].encode(), "a JSON list that cannot be read .*is it cut off"),
        ("cut.json", b"[\n" + json.dumps(ROW).encode() + b"\n", "a JSON list that cannot be read .*is it cut off"),
        ("other.json", b'{"data": [1]}', r"not one usable row of 1: {'missing_field': 1}.*other.json:1: no query, tools.*data"),
        ("other.jsonl", b'{"target": 5, "nums": [2, 3]}', r"among target, nums.*A row has query, tools and answers"),
        ("broken.parquet", b"PAR1 not really", "broken.parquet is not a Parquet file"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        load_call_rows(tmp_path / name)


def test_parquet_files_of_another_schema(tmp_path: Path) -> None:
    write(tmp_path / "other.parquet", [{"a": 1}, {"a": 2}])
    with pytest.raises(ValueError, match=r"not one usable row of 2: {'missing_field': 2}.*no query, tools, answers among a"):
        load_call_rows(tmp_path / "other.parquet")
    write(tmp_path / "lists.parquet", [ROW])
    with pytest.raises(ValueError, match=r"the column tools is list<.*store it as JSON strings"):
        load_call_rows(tmp_path / "lists.parquet")


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("", "utf-8")
    for source in (tmp_path / "none.jsonl", "none.parquet", "no-owner", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=f"{Path(source).name}.*not a hub name"):
            load_call_rows(source)
    with pytest.raises(FileNotFoundError, match=r"notes\.txt: a file, but none of \.json"):
        load_call_rows(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match=r"no \.json, \.jsonl, \.ndjson, \.parquet file in this folder"):
        load_call_rows(tmp_path)


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = write(tmp_path / "a.jsonl", many(5)), []
    original = _file
    monkeypatch.setattr(task, "_file", lambda path: read.append(path) or original(path))
    for _ in range(3):
        load_call_rows(source), refusals(source), notes(source), TASK.refused({"source": str(source)})  # type: ignore[misc]
    assert len(read) == 1
    load_call_rows(source)[0].clear()
    assert len(load_call_rows(source)[0]) == 5, "what a caller does with its list is its own business"
    write(source, many(7))
    assert len(load_call_rows(source)[0]) == 7 and len(read) == 2


class GatedRepoError(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [
        GatedRepoError("401 Client Error. Cannot access gated repo"),
        RuntimeError(f"Dataset '{HUB}' is a gated dataset on the Hub. You must be authenticated to access it."),
        RuntimeError("403 Forbidden: access to this dataset is restricted and you are not in the authorized list"),
        RuntimeError("401 Unauthorized: invalid user token"),
    ],
)
def test_no_access_to_the_hub_dataset_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    hub = pytest.importorskip("datasets")

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(hub, "load_dataset", refuse)
    with pytest.raises(ValueError) as raised:
        call_problems("train")
    message = str(raised.value)
    assert f"accept its terms on https://huggingface.co/datasets/{HUB}" in message
    assert "`hf auth login`" in message and "HF_TOKEN" in message and "local file" in message and str(error) in message


def test_a_hub_name_goes_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("datasets")
    asked = []

    def fake(name: str, split: str) -> Any:
        asked.append((name, split))
        if name == "owner/gone":
            raise ConnectionError("Couldn't reach the Hub")
        return hub.Dataset.from_list([*many(9), many(1)[0]])

    monkeypatch.setattr(hub, "load_dataset", fake)
    _read.cache_clear()
    found, refused = load_call_rows(HUB)
    assert len(found) == 9 and [(r.row, r.reason) for r in refused] == [("train:10", "duplicate")]
    assert load_call_rows(HUB)[0] == found and asked == [(HUB, "train")]
    with pytest.raises(ValueError, match=r"owner/gone could not be loaded.*connection.*local file.*Couldn't reach"):
        load_call_rows("owner/gone")
    _read.cache_clear()


# ── The split ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_split(tmp_path: Path) -> None:
    rows = many(100)
    options = {"source": str(write(tmp_path / "a.jsonl", rows)), "train_size": 60, "test_size": 30, "data_seed": 1}
    train, test = (call_problems(split, options) for split in ("train", "test"))
    assert len(train) == 60 and len(test) == 30 and not {p.id for p in train} & {p.id for p in test}
    random.Random(0).shuffle(rows)
    shuffled = options | {"source": str(write(tmp_path / "b.parquet", rows))}
    assert call_problems("train", shuffled) == train and call_problems("test", shuffled) == test
    assert (
        call_problems("test", options | {"train_size": 20}) == test
        and call_problems("train", options | {"train_size": 20}) == train[:20]
    )
    other = call_problems("test", options | {"data_seed": 2})
    assert 0 < len({p.id for p in other} & {p.id for p in test}) < 30
    # a problem more or less moves no other one across more than the border
    fewer = options | {"source": str(write(tmp_path / "c.jsonl", [r for r in rows if r["id"] != 7]))}
    assert len({p.id for p in call_problems("test", fewer)} ^ {p.id for p in test}) in (0, 2)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        call_problems("dev", options)
    with pytest.raises(ValueError, match="unknown data option sizes: use source, train_size"):
        call_problems("test", options | {"sizes": 3})


def test_the_split_is_frozen(tmp_path: Path) -> None:
    "A change here changes every split: results made before and after cannot be compared."
    options = {"source": str(write(tmp_path / "a.jsonl", many(20))), "train_size": 10, "test_size": 3}
    assert [p.data["answers"][0]["arguments"]["x"] for p in call_problems("test", options)] == [18, 8, 0]


def test_refused_rows_shorten_training_and_never_the_test_set(tmp_path: Path) -> None:
    source = str(write(tmp_path / "a.jsonl", [*many(98), {"id": 98}, {"id": 99}]))
    options = {"source": source, "train_size": 80, "test_size": 20}
    with (
        pytest.warns(
            UserWarning, match=r"2 of 100 rows refused \(missing_field 2\); r3_repro\.tasks\.function_calling\.task\.refusals\("
        ),
        pytest.warns(UserWarning, match="train_size = 80, but only 78 problems are left"),
    ):
        assert len(call_problems("train", options)) == 78
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(call_problems("test", options)) == 20 and list(TASK.refused(options)["id"]) == ["98", "99"]  # type: ignore[misc]
        assert len(call_problems("train", options | {"train_size": 156})) == 78
        for sizes in ({"train_size": 157}, {"test_size": 99}, {"test_size": 60}):
            with pytest.raises(ValueError, match=r"98 usable rows, and test_size = .* leaves .*: lower"):
                call_problems("test", options | sizes)


def test_the_paper_s_sizes_are_the_default() -> None:
    assert CALL_OPTIONS == {"source": HUB, "train_size": 48_000, "test_size": 12_000, "data_seed": 0}
    assert CALL_OPTIONS["train_size"] + CALL_OPTIONS["test_size"] == PAPER_STATISTICS["items"]


def test_generated_rows_go_the_same_way() -> None:
    options = {"source": "generate", "train_size": 200, "test_size": 50, "data_seed": 3}
    train, test = call_problems("train", options), call_problems("test", options)
    assert len(test) == 50 and len(train) == 200 and not {p.id for p in train} & {p.id for p in test}
    assert test == call_problems("test", options) and TASK.refused(options).empty  # type: ignore[misc]
    assert all(t["parameters"]["properties"] for p in test for t in p.data["tools"])


# ── Statistics and the task ────────────────────────────────────────────────────────────────────────────────────────


def test_statistics_beside_the_paper_s() -> None:
    found = load_call_rows(real("xlam/xlam_quoted_rows.jsonl"))[0]
    figures = call_statistics(found)
    assert figures["items"] == 10 and figures["distinct tools"] == figures["distinct tool names"] == 17
    assert figures["tools a query"] == 1.7 and figures["calls an answer"] == 1.6 and figures["share with several calls"] == 0.6
    assert figures["parameters a tool"] == 27 / 17 and figures["share of optional parameters"] == 22 / 27
    assert figures["arguments by type"] == {"string": 12, "integer": 6, "array": 3}
    table = compare_with_paper(found)
    assert table["paper"].dropna().to_dict() == {k: float(v) for k, v in PAPER_STATISTICS.items()} and set(table.columns) == {
        "paper",
        "here",
    }
    assert json.loads(json.dumps(call_histograms(found))) == call_histograms(found)
    assert call_histograms(found)["tools a query"] == dict(Counter(str(len(p.data["tools"])) for p in found).items())
    assert call_statistics([])["items"] == 0 and call_histograms([])["tools a query"] == {}


def test_the_task_is_there_by_its_name() -> None:
    found = get_task("function_calling")
    assert found is TASK and found.tools is tool_schemas and found.rules[0] == "strict" and len(found.errors) >= 10
    assert "failed in generating the correct tool call" in found.reflection_request
