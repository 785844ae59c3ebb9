"""What the tests with vLLM share: real prompts, and where two engines part."""

import math
from collections.abc import Iterator

import torch

from r3_repro.config import load_profile
from r3_repro.engines.base import Completion, derive_seed
from r3_repro.engines.chat import render
from r3_repro.engines.hf import Transformers
from r3_repro.tasks.base import Problem, Task, attempt_messages, get_task

TASKS = {"countdown": 16, "function_calling": 40}
"Tasks, and the longest answer to each in the profile `tiny`."

NEAR_TIE = 1e-3
"Differences of log-probability below this may turn out either way. Rounding makes differences of up to 1e-4."


def problems(task: str, n: int) -> tuple[Task, list[Problem]]:
    "A task and some of its training problems."
    profile = load_profile("tiny", task=task)
    return get_task(task), get_task(task).problems("train", profile.data_options)[:n]


def attempts(tokenizer, task: str, n: int) -> tuple[list[list[int]], list[int]]:
    "Prompts as mining asks them, and the seeds of their first attempts."
    known, chosen = problems(task, n)
    return [render(tokenizer, attempt_messages(known, p)) for p in chosen], [derive_seed("attempts", p.id) for p in chosen]


@torch.inference_mode()
def gap(engine: Transformers, prompt: list[int], one: Completion, other: Completion) -> float:
    "Difference of log-probability between the first two tokens that differ, to the reference model."
    at = next((i for i, (a, b) in enumerate(zip(one.ids, other.ids, strict=False)) if a != b), None)
    if at is None:  # one goes on where the other has ended
        return math.inf
    scores = engine.model(torch.tensor([[*prompt, *one.ids[:at]]])).logits[0, -1].log_softmax(-1)
    return abs(float(scores[one.ids[at]] - scores[other.ids[at]]))


def gaps(engine: Transformers, prompts: list[list[int]], ones: list[Completion], others: list[Completion]) -> Iterator[float]:
    "The gap of each pair of answers whose tokens differ."
    for prompt, one, other in zip(prompts, ones, others, strict=True):
        if one.ids != other.ids:
            yield gap(engine, prompt, one, other)


def different(ones: list[Completion], others: list[Completion]) -> int:
    "How many answers differ in text, tokens or finish."
    return sum((a.ids, a.text, a.finish) != (b.ids, b.text, b.finish) for a, b in zip(ones, others, strict=True))
