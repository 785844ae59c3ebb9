"""A real group of the stored study, token by token: the reflections on one failure, their retries, rewards and advantages.

    python benchmarks/worked_group.py --out results/benchmarks/worked_group --trained RUN/training/r3-seed0/model

The failure is the first of the study on which between a fifth and four fifths of the retries succeed. All is sampled again, with
fixed seeds, from the base that the study started from. With `--trained` each token of a reflection also has what training
changed of its log-probability.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForCausalLM

from r3_repro.engines.base import Completion, complete
from r3_repro.engines.chat import render
from r3_repro.engines.factory import open_engine
from r3_repro.evaluation.episodes import sampling_params
from r3_repro.runs.layout import Run, model_path_for, open_run, provenance
from r3_repro.tasks.base import Message, Problem, get_task, reflection_messages, retry_messages
from r3_repro.utils.files import write_json


def token_logprobs(model: Any, prompt: list[int], ids: list[int]) -> list[float]:
    "Log-probability of each token of a completion under a model."
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].tolist()


def reflection_row(tokenizer: Any, said: Completion, tried: Completion, verdict: Any) -> dict[str, Any]:
    "A reflection with its tokens as text, and its retry with the verdict."
    row = {"tokens": [tokenizer.decode([i]) for i in said.ids], "reflection": said.text, "retry": tried.text}
    return row | {"reward": float(verdict.ok), "error": verdict.error, "detail": verdict.detail}


def advantages(rewards: list[float]) -> list[float]:
    "As TRL computes them: distance from the group's mean, in its standard deviations (plus 1e-4)."
    r = pd.Series(rewards)
    return ((r - r.mean()) / (r.std() + 1e-4)).tolist()


def group_of(engine: Any, conversation: list[Message], problem: Problem, run: Run, seed: int) -> dict[str, Any]:
    "The reflections of a failure with retries, rewards and advantages, as many as in training."
    profile, task = run.profile, get_task(run.profile.task)
    answer, reflect = sampling_params(profile, "sampled")
    seeds = list(range(seed, seed + profile.num_generations))
    said = complete(engine, [conversation] * len(seeds), reflect, seeds)
    tried = complete(engine, [retry_messages(conversation, s.text, profile.retry_turn) for s in said], answer, seeds)
    verdicts = [task.verify(problem, t.text) for t in tried]
    rows = [reflection_row(engine.tokenizer, *x) for x in zip(said, tried, verdicts, strict=True)]
    for row, s, advantage in zip(rows, said, advantages([r["reward"] for r in rows]), strict=True):
        row |= {"advantage": advantage, "ids": list(s.ids)}
    return {"problem": problem.data, "conversation": conversation, "reflections": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trained", type=Path, help="weights after training, for the change of log-probabilities")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/worked_group"))
    a = parser.parse_args()
    run = open_run("tiny-study", "countdown", arm="vanilla", root="results")
    task, engine = get_task("countdown"), open_engine(run.profile, model_path_for(run))
    for row in pd.read_parquet(run.failures / "failures.parquet").itertuples():
        problem = Problem(row.problem_id, json.loads(row.problem))
        conversation = reflection_messages(task, problem, row.attempt)
        group = group_of(engine, conversation, problem, run, a.seed)
        if 0.2 < pd.DataFrame(group["reflections"]).reward.mean() < 0.8:
            break
    if a.trained:
        models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (model_path_for(run), a.trained)]
        prompt = render(engine.tokenizer, conversation)
        for row in group["reflections"]:
            before, after = (token_logprobs(m, prompt, row["ids"]) for m in models)
            row["logprob_change"] = [round(y - x, 4) for x, y in zip(before, after, strict=True)]
    write_json(a.out / "group.json", group)
    write_json(a.out / "group.manifest.json", provenance() | {"seed": a.seed, "base": run.model_dir.name})
    print(pd.DataFrame(group["reflections"])[["reward", "advantage", "reflection", "retry"]].to_string())


if __name__ == "__main__":
    main()
