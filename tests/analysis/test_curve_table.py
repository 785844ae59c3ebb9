"""The learning curve's table by hand, from pandas and scipy alone, its refusals, its figures, and its place among the reports."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib.colors
import pandas as pd
import pytest
from scipy import stats
from toy_results import SMALL, episodes, store

from r3_repro.analysis import learning_curve
from r3_repro.analysis.learning_curve import (
    band_note,
    curve_caption,
    curve_table,
    load_curves,
    make_learning_curve,
    plot_curve,
    readable_curve,
)
from r3_repro.analysis.loading import load_training
from r3_repro.analysis.results import make_results
from r3_repro.reporting.plots import arm_style
from r3_repro.testing import synthetic_episodes
from r3_repro.utils.hashing import file_hash

STEPS = {("r3", 0): [0, 20, 40, 60], ("r3", 1): [0, 20, 40, 60], ("plain_grpo", 0): [0, 20, 40, 47]}
STEPS |= {("plain_grpo", 1): [0, 20, 39], ("no_leak", 0): [0, 20, 40, 60]}


def at_step(arm: str, seed: int, step: int) -> pd.DataFrame:
    known = ("vanilla", 0, 0.15, 0.15) if step == 0 else (f"{arm} {step}", seed, 0.15, 0.15 + step / 200)
    return synthetic_episodes(*known, problems=SMALL, modes=("sampled",)).assign(arm=arm, seed=seed, step=step)


def store_curve(folder: Path, table: pd.DataFrame, name: str, **hashes: str) -> None:
    file = folder / f"learning_curve/{name}.parquet"
    file.parent.mkdir(exist_ok=True)
    table.to_parquet(file, index=False)
    arm, seed = name.rsplit("-seed", 1)
    known = {"stage": "learning_curve", "arm": arm, "seed": int(seed)}
    known |= {"hashes": {"step 0": "vanilla", "learning_curve": file_hash(file)} | hashes}
    file.with_suffix(".manifest.json").write_text(json.dumps(known), "utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    "Results of the toy task with learning curves of five runs; refilled steps generate more tokens."
    folder = store(tmp_path, episodes(SMALL))
    for (arm, seed), steps in STEPS.items():
        store_curve(folder, pd.concat([at_step(arm, seed, s) for s in steps], ignore_index=True), f"{arm}-seed{seed}")
        log = folder / f"training/{arm}-seed{seed}/log.jsonl"
        log.parent.mkdir(exist_ok=True, parents=True)
        rows = [{"step": k, "reflect_tokens": 90 + seed + k % 3, "retry_tokens": 5 * (arm != "plain_grpo")} for k in range(1, 61)]
        log.write_text("".join(json.dumps(r | {"retry_success": 0.2, "reward": 0.2}) + "\n" for r in rows), "utf-8")
    return folder


def by_hand(values: pd.DataFrame, trained: bool) -> tuple[float, float, float]:
    "Mean of seeds x problems and its interval: a t interval with the variances between seeds and between problems."
    if not trained:
        values = values.iloc[:1]
    k, n = values.shape
    apart = values.sub(values.mean(axis=1), axis=0)
    problems = ((apart.mean() ** 2).sum() + 1) / (n + 2) / n  # two problems more, one right and one wrong
    seeds, both, df = 0.0, 0.0, n - 1.0
    if k > 1:
        seeds = values.mean(axis=1).var(ddof=1) / k
        both = ((apart - apart.mean()) ** 2).to_numpy().sum() / ((k - 1) * k * n**2)
        df = (seeds + problems) ** 2 / (seeds**2 / (k - 1) + problems**2 / (n - 1))
    half = stats.t.ppf(0.975, df) * math.sqrt(max(seeds + problems - both, seeds, problems))
    mean = values.mean(axis=1).mean()
    return mean, max(mean - half, 0), min(mean + half, 1)


def test_the_table_by_hand(folder: Path) -> None:
    table = curve_table(load_curves(folder), load_training(folder))
    assert table.groupby("arm", sort=False).step.apply(list).to_dict() == {
        "r3": [0, 20, 40, 60], "no_leak": [0, 20, 40, 60], "plain_grpo": [0, 20, 43],
    }  # fmt: skip
    last = {"plain_grpo": {43: {0: 47, 1: 39}}}
    for row in table.itertuples():
        seeds = [seed for arm, seed in STEPS if arm == row.arm]
        own = last.get(row.arm, {}).get(row.step, dict.fromkeys(seeds, row.step))
        first, two, tokens = {}, {}, []
        for seed, step in own.items():
            e = (
                pd.read_parquet(folder / f"learning_curve/{row.arm}-seed{seed}.parquet")
                .query("step == @step")
                .set_index("problem_id")
            )
            first[seed] = e.attempt_ok.astype(float)
            two[seed] = (e.attempt_ok | e.retry_ok.fillna(False)).astype(float)
            log = pd.read_json(folder / f"training/{row.arm}-seed{seed}/log.jsonl", lines=True)
            tokens.append((log.reflect_tokens + log.retry_tokens)[log.step <= step].sum())
        trained = row.step > 0
        assert row.seeds == len(seeds) and row.tokens == sum(tokens) / len(tokens)
        assert row.interval == ("seeds and problems" if trained and len(seeds) > 1 else "problems")
        for mine, ours in (((row.first, row.first_low, row.first_high), first), ((row.two, row.two_low, row.two_high), two)):
            assert mine == pytest.approx(by_hand(pd.DataFrame(ours).T, trained), abs=1e-12)


def test_an_interval_has_a_width_where_all_is_right(folder: Path) -> None:
    curves = load_curves(folder)
    perfect = curves.assign(attempt_ok=curves.attempt_ok | (curves.step == 40))
    rows = curve_table(perfect, load_training(folder)).query("step == 40")
    assert (rows.two == 1).all() and (rows.two_high == 1).all() and rows.two_low.between(0.85, 0.97).all()


# ── Refusals ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: pd.concat([t, t.tail(1)]), r"there twice: .*'step': 60, 'problem_id': 'toy-00059'"),
        (lambda t: t.drop(index=70), r"'step': 20\} has other problems than"),
        (
            lambda t: t.assign(attempt_ok=t.attempt_ok.where(t.index != 70)),
            r"no verdict: .*'step': 20, .*'toy-00010'",
        ),
        (lambda t: t[t.step > 0], r"no_leak, seed 0, has steps \[20, 40, 60\]: 0 and the last"),
        (lambda t: t.assign(seed=1), r"must hold the arm and seed of its name; it holds \['no_leak-seed1'\]"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(change: Any, why: str, folder: Path) -> None:
    table = pd.read_parquet(folder / "learning_curve/no_leak-seed0.parquet")
    store_curve(folder, change(table), "no_leak-seed0")
    with pytest.raises(ValueError, match=why):
        load_curves(folder)


@pytest.mark.parametrize(
    ("hashes", "why"),
    [
        ({"step 0": "another"}, "base model: 2 different ones; learning_curve/no_leak-seed0"),
        ({"protocol": "another"}, "settings of the learning curve: 2 different ones"),
        ({"problems": "others"}, "problems of the learning curve: 2 different ones"),
        ({"learning_curve": "another"}, "no_leak-seed0.parquet is not the table of its manifest"),
    ],
)
def test_mixtures_are_refused_by_name(hashes: dict[str, str], why: str, folder: Path) -> None:
    for name in ("r3-seed0", "r3-seed1", "plain_grpo-seed0", "plain_grpo-seed1", "no_leak-seed0"):
        table = pd.read_parquet(folder / f"learning_curve/{name}.parquet")
        store_curve(folder, table, name, **{"protocol": "p", "problems": "q"} | (hashes if name == "no_leak-seed0" else {}))
    with pytest.raises(ValueError, match=why):
        load_curves(folder)


def test_an_unfinished_curve_is_refused(folder: Path) -> None:
    (folder / "learning_curve/no_leak-seed0.manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no_leak-seed0.parquet has no manifest, so it is not finished"):
        make_learning_curve(folder)


def test_a_log_that_ends_before_the_curve_is_refused(folder: Path) -> None:
    log = folder / "training/no_leak-seed0/log.jsonl"
    log.write_text("".join(log.open(encoding="utf-8").readlines()[:50]), "utf-8")
    with pytest.raises(ValueError, match="the log of no_leak, seed 0, has no step 60"):
        make_learning_curve(folder)


# ── Figures and reports ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("x", "label"), [("step", "training step"), ("tokens", "generated tokens (thousands)")])
def test_a_figure_draws_the_table(x: str, label: str, folder: Path) -> None:
    table = curve_table(load_curves(folder), load_training(folder))
    figure = plot_curve(table, x, "about")
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == (label, "right with two tries (%)")
    lines = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    arms = table.groupby("arm", sort=False)
    assert list(lines) == [arm_style(arm).label for arm, _ in arms] and len(ax.collections) == len(lines)
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines.values()}) == len(lines), "not readable in grey"
    for (arm, t), band in zip(arms, ax.collections, strict=True):
        line = lines[arm_style(arm).label]
        at = t[x].to_numpy() / (1000 if x == "tokens" else 1)
        assert line.get_xdata() == pytest.approx(at) and line.get_ydata() == pytest.approx(100 * t.two.to_numpy())
        drawn = band.get_datalim(ax.transData)
        assert (drawn.y0, drawn.y1) == pytest.approx((100 * t.two_low.min(), 100 * t.two_high.max()))
        assert matplotlib.colors.same_color(line.get_color(), arm_style(arm).color)
    assert ax.get_xlim()[0] < 0 and figure.legends[0].get_title().get_text() == f"about\n{band_note(table)}"


def test_notes_say_over_what_an_interval_is(folder: Path) -> None:
    curves = load_curves(folder)
    table = curve_table(curves, load_training(folder))
    assert "95% interval over seeds and problems" in band_note(table)
    assert "one seed, 95% interval over problems alone: no leak" in band_note(table).replace("_", " ")
    alone = band_note(table[table.arm == "no_leak"])
    assert "seeds and problems" not in alone and "one seed" in alone
    assert "Without a learning curve" not in curve_caption(curves)
    assert readable_curve(table).step[table.arm == "plain_grpo"].tolist() == ["0", "20", "39 to 47"]


def test_the_reports_have_the_curve_where_there_is_one(folder: Path, tmp_path: Path) -> None:
    made = {p.name for p in make_results(folder)}
    wanted = {f"learning_curve.{kind}" for kind in ("csv", "md", "tex", "svg", "pdf", "png")}
    wanted |= {f"learning_curve_tokens.{kind}" for kind in ("svg", "pdf", "png")}
    assert wanted <= made
    shown = (folder / "tables/learning_curve.md").read_text("utf-8")
    assert "60 held-out problems" in shown and "Without a learning curve: random\\_reward-seed0, random\\_reward-seed1." in shown
    stored = pd.read_csv(folder / "tables/learning_curve.csv")
    table = curve_table(load_curves(folder), load_training(folder))
    pd.testing.assert_frame_equal(stored, table, check_dtype=False, rtol=1e-5)
    assert make_learning_curve(store(tmp_path / "without", episodes(SMALL))) == []


def test_verdicts_of_another_verifier_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.read_parquet(folder / "learning_curve/no_leak-seed0.parquet")
    store_curve(folder, table.assign(attempt_ok=~table.attempt_ok, retry_ok=True), "no_leak-seed0")
    with pytest.raises(ValueError, match="the stored verdicts are not those of rule 'strict'"):
        make_learning_curve(folder)
    monkeypatch.setattr(learning_curve, "task_of", lambda folder: None)  # a task that cannot be imported here
    assert make_learning_curve(folder)
