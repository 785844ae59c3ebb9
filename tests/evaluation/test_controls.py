"""Controls of the reflection: who borrows from whom, what is asked, kills, and a table with a known effect."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import patience
from typer.testing import CliRunner

from r3_repro.analysis import reflection_effect
from r3_repro.analysis.loading import load_episodes
from r3_repro.analysis.reflection_effect import load_controls, store_controls, synthetic_controls
from r3_repro.analysis.results import make_results
from r3_repro.config import load_profile, model_path
from r3_repro.engines.base import MockEngine
from r3_repro.evaluation import episodes, reflection_controls
from r3_repro.evaluation.episodes import draws_of, episode_files, evaluate
from r3_repro.evaluation.reflection_controls import (
    CONTROL_COLUMNS,
    control_files,
    control_messages,
    failed_episodes,
    lenders,
    lending_counts,
    lending_ring,
    make_controls,
    retry_shares,
)
from r3_repro.profiles import CONTROLS
from r3_repro.runs.launch import stage_command
from r3_repro.runs.layout import Run, open_run
from r3_repro.tasks.base import Problem, get_task, reflection_messages
from r3_repro.testing import synthetic_episodes
from r3_repro.utils.errors import SettingsError
from r3_repro.utils.hashing import file_hash
from r3_repro.workflow import cli, study
from r3_repro.workflow.reports import make_all_reports
from r3_repro.workflow.study import evaluate_all

FAMILIES = ["qwen2_5", "qwen3", "llama3_1", "llama3_2", "phi3_5", "gemma", "gemma3", "cohere2"]


# ── Who borrows from whom ──────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.text(max_size=6), unique=True), st.integers(0, 5), st.sampled_from(["greedy", "sampled"]))
def test_nobody_borrows_from_itself(names: list[str], seed: int, mode: str) -> None:
    lent = lending_ring(names, seed, mode)
    assert all(a != b for a, b in lent.items())
    assert sorted(lent) == sorted(lent.values()) == (sorted(names) if len(names) > 1 else [])
    assert lending_ring(reversed(names), seed, mode) == lent


def test_the_seed_decides_who_borrows_from_whom() -> None:
    names = [str(i) for i in range(50)]
    rings = [lending_ring(names, seed, mode) for seed in (0, 1) for mode in ("greedy", "sampled")]
    assert all(a != b for i, a in enumerate(rings) for b in rings[:i])


# ── What is asked ──────────────────────────────────────────────────────────────────────────────────────────────────


def asked(task_name: str = "countdown") -> dict[str, list[dict[str, str]]]:
    profile = load_profile("smoke", task=task_name)
    task = get_task(task_name)
    problem = task.problems("test", profile.data_options)[0]
    borrowed = {"other": "Xylem."}
    return {c: control_messages(task, problem, "yonder", c, borrowed.get(c), "Once more.") for c in CONTROLS}


@pytest.mark.parametrize("task", ["countdown", "function_calling"])
def test_controls_differ_only_in_what_stands_before_the_retry(task: str) -> None:
    found = asked(task)
    problem = get_task(task).problems("test", load_profile("smoke", task=task).data_options)[0]
    reflecting = reflection_messages(get_task(task), problem, "yonder")
    tail = [{"role": "user", "content": "Once more."}]
    assert found["bare"] == reflecting[:2] + tail
    for control, said in (("other", "Xylem."), ("empty", "")):
        assert found[control] == [*reflecting, {"role": "assistant", "content": said}, *tail]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from r3_repro.engines.chat import load_tokenizer

    return load_tokenizer(model_path(load_profile("smoke")))


@pytest.mark.parametrize("family", ["own", *FAMILIES])
def test_one_beginning_and_roles_in_turn(family: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    "With the template of the tiny model and with those of real ones: one BOS at most, and an empty answer keeps its turn."
    import trl

    from r3_repro.engines.chat import render
    from r3_repro.planning.fit import check_empty

    if family != "own":
        template = (Path(trl.__file__).parent / f"chat_templates/{family}.jinja").read_text("utf-8")
        monkeypatch.setattr(tokenizer, "chat_template", template)
    for control, messages in asked().items():
        roles = [m["role"] for m in messages]
        assert roles == (["user", "assistant"] * 3)[: len(roles)] and len(roles) == (3 if control == "bare" else 5)
        ids = render(tokenizer, messages)
        starts = [i for i, token in enumerate(ids) if token == tokenizer.bos_token_id]
        assert starts in ([0], []), family
    check_empty(tokenizer, family)


REFUSES = "{% for m in messages %}<|{{ m.role }}|>{{ m.content or raise_exception('say something') }}{% endfor %}"
LEAVES_OUT = "{% for m in messages if m.content %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"


# ── The stage ──────────────────────────────────────────────────────────────────────────────────────────────────────


def answers(right: set[str], kill_at: int = -1) -> Any:
    "An answer function: attempts at the problems in `right` are right, a retry is where its prompt has an even length."
    given_ = []

    def answer(prompt: list[dict[str, str]], seed: int) -> str:
        given_.append(prompt)
        if len(given_) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        text = "".join(m["content"] for m in prompt)
        if len(prompt) == 1:
            return "right" if any(name in text for name in right) else "wrong"
        return f"Reflection {seed}." if len(prompt) == 3 and prompt[-1]["content"] != "Now try again." else _retry(text)

    answer.given = given_  # type: ignore[attr-defined]
    return answer


def _retry(text: str) -> str:
    return "right" if len(text) % 2 else "wrong"


def small(root: Path, **settings: Any) -> Run:
    return open_run("smoke", arm="vanilla", root=str(root), **({"test_size": 8} | settings))


@pytest.fixture
def world(right_or_wrong: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    "Episodes of which all but some problems failed, made without a model."

    def make(failed: int, **settings: Any) -> tuple[Run, Any]:
        run = small(tmp_path / str(failed), **settings)
        problems = get_task("countdown").problems("test", run.profile.data_options)
        answer = answers({f"[{p.id}]" for p in problems[failed:]})
        monkeypatch.setattr(episodes, "open_engine", lambda p, path: MockEngine(answer))
        monkeypatch.setattr(reflection_controls, "open_engine", lambda p, path: MockEngine(answer))
        assert (~evaluate(run).attempt_ok).sum() == failed * sum(draws_of(run.profile, m) for m in run.profile.modes)
        answer.given.clear()
        return replace(run, profile=run.profile.model_copy(update={"controls": CONTROLS})), answer

    return make


def test_each_failed_problem_is_retried_once_a_control(world: Any) -> None:
    run, answer = world(5)
    table = make_controls(run)
    assert len(table) == len(answer.given) == 5 * 3 * 2 and not table.duplicated(["mode", "control", "problem_id"]).any()
    failed, hashes = failed_episodes(run)
    said = failed.set_index(["mode", "problem_id"]).reflection
    for row in table[table.control == "other"].itertuples():
        assert row.source_id != row.problem_id
        mine = [p for p in answer.given if len(p) == 5 and p[3]["content"] == said[row.mode, row.source_id]]
        assert any(f"[{row.problem_id}]" in p[0]["content"] for p in mine)
    assert table.source_id[table.control != "other"].isna().all()
    manifest = json.loads(control_files(run)[1].read_text("utf-8"))
    assert manifest["controls"] == list(CONTROLS) and hashes.items() <= manifest["hashes"].items()
    assert manifest["problems"] == {m: {"failed": 5, "borrowed": 5, "same_words": 0} for m in ("greedy", "sampled")}


@pytest.mark.parametrize(("failed", "borrowed"), [(2, 2), (1, 0), (0, 0)])
def test_few_failed_problems(failed: int, borrowed: int, world: Any) -> None:
    "Two lend to each other; one has nobody to borrow from, is left out of `other` and counted; none makes an empty table."
    run, _ = world(failed, modes="greedy")
    table = make_controls(run)
    per = table.control.value_counts().to_dict()
    assert per == {c: n for c, n in {"bare": failed, "other": borrowed, "empty": failed}.items() if n}
    problems = json.loads(control_files(run)[1].read_text("utf-8"))["problems"]
    assert problems == ({"greedy": {"failed": failed, "borrowed": borrowed, "same_words": 0}} if failed else {})
    assert make_controls(run).equals(table) and list(table.columns) == CONTROL_COLUMNS
    found, left_out = load_controls(run.model_dir, load_episodes(run.model_dir))
    assert len(found) == len(table) and not left_out
    shown = reflection_effect.reflection_effect(load_episodes(run.model_dir), found) if len(found) else pd.DataFrame()
    if failed == 1:
        assert set(shown.retry) == {"own", "bare", "other", "empty"} - {"other"}


def test_each_failed_draw_is_retried_and_borrows_within_its_draw(world: Any) -> None:
    "Three draws in mode sampled, one in mode greedy; the first has the seeds, the lenders and so the rows that it has alone."
    run, answer = world(5, draws=3)
    table = make_controls(run)
    assert len(table) == len(answer.given) == 5 * 3 * (1 + 3) and list(table.columns) == CONTROL_COLUMNS
    assert not table.duplicated(["mode", "control", "problem_id", "draw"]).any() and str(table.draw.dtype) == "Int32"
    failed, _ = failed_episodes(run)
    said = {(e.mode, e.draw, e.problem_id): e.reflection for e in failed.itertuples()}
    assert len(set(said.values())) == len(said) == 5 * 4, "or it could be anyone's"
    asked_again = {(p[0]["content"].split("]")[0][1:], p[3]["content"]) for p in answer.given if len(p) == 5}
    borrowed = table[table.control == "other"]
    for row in borrowed.itertuples():
        assert row.source_id != row.problem_id and (row.problem_id, said[row.mode, row.draw, row.source_id]) in asked_again
    assert len(asked_again - {(p, "") for p in failed.problem_id}) == len(borrowed), "a reflection of another draw was borrowed"
    rings = [
        dict(zip(x.problem_id, x.source_id, strict=True)) for _, x in borrowed[borrowed["mode"] == "sampled"].groupby("draw")
    ]
    assert rings[0] == lending_ring(rings[0], run.profile.eval_seed, "sampled") and not rings[0] == rings[1] == rings[2]
    problems = json.loads(control_files(run)[1].read_text("utf-8"))["problems"]
    assert problems == {m: {"failed": 5, "borrowed": 5, "same_words": 0} for m in ("greedy", "sampled")}, "means over draws"
    alone = replace(run, root=run.root / "alone", profile=run.profile.model_copy(update={"draws": 1}))
    evaluate(alone)
    assert table[table.draw == 0].reset_index(drop=True).equals(make_controls(alone))


def test_a_draw_with_one_failed_problem_borrows_nothing(world: Any) -> None:
    run, _ = world(2, draws=2)
    failed, _ = failed_episodes(run)
    sampled = failed[failed["mode"] == "sampled"]
    one = sampled[(sampled.draw == 0) | (sampled.problem_id == sampled.problem_id.iloc[0])]
    assert {draw for _, draw in lenders(one, run.profile, "sampled")} == {0}


def test_counts_and_shares_are_means_over_draws() -> None:
    "Two problems failed in draw 0, one in draw 1; a borrowed reflection with the own words."
    failed = pd.DataFrame({"mode": "sampled", "draw": [0, 0, 1], "problem_id": ["a", "b", "a"], "reflection": "Hm."})
    failed["retry_ok"] = [True, False, False]
    table = failed.assign(control="other", source_id=["b", "a", None])[:2]
    assert lending_counts(failed, table, draws=2) == {"sampled": {"failed": 1.5, "borrowed": 1.0, "same_words": 1.0}}
    assert retry_shares(table, failed) == "sampled own 33.3%, other 50.0%"


def test_tables_of_an_earlier_version_have_one_draw(world: Any) -> None:
    "Without a column `draw` they are read, and not made again."
    run, answer = world(4)
    made = make_controls(run)
    for table_file, manifest_file in (episode_files(run), control_files(run)):
        table, manifest = pd.read_parquet(table_file), json.loads(manifest_file.read_text("utf-8"))
        table.drop(columns="draw").to_parquet(table_file, index=False)
        manifest["hashes"][table_file.parent.name] = file_hash(table_file)
        manifest["hashes"]["episodes"] = file_hash(episode_files(run)[0])
        manifest_file.write_text(json.dumps(manifest), "utf-8")
    answer.given.clear()
    assert evaluate(run).draw.tolist() == [0] * 16 and make_controls(run).equals(made) and not answer.given
    found, left_out = load_controls(run.model_dir, load_episodes(run.model_dir))
    assert found.draw.tolist() == [0] * len(made) and not left_out
    for file in control_files(run):
        file.unlink()
    assert make_controls(run).equals(made)


def test_controls_are_made_once_and_added_to(world: Any) -> None:
    run, answer = world(4)
    one = replace(run, profile=run.profile.model_copy(update={"controls": ("other",)}))
    first = make_controls(one)
    assert len(answer.given) == 4 * 2
    every = make_controls(run)
    assert len(answer.given) == 4 * 3 * 2, "what was there was made again"
    stamp = control_files(run)[0].stat().st_mtime_ns
    assert make_controls(one).equals(every) and make_controls(run).equals(every) and len(answer.given) == 4 * 3 * 2
    assert control_files(run)[0].stat().st_mtime_ns == stamp
    assert every[every.control == "other"].reset_index(drop=True).equals(first)


def test_controls_of_other_episodes_are_made_anew(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    "Other episodes: refused until they are evaluated, then made anew; the tables leave out what is not of them."
    run, answer = world(4)
    make_controls(run)
    other = replace(run, profile=run.profile.model_copy(update={"eval_seed": 7}))
    with pytest.raises(SettingsError, match=r"made with another protocol: evaluate again \(r3-repro evaluate"):
        make_controls(other)
    evaluate(other)
    assert "other episodes" in load_controls(run.model_dir, load_episodes(run.model_dir))[1][0]
    answer.given.clear()
    table = make_controls(other)
    assert len(answer.given) == len(table) == 4 * 3 * 2
    assert not load_controls(run.model_dir, load_episodes(run.model_dir))[1]


def test_without_episodes_there_is_nothing_to_retry(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no episodes at .*evaluate first"):
        make_controls(small(tmp_path))


@pytest.mark.parametrize("template", [REFUSES, LEAVES_OUT])
def test_a_template_without_empty_answers_is_refused_before_anything_is_asked(
    template: str, world: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, answer = world(3)
    engine = MockEngine(answer)
    engine.tokenizer = tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", template)
    monkeypatch.setattr(reflection_controls, "open_engine", lambda p, path: engine)
    with pytest.raises(SettingsError, match=r"controls = bare other"):
        make_controls(run)
    assert not answer.given and not control_files(run)[0].exists()
    kept = make_controls(replace(run, profile=run.profile.model_copy(update={"controls": ("bare", "other")})))
    assert set(kept.control) == {"bare", "other"}


def test_a_server_is_not_asked_for_trained_weights(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = world(2)
    there = {"engine": "server", "servers": ("http://somewhere:8000/v1",)}
    monkeypatch.setattr(reflection_controls, "model_path_for", lambda run: model_path(run.profile))
    for file in episode_files(run):
        file.rename(file.with_name(file.name.replace("vanilla", "r3-seed0")))
    with pytest.raises(SettingsError, match="engine = server asks for"):
        make_controls(replace(run, arm="r3", profile=run.profile.model_copy(update=there)))


# ── Kills ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def killed_at(run: Run, answer_number: int, right: set[str]) -> int:
    "Make controls in a process of its own that is killed at its n-th answer; its exit code."

    def work() -> None:
        answer = answers(right, answer_number)
        reflection_controls.open_engine = lambda p, path: MockEngine(answer, size=1)
        make_controls(run)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(patience(60))
    return process.exitcode


@pytest.mark.parametrize("draws", [1, 2])
def test_killed_again_and_again_it_ends_with_the_same_table(draws: int, world: Any) -> None:
    "Each process is killed while it works; what was finished before is not asked again, and no rest is left."
    run, answer = world(6, draws=draws)
    table_file, manifest_file = control_files(run)
    expected = make_controls(run)
    made = table_file.read_bytes()
    table_file.unlink()
    manifest_file.unlink()
    problems = get_task("countdown").problems("test", run.profile.data_options)
    right = {f"[{p.id}]" for p in problems[6:]}
    parts = []
    for at in (3, 9, 6, 13, 7):
        assert killed_at(run, at, right) == -signal.SIGKILL
        parts.append(len(list(table_file.parent.glob(".vanilla-*/*.parquet"))))
        assert not table_file.exists() and not manifest_file.exists()
    assert parts == sorted(parts) and 0 < parts[-1] < 6
    answer.given.clear()
    assert make_controls(run).equals(expected) and table_file.read_bytes() == made
    assert len(answer.given) == sum(([6] * 3 + [6 * draws] * 3)[parts[-1] :])
    assert not list(table_file.parent.glob(".vanilla-*"))


def test_stopped_before_its_manifest_it_begins_anew(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    "The table is written and its manifest is not: nothing counts as finished, and the parts are still there."
    run, answer = world(3)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(reflection_controls, "write_manifest", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
        make_controls(run)
    before = control_files(run)[0].read_bytes()
    answer.given.clear()
    make_controls(run)
    assert not answer.given and control_files(run)[0].read_bytes() == before


def test_evaluation_makes_the_controls_that_the_profile_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Each evaluation is one process, which opens one engine for episodes and controls."
    for wanted in ((), ("bare",)):
        launched: list[tuple[str, str]] = []
        noted = lambda stage, run, *more, to=launched, **env: str(to.append((stage, run.name, *more)))  # noqa: E731
        monkeypatch.setattr(study, "run_stage", noted)
        run = replace(small(tmp_path / f"{len(wanted)}"), profile=load_profile("smoke", controls=wanted, test_size=8))
        evaluate_all(run)
        assert launched == [("evaluate", "vanilla-seed0")]
        opened: list[MockEngine] = []
        engine = lambda p, path, to=opened: to.append(MockEngine(lambda prompt, seed: "no")) or to[-1]  # noqa: E731
        monkeypatch.setattr(reflection_controls, "open_engine", engine)
        reflection_controls.evaluate_with_controls(run)
        made = control_files(run)[0]
        assert len(opened) == 1 and made.exists() == bool(wanted)
        assert not wanted or set(pd.read_parquet(made).control) == set(wanted)


def test_what_is_evaluated_needs_no_process(world: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    "Episodes alone, then with their controls; those of one more control are to be made."
    run, _ = world(4)
    launched: list[tuple] = []
    monkeypatch.setattr(study, "run_stage", lambda *words, **_: str(launched.append(words)))
    of = lambda *wanted: replace(run, profile=run.profile.model_copy(update={"controls": wanted}))  # noqa: E731
    evaluate_all(of())
    make_controls(of("bare"))
    evaluate_all(of("bare"))
    said = capsys.readouterr().out.splitlines()
    assert not launched and "episodes of vanilla" in said[0] and "bare" in said[1] and "bare" not in said[0]
    evaluate_all(of("bare", "empty"))
    assert len(launched) == 1


def test_the_command_of_a_study_with_controls_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run("tiny", controls=CONTROLS)
    command = stage_command("evaluate", run)
    assert "--set=controls=bare other empty" in command
    found: list[Run] = []
    monkeypatch.setattr(reflection_controls, "evaluate_with_controls", found.append)
    monkeypatch.setattr(reflection_controls, "cached_summary", lambda run: "")
    done = CliRunner().invoke(cli.app, command[command.index("r3_repro") + 1 :], catch_exceptions=False)
    assert done.exit_code == 0 and found == [run]


# ── The table ──────────────────────────────────────────────────────────────────────────────────────────────────────

CHANCES = {"bare": 0.05, "other": 0.15, "empty": 0.45}


def stored_toy(root: Path, own: float = 0.45, problems: int = 520) -> Path:
    folder = root / "tiny" / "r3_repro.testing.TOY" / "toy-model"
    (folder / "episodes").mkdir(parents=True)
    for arm, seed, retry in (("vanilla", 0, 0.15), ("r3", 0, own), ("r3", 1, own), ("r3", 2, own)):
        name = "vanilla" if arm == "vanilla" else f"{arm}-seed{seed}"
        table = synthetic_episodes(arm, seed, 0.15, retry, problems=problems)
        table.to_parquet(folder / "episodes" / f"{name}.parquet", index=False)
        if arm == "r3":
            store_controls(folder, synthetic_controls(table, CHANCES))
    return folder


@pytest.mark.usefixtures("undrawn")
def test_the_tables_find_an_effect_that_is_there(tmp_path: Path) -> None:
    "Own retries succeed as often as after an empty reflection, and 40 and 30 points more often than after none and another's."
    folder = stored_toy(tmp_path)
    assert make_all_reports(tmp_path)
    table = pd.read_csv(folder / "tables/controls.csv").set_index(["mode", "retry"])
    assert set(table.arm) == {"r3"} and set(table.seeds) == {3} and len(table) == 2 * 4
    for mode in ("greedy", "sampled"):
        for control, chance in CHANCES.items():
            row = table.loc[(mode, control)]
            assert row.gain == pytest.approx(0.85 * (0.45 - chance), abs=0.05) and row.gain_low < row.gain < row.gain_high
            assert row.retries_right == pytest.approx(chance, abs=0.05)
            assert table.loc[(mode, "own")].two - row.two == pytest.approx(row.gain, abs=1e-5)
        assert table.gain_low[mode, "bare"] > 0 and table.gain_low[mode, "other"] > 0 > table.gain_low[mode, "empty"]


def test_a_row_is_what_the_statistics_say(tmp_path: Path) -> None:
    folder = stored_toy(tmp_path, problems=200)
    e = load_episodes(folder)
    found, _ = load_controls(folder, e)
    row = reflection_effect.reflection_effect(e, found).set_index(["mode", "arm", "retry"]).loc[("sampled", "r3", "bare")]
    key = ["seed", "problem_id"]
    own = e[(e["mode"] == "sampled") & (e.arm == "r3")].set_index(key).sort_index()
    theirs = found[(found["mode"] == "sampled") & (found.control == "bare")].set_index(key).retry_ok.reindex(own.index)
    gain = own.retry_ok.fillna(False).astype(float) - theirs.fillna(False).astype(float)
    by_seed = gain.groupby("seed").mean()
    assert row.gain == pytest.approx(by_seed.mean()) and row.retries_right == pytest.approx(theirs.astype(float).mean(), abs=0.01)
    assert (
        row.seeds == 3 and row.gain_high - row.gain == pytest.approx(row.gain - row.gain_low) and row.gain_low > 0 > row.p - 0.05
    )


@pytest.mark.usefixtures("undrawn")
def test_changed_verdicts_of_controls_are_refused(tmp_path: Path) -> None:
    folder = stored_toy(tmp_path, problems=20)
    file = folder / "controls/r3-seed0.parquet"
    table = pd.read_parquet(file)
    store_controls(folder, table.assign(retry_ok=~table.retry_ok))
    with pytest.raises(ValueError, match="the verifier has changed"):
        make_results(folder)


@pytest.mark.usefixtures("undrawn")
def test_without_controls_nothing_is_made_and_nothing_fails(tmp_path: Path) -> None:
    folder = stored_toy(tmp_path, problems=20)
    for file in (folder / "controls").iterdir():
        file.unlink()
    assert make_all_reports(tmp_path)
    assert not list((folder / "tables").glob("controls*"))


def test_problems_of_a_task_are_read_back_from_the_episodes(world: Any) -> None:
    "The verifier gets the problem that it had when the attempt was judged."
    run, _ = world(3)
    failed, _ = failed_episodes(run)
    by_id = {p.id: p for p in get_task("countdown").problems("test", run.profile.data_options)}
    for row in failed.itertuples():
        assert Problem(row.problem_id, json.loads(row.problem)).dumps() == by_id[row.problem_id].dumps()
