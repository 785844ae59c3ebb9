"""Verdicts from stored files: recomputed with plain pandas and scipy, changed by changed verdicts, refused for mixtures."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as sps

from r3_repro.analysis import protocol
from r3_repro.analysis.protocol import OWN_QUESTIONS, QUESTIONS, Question, above
from r3_repro.analysis.verdicts import comparison_rows, decided, load_base, load_study, make_verdicts, verdict_rows
from r3_repro.testing import synthetic_episodes
from r3_repro.utils.files import write_json, write_parquet
from r3_repro.utils.hashing import file_hash

TWO = protocol.two_tries
GAIN = Question("C2", "", "", lambda task: {"permuted": above(("r3", TWO), ("permuted_reward", TWO))}, matters=-0.05)
ARMS = {"r3": (4, 0.45, 0.4, 8.0), "permuted_reward": (3, 0.15, 0.15, 12.0)}


def store(folder: Path, e: pd.DataFrame) -> None:
    "Episodes of one run, and controls that never help."
    name = "vanilla" if e.arm[0] == "vanilla" else f"{e.arm[0]}-seed{e.seed[0]}"
    write_parquet(folder / f"episodes/{name}.parquet", e)
    if e.arm[0] in ("vanilla", "r3"):
        failed, parts = e[~e.attempt_ok], []
        for control in ("bare", "other", "empty"):
            ring = failed.groupby(["mode", "draw"]).problem_id.transform(lambda ids: np.roll(ids, 1))
            parts.append(failed.assign(control=control, retry_ok=False, source_id=ring if control == "other" else pd.NA))
        columns = ["arm", "seed", "mode", "draw", "problem_id", "control", "source_id", "retry", "retry_ok", "retry_error"]
        table = pd.concat(parts)[[*columns, "retry_tokens", "retry_finish"]].astype({"source_id": "string"})
        write_parquet(folder / f"controls/{name}.parquet", table)
        hashes = {"episodes": file_hash(folder / f"episodes/{name}.parquet")}
        hashes["controls"] = file_hash(folder / f"controls/{name}.parquet")
        own = {"stage": "controls", "arm": e.arm[0], "seed": int(e.seed[0]), "hashes": hashes}
        write_json(folder / f"controls/{name}.manifest.json", own)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Two bases of the toy task; r3 gains."
    home = tmp_path_factory.mktemp("study")
    for base in ("one", "two"):
        folder = home / "toy" / base
        store(folder, synthetic_episodes("vanilla", 0, 0.15, 0.15, problems=300, modes=("sampled",), draws=2))
        for arm, (seeds, *how) in ARMS.items():
            for seed in range(seeds):
                shift = seed + (10 if base == "two" else 0)  # other draws on the other base
                e = synthetic_episodes(arm, shift, *how, problems=300, modes=("sampled",), draws=2)
                store(folder, e.assign(seed=pd.array([seed] * len(e), dtype="Int64")))
    return home


def two_tries(folder: Path, arm: str) -> pd.DataFrame:
    "Share of right draws, seeds x problems, from the files alone."
    e = pd.concat([pd.read_parquet(f) for f in sorted(folder.glob(f"episodes/{arm}*.parquet"))])
    right = e.attempt_ok.astype(bool) | e.retry_ok.fillna(False).astype(bool)
    return right.astype(float).groupby([e.seed, e.problem_id]).mean().unstack()


def test_a_comparison_is_what_plain_arithmetic_gives(study: Path) -> None:
    rows = comparison_rows(decided(load_study(study)))
    row = rows[(rows.claim == "C2") & (rows.against == "vanilla")].iloc[0]
    z, between, shared, parts = 0.0, 0.0, 0.0, []
    for base in ("one", "two"):
        r3, vanilla = (two_tries(study / "toy" / base, arm) for arm in ("r3", "vanilla"))
        z = z + (r3.mean() - vanilla.mean()) / 2
        s, p = r3.shape
        parts.append((r3.mean(axis=1).var(ddof=1) / s / 4, s - 1))
        rest = r3.sub(r3.mean(axis=1), axis=0)
        shared += ((rest - rest.mean()) ** 2).to_numpy().sum() / ((s - 1) * s * p**2) / 4
    between, n = sum(v for v, _ in parts), len(z)
    problems = (((z - z.mean()) ** 2).sum() + 1) / (n + 2) / n
    variance = max(between + problems - shared, between, problems)
    df = (between + problems) ** 2 / (sum(v * v / d for v, d in parts) + problems**2 / (n - 1))
    half = sps.t.ppf(0.975, df) * variance**0.5
    assert (row.difference, row.low, row.high, row.df) == pytest.approx(
        (z.mean(), z.mean() - half, z.mean() + half, df), rel=1e-9
    )
    assert row["p above least"] == pytest.approx(sps.t.sf(z.mean() / variance**0.5, df), rel=1e-9)
    assert (row.seeds, row.problems, row.unit) == (4, 300, "points")


def test_every_question_has_a_row_and_those_that_can_be_decided_are(study: Path) -> None:
    found = decided(load_study(study))
    table = verdict_rows(found)
    assert list(table.claim) == [q.claim for q in QUESTIONS] and set(table.task) == {"toy"}
    verdict = dict(zip(table.claim, table.verdict, strict=True))
    assert verdict["C2"] == "supported" and verdict["C4"] == "supported" and verdict["C9"] == "not studied"
    said = dict(zip(table.claim, table.ours, strict=True))
    assert "base ladder-500k was not studied" in said["C9"] and "skills of arm r3 were not measured" in said["C8"]
    assert said["C2"].startswith("vanilla +") and "points" in said["C2"]
    own = verdict_rows(decided(load_study(study), OWN_QUESTIONS))
    assert list(own.claim) == ["Q1", "Q2", "Q3", "Q4"] and set(own.paper) == {"–"} and "plain_grpo was not run" in own.ours[0]


def test_flipped_and_dealt_out_verdicts_change_the_words(study: Path, tmp_path: Path) -> None:
    "A twentieth of r3's right verdicts is not enough to lose so clear a claim; outcomes dealt out anew are."
    rng, words = np.random.default_rng(5), {}
    for kind in ("as it is", "flipped", "dealt"):
        shutil.copytree(study, home := tmp_path / kind)
        for base in ("one", "two"):
            tables = {f: pd.read_parquet(f) for f in sorted((home / "toy" / base / "episodes").glob("*.parquet"))}
            shutil.rmtree(home / "toy" / base / "controls")
            everything = pd.concat(tables.values(), keys=range(len(tables)))
            order = rng.permutation(len(everything))
            for column in ("attempt_ok", "retry_ok"):
                if kind == "dealt":
                    everything[column] = everything[column].to_numpy()[order]
            for k, (file, e) in enumerate(tables.items()):
                if kind == "flipped" and file.stem.startswith("r3"):
                    hit = rng.random(len(e)) < 0.05
                    e.loc[hit, ["attempt_ok", "retry_ok"]] = ~e.loc[hit, ["attempt_ok", "retry_ok"]].fillna(False).astype(bool)
                elif kind == "dealt":
                    e[["attempt_ok", "retry_ok"]] = everything.loc[k][["attempt_ok", "retry_ok"]].to_numpy()
                    e["retry_ok"] = e.retry_ok.where(e.attempt_ok | e.retry_ok.notna(), False).astype("boolean")
                write_parquet(file, e)
        found = decided(load_study(home), [GAIN])
        words[kind] = verdict_rows(found).ours[0], found[0].verdict
    assert len({text for text, _ in words.values()}) == 3, "the numbers in the words follow the data"
    assert [verdict for _, verdict in words.values()] == ["supported", "supported", "undecided"]


def test_a_mixture_is_refused(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study / "toy/one", folder := tmp_path / "toy/one")
    e = pd.read_parquet(folder / "episodes/r3-seed0.parquet")
    write_parquet(folder / "episodes/r3-seed0.parquet", e.assign(attempt_ok=~e.attempt_ok, retry_ok=True))
    with pytest.raises(ValueError, match="made from other episodes"):
        load_base(folder)
    e = pd.read_parquet(study / "toy/one/episodes/r3-seed1.parquet")
    write_parquet(folder / "episodes/r3-seed1.parquet", e[e.problem_id != "toy-00007"])
    with pytest.raises(ValueError, match="not on the same"):
        load_base(folder)


def test_tables_and_figures_are_written(study: Path, tmp_path: Path) -> None:
    made = make_verdicts(load_study(study), tmp_path)
    names = {p.name for p in made}
    assert {
        "verdicts.md",
        "verdicts.csv",
        "claims_comparisons.csv",
        "own_questions.md",
        "verdicts.png",
        "own_questions.pdf",
    } <= names
    text = (tmp_path / "tables/verdicts.md").read_text("utf-8")
    assert "Departures from the protocol: one: r3 lacks the announced seed 4" in text and "no evidence about large models" in text
    again = {p: p.read_bytes() for p in made}
    make_verdicts(load_study(study), tmp_path)
    assert all(p.read_bytes() == b for p, b in again.items())


def test_a_base_that_cannot_be_read_is_left_out_by_name(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, home := tmp_path / "study")
    torn = home / "toy/two/episodes/r3-seed1.parquet"
    write_parquet(torn, pd.read_parquet(torn)[:-2])
    (found,) = load_study(home)
    assert [b.name for b in found.bases] == ["one"] and len(found.left_out) == 1
    assert found.left_out[0].startswith("toy/two: ") and str(tmp_path) not in found.left_out[0]
    make_verdicts([found], tmp_path)
    text = (tmp_path / "tables/verdicts.md").read_text("utf-8")
    assert "Left out: toy/two: " in text and "Nothing departs" not in text
