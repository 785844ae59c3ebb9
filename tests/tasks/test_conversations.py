"""What a model is asked: the same words fresh and stored, the question before a retry, no chain of thought in `paper`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import trl
from support import DATA

from r3_repro.config import load_profile
from r3_repro.data import as_rows, load_split, split_hash
from r3_repro.engines.chat import load_tokenizer, render
from r3_repro.evaluation.reflection_controls import control_messages
from r3_repro.planning.fit import episode_frame
from r3_repro.planning.memory import lengths_of, longest, longest_with_retry
from r3_repro.runs.layout import open_run
from r3_repro.tasks.base import (
    BUILT_IN,
    Problem,
    attempt_messages,
    bare_retry_messages,
    get_task,
    reflection_messages,
    retry_messages,
    user,
)
from r3_repro.tasks.countdown.task import load_problems
from r3_repro.tasks.function_calling.task import load_call_rows
from r3_repro.tasks.tool_prompts import shown

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
FAMILIES = ["own", "qwen2_5", "llama3_1", "llama3_2", "phi3_5"]
ROWS = ["countdown/hf_rows_0_975.jsonl", "xlam/xlam_quoted_rows.jsonl", "xlam/hammer_masked_xlam_10.jsonl"]
ROWS += ["xlam/hammer_toolalpaca_xlam_schema.jsonl", "bfcl/bfcl_xlam_schema.jsonl", "bfcl/raw"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(REPOSITORY / "r3_repro/assets/tiny-a"))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    "The tiny tokenizer with the chat template of each family."
    if request.param != "own":
        monkeypatch.setattr(tokenizer, "chat_template", (TEMPLATES / f"{request.param}.jinja").read_text("utf-8"))
    return tokenizer


# ── Fresh and stored ───────────────────────────────────────────────────────────────────────────────────────────────


def sources() -> Iterator[tuple[str, str, str]]:
    "Task, profile and source of problems: generated, and real rows."
    yield from ((task, profile, "generate") for task in BUILT_IN for profile in ("tiny", "paper"))
    yield from (("countdown" if row.startswith("countdown") else "function_calling", "paper", row) for row in ROWS)


def problems_of(task: str, profile: str, source: str) -> list[Problem]:
    if source == "generate":
        p = load_profile(profile, task=task, source="generate", train_size=150, test_size=150)
        return get_task(task).problems("train", p.data_options) + get_task(task).problems("test", p.data_options)
    if not (file := DATA / "data" / source).exists():
        pytest.skip(f"no {source}: these real rows are not rendered")
    return load_problems(file).problems if task == "countdown" else load_call_rows(file)[0]


@pytest.mark.parametrize(("task", "profile", "source"), sources())
def test_a_stored_problem_is_asked_in_the_words_of_a_fresh_one(
    task: str, profile: str, source: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = problems_of(task, profile, source)
    as_rows(fresh).to_parquet(tmp_path / "split.parquet")
    rows = pd.read_parquet(tmp_path / "split.parquet")
    stored = [Problem(i, json.loads(data)) for i, data in zip(rows.problem_id, rows.problem, strict=True)]
    assert stored == fresh and split_hash(stored) == split_hash(fresh)
    for name in ("own", "qwen2_5"):
        if name != "own":
            monkeypatch.setattr(tokenizer, "chat_template", (TEMPLATES / f"{name}.jinja").read_text("utf-8"))
        for p, q in zip(fresh, stored, strict=True):
            asked = [render(tokenizer, attempt_messages(get_task(task), x)) for x in (p, q)]
            assert asked[0] == asked[1], p.id


@pytest.mark.parametrize(("task", "profile", "source"), sources())
def test_the_solution_of_a_problem_is_right(task: str, profile: str, source: str) -> None:
    "What a supervised start teaches."
    own = get_task(task)
    problems = problems_of(task, profile, source)[:400]
    wrong = [p.id for p in problems if not own.verify(p, own.solution(p)).ok]
    assert wrong == [] and problems


def test_a_data_set_that_was_stored_in_sorted_order_is_still_read(tmp_path: Path) -> None:
    "Earlier versions sorted the keys. Such a run goes on with the prompts that it began with, under its own hash."
    run = open_run("smoke", task="function_calling", root=str(tmp_path))
    fresh = load_split(run, "test")
    texts = [json.dumps(p.data, sort_keys=True, ensure_ascii=False) for p in fresh]
    assert texts != [p.dumps() for p in fresh], "else nothing is tried here"
    old = [Problem(p.id, json.loads(text)) for p, text in zip(fresh, texts, strict=True)]
    as_rows(old).to_parquet(run.dataset / "test.parquet")
    manifest = json.loads((run.dataset / "manifest.json").read_text("utf-8"))
    manifest["hashes"]["test"] = split_hash(old)
    (run.dataset / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    assert [p.dumps() for p in load_split(run, "test")] == texts and split_hash(old) != split_hash(fresh)


def test_the_hashes_of_the_stored_study_are_those_of_its_problems() -> None:
    study = REPOSITORY / "results/studies/tiny-study"
    for task in BUILT_IN:
        p = load_profile("tiny-study", task=task)
        known = json.loads((study / task / "dataset/summary.json").read_text("utf-8"))
        for split in ("train", "test"):
            assert split_hash(get_task(task).problems(split, p.data_options)) == known[split]["hash"]


# ── Before a retry ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("task", BUILT_IN)
def test_the_original_question_is_put_again(task: str, family: Any) -> None:
    known, problem = get_task(task), problems_of(task, "paper", "generate")[0]
    asked = reflection_messages(known, problem, "wrong")
    again = retry_messages(asked, "I see.", "question")
    assert again[:3] == asked and again[-1] == user(known.prompt(problem)), "the question alone: its tools are not repeated"
    assert bare_retry_messages(known, problem, "wrong", "question")[-1] == again[-1]
    for control, borrowed in (("bare", None), ("other", "Theirs."), ("empty", None)):
        assert control_messages(known, problem, "wrong", control, borrowed, "question")[-1] == again[-1]
    text = family.decode(render(family, again))
    assert text.count(known.prompt(problem)) == 2
    first = family.decode(render(family, asked[:1]))
    if task == "function_calling":
        name = json.loads(asked[0]["tools"])[0]["function"]["name"]
        assert text.count(name) == first.count(name) >= 1
    assert render(family, again)[: len(render(family, asked))] == render(family, asked)


def test_a_text_is_put_as_it_is() -> None:
    asked = [user("2 + 2?")]
    assert retry_messages(asked, "Hm.", "Once more.")[-1] == user("Once more.")
    assert retry_messages(asked, "Hm.", "Now try again.")[-1] == user("Now try again.")


def test_lengths_count_the_question(tokenizer: Any) -> None:
    p, task = load_profile("paper"), get_task("countdown")
    problem = problems_of("countdown", "paper", "generate")[0]
    short = p.model_copy(update={"retry_turn": "Again."})
    more = [len(render(tokenizer, episode_frame(task, problem, x))) for x in (p, short)]
    assert more[0] - more[1] >= len(tokenizer(task.prompt(problem), add_special_tokens=False).input_ids) - 5
    tok = lengths_of(p)
    assert longest_with_retry(p, tok) - longest(p, tok) >= tok.longest_prompt + p.max_answer_tokens
    assert longest_with_retry(short, tok) < longest_with_retry(p, tok)
    calls = load_profile("paper", task="function_calling")
    assert longest_with_retry(calls, tok := lengths_of(calls)) - longest(calls, tok) < tok.longest_prompt, "no tools again"


# ── The published set-up ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("task", BUILT_IN)
def test_the_first_attempt_of_the_published_set_up_is_asked_for_without_a_chain_of_thought(task: str, family: Any) -> None:
    for problem in problems_of(task, "paper", "generate")[:20]:
        asked = attempt_messages(get_task(task), problem)
        messages, more = shown(family, asked)
        words = family.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **more).lower()
        words = words.replace(problem.data.get("query", "").lower(), "")
        for tool in problem.data.get("tools", []):
            words = words.replace(tool["description"].lower(), "")
        assert not any(w in words for w in ("think", "reason", "step by step", "explain", "chain of thought")), words


def test_the_tiny_world_is_asked_as_its_model_was_taught() -> None:
    p = load_profile("tiny")
    assert (p.retry_turn, p.temperature, p.options["chain_of_thought"]) == ("question", 1.0, True)
    asked = get_task("countdown").prompt(get_task("countdown").problems("test", p.data_options)[0])
    assert "You may think first. End with the expression in answer tags" in asked
