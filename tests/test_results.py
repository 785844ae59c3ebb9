"""Tables, figures and verdicts from stored data alone: the same bytes twice, without torch, the paper as published."""

import ast
import csv
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from r3_repro import contribution, figures, plots, reflections, results, stats, stored
from r3_repro.figures import main as make_figures
from r3_repro.results import NO, UNTESTABLE, YES

WITHOUT_TORCH = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "trl", "datasets", "accelerate", "lm_eval"}:
            raise ModuleNotFoundError(f"blocked: {name}")

sys.meta_path.insert(0, Absent())
try:
    import torch
except ModuleNotFoundError:
    import r3_repro.stats, r3_repro.plots, r3_repro.stored, r3_repro.results, r3_repro.reflections, r3_repro.forgetting
    from r3_repro.figures import main
    sys.exit(main(["--root", sys.argv[1]]))
"""
REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = 60  # problems: too few for verdicts, enough for tables and figures
PUBLISHED = REPOSITORY / "results" / "published"
FACTS = REPOSITORY.parent / "shared" / "paper" / "facts.md"


def episodes(problems: int = 520, r3: float = 0.32, control: float = 0.15, seeds: int = 2) -> pd.DataFrame:
    return pd.concat(
        [
            stored.synthetic_episodes("vanilla", 0, 0.15, 0.15, words=14, problems=problems),
            *(stored.synthetic_episodes("r3", s, 0.18, r3, words=8, problems=problems) for s in range(seeds)),
            *(stored.synthetic_episodes("random_reward", s, 0.15, control, 14, problems) for s in range(seeds)),
        ]
    )


def store(root: Path, table: pd.DataFrame) -> Path:
    folder = root / "tiny" / "r3_repro.stored.TOY" / "toy-model"
    (folder / "episodes").mkdir(parents=True)
    for (arm, seed), rows in table.groupby(["arm", "seed"]):
        name = "vanilla" if arm == "vanilla" else f"{arm}-seed{seed}"
        rows.to_parquet(folder / "episodes" / f"{name}.parquet", index=False)
        if arm != "vanilla":
            log = folder / "training" / name / "log.jsonl"
            log.parent.mkdir(parents=True)
            steps = [{"step": i, "retry_success": 0.2, "reward": 0.2, "kl": 0.01 * i} for i in range(1, 21)]
            log.write_text("".join(json.dumps(s) + "\n" for s in steps))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for k in ("tables", "figures") for p in sorted(folder.glob(f"{k}/*"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    folder = store(root, episodes(SMALL))
    assert make_figures(["--root", str(root)]) == 0
    return folder


def test_the_same_bytes_elsewhere_and_without_torch(made: Path, tmp_path: Path) -> None:
    "Elsewhere, with another hash seed and where torch, transformers, trl and lm_eval cannot be imported: the very same bytes."
    other = store(tmp_path, episodes(SMALL))
    env = {"PYTHONHASHSEED": "7", "PATH": "", "MPLCONFIGDIR": str(tmp_path / "mpl"), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tables: ") == done.stdout.count("figures: ") == 1
    one, two = contents(made), contents(other)
    assert one.keys() == two.keys() and len(one) > 40
    assert [name for name in one if one[name] != two[name]] == []


def test_every_table_has_three_forms_and_every_figure_too(made: Path) -> None:
    for kind, forms in (("tables", {".csv", ".md", ".tex"}), ("figures", {".svg", ".pdf", ".png"})):
        found: dict[str, set[str]] = {}
        for p in (made / kind).iterdir():
            found.setdefault(p.stem, set()).add(p.suffix)
        assert found and all(f == forms for f in found.values()), found
    assert not any(b"\r" in p.read_bytes() for p in (made / "tables").iterdir())


def test_tables_do_not_name_the_machine(made: Path) -> None:
    for p in (made / "tables").iterdir():
        assert str(made.parents[2]) not in p.read_text() and str(REPOSITORY) not in p.read_text()


def test_nothing_to_make_is_an_error(tmp_path: Path) -> None:
    assert make_figures(["--root", str(tmp_path)]) == 1


def verdicts_of(table: pd.DataFrame, tmp_path: Path, *claims: str) -> dict[tuple[str, str], str]:
    folder = store(tmp_path, table)
    e = results.gather(folder, stored.load_episodes(folder))
    return {(r.claim, r.part): r.decide(e).verdict for r in results.RULES if r.claim in claims}


def test_verdicts_follow_the_data(tmp_path: Path) -> None:
    "A gain that the control does not share is reproduced; no gain, or a control that gains too, is not."
    control = ("C2", "control: random reward shows no such gain")
    good = verdicts_of(episodes(), tmp_path / "good", "C2", "C4", "C6", "C9")
    none = verdicts_of(episodes(r3=0.15), tmp_path / "none", "C2")
    both = verdicts_of(episodes(control=0.32), tmp_path / "both", "C2")
    assert (good["C2", ""], good[control]) == (YES, YES)
    assert (none["C2", ""], none[control]) == (NO, YES)
    assert (both["C2", ""], both[control]) == (NO, NO)
    assert good["C4", ""] == NO and good["C6", ""] == good["C9", ""] == UNTESTABLE


def test_one_seed_that_fails_decides(tmp_path: Path) -> None:
    table = episodes()
    weak = stored.synthetic_episodes("r3", 9, 0.15, 0.15, words=8, problems=520)
    assert verdicts_of(pd.concat([table, weak]), tmp_path, "C2")["C2", ""] == NO


def evidence_of(table: pd.DataFrame, root: Path) -> results.Evidence:
    return results.gather(store(root, table), table)


def test_a_seed_without_reflections_makes_no_claim_about_them_true(tmp_path: Path) -> None:
    table = episodes()
    perfect = (table.arm == "r3") & (table.seed == 1)
    table.loc[perfect, "attempt_ok"] = True
    table.loc[perfect, [c for c in table if c.startswith(("reflection", "retry"))]] = pd.NA
    e = evidence_of(table, tmp_path)
    for decision in (results.shorter(e), results.less_repetitive(e)):
        assert decision.verdict == UNTESTABLE and "r3 has nothing to compare in greedy seed 1, sampled seed 1" in decision.ours


@pytest.mark.parametrize("other", ["names", "texts"])
def test_another_model_on_other_problems_is_no_comparison(tmp_path: Path, other: str) -> None:
    "C6: as many problems, none of them the same; or the same names for other problems."
    folder = tmp_path / "p" / "r3_repro.stored.TOY"
    large = stored.synthetic_episodes("vanilla", 5, 0.15, 0.05, problems=520)
    for name, table in (("Qwen2.5-7B-Instruct", episodes()), ("Qwen2.5-72B-Instruct", large)):
        if name.startswith("Qwen2.5-72B"):
            table = table.assign(**({"problem_id": "x" + table.problem_id} if other == "names" else {"problem": "{}"}))
        (folder / name / "episodes").mkdir(parents=True)
        for (arm, seed), rows in table.groupby(["arm", "seed"]):
            file = "vanilla" if arm == "vanilla" else f"{arm}-seed{seed}"
            rows.to_parquet(folder / name / "episodes" / f"{file}.parquet")
    e = results.gather(folder / "Qwen2.5-7B-Instruct", episodes())
    decision = results.beats_ten_times(e)
    assert decision.verdict == UNTESTABLE and "cannot be compared" in decision.ours


def test_three_seeds_far_apart_do_not_decide_a_verdict(tmp_path: Path) -> None:
    "r3 above the control in each of three seeds, by very different amounts: the bootstrap is sure, and should not be."
    table = pd.concat(
        [stored.synthetic_episodes("vanilla", 0, 0.15, 0.15, problems=520)]
        + [stored.synthetic_episodes("r3", s, r, 0.1, problems=520) for s, r in enumerate((0.17, 0.25, 0.45))]
        + [stored.synthetic_episodes("random_reward", s, 0.14, 0.1, problems=520) for s in range(3)]
    )
    e = evidence_of(table, tmp_path)
    a, b = (stored.outcomes(e.episodes, arm, "greedy", "two").to_numpy().astype(float) for arm in ("random_reward", "r3"))
    assert stats.crossed_bootstrap(b - a).low > 0 > stats.crossed_interval(b - a).low
    assert results.above_control(e).verdict == NO


def test_a_change_of_any_deciding_constant_or_function_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    from r3_repro import forgetting

    now = results.rules_digest()
    changes = [(results, "ALPHA", 0.05), (results, "LEAST_PROBLEMS", 1), (results, "CEILING", 0.5), (results, "TEN_TIMES", {})]
    changes += [
        (results, "COMPARISONS", {}),
        (results, "C10_ERRORS", {}),
        (forgetting, "MARGIN", 0.5),
        (reflections, "BLOCKS", 3),
    ]
    for module, name, value in [*changes, (results, "too_little", lambda e, *arms: ""), (stats, "mcnemar", stats.paired)]:
        with monkeypatch.context() as m:
            m.setattr(module, name, value)
            if name == "mcnemar":
                m.setattr(results, name, value)
            assert results.rules_digest() != now, name
    assert results.rules_digest() == now


@pytest.mark.usefixtures("undrawn")
def test_rules_that_changed_after_the_run_are_told(tmp_path: Path) -> None:
    folder = store(tmp_path, episodes(problems=20, seeds=1))
    for recorded, says in (
        (results.rules_digest(), "the same as when the episodes were made"),
        ("old", "Rules changed after the run"),
    ):
        for f in (folder / "episodes").glob("*.parquet"):
            f.with_suffix(".manifest.json").write_text(json.dumps({"verdict_rules": recorded}))
        results.make_results(folder)
        assert says in (folder / "tables" / "verdicts.md").read_text()


@pytest.mark.parametrize("folder", figures.model_folders(REPOSITORY / "results"), ids=lambda f: "-".join(f.parts[-3:]))
def test_committed_verdicts_are_by_the_present_rules(folder: Path) -> None:
    text = (folder / "tables" / "verdicts.md").read_text()
    assert results.rules_digest() in text, "the rules have changed: run `make figures` and commit what it changes"
    assert plots.markdown_escape(results.rules_note(folder)) in text


def test_every_claim_is_judged(made: Path) -> None:
    with open(made / "tables" / "verdicts.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert list(dict.fromkeys(r["claim"] for r in rows)) == [f"C{i}" for i in range(1, 11)]
    assert {r["verdict"] for r in rows} <= {YES, NO, UNTESTABLE} and all(r["rule"] and r["ours"] for r in rows)
    assert "no evidence about large models" in (made / "tables" / "verdicts.md").read_text()


def test_a_changed_verifier_is_refused(tmp_path: Path) -> None:
    table = episodes(problems=20, seeds=1)
    table.loc[table.attempt == "right", "attempt_ok"] = False
    table["retry_ok"] = table.retry_ok.fillna(False)
    folder = store(tmp_path, table)
    with pytest.raises(ValueError, match="the verifier has changed"):
        results.make_results(folder)


@pytest.mark.parametrize("break_it", ["problem missing", "twice", "column missing"])
def test_unpaired_episodes_are_refused(tmp_path: Path, break_it: str) -> None:
    table = episodes(problems=20, seeds=1)
    if break_it == "problem missing":
        table = table[~((table.arm == "r3") & (table.problem_id == "toy-00003"))]
    elif break_it == "twice":
        table = pd.concat([table, table[table.arm == "r3"][:1]])
    else:
        table = table.drop(columns="retry_error")
    with pytest.raises(ValueError, match=r"the same 20|stored twice|lack the columns retry_error"):
        stored.load_episodes(store(tmp_path, table))


def other_problems(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(problem_id="other-" + table.problem_id, problem=table.problem.str.replace("number", "other"))


@pytest.mark.usefixtures("undrawn")
def test_transfer_has_its_place_and_its_table(tmp_path: Path) -> None:
    folder = store(tmp_path, episodes(problems=60))
    (folder / "transfer").mkdir()
    moved = stored.synthetic_episodes("r3", 40, 0.15, 0.9, problems=60).assign(arm="elsewhere:r3", seed=3)
    moved.to_parquet(folder / "transfer" / "elsewhere-r3-seed3.parquet")
    assert make_figures(["--root", str(tmp_path)]) == 0
    with open(folder / "tables" / "transfer.csv", newline="") as f:
        rows = {(r["mode"], r["trained_on"], r["arm"], r["seed"]): r for r in csv.DictReader(f)}
    row = rows["greedy", "elsewhere", "r3", "3"]
    a, b = ((episodes(problems=60), "vanilla"), (moved, "elsewhere:r3"))
    before, after = (stored.outcomes(table, arm, "greedy", "two").to_numpy()[0] for table, arm in (a, b))
    assert float(row["two_p"]) == pytest.approx(stats.mcnemar(before, after).p, rel=1e-4)
    assert float(row["two_change"]) == pytest.approx(stats.paired_difference(before, after).estimate, rel=1e-4)
    assert ("greedy", "r3_repro.stored.TOY", "r3", "mean of 2") in rows and rows["greedy", "–", "vanilla", "0"]["two_p"] == ""
    assert "elsewhere" not in (folder / "tables" / "four_columns.csv").read_text()
    other_problems(moved).to_parquet(folder / "transfer" / "elsewhere-r3-seed3.parquet")
    with pytest.raises(ValueError, match="the same 60"):
        results.transfer_table(folder)


def test_tasks_stand_side_by_side(tmp_path: Path) -> None:
    for task, model in (("countdown", "one"), ("countdown", "two"), ("function_calling", "two")):
        for (arm, seed), rows in episodes(problems=20).groupby(["arm", "seed"]):
            file = (
                tmp_path
                / "tiny"
                / task
                / model
                / "episodes"
                / f"{'vanilla' if arm == 'vanilla' else f'{arm}-seed{seed}'}.parquet"
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(file)
    assert len(results.make_by_task(tmp_path, "tiny")) == 3
    with open(tmp_path / "tiny" / "tables" / "four_columns_by_task.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    ours = {(r["model"], r["arm"], r["mode"]): r for r in rows if r["source"] == "ours"}
    assert len(ours) == 2 * 2 * 2
    one, two = ours["one", "r3", "greedy"], ours["two", "r3", "greedy"]
    assert one["APIGen: trained_two_tries"] == "" != two["APIGen: trained_two_tries"] == two["Countdown: trained_two_tries"]
    published = [r for r in rows if r["source"] == "paper"]
    cells = {(r["model"], c): float(r[c]) for r in published for c in r if r[c] and c.endswith(tuple(results.FOUR))}
    expected = {}
    for title, name in (("APIGen", "table1_apigen.csv"), ("Countdown", "table2_countdown.csv")):
        with open(PUBLISHED / name, newline="") as f:
            for r in csv.DictReader(f):
                if r["accuracy_percent"]:
                    expected[r["model"], f"{title}: {r['column']}"] = float(r["accuracy_percent"]) / 100
    assert cells == pytest.approx(expected)


@pytest.mark.usefixtures("undrawn")
def test_chapter_05_shows_that_it_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store(tmp_path / "results", episodes(problems=20, seeds=1))
    monkeypatch.setenv("R3_PROGRESS", str(tmp_path / "progress"))
    reflections.make_reflections(folder)
    shown = (tmp_path / "progress").read_text()
    assert "lengths of reflections: 100%" in shown and "repetitiveness of reflections: 100%" in shown


def test_a_table_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The disk is full in the middle of a file: the old file is whole, and no fragment stays."
    old = plots.save_table(pd.DataFrame({"n": [1]}), tmp_path, "t", "Old.")
    before = {p: p.read_bytes() for p in old}

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as f:
            f.write(data[:3])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        plots.save_table(pd.DataFrame({"n": [2]}), tmp_path, "t", "New.")
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("module", [stats, plots, stored, results, reflections, figures, contribution], ids=lambda m: m.__name__)
def test_public_functions_say_what_each_parameter_is(module: Any) -> None:
    silent = []
    lines = inspect.getsource(module).splitlines()
    for f in ast.parse("\n".join(lines)).body:
        if isinstance(f, ast.FunctionDef) and not f.name.startswith("_"):
            every = [*f.args.posonlyargs, *f.args.args, f.args.vararg, *f.args.kwonlyargs, f.args.kwarg]
            silent += [f"{f.name}: {a.arg}" for a in every if a and "  # " not in lines[a.lineno - 1]]
            silent += [] if ast.get_docstring(f) else [f.name]
    assert silent == []


def test_published_values_are_those_of_the_task() -> None:
    claims = stored.load_claims(REPOSITORY)
    for task, paper in stored.PAPER_NAMES.items():
        for claim in ("C1", "C2", "C3", "C5"):
            shown = stored.published_value(claims[claim], task)
            assert shown.startswith(f"+{claims[claim]['points'][task]} points {paper}") and shown.count("+") == 1
    letters = {t: stored.published_value(claims["C1"], t)[-3:] for t in stored.PAPER_NAMES}
    assert letters == {"function_calling": "(H)", "countdown": "(M)"}  # "H / M" in the fact sheet


def fact_rows(heading: str) -> list[list[str]]:
    section = FACTS.read_text().split(heading)[1].split("\n## ")[0]
    return [[c.strip() for c in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize(("heading", "file"), [("## Table 1", "table1_apigen.csv"), ("## Table 2", "table2_countdown.csv")])
def test_published_cells_are_those_of_the_fact_sheet(heading: str, file: str) -> None:
    if not FACTS.is_file():
        pytest.skip(f"skipped: the comparison of {file} with the fact sheet, which is not at {FACTS}")
    with open(PUBLISHED / file, newline="") as f:
        ours = {(r["model"], r["column"]): (r["accuracy_percent"], r["confidence"], r["status"]) for r in csv.DictReader(f)}
    rows = fact_rows(heading)
    assert len(ours) == 4 * len(rows)
    for model, *cells in rows:
        for column, cell in zip(stored.PAPER_COLUMNS, cells, strict=True):
            value, letter, status = ours[model, column]
            if number := re.fullmatch(r"(\d+\.\d) ([HAMD])", cell):
                assert (value, letter) == number.groups() and status == ("derived" if letter == "D" else "published")
            else:
                assert value == letter == "" and status == ("not applicable" if cell == "n/a" else "missing"), cell


def test_published_claims_are_those_of_the_fact_sheet() -> None:
    if not FACTS.is_file():
        pytest.skip(f"skipped: the comparison of claims.json with the fact sheet, which is not at {FACTS}")
    ours = stored.load_claims(REPOSITORY)
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
    with open(PUBLISHED / "training.csv", newline="") as f:
        return list(csv.DictReader(f))


def test_published_training_is_that_of_the_fact_sheet() -> None:
    if not FACTS.is_file():
        pytest.skip(f"skipped: the comparison of training.csv with the fact sheet, which is not at {FACTS}")
    ours = {r["item"]: r for r in training_facts()}
    table = FACTS.read_text().split("## Training\n")[1].split("\n\n")[0]
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
    with open(PUBLISHED / "sources.csv", newline="") as f:
        known = {r["id"] for r in csv.DictReader(f)}
    letters = set(json.loads((PUBLISHED / "claims.json").read_text())["confidence"])
    rows = training_facts()
    for name in stored.PAPER_TABLES.values():
        with open(PUBLISHED / name, newline="") as f:
            rows += [r | {"value": r["accuracy_percent"]} for r in csv.DictReader(f)]
    for r in rows:
        if r["value"]:
            assert r["confidence"] in letters and r["status"] == ("derived" if r["confidence"] == "D" else "published"), r
        else:
            assert r["confidence"] == "" and r["status"] in ("missing", "not applicable"), r
        assert set(r["sources"].split()) <= known and ("T" in r["sources"].split() or r["confidence"] != "A"), r


def test_a_missing_published_number_stays_missing() -> None:
    shown, plain = results.four_columns(results.paper_rows("countdown", REPOSITORY))
    row = shown.set_index("model").loc["Qwen-2.5-7B Instruct"]
    assert row[results.FOUR["trained_two_tries"]] == "–" and row[results.FOUR["trained_first"]] == "41.6 (M)"
    assert np.isnan(plain.set_index("model").loc["Qwen-2.5-3B Instruct", "vanilla_first"])


def test_a_published_bound_is_a_note_and_no_cell() -> None:
    bounds = 0
    for task, name in stored.PAPER_TABLES.items():
        shown = results.four_columns(results.paper_rows(task, REPOSITORY))[0].set_index("model")
        with open(PUBLISHED / name, newline="") as f:
            for r in csv.DictReader(f):
                if r["note"].startswith("no number"):
                    bounds += 1
                    assert shown.loc[r["model"], results.FOUR[r["column"]]] == "–"
    assert bounds == 4
