"""The four published benchmarks on real rows of every odd kind, answered by someone who knows: all right, all wrong, and each as
lm-eval's own tasks ask and grade it from the raw files."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import LM
from real_benchmarks import THERE, math_answers, odd_rows, plain_tasks, small_model
from support import DATA
from test_benchmark_files import TASKS

from r3_repro.evaluation import benchmarks
from r3_repro.evaluation.benchmark_files import read_questions
from r3_repro.runs.layout import open_run
from r3_repro.tasks.suites import suite_of
from r3_repro.workflow.local_models import local_model_folder

if not THERE:
    pytest.skip(f"no real rows: R3_TEST_DATA names a folder with data/, not {DATA}", allow_module_level=True)

SAYS = {
    "mmlu_pro": ("Let us see. The answer is ({}).", "so the answer is {}"),
    "gsm8k": ("First 3 * 7 = 21.\n#### {}", "She has ${} now.", "The answer is {}"),
    "minerva_math": (
        "It is $\\boxed{{{}}}$.",
        "Final Answer: The final answer is ${}$. I hope it is correct.",
        "\\[\\boxed{{{}}}\\]",
    ),
}
"Task -> the forms in which an answer is given, all of which are read."
OTHERWISE = {"mmlu_pro": "({})", "gsm8k": "It is a half.", "minerva_math": "It is {}, I think."}
"Task -> an answer in a form that is not read, or none."


class Oracle(LM):
    "Knows the right answers, gives them or others, and keeps all that it is asked."

    tokenizer = None

    def __init__(self, mode: str):
        super().__init__()
        self.mode, self.asked, self.forms, self.math = mode, list[tuple[str, Any]](), set[str](), math_answers()

    @property
    def tokenizer_name(self) -> str:
        return "none"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return json.dumps([chat_history, add_generation_prompt], ensure_ascii=False)

    def gives(self, text: str) -> bool:
        return {"right": True, "wrong": False}.get(self.mode, len(text) % 2 == 0)

    def answer(self, doc: dict[str, Any], task: str) -> tuple[bool, str]:
        "Whether the right one is given, and the one that is."
        right = self.gives(doc.get("question", doc.get("problem", "")))
        if task == "mmlu_pro":
            at = "ABCDEFGHIJ".index(doc["answer"])
            return right, "ABCDEFGHIJ"[at if right else (at + 1) % len(doc["options"])]
        if task == "gsm8k":
            number = doc["answer"].split("####")[1].strip()
            return right, number if right else f"{int(number.replace(',', '')) + 1000:,}"
        return right, self.math[doc["problem"]] if right else "987654321"

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        out = []
        for k, r in enumerate(requests):
            self.asked.append((r.task_name, r.args))
            task = next(t for t in SAYS if r.task_name.startswith(t))
            right, answer = self.answer(r.doc, task)
            forms = SAYS[task] if right else (*SAYS[task], OTHERWISE[task])
            self.forms.add(form := forms[k % len(forms)])
            out.append(form.format(answer.replace(",", "") if "The answer is {}" in form else answer))
        return out

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.asked += [(r.task_name, r.args) for r in requests]
        chosen = [(r.doc["gold"] + (not self.gives(r.doc["query"]))) % 4 for r in requests]
        return [(-1.0 if r.idx == c else -100.0 * len(r.args[1]), False) for r, c in zip(requests, chosen, strict=True)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


def by_us(folder: Path, at: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    "A run without a model: what a run stores of its scores."
    how = {"engine": "server", "server_api": "chat", "servers": "http://nowhere.invalid/v1", "benchmarks": str(folder)}
    profile = open_run("paper", root=str(at), **how, forgetting_tasks=TASKS).profile
    suite = suite_of("paper", profile.forgetting_tasks)

    @contextlib.contextmanager
    def opened(*_: Any) -> Iterator[Oracle]:
        yield oracle

    monkeypatch.setattr(benchmarks, "open_backend", opened)
    loaded = benchmarks.load_tasks(suite, at / "questions", read_questions(suite, 0, str(folder)))
    return benchmarks.run_benchmark("no-model", profile, *loaded, logs=at / "logs")["tasks"]


def by_lm_eval(folder: Path, at: Path, oracle: Oracle) -> dict[str, Any]:
    "lm-eval's own tasks on the same rows, without this package."
    import lm_eval
    from lm_eval.tasks import TaskManager

    plain_tasks(folder, at)
    manager = TaskManager(include_path=str(at), include_defaults=False)
    how = {"apply_chat_template": True, "fewshot_as_multiturn": True, "bootstrap_iters": 0}
    tasks = [b.task for b in suite_of("paper", tuple(TASKS.split()))]
    return lm_eval.simple_evaluate(oracle, tasks=tasks, task_manager=manager, log_samples=True, **how)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return odd_rows(tmp_path_factory.mktemp("rows") / "benchmarks")


@pytest.mark.parametrize("mode", ["right", "wrong"])
def test_right_answers_are_right_and_others_wrong(
    mode: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = Oracle(mode)
    found = by_us(folder, tmp_path, oracle, monkeypatch)
    assert list(found) == TASKS.split() and all(20 <= score["n"] <= 60 for score in found.values())
    assert {name: score["value"] for name, score in found.items()} == dict.fromkeys(found, 1 if mode == "right" else 0)
    suite = [b.task for b in suite_of("paper", tuple(found)) if b.task in SAYS]
    given = [form for task in suite for form in (*SAYS[task], *([OTHERWISE[task]] if mode == "wrong" else []))]
    assert oracle.forms == set(given), "every form was graded"


def test_questions_and_grades_are_lm_evals_own(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Every prompt, ending and argument, and every grade, of somebody who knows every other answer."
    one, other = Oracle("every other"), Oracle("every other")
    ours, theirs = by_us(folder, tmp_path, one, monkeypatch), by_lm_eval(folder, tmp_path / "plain", other)
    assert len(one.asked) > 150 and sorted(map(repr, one.asked)) == sorted(map(repr, other.asked))
    for b in suite_of("paper", tuple(ours)):
        metric, chosen = b.metric.split(",")
        own = [json.loads(line) for line in (tmp_path / f"logs/{b.name}.jsonl").read_text("utf-8").splitlines()]
        every = [s for task, samples in theirs["samples"].items() if task.startswith(b.task) for s in samples]
        raw = [s for s in every if s["filter"] == chosen]
        graded = [sorted((s["prompt_hash"], s["target_hash"], s[metric]) for s in samples) for samples in (own, raw)]
        assert graded[0] == graded[1] and len(own) == ours[b.name]["n"]
        assert ours[b.name]["value"] == theirs["results"][b.task][b.metric]
        knows = [one.gives(next(s["doc"][k] for k in ("query", "question", "problem") if k in s["doc"])) for s in own]
        assert ours[b.name]["correct"] == "".join(str(int(k)) for k in knows) and 0 < sum(knows) < len(knows)


def test_the_small_model_is_found_where_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R3_HOME", str(tmp_path))
    (folder := local_model_folder()).mkdir(parents=True)
    assert small_model() == folder == tmp_path / "models/SmolLM2-135M-Instruct"
