"""Tables, figures and verdicts from stored data alone: the same bytes twice, without torch, the paper as published."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from r3_repro import results, stored
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
    folder = store(root, episodes())
    assert make_figures(["--root", str(root)]) == 0
    return folder


def test_figures_command_gives_the_same_bytes_elsewhere(made: Path, tmp_path: Path) -> None:
    "Another folder, another process, another hash seed: every table and figure is the same, byte for byte."
    other = store(tmp_path, episodes())
    command = [sys.executable, "-m", "r3_repro.figures", "--root", str(tmp_path)]
    env = {"PYTHONHASHSEED": "7", "PATH": "", "MPLCONFIGDIR": str(tmp_path / "mpl"), "HOME": str(tmp_path)}
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


def test_no_torch_is_needed(tmp_path: Path) -> None:
    "The whole command runs in a process in which torch, transformers, trl and lm_eval cannot be imported."
    store(tmp_path, episodes(problems=30, seeds=1))
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0 and "tables: " in done.stdout, done.stderr


def test_nothing_to_make_is_an_error(tmp_path: Path) -> None:
    assert make_figures(["--root", str(tmp_path)]) == 1


def verdicts_of(table: pd.DataFrame, tmp_path: Path) -> dict[tuple[str, str], str]:
    folder = store(tmp_path, table)
    found = results.verdicts(results.gather(folder, stored.load_episodes(folder)))
    return {(r.claim, r.what if r.what.startswith("control") else ""): r.verdict for r in found.itertuples()}


def test_verdicts_follow_the_data(tmp_path: Path) -> None:
    "A gain that the control does not share is reproduced; no gain, or a control that gains too, is not."
    control = ("C2", "control: random reward shows no such gain")
    good = verdicts_of(episodes(), tmp_path / "good")
    none = verdicts_of(episodes(r3=0.15), tmp_path / "none")
    both = verdicts_of(episodes(control=0.32), tmp_path / "both")
    assert (good["C2", ""], good[control]) == (YES, YES)
    assert (none["C2", ""], none[control]) == (NO, YES)
    assert (both["C2", ""], both[control]) == (NO, NO)
    assert good["C4", ""] == NO and good["C6", ""] == good["C9", ""] == UNTESTABLE


def test_one_seed_that_fails_decides(tmp_path: Path) -> None:
    table = episodes()
    weak = stored.synthetic_episodes("r3", 9, 0.15, 0.15, words=8, problems=520)
    assert verdicts_of(pd.concat([table, weak]), tmp_path)["C2", ""] == NO


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
            if number := re.fullmatch(r"(\d+\.\d) ([HMD])", cell):
                assert (value, letter) == number.groups() and status == ("derived" if letter == "D" else "published")
            else:
                assert value == letter == "" and status == ("not applicable" if cell == "n/a" else "missing"), cell


def test_published_claims_are_those_of_the_fact_sheet() -> None:
    if not FACTS.is_file():
        pytest.skip(f"skipped: the comparison of claims.json with the fact sheet, which is not at {FACTS}")
    ours = stored.load_claims(REPOSITORY)
    for claim, text, value, letter in fact_rows("## Claims"):
        assert (ours[claim]["claim"], ours[claim]["value"], ours[claim]["confidence"]) == (text, value, letter)
        for points in ours[claim]["points"].values():
            assert f"+{points}" in value


def test_a_missing_published_number_stays_missing() -> None:
    shown, plain = results.four_columns(results.paper_rows("countdown", REPOSITORY))
    row = shown.set_index("model").loc["Qwen-2.5-7B Instruct"]
    assert row[results.FOUR["trained_two_tries"]] == "–" and row[results.FOUR["trained_first"]] == "41.6 (M)"
    assert np.isnan(plain.set_index("model").loc["Qwen-2.5-3B Instruct", "vanilla_first"])
