"""Tables and figures from stored data alone: the same bytes twice, and without torch."""

import ast
import csv
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from support import REPOSITORY, patience
from toy_results import SMALL, contents, episodes, store

import r3_repro.analysis
import r3_repro.reporting
from r3_repro.analysis.loading import load_episodes, outcomes
from r3_repro.analysis.protocol import REFUTED, SUPPORTED, UNDECIDED
from r3_repro.analysis.results import make_results, make_transfer
from r3_repro.analysis.verdicts import NOT_STUDIED
from r3_repro.testing import synthetic_episodes
from r3_repro.utils.errors import SettingsError
from r3_repro.workflow.reports import make_all_reports

HEAVY = {"torch", "transformers", "trl", "datasets", "accelerate", "lm_eval"}
MODULES = [f"r3_repro.analysis.{m.name}" for m in pkgutil.iter_modules(r3_repro.analysis.__path__)]
WITHOUT_TORCH = f"""
import importlib, sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"blocked: {{name}}")

sys.meta_path.insert(0, Absent())
try:
    import torch
except ModuleNotFoundError:
    for module in {MODULES}:
        importlib.import_module(module)
    from r3_repro.workflow.cli import app
    app(["figures", "--root", sys.argv[1]])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    folder = store(root, episodes(SMALL))
    assert make_all_reports(root)
    return folder


def test_the_same_bytes_elsewhere_and_without_torch(made: Path, tmp_path: Path) -> None:
    "Elsewhere, with another hash seed and where torch, transformers, trl and lm_eval cannot be imported: the very same bytes."
    other = store(tmp_path, episodes(SMALL))
    env = {"PYTHONHASHSEED": "7", "PATH": "", "MPLCONFIGDIR": str(tmp_path / "mpl"), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=REPOSITORY, env=env, timeout=patience(300))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tables: ") == done.stdout.count("figures: ") == 1
    one, two = contents(made), contents(other)
    assert one.keys() == two.keys() and len(one) > 40
    assert [name for name in one if one[name] != two[name]] == []


def test_the_analysis_loads_neither_torch_nor_a_run(tmp_path: Path) -> None:
    "Every module of the package is imported, in a new process that has torch: none of them asks for it."
    code = f"import importlib, json, sys\n[importlib.import_module(m) for m in {MODULES}]\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=tmp_path, timeout=patience(120)
    )
    loaded = set(json.loads(done.stdout))
    assert set(MODULES) <= loaded and "r3_repro.analysis.results" in MODULES
    assert {m for m in loaded if m.split(".")[0] in HEAVY} == set()
    assert {m for m in loaded if m.startswith(("r3_repro.runs", "r3_repro.engines", "r3_repro.training."))} == set()


@pytest.mark.parametrize("notebook", sorted((REPOSITORY / "nbs/analysis").glob("*.ipynb")), ids=lambda p: p.stem)
def test_the_examples_need_neither_torch_nor_a_run(notebook: Path) -> None:
    cells = ["".join(c["source"]) for c in json.loads(notebook.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    imported = set()
    for node in ast.walk(ast.parse("\n".join(cells))):
        imported |= {a.name for a in node.names} if isinstance(node, ast.Import) else set()
        imported |= {f"{node.module}.{a.name}" for a in node.names} if isinstance(node, ast.ImportFrom) else set()
    assert imported, "no import was found"
    assert {m for m in imported if m.split(".")[0] in HEAVY} == set()
    assert {m for m in imported if m.startswith(("r3_repro.runs", "r3_repro.engines", "r3_repro.training."))} == set()


def test_every_table_has_three_forms_and_every_figure_too(made: Path) -> None:
    for kind, forms in (("tables", {".csv", ".md", ".tex"}), ("figures", {".svg", ".pdf", ".png"})):
        found: dict[str, set[str]] = {}
        for p in (made / kind).iterdir():
            found.setdefault(p.stem, set()).add(p.suffix)
        assert found and all(f == forms for f in found.values()), found
    assert not any(b"\r" in p.read_bytes() for p in (made / "tables").iterdir())


def test_tables_do_not_name_the_machine(made: Path) -> None:
    for p in (made / "tables").iterdir():
        assert str(made.parents[2]) not in p.read_text("utf-8") and str(REPOSITORY) not in p.read_text("utf-8")


def test_nothing_to_make_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nothing to make"):
        make_all_reports(tmp_path)


def test_every_claim_is_judged(made: Path) -> None:
    with open(made / "tables" / "verdicts.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert list(dict.fromkeys(r["claim"] for r in rows)) == [f"C{i}" for i in range(1, 11)]
    assert {r["verdict"] for r in rows} <= {SUPPORTED, REFUTED, UNDECIDED, NOT_STUDIED} and all(
        r["rule"] and r["ours"] for r in rows
    )
    assert "no evidence about large models" in (made / "tables" / "verdicts.md").read_text("utf-8")


def test_a_changed_verifier_is_refused(tmp_path: Path) -> None:
    table = episodes(problems=20, seeds=1)
    table.loc[table.attempt == "right", "attempt_ok"] = False
    table["retry_ok"] = table.retry_ok.fillna(False)
    folder = store(tmp_path, table)
    with pytest.raises(ValueError, match="the verifier has changed"):
        make_results(folder)


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
        load_episodes(store(tmp_path, table))


def other_problems(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(problem_id="other-" + table.problem_id, problem=table.problem.str.replace("number", "other"))


@pytest.mark.usefixtures("undrawn")
def test_transfer_has_its_place_and_its_table(tmp_path: Path) -> None:
    folder = store(tmp_path, episodes(problems=60))
    (folder / "transfer").mkdir()
    moved = synthetic_episodes("r3", 40, 0.15, 0.9, problems=60).assign(arm="elsewhere:r3", seed=3)
    moved.to_parquet(folder / "transfer" / "elsewhere-r3-seed3.parquet")
    assert make_all_reports(tmp_path)
    with open(folder / "tables" / "transfer.csv", newline="", encoding="utf-8") as f:
        rows = {(r["mode"], r["trained_on"], r["arm"]): r for r in csv.DictReader(f)}
    row = rows["greedy", "elsewhere", "r3"]
    a, b = ((episodes(problems=60), "vanilla"), (moved, "elsewhere:r3"))
    before, after = (outcomes(table, arm, "greedy", "two").to_numpy()[0] for table, arm in (a, b))
    assert float(row["two_change"]) == pytest.approx(after.mean() - before.mean(), rel=1e-4) and float(row["two_p"]) < 0.01
    assert rows["greedy", "r3_repro.testing.TOY", "r3"]["seeds"] == "2" and rows["greedy", "–", "vanilla"]["two_p"] == ""
    assert "elsewhere" not in (folder / "tables" / "accuracy.csv").read_text("utf-8")
    other_problems(moved).to_parquet(folder / "transfer" / "elsewhere-r3-seed3.parquet")
    with pytest.raises(ValueError, match="the same 60"):
        make_transfer(folder)


REPORTING = [f"r3_repro.reporting.{m.name}" for m in pkgutil.iter_modules(r3_repro.reporting.__path__)]


@pytest.mark.parametrize("name", [*MODULES, *REPORTING, "r3_repro.utils.stats", "r3_repro.workflow.study"])
def test_public_functions_say_what_each_parameter_is(name: str) -> None:
    silent = []
    lines = inspect.getsource(importlib.import_module(name)).splitlines()
    for f in ast.parse("\n".join(lines)).body:
        if isinstance(f, ast.FunctionDef) and not f.name.startswith("_"):
            every = [*f.args.posonlyargs, *f.args.args, f.args.vararg, *f.args.kwonlyargs, f.args.kwarg]
            silent += [f"{f.name}: {a.arg}" for a in every if a and "  # " not in lines[a.lineno - 1]]
            silent += [] if ast.get_docstring(f) else [f.name]
    assert silent == []
