"""Any two tables of episodes are compared by plain arithmetic, or refused by name."""

from pathlib import Path

import pandas as pd
import pytest
from scipy import stats as sps

import r3_repro as r3
from r3_repro.analysis.compare import compare, differences_table, read_side
from r3_repro.testing import synthetic_episodes
from r3_repro.utils.errors import SettingsError
from r3_repro.utils.files import write_json, write_parquet


@pytest.fixture
def before() -> pd.DataFrame:
    return synthetic_episodes("vanilla", 0, 0.2, 0.2, modes=("sampled",))


@pytest.fixture
def after() -> pd.DataFrame:
    return synthetic_episodes("r3", 0, 0.4, 0.3, words=8.0, modes=("sampled",))


def test_the_test_is_mcnemars_and_the_difference_plain(before: pd.DataFrame, after: pd.DataFrame) -> None:
    table = differences_table(read_side(before, "a"), read_side(after, "b")).set_index("what")
    for what, right in (("first try", lambda e: e.attempt_ok), ("two tries", lambda e: e.attempt_ok | e.retry_ok.fillna(False))):
        x, y = (right(e.sort_values("problem_id")).to_numpy(dtype=bool) for e in (before, after))
        gained, lost = int((~x & y).sum()), int((x & ~y).sum())
        row = table.loc[what]
        assert row["test"] == f"McNemar, {gained} gained, {lost} lost"
        p = sps.binomtest(gained, gained + lost).pvalue
        assert float(row["p"]) == pytest.approx(p, rel=0.5, abs=0.0006)
        assert row["difference (points)"].startswith(f"{100 * (y.mean() - x.mean()):+.1f} [")
        assert row["a %"].startswith(f"{100 * x.mean():.1f} [")


def test_seeds_count_where_there_are_several(before: pd.DataFrame, after: pd.DataFrame) -> None:
    several = pd.concat([synthetic_episodes("r3", s, 0.4, 0.3, modes=("sampled",)) for s in range(3)])
    page = compare(before, several)
    assert list(page.tables["Accuracy"].test) == ["t, over seeds and problems"] * 2
    assert "a: 1 seed; b: 3 seeds" in page.notes[0] and "With one seed" in page.notes[1]
    assert len(compare(several, several).notes) == 1
    assert list(compare(before, before.assign(attempt_ok=before.attempt_ok)).tables["Accuracy"].p) == ["1.000"] * 2


def test_a_table_of_anyones_needs_two_columns(tmp_path: Path) -> None:
    pd.DataFrame({"problem_id": [1, 2, 3], "attempt_ok": [True, False, False]}).to_csv(tmp_path / "mine.csv", index=False)
    (tmp_path / "theirs.jsonl").write_text("".join(f'{{"problem_id": "{i}", "attempt_ok": true}}\n' for i in (1, 2, 3)), "utf-8")
    page = r3.compare(tmp_path / "mine.csv", str(tmp_path / "theirs.jsonl"))
    assert page.title == "mine and theirs" and list(page.tables["Accuracy"].what) == ["first try"]
    assert page.tables["Accuracy"]["difference (points)"].iloc[0].startswith("+66.7")
    assert list(page.tables) == ["Accuracy", "Answers that changed"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: e[e.problem_id != "toy-00003"], "1 problems that only one of them has: toy-00003"),
        (lambda e: e.assign(mode="greedy"), "2 modes that only one of them has: greedy, sampled"),
        (lambda e: pd.concat([e, e.assign(draw=1)]), "1 draws that only one of them has: 1"),
        (
            lambda e: e.assign(problem=e.problem.where(e.problem_id != "toy-00007", "{}")),
            "1 problems have another text: toy-00007",
        ),
        (lambda e: pd.concat([e, e.iloc[:1]]), "stored twice"),
        (lambda e: e.assign(attempt_ok=e.attempt_ok.where(e.problem_id != "toy-00002")), "no verdict where it needs one"),
        (lambda e: pd.concat([e, e.assign(arm="other")]), "holds the arms"),
        (lambda e: e.drop(columns="attempt_ok"), "no column 'attempt_ok'"),
    ],
)
def test_what_cannot_be_compared_is_named(before: pd.DataFrame, after: pd.DataFrame, change, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compare(before, change(after))


@pytest.mark.parametrize("key", ["task", "test", "protocol"])
def test_manifests_are_held_against_one_another(tmp_path: Path, before: pd.DataFrame, after: pd.DataFrame, key: str) -> None:
    hashes = {"task": "t", "test": "te", "protocol": "p", "model": "any"}
    for name, table, own in (
        ("a", before, hashes),
        ("b", after, hashes | {"model": "other"}),
        ("c", after, hashes | {key: "new"}),
    ):
        write_parquet(tmp_path / f"{name}.parquet", table)
        write_json(tmp_path / f"{name}.manifest.json", {"hashes": hashes | own})
    assert compare(tmp_path / "a.parquet", tmp_path / "b.parquet").title == "a and b", "models may differ"
    with pytest.raises(ValueError, match=rf"another .*: {hashes[key]} and new"):
        compare(tmp_path / "a.parquet", tmp_path / "c.parquet")
    with pytest.raises(SettingsError, match=r"nothing\.parquet: give a model's folder"):
        compare(tmp_path / "a.parquet", tmp_path / "nothing.parquet")


def test_a_folder_and_a_run_are_read(tmp_path: Path, before: pd.DataFrame, after: pd.DataFrame) -> None:
    run = r3.open_run("smoke", arm="r3", root=str(tmp_path))
    vanilla = r3.open_run("smoke", arm="vanilla", root=str(tmp_path))
    for name, table in (("vanilla", before), ("r3-seed0", after)):
        write_parquet(run.model_dir / f"episodes/{name}.parquet", table)
    assert compare(vanilla, run).title == "vanilla and r3-seed0"
    with pytest.raises(ValueError, match="holds the arms vanilla, r3"):
        compare(run.model_dir, vanilla)


def test_texts_of_models_are_escaped_and_shortened(before: pd.DataFrame, after: pd.DataFrame) -> None:
    page = compare(before.assign(attempt="<script>alert(1)</script>"), after.assign(attempt="x" * 5000))
    shown = page.to_html()
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "x" * 200 not in shown
    assert page._repr_html_() == shown and page.to_markdown().startswith("# a and b\n")
