"""Sources of both tasks: names, encodings, null padding of columns, and numbers as files write them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from r3_repro.tasks.countdown.task import load_problems
from r3_repro.tasks.function_calling.task import _read, load_call_rows

COUNTDOWN = [{"target": 98, "nums": [44, 19, 35]}, {"target": 64, "nums": [63, 95, 96]}]
WEATHER = {"name": "weather", "parameters": {"city": {"type": "str"}, "days": {"type": "int, optional"}}}
PARIS = {"name": "weather", "arguments": {"city": "Köln"}}
ROME = {"name": "weather", "arguments": {"city": "Rome", "days": 3}}
CALLS = [{"query": f"Weather in {c['arguments']['city']}?", "tools": [WEATHER], "answers": [c]} for c in (PARIS, ROME)]
AS_STRINGS = [row | {k: json.dumps(row[k]) for k in ("tools", "answers")} for row in CALLS]

Load = Callable[[Path | str], list]
TASKS: dict[str, tuple[Load, list[dict]]] = {
    "countdown": (lambda source: load_problems(source).problems, COUNTDOWN),
    "function_calling": (lambda source: load_call_rows(source)[0], CALLS),
}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> tuple[Load, list[dict]]:
    _read.cache_clear()
    return TASKS[request.param]


def text(rows: list[dict], name: str) -> str:
    lines = [json.dumps(r, ensure_ascii=False) for r in rows]
    return f"[{', '.join(lines)}]" if name.lower().removesuffix(".gz").endswith(".json") else "\n".join(lines)


# ── Names and encodings ────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = ["a.json", "a.jsonl", "a.ndjson", "A.JSON", "A.JSONL", "a.Ndjson", "a.json.gz", "a.jsonl.GZ"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_every_name_and_mark_gives_every_row(
    task: tuple[Load, list], tmp_path: Path, name: str, encoding: str, ends: str
) -> None:
    load, rows = task
    data = text(rows, name).replace("\n", ends).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    assert len(load(tmp_path / name)) == 2
    assert len(load(tmp_path)) == 2, "and as a folder"


def test_files_that_were_put_together_and_those_of_macos(task: tuple[Load, list], tmp_path: Path) -> None:
    load, rows = task
    (tmp_path / "all.jsonl").write_bytes(b"".join(text([row], "a.jsonl").encode("utf-8-sig") + b"\n" for row in rows))
    (tmp_path / "._all.jsonl").write_bytes(b"\0\5\26\7")
    assert len(load(tmp_path)) == 2


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("utf-32-be", "UTF-16 or UTF-32"),
    ],
)
def test_another_encoding_is_named(task: tuple[Load, list], tmp_path: Path, name: str, encoding: str, named: str) -> None:
    load, rows = task
    (tmp_path / name).write_bytes(text(rows, name).encode(encoding))
    with pytest.raises(ValueError, match=rf"{name} is {named}.*save it as UTF-8"):
        load(tmp_path / name)


def test_latin_1_costs_its_line_or_names_the_file(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_bytes(text(CALLS, name).encode("latin-1"))
    found, refused = load_call_rows(tmp_path / "a.jsonl")
    assert len(found) == 1 and refused[0].detail.endswith("is 0xf6; Latin-1 or Windows-1252?)")
    with pytest.raises(ValueError, match=r"a\.json is not UTF-8 .*0xf6; Latin-1"):
        load_call_rows(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("data", "named"),
    [(b"PAR1...", "a Parquet file"), (b"PK\x03\x04", "a zip archive"), (gzip.compress(b"{}", mtime=0), "compressed with gzip")],
    ids=["parquet", "zip", "gzip"],
)
def test_a_file_under_the_name_of_another_kind(task: tuple[Load, list], tmp_path: Path, data: bytes, named: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.json is {named}"):
        task[0](tmp_path / "a.json")


def test_a_cut_archive(task: tuple[Load, list], tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"[{}]")[:-4])
    with pytest.raises(ValueError, match=r"cannot be unpacked as gzip.*cut off"):
        task[0](tmp_path / "a.json.gz")


def test_a_file_with_another_ending(task: tuple[Load, list], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("target,nums", "utf-8")
    with pytest.raises(FileNotFoundError, match=r"a\.csv: a file, but none of \.json, \.jsonl, \.ndjson, \.parquet"):
        task[0](tmp_path / "a.csv")


# ── Null padding ───────────────────────────────────────────────────────────────────────────────────────────────────────

BFCL = {"id": "simple_0", "question": [[{"role": "user", "content": "Weather?"}]], "function": [WEATHER], "ground_truth": []}
PADDED: dict[str, list[dict[str, Any]]] = {
    "a list of structs": [AS_STRINGS[i] | {"answers": [call]} for i, call in enumerate((PARIS, ROME))],
    "a struct": [AS_STRINGS[0] | {"answers": PARIS}, AS_STRINGS[1] | {"answers": ROME}],
    "a list of lists of structs": [AS_STRINGS[0] | {"answers": [[PARIS]]}, AS_STRINGS[1] | {"answers": [[ROME]]}],
    "tools": [
        AS_STRINGS[0] | {"tools": [WEATHER]},
        AS_STRINGS[1] | {"tools": [{"name": "now", "parameters": {"zone": {"type": "str"}}}]},
    ],
    "BFCL's function": [BFCL | {"ground_truth": "[]"}],
    "BFCL's ground truth": [BFCL | {"function": json.dumps([WEATHER]), "ground_truth": [{"weather": {"city": ["Rome"]}}]}],
}


@pytest.mark.parametrize("kind", PADDED)
@pytest.mark.parametrize("where", ["a Parquet file", "the hub"])
def test_null_padding_never_becomes_gold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, where: str) -> None:
    datasets = pytest.importorskip("datasets")
    _read.cache_clear()
    table = pa.Table.from_pylist(PADDED[kind])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset(table))
    with pytest.raises(ValueError, match=r"the column (tools|answers|function|ground_truth) is .*store it as JSON strings"):
        load_call_rows(tmp_path / "a.parquet" if where == "a Parquet file" else "owner/calls")


def as_hub(rows: list[dict], monkeypatch: pytest.MonkeyPatch, **features: Any) -> list:
    "Rows as a dataset of the hub that loads them, some of its columns of a chosen type."
    datasets = pytest.importorskip("datasets")
    _read.cache_clear()
    names = {k: features.get(k, datasets.Value("string")) for k in rows[0]}
    made = datasets.Dataset.from_list(rows, features=datasets.Features(names))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: made)
    return load_call_rows("owner/calls")[0]


def test_columns_of_text_are_read_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    plain = as_hub(AS_STRINGS, monkeypatch)
    assert [p.data["answers"] for p in plain] == [[PARIS], [ROME]]
    assert as_hub(CALLS, monkeypatch, tools=datasets.Json(), answers=datasets.Json()) == plain
    each = [row | {k: [json.dumps(v) for v in row[k]] for k in ("tools", "answers")} for row in CALLS]
    texts = datasets.List(datasets.Value("string"))
    assert as_hub(each, monkeypatch, tools=texts, answers=texts) == plain


def test_structs_beside_the_calls_do_no_harm(tmp_path: Path) -> None:
    rows = [row | {"meta": {"source": "x"}, "id": i} for i, row in enumerate(AS_STRINGS)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert len(load_call_rows(tmp_path / "a.parquet")[0]) == 2


# ── Numbers ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.decimal128(30, 2), pa.string(), pa.uint8(), pa.int64()])
def test_whole_numbers_in_a_column_of_any_type(tmp_path: Path, kind: pa.DataType) -> None:
    as_kind = str if kind == pa.string() else float if pa.types.is_floating(kind) else int
    numbers = [[as_kind(n) for n in row["nums"]] for row in COUNTDOWN]  # type: ignore[attr-defined]
    targets = pa.array([as_kind(row["target"]) for row in COUNTDOWN]).cast(kind)
    nums = pa.array(numbers).cast(pa.list_(kind))
    pyarrow.parquet.write_table(pa.table({"target": targets, "nums": nums}), tmp_path / "a.parquet")
    assert [p.data for p in load_problems(tmp_path / "a.parquet").problems] == [
        {"nums": [44, 19, 35], "target": 98},
        {"nums": [63, 95, 96], "target": 64},
    ]


@pytest.mark.parametrize(
    "target", [98.5, "98.5", "98,0", "9 8", "0x62", "9" * 400, "", None, True, [98], {"value": 98}, 0, -98, "-98"]
)
def test_what_is_no_whole_number_is_refused_with_the_reason(tmp_path: Path, target: Any) -> None:
    rows = [*COUNTDOWN, {"target": target, "nums": [44, 19, 35]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    loaded = load_problems(tmp_path / "a.jsonl")
    assert len(loaded.problems) == 2 and loaded.refused == {"target is not a positive whole number": 1}
