"""The paper's numbers are those of the fact sheet, and what is not known stays missing."""

import csv
import json
import re

import numpy as np
import pytest
from support import DATA, REPOSITORY

from r3_repro.analysis.models import FOUR_COLUMNS, paper_table, readable_paper_table
from r3_repro.analysis.paper import PAPER_COLUMNS, PAPER_NAMES, PAPER_TABLES, load_claims, published_value

PUBLISHED = REPOSITORY / "results" / "published"
FACTS = DATA / "paper" / "facts.md"


def test_published_values_are_those_of_the_task() -> None:
    claims = load_claims(REPOSITORY)
    for task, paper in PAPER_NAMES.items():
        for claim in ("C1", "C2", "C3", "C5"):
            shown = published_value(claims[claim], task)
            assert shown.startswith(f"+{claims[claim]['points'][task]} points {paper}") and shown.count("+") == 1
    letters = {t: published_value(claims["C1"], t)[-3:] for t in PAPER_NAMES}
    assert letters == {"function_calling": "(H)", "countdown": "(M)"}  # "H / M" in the fact sheet


def fact_rows(heading: str) -> list[list[str]]:
    section = FACTS.read_text("utf-8").split(heading)[1].split("\n## ")[0]
    return [[c.strip() for c in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize(("heading", "file"), [("## Table 1", "table1_apigen.csv"), ("## Table 2", "table2_countdown.csv")])
def test_published_cells_are_those_of_the_fact_sheet(heading: str, file: str) -> None:
    if not FACTS.is_file():
        pytest.skip(f"skipped: the comparison of {file} with the fact sheet, which is not at {FACTS}")
    with open(PUBLISHED / file, newline="", encoding="utf-8") as f:
        ours = {(r["model"], r["column"]): (r["accuracy_percent"], r["confidence"], r["status"]) for r in csv.DictReader(f)}
    rows = fact_rows(heading)
    assert len(ours) == 4 * len(rows)
    for model, *cells in rows:
        for column, cell in zip(PAPER_COLUMNS, cells, strict=True):
            value, letter, status = ours[model, column]
            if number := re.fullmatch(r"(\d+\.\d) ([HAMD])", cell):
                assert (value, letter) == number.groups() and status == ("derived" if letter == "D" else "published")
            else:
                assert value == letter == "" and status == ("not applicable" if cell == "n/a" else "missing"), cell


def test_published_claims_are_those_of_the_fact_sheet() -> None:
    if not FACTS.is_file():
        pytest.skip(f"skipped: the comparison of claims.json with the fact sheet, which is not at {FACTS}")
    ours = load_claims(REPOSITORY)
    for claim, text, value, letter in fact_rows("## Claims"):
        c = ours[claim]
        what, known, confidence = c["claim"], c["value"], c["confidence"]
        if place := c.get("place"):
            what += f" ({place['text']}, {place['confidence']})"
        if caveats := c.get("caveats"):
            known += f". **Caveats the author gives herself ({caveats['confidence']}):** {caveats['text']}"
            confidence += f" for the claim, {caveats['confidence']} for the caveats"
        if note := c.get("confidence_note"):
            confidence += f" ({note})"
        if sources := c.get("sources"):
            confidence += f" ({sources.replace(' ', ', ')})"
        for sheet, here in (("now confirmed", "confirmed"), ("NB prints", "one note prints"), ("NB repeats", "one note repeats")):
            value, letter = value.replace(sheet, here), letter.replace(sheet, here)
        assert (what, known, confidence) == (text, value, letter)
        for points in c["points"].values():
            assert f"+{points}" in value


def training_facts() -> list[dict[str, str]]:
    with open(PUBLISHED / "training.csv", newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_published_training_is_that_of_the_fact_sheet() -> None:
    if not FACTS.is_file():
        pytest.skip(f"skipped: the comparison of training.csv with the fact sheet, which is not at {FACTS}")
    ours = {r["item"]: r for r in training_facts()}
    table = FACTS.read_text("utf-8").split("## Training\n")[1].split("\n\n")[0]
    sheet = {item: (value, letter) for item, value, letter in (re.split(r" ?\| ?", x)[1:4] for x in table.splitlines()[2:])}
    told_apart = {  # rows of the sheet that are several of ours
        "algorithm": ["algorithm", "trained weights"],
        "effective batch / steps": ["effective batch", "unit of the effective batch", "steps"],
        "learning rate, schedule, warm-up": ["learning rate", "schedule", "warm-up"],
        "hardware": ["hardware", "nodes"],
    }
    for item, (value, letters) in sheet.items():
        if letters == "–":
            assert all(ours[i]["status"] == "missing" and not ours[i]["value"] for i in item.split(", "))
        elif item in told_apart:
            parts = [ours[i] for i in told_apart[item]]
            assert {r["confidence"] for r in parts} == set(re.findall(r"\b[HAMD]\b", f"{value} {letters}")), item
            assert all(number in value for r in parts for number in re.findall(r"\d[\d.,e-]*", r["value"])), item
        else:
            assert (ours[item]["value"], ours[item]["confidence"]) == (value, letters)


def test_published_facts_have_a_letter_and_known_sources() -> None:
    with open(PUBLISHED / "sources.csv", newline="", encoding="utf-8") as f:
        known = {r["id"] for r in csv.DictReader(f)}
    letters = set(json.loads((PUBLISHED / "claims.json").read_text("utf-8"))["confidence"])
    rows = training_facts()
    for name in PAPER_TABLES.values():
        with open(PUBLISHED / name, newline="", encoding="utf-8") as f:
            rows += [r | {"value": r["accuracy_percent"]} for r in csv.DictReader(f)]
    for r in rows:
        if r["value"]:
            assert r["confidence"] in letters and r["status"] == ("derived" if r["confidence"] == "D" else "published"), r
        else:
            assert r["confidence"] == "" and r["status"] in ("missing", "not applicable"), r
        assert set(r["sources"].split()) <= known and ("T" in r["sources"].split() or r["confidence"] != "A"), r


def test_a_missing_published_number_stays_missing() -> None:
    plain = paper_table([], "countdown", REPOSITORY)
    row = readable_paper_table(plain).set_index("model").loc["Qwen-2.5-7B Instruct"]
    two, first = (f"{FOUR_COLUMNS[name]}, paper" for name in ("trained_two_tries", "trained_first"))
    assert row[two] == "–" and row[first] == "41.6 (M)"
    assert np.isnan(plain.set_index("model").loc["Qwen-2.5-3B Instruct", "vanilla_first_paper"])


def test_a_published_bound_is_a_note_and_no_cell() -> None:
    bounds = 0
    for task, name in PAPER_TABLES.items():
        shown = readable_paper_table(paper_table([], task, REPOSITORY)).set_index("model")
        with open(PUBLISHED / name, newline="", encoding="utf-8") as f:
            for r in csv.DictReader(f):
                if r["note"].startswith("no number"):
                    bounds += 1
                    assert shown.loc[r["model"], f"{FOUR_COLUMNS[r['column']]}, paper"] == "–"
    assert bounds == 4
