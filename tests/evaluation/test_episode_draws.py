"""Several draws a problem: what is asked, that more draws change nothing of the first, and intervals over problems."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from r3_repro.analysis.contrasts import contrast, side
from r3_repro.config import load_profile
from r3_repro.engines import hf
from r3_repro.engines.base import MockEngine, Request, derive_seed
from r3_repro.engines.factory import open_engine
from r3_repro.evaluation.episodes import (
    EPISODE_COLUMNS,
    accuracy_by_round,
    as_table,
    draw_seed,
    episode_files,
    evaluate,
    evaluation_identity,
    evaluation_summary_line,
    run_episodes,
)
from r3_repro.evaluation.reflection_controls import make_controls, retry_again
from r3_repro.planning.memory import H100, LENGTHS
from r3_repro.planning.models import shape_of
from r3_repro.planning.plan import evaluation_seconds
from r3_repro.profiles import CONTROLS, Profile
from r3_repro.runs.layout import Run, open_run
from r3_repro.tasks.base import get_task
from r3_repro.testing import synthetic_episodes
from r3_repro.utils.errors import SettingsError
from r3_repro.utils.stats import wilson


def small(root: Path, **settings: Any) -> Run:
    return open_run("smoke", arm="vanilla", root=str(root), **{"test_size": 12, "controls": "bare other empty"} | settings)


# ── Settings ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wrong", "said"), [({"draws": 0}, "draws"), ({"draws": 4, "modes": "greedy"}, "draws = 4, but modes = greedy")]
)
def test_what_no_evaluation_can_do_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_profile("smoke", **wrong)


def test_draws_are_a_part_of_the_protocol_from_two_on(tmp_path: Path) -> None:
    runs = [small(tmp_path, **given) for given in ({}, {"draws": 1}, {"draws": 2})]
    assert evaluate(runs[0]).draw.eq(0).all()
    none, one, two = (evaluation_identity(run, run.profile.model) for run in runs)
    assert none == one and {k for k in one if one[k] != two[k]} == {"protocol"}


def test_the_plan_counts_draws() -> None:
    "Five episodes a problem in the place of two, and prompts that are read once for all of them."
    one, four = load_profile("paper"), load_profile("paper", draws=4)
    seconds = [evaluation_seconds(p, shape_of(p.model), LENGTHS["countdown"], H100) for p in (one, four)]
    assert 1.8 < seconds[1] / seconds[0] < 2.5


# ── What is asked ──────────────────────────────────────────────────────────────────────────────────────────────────


class Noted(MockEngine):
    "Notes the requests, and how many were waiting whenever answers were collected."

    def __init__(self) -> None:
        super().__init__(lambda prompt, seed: f"{seed}")
        self.asked, self.together = list[Request](), list[int]()

    def submit(self, request: Request) -> None:
        self.asked.append(request)
        super().submit(request)

    def collect(self) -> Any:
        self.together.append(len(self.waiting))
        return super().collect()


def noted(mode: str, **settings: Any) -> tuple[Noted, pd.DataFrame, Profile]:
    profile = load_profile("smoke", test_size=5, **settings)
    engine, task = Noted(), get_task(profile.task)
    return engine, run_episodes(engine, task, task.problems("test", profile.data_options), profile, mode), profile


def test_all_draws_of_a_step_are_asked_together_and_those_of_a_problem_in_a_row() -> None:
    engine, rows, profile = noted("sampled", draws=3)
    assert engine.together == [15, 15, 15] and rows.draw.tolist() == [0, 1, 2] * 5
    first = [r.prompt[0]["content"] for r in engine.asked[:15]]
    assert all(len(set(first[i : i + 3])) == 1 for i in range(0, 15, 3)) and len(set(first)) == 5
    for step, at in (("attempt", 0), ("reflection", 15), ("retry", 30)):
        seeds = [draw_seed(profile, "sampled", step, p, draw=d) for p, d in zip(rows.problem_id, rows.draw, strict=True)]
        assert [r.seed for r in engine.asked[at : at + 15]] == seeds
    assert len({r.seed for r in engine.asked}) == 45, "two answers with the same random numbers"
    assert engine.asked[0].seed == derive_seed(0, "sampled", "attempt", rows.problem_id[0])
    assert engine.asked[2].seed == derive_seed(0, "sampled", "attempt", rows.problem_id[0], 2)


def test_each_draw_reflects_on_its_own_attempt() -> None:
    engine, rows, _ = noted("sampled", draws=2)
    for row, asked in zip(rows.itertuples(), engine.asked[20:30], strict=True):
        assert [m["content"] for m in asked.prompt[1::2]] == [row.attempt, row.reflection] and row.retry == str(asked.seed)


def test_each_retry_of_a_control_has_random_numbers_of_its_own() -> None:
    engine, rows, profile = noted("sampled", draws=3)
    asked = len(engine.asked)
    for control in CONTROLS:
        retry_again(engine, get_task(profile.task), as_table(rows, "vanilla", 0), profile, "sampled", control)
    assert len({r.seed for r in engine.asked}) == len(engine.asked) == asked + 3 * 15
    assert engine.asked[asked].seed == derive_seed(0, "sampled", "control", CONTROLS[0], rows.problem_id[0])


def test_greedy_decoding_has_one_draw() -> None:
    engine, rows, _ = noted("greedy", draws=3)
    assert engine.together == [5, 5, 5] and rows.draw.tolist() == [0] * 5


def test_several_draws_in_several_rounds() -> None:
    _, rows, profile = noted("sampled", draws=2, retries=2)
    table = as_table(rows, "vanilla", 0, profile.retries)
    assert len(table) == 10 and table.retry_2.nunique() == 10 and accuracy_by_round(table).tries.tolist() == [1, 2, 3]


# ── More draws of the same ─────────────────────────────────────────────────────────────────────────────────────────


def test_four_draws_contain_the_one(tmp_path: Path) -> None:
    "With the tiny model: episodes and controls of draw 0 are those of an evaluation with one draw, and the others differ."
    one, four = small(tmp_path / "one"), small(tmp_path / "four", draws=4)
    tables = [(evaluate(run), make_controls(run)) for run in (one, four)]
    for alone, several in zip(*tables, strict=True):
        assert list(alone.columns) == list(several.columns) and str(several.draw.dtype) == "Int32"
        assert several[several.draw == 0].reset_index(drop=True).equals(alone)
    episodes = tables[1][0]
    assert list(episodes.columns) == EPISODE_COLUMNS and list(EPISODE_COLUMNS[2:4]) == ["mode", "draw"]
    assert episodes.groupby("mode").draw.agg(["size", "max"]).to_numpy().tolist() == [[12, 0], [48, 3]]
    said = episodes[episodes["mode"] == "sampled"].pivot(index="problem_id", columns="draw", values="attempt")
    assert all((said[0] != said[d]).any() for d in (1, 2, 3)), "draws repeat one another"
    assert "sampled (4 draws): " in evaluation_summary_line(four, episodes)
    assert "draws" not in evaluation_summary_line(one, tables[0][0])


def test_a_table_with_fewer_draws_is_made_again(tmp_path: Path) -> None:
    one, two = small(tmp_path), small(tmp_path, draws=2)
    evaluate(one)
    made = episode_files(one)[0].read_bytes()
    assert len(evaluate(two)) == 12 * 3
    evaluate(one)
    assert episode_files(one)[0].read_bytes() == made


def test_a_batch_of_transformers_holds_the_draws_of_a_problem_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    "It takes requests by the length of their prompts; equal prompts next to each other are read once."
    profile, batches, usual = load_profile("smoke", draws=3, generation_batch=6), list[Any](), hf.stream_rows
    monkeypatch.setattr(hf, "stream_rows", lambda m, t, prompts, *how: batches.append(prompts) or usual(m, t, prompts, *how))
    task = get_task(profile.task)
    run_episodes(open_engine(profile), task, task.problems("test", profile.data_options)[:4], profile, "sampled")
    first = [tuple(p) for batch in batches[:2] for p in batch]
    assert len(first) == 12 and all(len(set(first[i : i + 3])) == 1 for i in range(0, 12, 3))


# ── Numbers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_draws_of_a_problem_are_no_further_problems() -> None:
    "As if every draw had the same outcome: the interval is as wide as with one draw, and not narrower by the root of four."
    one = synthetic_episodes(problems=300, modes=("sampled",))
    four = pd.concat([one.assign(draw=d) for d in range(4)])
    widths = [(t.high - t.low).to_numpy() for t in (accuracy_by_round(one), accuracy_by_round(four))]
    assert widths[1] == pytest.approx(widths[0], rel=0.05)


def test_accuracy_is_the_mean_over_draws_with_a_t_interval_over_problems() -> None:
    e = synthetic_episodes("r3", 0, 0.3, 0.5, problems=200, draws=4)
    table = accuracy_by_round(e).set_index(["mode", "tries"])
    sampled = e[e["mode"] == "sampled"]
    right = {1: sampled.attempt_ok, 2: sampled.attempt_ok | sampled.retry_ok.fillna(False)}
    for tries, yes in right.items():
        means = yes.astype(float).groupby(sampled.problem_id).mean().to_numpy()
        interval = contrast(side(means[None], trained=False)).interval()
        assert tuple(table.loc["sampled", tries]) == pytest.approx(interval) and interval.estimate == pytest.approx(yes.mean())
    greedy = e[e["mode"] == "greedy"]
    assert tuple(table.loc["greedy", 1]) == wilson(int(greedy.attempt_ok.sum()), 200)
    assert np.isfinite(table.to_numpy()).all()
