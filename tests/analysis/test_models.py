"""A study over several models: the paper's tables with ours, gains and means by hand, what cannot be read is named."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as sps
from support import REPOSITORY

from r3_repro.analysis import models
from r3_repro.analysis.models import (
    FOUR_COLUMNS,
    MEAN,
    base_parameters,
    by_size,
    gain_points,
    make_study,
    model_rows,
    paper_row_of,
    paper_table,
    plot_gain,
    plot_models,
    pooled,
    readable_models,
    readable_paper_table,
    show_size,
)
from r3_repro.analysis.paper import PAPER_COLUMNS, PAPER_TABLES
from r3_repro.analysis.protocol import ANNOUNCED, Base, base_of
from r3_repro.analysis.verdicts import Stored
from r3_repro.testing import synthetic_episodes
from r3_repro.utils.files import write_parquet

# Ten problems, one draw. A first try is right where the letter is F, a retry where it is R; everything fails where it is a dot.
VANILLA = "FFR......."  # first 0.2, two tries 0.3
R3 = ("FFFRRR....", "FFRRRR....")  # first 0.3 and 0.2; two tries 0.6 and 0.6
OTHER = {"bare": "..C.......", "empty": "..........", "other": "...CCC...."}  # of vanilla: two tries 0.3, 0.2, 0.5
OF_R3 = {
    "bare": "...CC.....",
    "empty": "..........",
    "other": "..........",
}  # of both seeds; a C where the first try is right is none


def run(arm: str, seed: int, letters: str) -> pd.DataFrame:
    e = synthetic_episodes(arm, seed, problems=len(letters), modes=("sampled",))
    e["attempt_ok"] = pd.array([x == "F" for x in letters], dtype="boolean")
    e["retry_ok"] = pd.array([pd.NA if x == "F" else x == "R" for x in letters], dtype="boolean")
    return e


def controls(e: pd.DataFrame, of: dict[str, str]) -> pd.DataFrame:
    right = {c: dict(zip(sorted(e.problem_id), (x == "C" for x in letters), strict=True)) for c, letters in of.items()}
    failed = e[~e.attempt_ok]
    return pd.concat([failed.assign(control=c, retry_ok=failed.problem_id.map(right[c])) for c in of])


def base(name: str, vanilla: str = VANILLA, r3: tuple[str, ...] = R3, with_controls: bool = True) -> Base:
    runs = [run("vanilla", 0, vanilla), *(run("r3", s, letters) for s, letters in enumerate(r3))]
    more = [controls(e, OTHER if e.arm[0] == "vanilla" else OF_R3) for e in runs] if with_controls else []
    return base_of(name, pd.concat(runs), pd.concat(more) if more else None)


def t_interval(r3: list[list[float]], vanilla: list[float]) -> tuple[float, float, float]:
    "Two seeds against one untrained model, over the same problems: the formula of the protocol, written out."
    a, b = np.array(r3), np.array(vanilla)
    n, d = a.shape[1], a.mean(0) - b
    problems = (((d - d.mean()) ** 2).sum() + 1) / (n + 2) / n
    seeds = a.mean(1).var(ddof=1) / 2
    rest = a - a.mean(1, keepdims=True)
    shared = ((rest - rest.mean(0)) ** 2).sum() / (2 * n**2)
    df = (seeds + problems) ** 2 / (seeds**2 + problems**2 / (n - 1))
    half = sps.t.ppf(0.975, df) * max(seeds + problems - shared, seeds, problems) ** 0.5
    return d.mean(), d.mean() - half, d.mean() + half


# ── Numbers by hand ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_is_what_is_counted_by_hand() -> None:
    row = model_rows([Stored("toy", [base("one")], [])]).iloc[0]
    assert (row.task, row.base, row.seeds, row.problems, row.draws) == ("toy", "one", 2, 10, 1)
    four = (row.vanilla_first, row.vanilla_two_tries, row.trained_first, row.trained_two_tries)
    assert four == pytest.approx((0.2, 0.3, 0.25, 0.6))
    first = [[float(x == "F") for x in letters] for letters in (*R3, VANILLA)]
    two = [[float(x in "FR") for x in letters] for letters in (*R3, VANILLA)]
    assert (row.gain, row.gain_low, row.gain_high) == pytest.approx(t_interval(two[:2], two[2]))
    assert (row.first_gain, row.first_gain_low, row.first_gain_high) == pytest.approx(t_interval(first[:2], first[2]))
    assert row.gain == pytest.approx(0.3) and row.first_gain == pytest.approx(0.05)


def test_the_own_reflection_is_held_against_the_best_other_try() -> None:
    row = model_rows([Stored("toy", [base("one")], [])]).iloc[0]
    assert (row.vanilla_best_other, row.trained_best_other) == ("other", "bare")
    assert row.vanilla_reflection == pytest.approx(0.3 - 0.5)
    assert row.trained_reflection == pytest.approx(0.6 - (0.5 + 0.4) / 2)  # seed 0: FFF and two C's; seed 1: FF and two
    assert row.trained_reflection_low < row.trained_reflection < row.trained_reflection_high
    bare = model_rows([Stored("toy", [base("one", with_controls=False)], [])])
    assert bare.trained_best_other[0] == "" and math.isnan(bare.trained_reflection[0])
    one = base("one")
    part = base_of("part", one.episodes, one.controls[one.controls.control != "empty"])
    assert model_rows([Stored("toy", [part], [])]).trained_best_other[0] == "", "one control is missing"
    shown = readable_models(bare)
    assert (
        list(shown.filter(like="own reflection").iloc[0]) == ["–", "–"] and shown["gain in two tries (points)"][0][:6] == "+30.0 "
    )


def test_the_mean_weighs_bases_alike_whatever_their_seeds() -> None:
    flat = base(
        "flat", "FR........", ("FR........", "FR........", "F.........", "F.........")
    )  # two tries 0.2; 0.2, 0.2, 0.1, 0.1
    rows = model_rows([Stored("toy", [base("one"), flat], [base("ladder-50k")])]).set_index("base")
    assert list(rows.index) == ["one", "flat", "ladder-50k", MEAN] and rows.seeds[MEAN] == 2
    assert rows.gain["flat"] == pytest.approx(-0.05)
    assert rows.gain[MEAN] == pytest.approx((0.3 - 0.05) / 2), "without the ladder, and not by seeds"
    assert rows.vanilla_two_tries[MEAN] == pytest.approx(0.25)


def test_there_is_no_mean_of_one_base_or_of_different_problems() -> None:
    other = base("other")
    moved = base_of("moved", other.episodes.assign(problem_id="x" + other.episodes.problem_id))
    untrained = base_of("vanilla", other.episodes[other.episodes.arm == "vanilla"])
    assert pooled(Stored("toy", [base("one"), moved], [])) == [] == pooled(Stored("toy", [base("one"), untrained], []))
    rows = model_rows([Stored("toy", [base("one"), moved, untrained], [])])
    assert MEAN not in set(rows.base)
    assert rows.seeds.tolist() == [2, 2, 0] and math.isnan(rows.gain[2]) and rows.vanilla_first[2] == pytest.approx(0.2)


# ── The paper's tables ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("task", PAPER_TABLES)
def test_the_papers_cells_are_those_of_its_table_in_its_order(task: str) -> None:
    table = paper_table([Stored(task, [base("tiny-a")], [])], task, REPOSITORY)
    with open(REPOSITORY / "results/published" / PAPER_TABLES[task], newline="", encoding="utf-8") as f:
        published = list(csv.DictReader(f))
    assert list(table.model) == [*dict.fromkeys(r["model"] for r in published), "tiny-a"]
    shown, plain = readable_paper_table(table).set_index("model"), table.set_index("model")
    for r in published:
        cell = shown.loc[r["model"], f"{FOUR_COLUMNS[r['column']]}, paper"]
        if r["accuracy_percent"]:
            assert cell == f"{float(r['accuracy_percent']):.1f} ({r['confidence']})"
            assert plain.loc[r["model"], f"{r['column']}_paper"] == pytest.approx(float(r["accuracy_percent"]) / 100)
        else:
            assert cell == ("n/a" if r["status"] == "not applicable" else "–")
        assert shown.loc[r["model"], f"{FOUR_COLUMNS[r['column']]}, ours"] == "–"
    ours = plain.loc["tiny-a"]
    assert [ours[c] for c in PAPER_COLUMNS] == pytest.approx([0.2, 0.3, 0.25, 0.6]) and ours.seeds == 2
    assert shown.loc["tiny-a", f"{FOUR_COLUMNS['trained_first']}, paper"] == "–"
    assert list(shown)[:2] == [f"{FOUR_COLUMNS['vanilla_first']}, {who}" for who in ("paper", "ours")]


def test_a_base_that_stands_for_a_model_fills_its_row() -> None:
    bases = [base(n) for n in ("Qwen2.5-1.5B-Instruct", "Qwen2.5-3B-Instruct", "Llama-3.2-3B-Instruct", "tiny-a")]
    table = paper_table([Stored("countdown", bases, [])], "countdown", REPOSITORY)
    of = dict(zip(table.base, table.model, strict=True))
    assert of["Qwen2.5-1.5B-Instruct"] == "Qwen-2.5-1.5B Instruct" and of["tiny-a"] == "tiny-a"
    assert of["Qwen2.5-3B-Instruct"] == "Qwen-2.5-3B Instruct", "of which no number is known"
    assert of["Llama-3.2-3B-Instruct"] == "Llama-3.2-3B Instruct, Palmyra 1.7B (Llama-3.2-3B-Instruct)"
    assert len(table) == 7, "six models of the paper and tiny-a"
    qwen = table.iloc[0]
    assert (qwen.trained_two_tries_paper, qwen.trained_two_tries) == (0.45, pytest.approx(0.6))
    twice = [base("Qwen2.5-1.5B-Instruct"), base("Qwen2.5-1.5B-Instruct-lora")]
    table = paper_table([Stored("countdown", twice, [])], "countdown", REPOSITORY)
    assert list(table.model[:2]) == [f"Qwen-2.5-1.5B Instruct ({b.name})" for b in twice]
    assert set(table.vanilla_first_paper[:2]) == {0.06}
    assert paper_row_of("Qwen2-1.5B-Instruct", "countdown", REPOSITORY) is None, "it is in the other table"


def test_a_task_of_ones_own_shows_ours_alone() -> None:
    shown = readable_paper_table(paper_table([Stored("toy", [base("one")], [])], "toy", REPOSITORY))
    assert list(shown) == ["model", *(f"{title}, ours" for title in FOUR_COLUMNS.values()), "our seeds"]


# ── Parameters ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_parameters_are_those_of_the_recipe_or_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R3_HOME", str(tmp_path))
    (tmp_path / "results/bases").mkdir(parents=True)
    (tmp_path / "results/bases/ladder-50k.recipe.json").write_text(json.dumps({"parameters": 48_123}), "utf-8")
    recipe = json.loads((REPOSITORY / "r3_repro/assets/tiny-a.recipe.json").read_text("utf-8"))
    assert base_parameters("ladder-50k") == 48_123 and base_parameters("tiny-a") == recipe["parameters"]
    assert base_parameters("ladder-200k") == 200_000 and base_parameters("Qwen2.5-0.5B-Instruct") == 5e8
    assert all(math.isnan(base_parameters(n)) for n in ("ability-220", "Phi-3.5-mini-instruct", "tiny-b", "x-4bit"))
    assert [show_size(n) for n in (48_123, 1.5e6, 7.2e9, math.nan)] == ["0.048M", "1.5M", "7.2B", "–"]


@pytest.fixture
def no_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Sizes are what the names of bases say, whichever are built."
    monkeypatch.setattr(models, "find_home", lambda: tmp_path)


@pytest.mark.usefixtures("no_recipes")
def test_the_ladder_goes_from_small_to_large() -> None:
    s = Stored("toy", [base("z"), base("a")], [base(n) for n in ("ability-0", "ladder-1500k", "ladder-200k", "ladder-50k")])
    assert [b.name for b in by_size(s)] == ["z", "a", "ladder-50k", "ladder-200k", "ladder-1500k", "ability-0"]


# ── Figures ────────────────────────────────────────────────────────────────────────────────────────────────────────


def made_up(names: list[str]) -> pd.DataFrame:
    "Rows as from `model_rows`, with rising ability and gain."
    rows = []
    for i, name in enumerate(names):
        row = {"task": "toy", "base": name, "parameters": base_parameters(name), "vanilla_first": 0.1 * i}
        row |= {"vanilla_two_tries": 0.1 * i + 0.1, "trained_two_tries": 0.12 * i + 0.1}
        rows.append(row | {"gain": 0.02 * i, "gain_low": 0.02 * i - 0.05, "gain_high": 0.02 * i + 0.05})
    return pd.DataFrame(rows)


@pytest.mark.usefixtures("no_recipes")
def test_points_are_gains_against_ability_and_size() -> None:
    names = ["ladder-50k", "ability-0", "one", "ladder-500k", "x-500k", MEAN]
    points = gain_points(made_up(names)).set_index("name")
    assert list(points.index) == ["ladder-50k", "ability-0", "one", "ladder-500k", "x-500k"]
    assert points.loc["ladder-500k"].drop("task").tolist() == pytest.approx([30, 6, 1, 11])
    sized = made_up(names).assign(parameters=lambda t: t.parameters.where(t.base != "ability-0", 2e5))
    by_parameters = gain_points(sized, "size").set_index("name").x
    assert list(by_parameters.index) == ["ladder-50k", "ladder-500k", "x-500k"], "neither without a size nor weak on purpose"
    assert by_parameters.tolist() == pytest.approx([5e4, 5e5 / math.sqrt(1.12), 5e5 * math.sqrt(1.12)])


def test_labels_of_a_full_ladder_do_not_collide() -> None:
    "All bases of the protocol at once; two of them with the same ability."
    rows = made_up(list(dict.fromkeys([*ANNOUNCED.bases, *ANNOUNCED.ladder, *ANNOUNCED.ability])))
    rows.loc[1, "vanilla_first"] = rows.vanilla_first[0]
    for fig in (plot_gain(rows), plot_gain(rows, "size")):
        (ax,) = fig.axes
        boxes = [t.get_window_extent() for t in ax.texts]
        names = [t.get_text() for t in ax.texts]
        assert len(set(names)) == len(names) >= 6
        assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
        assert all(ax.bbox.x0 <= b.x0 and b.x1 <= ax.bbox.x1 for b in boxes)


def test_models_are_sorted_by_vanilla_with_the_mean_below() -> None:
    rows = made_up(["b", "a", "c"]).assign(vanilla_two_tries=[0.3, 0.1, 0.2])
    rows = pd.concat([rows, made_up([MEAN])], ignore_index=True)
    (ax,) = plot_models(rows).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == [MEAN, "a", "c", "b"]
    assert [t.get_text() for t in ax.texts][-2:] == ["+0.0 [-5.0, +5.0]", "gain, points [95%]"]


# ── Files ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def store(folder: Path, b: Base) -> None:
    for (arm, seed), e in b.episodes.groupby(["arm", "seed"]):
        write_parquet(folder / b.name / f"episodes/{'vanilla' if arm == 'vanilla' else f'{arm}-seed{seed}'}.parquet", e)


@pytest.mark.usefixtures("undrawn")
def test_a_study_of_several_models_has_all_its_files_and_names_what_it_lacks(tmp_path: Path) -> None:
    for task, name in (("countdown", "tiny-a"), ("countdown", "tiny-b"), ("function_calling", "tiny-a"), ("mine", "tiny-a")):
        store(tmp_path / task, base(name))
    store(tmp_path / "countdown", base("torn"))
    e = pd.read_parquet(torn := tmp_path / "countdown/torn/episodes/r3-seed1.parquet")
    write_parquet(torn, e[:-1])
    made = {p.relative_to(tmp_path).as_posix() for p in make_study(tmp_path)}
    tables = ("table1_apigen", "table2_countdown", "accuracy_mine", "models", "verdicts", "claims_comparisons")
    assert {f"tables/{t}.{kind}" for t in tables for kind in ("csv", "md", "tex")} <= made
    assert {"figures/models_countdown.png", "figures/gain_by_ability.png", "figures/verdicts_mine.png"} <= made
    assert not made & {"figures/models_mine.png", "figures/gain_by_size.png"}, "one base, one size"
    captions = {t: (tmp_path / f"tables/{t}.md").read_text("utf-8").splitlines()[0] for t in tables[:5]}
    for name in ("table2_countdown", "models", "verdicts"):
        assert "Left out: countdown/torn: " in captions[name] and str(tmp_path) not in captions[name]
    assert "Left out" not in captions["table1_apigen"]
    assert "Table 1 of the paper, APIGen" in captions["table1_apigen"] and "+ Reflection 2nd Try" in captions["table1_apigen"]
    assert (
        "10 held-out problems, one draw a problem" in captions["models"] and "no evidence about" in captions["table2_countdown"]
    )
    rows = pd.read_csv(tmp_path / "tables/models.csv")
    assert rows.base.tolist() == ["tiny-a", "tiny-b", MEAN, "tiny-a", "tiny-a"]
    assert rows.gain.tolist() == pytest.approx([0.3] * 5)


@pytest.mark.usefixtures("undrawn")
def test_one_model_has_no_verdicts_over_models(tmp_path: Path) -> None:
    store(tmp_path / "toy", base("one"))
    assert {p.stem for p in make_study(tmp_path)} == {"accuracy_toy", "models", "overview", "arm_differences"}


@pytest.mark.usefixtures("undrawn")
def test_bases_on_different_problems_have_rows_and_no_verdicts(tmp_path: Path) -> None:
    other = base("other").episodes
    for b in (base("one"), base_of("other", other.assign(problem_id="x" + other.problem_id))):
        store(tmp_path / "toy", b)
    assert {p.stem for p in make_study(tmp_path) if p.suffix == ".md"} == {"accuracy_toy", "models"}
    caption = (tmp_path / "tables/models.md").read_text("utf-8").splitlines()[0]
    assert "There are no verdicts: toy: the bases were evaluated on different held-out problems" in caption
    assert pd.read_csv(tmp_path / "tables/models.csv").base.tolist() == ["one", "other"]


def test_a_study_that_cannot_be_read_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path / "toy", base("torn"))
    e = pd.read_parquet(torn := tmp_path / "toy/torn/episodes/r3-seed1.parquet")
    write_parquet(torn, e[:-1])
    assert make_study(tmp_path) == [] and not (tmp_path / "tables").exists()
    assert "Left out: toy/torn: " in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_a_ladder_alone_has_rows_and_no_verdicts(tmp_path: Path) -> None:
    for name in ("ladder-50k", "ladder-200k"):
        store(tmp_path / "toy", base(name))
    assert {p.stem for p in make_study(tmp_path) if p.suffix == ".csv"} == {"accuracy_toy", "models"}
    assert pd.read_csv(tmp_path / "tables/models.csv").base.tolist() == ["ladder-50k", "ladder-200k"]
