"""Verdicts follow the data, by rules whose digest shows every change."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support import REPOSITORY, patience
from toy_results import episodes, store, store_episodes

import r3_repro
from r3_repro.analysis import claims, differences, forgetting, loading, repetition, results, text_metrics
from r3_repro.analysis.claims import (
    CLAIM_RULES,
    NO,
    UNTESTABLE,
    YES,
    Evidence,
    above_control,
    beats_ten_times,
    gather,
    less_repetitive,
    shorter,
)
from r3_repro.analysis.loading import load_episodes, outcomes
from r3_repro.analysis.results import make_results, rules_digest, rules_note
from r3_repro.reporting.tables import markdown_escape
from r3_repro.testing import synthetic_episodes
from r3_repro.utils import stats
from r3_repro.utils.stats import crossed_bootstrap, crossed_interval, paired
from r3_repro.workflow.study import model_folders


def verdicts_of(table: pd.DataFrame, tmp_path: Path, *names: str) -> dict[tuple[str, str], str]:
    folder = store(tmp_path, table)
    e = gather(folder, load_episodes(folder))
    return {(r.claim, r.part): r.decide(e).verdict for r in CLAIM_RULES if r.claim in names}


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
    weak = synthetic_episodes("r3", 9, 0.15, 0.15, words=8, problems=520)
    assert verdicts_of(pd.concat([table, weak]), tmp_path, "C2")["C2", ""] == NO


def evidence_of(table: pd.DataFrame, root: Path) -> Evidence:
    return gather(store(root, table), table)


def test_a_seed_without_reflections_makes_no_claim_about_them_true(tmp_path: Path) -> None:
    table = episodes()
    perfect = (table.arm == "r3") & (table.seed == 1)
    table.loc[perfect, "attempt_ok"] = True
    table.loc[perfect, [c for c in table if c.startswith(("reflection", "retry"))]] = pd.NA
    e = evidence_of(table, tmp_path)
    for decision in (shorter(e), less_repetitive(e)):
        assert decision.verdict == UNTESTABLE and "r3 has nothing to compare in greedy seed 1, sampled seed 1" in decision.ours


@pytest.mark.parametrize("other", ["names", "texts"])
def test_another_model_on_other_problems_is_no_comparison(tmp_path: Path, other: str) -> None:
    "C6: as many problems, none of them the same; or the same names for other problems."
    folder = tmp_path / "p" / "r3_repro.testing.TOY"
    large = synthetic_episodes("vanilla", 5, 0.15, 0.05, problems=520)
    changed = {"problem_id": "x" + large.problem_id} if other == "names" else {"problem": "{}"}
    store_episodes(folder / "Qwen2.5-7B-Instruct", episodes())
    store_episodes(folder / "Qwen2.5-72B-Instruct", large.assign(**changed))
    e = gather(folder / "Qwen2.5-7B-Instruct", episodes())
    decision = beats_ten_times(e)
    assert decision.verdict == UNTESTABLE and "cannot be compared" in decision.ours


def test_three_seeds_far_apart_do_not_decide_a_verdict(tmp_path: Path) -> None:
    "r3 above the control in each of three seeds, by very different amounts: the bootstrap is sure, and should not be."
    table = pd.concat(
        [synthetic_episodes("vanilla", 0, 0.15, 0.15, problems=520)]
        + [synthetic_episodes("r3", s, r, 0.1, problems=520) for s, r in enumerate((0.17, 0.25, 0.45))]
        + [synthetic_episodes("random_reward", s, 0.14, 0.1, problems=520) for s in range(3)]
    )
    e = evidence_of(table, tmp_path)
    a, b = (outcomes(e.episodes, arm, "greedy", "two").to_numpy().astype(float) for arm in ("random_reward", "r3"))
    assert crossed_bootstrap(b - a).low > 0 > crossed_interval(b - a).low
    assert above_control(e).verdict == NO


CHANGES: list[tuple[Any, str, Any]] = [
    (claims, "ALPHA", 0.05),
    (differences, "ALPHA", 0.05),
    (claims, "LEAST_PROBLEMS", 1),
    (claims, "CEILING", 0.5),
    (claims, "TEN_TIMES", {}),
    (claims, "C10_ERRORS", {}),
    (differences, "COMPARISONS", {}),
    (forgetting, "FORGETTING_MARGIN", 0.5),
    (repetition, "BLOCKS", 3),
    (text_metrics, "WORD", re.compile("x")),
    (loading, "KEY", ["arm"]),
    (claims, "insufficient_data", lambda e, *arms: ""),
    (claims, "mcnemar", paired),
    (differences, "mcnemar", paired),
    (forgetting, "mcnemar", paired),
    (stats, "paired", lambda before, after: (before, after)),
]


@pytest.mark.parametrize(
    ("module", "name", "value"), CHANGES, ids=[f"{m.__name__.rpartition('.')[2]}.{n}" for m, n, _ in CHANGES]
)
def test_a_change_of_any_deciding_constant_or_function_shows(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: Any
) -> None:
    now = rules_digest()
    with monkeypatch.context() as m:
        m.setattr(module, name, value)
        assert rules_digest() != now and rules_digest().split("-")[0] == now.split("-")[0]
    assert rules_digest() == now


def test_a_changed_sentence_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "SAME_RULES", {})
    now = rules_digest()
    monkeypatch.setattr(results, "CLAIM_RULES", (replace(CLAIM_RULES[0], sentence="Softer."), *CLAIM_RULES[1:]))
    assert rules_digest().split("-")[0] != now.split("-")[0] and rules_digest().split("-")[1] == now.split("-")[1]


def test_the_digest_of_the_rules_is_the_same_wherever_the_package_is(tmp_path: Path) -> None:
    shutil.copytree(Path(r3_repro.__file__).parent, tmp_path / "r3_repro", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import r3_repro\nfrom r3_repro.analysis.results import rules_digest\nprint(r3_repro.__file__, rules_digest())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=tmp_path, timeout=patience(120)
    )
    assert done.stdout.split() == [str(tmp_path / "r3_repro/__init__.py"), rules_digest()], done.stderr


@pytest.mark.usefixtures("undrawn")
def test_rules_that_changed_after_the_run_are_told(tmp_path: Path) -> None:
    folder = store(tmp_path, episodes(problems=20, seeds=1))
    for recorded, says in (
        (rules_digest(), "the same as when the episodes were made"),
        ("old", "Rules changed after the run"),
    ):
        for f in (folder / "episodes").glob("*.parquet"):
            f.with_suffix(".manifest.json").write_text(json.dumps({"verdict_rules": recorded}), "utf-8")
        make_results(folder)
        assert says in (folder / "tables" / "verdicts.md").read_text("utf-8")


STORED = model_folders(REPOSITORY / "results" / "studies")


def test_there_are_committed_studies() -> None:
    assert len(STORED) >= 3


@pytest.mark.parametrize("folder", STORED, ids=lambda f: "-".join(f.parts[-3:]))
def test_committed_verdicts_are_by_the_present_rules(folder: Path) -> None:
    text = (folder / "tables" / "verdicts.md").read_text("utf-8")
    assert rules_digest() in text, "the rules have changed: run `make figures` and commit what it changes"
    assert markdown_escape(rules_note(folder)) in text
