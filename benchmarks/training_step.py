"""What a training step costs: TRL's GRPO, the retry left in the sequence, ours plain, ours with a shared prefix.

    python benchmarks/training_step.py                              # 700 + 150 tokens, G = 8, a model of 19 M parameters
    python benchmarks/training_step.py --model Qwen/Qwen2.5-1.5B-Instruct --dtype bfloat16   # on a GPU
    python benchmarks/training_step.py --out results/benchmarks/training_step

All sides generate the same number of tokens a step. `trl`: prompts without attempt and reflection, answers as long as
reflection and retry together. `retry_kept`: reflection and retry are one completion, as public code for several turns has it.
`plain` and `shared`: only the reflection is forwarded after the prompt; `shared_mask` is `shared` with one masked attention in
place of the one in two parts. A step is what the trainer does with sampled completions: log-probabilities of the reference, loss,
gradients, optimiser. Generation is timed beside it: transformers' own, as TRL calls it, and for `shared` the one that runs each
prompt once and lets the retry go on from its cache. Each side runs in a process of its own, for its peak of memory, and the sides
take turns for `--rounds` rounds; medians are printed, and what to expect by tokens. The last column compares whole steps with
`plain`, which is TRL's path through the same prompts and reflections.
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, Qwen2Config
from trl import GRPOTrainer

from r3_repro.config import find_home
from r3_repro.engines.base import SamplingParams
from r3_repro.engines.chat import load_tokenizer
from r3_repro.engines.generation import generate_rows, why_plain
from r3_repro.reporting.tables import save_table
from r3_repro.runs.layout import open_run, provenance
from r3_repro.tasks.countdown.task import TASK
from r3_repro.training.grpo_config import grpo_config, training_set
from r3_repro.training.shared_prefix import ATTN_NAME, expected_saving
from r3_repro.training.trainer import R3Trainer
from r3_repro.utils.files import write_json

TINY = "r3_repro/assets/tiny-a"
SIDES = {  # prompt and completion tokens, as shares of (task, attempt and request, reflection, template, retry)
    "trl": ((1, 0, 0, 0, 0), (0, 0, 1, 0, 1)),
    "retry_kept": ((1, 1, 0, 0, 0), (0, 0, 1, 1, 1)),
    "plain": ((1, 1, 0, 0, 0), (0, 0, 1, 0, 0)),
    "shared": ((1, 1, 0, 0, 0), (0, 0, 1, 0, 0)),
    "shared_mask": ((1, 1, 0, 0, 0), (0, 0, 1, 0, 0)),
}


def shape(side: str, a: argparse.Namespace) -> tuple[int, int]:
    "Prompt and completion tokens of a side."
    parts = (a.task, a.attempt, a.reflection, a.template, a.retry)
    prompt, completion = SIDES[side]
    return sum(p * n for p, n in zip(prompt, parts, strict=True)), sum(c * n for c, n in zip(completion, parts, strict=True))


def trainer_of(side: str, a: argparse.Namespace, folder: str) -> Any:
    "A trainer of the side around the model, whose data are never used."
    batch = {"batch_size": a.group * a.groups, "num_generations": a.group, "per_device_train_batch_size": a.group}
    run = open_run("tiny", root=folder, dtype=a.dtype, **batch)
    problem = TASK.problems("train", {**run.profile.data_options, "train_size": 4, "test_size": 4})[0]
    failed = pd.DataFrame([{"problem_id": problem.id, "problem": problem.dumps(), "attempt": "no"}])
    tokenizer = load_tokenizer(str(find_home() / TINY) if a.model == "random" else a.model)
    if a.model == "random":
        torch.manual_seed(0)
        size = dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=2)
        config = Qwen2Config(vocab_size=len(tokenizer), **size, max_position_embeddings=4096)
        AutoModelForCausalLM.from_config(config).save_pretrained(Path(folder, "model"))  # the reference is loaded from there
        model = AutoModelForCausalLM.from_pretrained(Path(folder, "model"), dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
    data = training_set(failed, TASK, run.profile, 0)
    kind, own = (GRPOTrainer, {}) if side == "trl" else (R3Trainer, {"reflection_request": TASK.reflection_request})
    trainer: Any = kind(
        model=model, args=grpo_config(run), train_dataset=data, processing_class=tokenizer, reward_funcs=[no_reward] * 2, **own
    )
    trainer.model.to(trainer.accelerator.device).train()
    trainer.current_gradient_accumulation_steps = a.groups
    trainer.shares_prefix = {"shared": None, "shared_mask": True}.get(
        side, False
    )  # None: with the attention in two parts, if it works
    return trainer


def no_reward(completions: list, **_: Any) -> list[float]:
    "Stands for the verifier: nothing is judged."
    return [0.0] * len(completions)


def batch_of_side(side: str, a: argparse.Namespace, trainer: Any, seed: int) -> dict[str, Any]:
    "Random tokens in the side's shape: one group, rewards that differ."
    prompt, completion = shape(side, a)
    g, top = torch.Generator().manual_seed(seed), trainer.model.config.vocab_size
    one = torch.randint(0, top, (1, prompt), generator=g).expand(a.group, -1)
    said = torch.randint(0, top, (a.group, completion), generator=g)
    batch = {
        "prompt_ids": one, "prompt_mask": torch.ones_like(one), "completion_ids": said, "completion_mask": torch.ones_like(said),
        "advantages": torch.tensor([1.0, -1.0] * (a.group // 2)), "num_items_in_batch": torch.tensor(said.numel()),
    }  # fmt: skip
    if side == "retry_kept":
        batch["tool_mask"] = torch.ones_like(said)
        batch["tool_mask"][:, a.reflection : a.reflection + a.template] = 0
    return {k: v.to(trainer.accelerator.device) for k, v in batch.items()}


def step(side: str, a: argparse.Namespace, trainer: Any, optimizer: Any, seed: int) -> float:
    "Seconds of one optimiser step, from sampled completions to changed weights."
    batches = [batch_of_side(side, a, trainer, seed * 1000 + n) for n in range(a.groups)]
    wait()
    began = time.perf_counter()
    for b in batches:
        ids, mask = torch.cat([b["prompt_ids"], b["completion_ids"]], 1), torch.cat([b["prompt_mask"], b["completion_mask"]], 1)
        with torch.no_grad():
            how = {"batch_size": a.group}
            b["ref_per_token_logps"], *_ = trainer._get_per_token_logps_and_entropies(
                trainer.ref_model, ids, mask, b["completion_ids"].size(1), **how
            )
        trainer.compute_loss(trainer.model, b).backward()
    optimizer.step()
    optimizer.zero_grad()
    wait()
    return time.perf_counter() - began


def wait() -> None:
    "Until the GPU is done, where there is one."
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.no_grad()
def generation(side: str, a: argparse.Namespace, trainer: Any) -> float:
    "Seconds to sample one step's tokens, every row to its full length."
    model, tokenizer, rows = trainer.model, copy.copy(trainer.processing_class), a.group * a.groups
    if side == "shared" and (reason := why_plain(model)):  # its trial is made once for a model, not in each step
        raise SystemExit(f"prompts are not run once for all their completions: {reason}")
    tokenizer.eos_token, model.generation_config.eos_token_id = None, None  # nothing ends a row
    top = model.config.vocab_size
    prompts = torch.randint(0, top, (a.groups, a.task + (side != "trl") * a.attempt)).repeat_interleave(a.group, 0)
    template = torch.randint(0, top, (rows, a.template))
    turns = [a.reflection + a.retry] if side == "trl" else [a.reflection, a.retry]
    began, cache = time.perf_counter(), None
    for new in turns:
        if side == "shared":
            out = generate_rows(model, tokenizer, prompts.tolist(), SamplingParams(new), list(range(rows)), cache=cache)
            said, cache = torch.tensor(out.ids), out.cache
        else:
            ids = prompts.to(model.device)
            how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new, "do_sample": True, "top_k": 0}
            said = model.generate(ids, **how)[:, ids.size(1) :].cpu()
        wait()
        prompts = torch.cat([prompts, said, template], 1)
    assert said.size(1) == turns[-1], "a row ended early"
    return time.perf_counter() - began


def resident() -> float:
    "Peak memory so far, in GB."
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def one_side(side: str, a: argparse.Namespace) -> None:
    "Measure a side in this process and print what was found as JSON."
    with tempfile.TemporaryDirectory() as d:
        trainer = trainer_of(side, a, d)
        optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-6)
        before = resident()
        seconds = [step(side, a, trainer, optimizer, seed) for seed in range(a.steps + 1)][1:]  # the first warms up
        peak = resident()
        if side == "shared" and trainer.model.config._attn_implementation != ATTN_NAME:
            raise SystemExit(f"the attention in two parts does not work with this model: {trainer.no_shared_prefix}")
        found = {"update": statistics.median(seconds), "peak": peak - before, "generation": generation(side, a, trainer)}
        found["millions"] = trainer.model.num_parameters() / 1e6
    print(json.dumps(found))


def measured(a: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    "What each side's processes found, the sides in turn."
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(a.rounds):
        for side in SIDES:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--side", side], capture_output=True, encoding="utf-8"
            )
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            found[side].append(json.loads(done.stdout.strip().splitlines()[-1]))
    return found


def table_of(a: argparse.Namespace, found: dict[str, list[dict[str, float]]]) -> pd.DataFrame:
    "One row per side: medians over rounds, and ratios to ours with each prompt run for itself."
    rows, plain = [], {k: statistics.median(r[k] for r in found["plain"]) for k in ("update", "peak", "generation")}
    for side in SIDES:
        prompt, completion = shape(side, a)
        m = {k: statistics.median(r[k] for r in found[side]) for k in plain}
        run = prompt - 1 + a.group * (completion + 1) if side.startswith("shared") else a.group * (prompt + completion)
        rows.append({
            "side": side, "tokens run a group": run, "update, s": round(m["update"], 2),
            "ratios of rounds": " ".join(
                f"{p['update'] / r['update']:.2f}" for p, r in zip(found["plain"], found[side], strict=True)
            ),
            "times faster than plain": round(plain["update"] / m["update"], 2),
            "by tokens": round(a.group * sum(shape("plain", a)) / run, 2),
            "peak of the update, GB": round(m["peak"], 2), "generation, s": round(m["generation"], 2),
            "whole step, s": round(m["update"] + m["generation"], 2),
            "whole step, times faster": round((plain["update"] + plain["generation"]) / (m["update"] + m["generation"]), 2),
        })  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="random", help="'random': 8 layers of width 384, 19 M parameters")
    ap.add_argument("--dtype", default="float32")
    for name, default in [("task", 400), ("attempt", 300), ("reflection", 150), ("template", 30), ("retry", 100)]:
        ap.add_argument(f"--{name}", type=int, default=default, help="tokens")
    for name, default in [("group", 8), ("groups", 1), ("steps", 3), ("rounds", 3)]:
        ap.add_argument(f"--{name}", type=int, default=default)
    ap.add_argument("--side", choices=SIDES, help="measure this side alone, in this process")
    ap.add_argument("--out", type=Path, help="folder for the table and its manifest")
    a = ap.parse_args()
    if a.side:
        return one_side(a.side, a)
    found = measured(a)
    table = table_of(a, found)
    print(table.to_markdown(index=False))
    foretold = expected_saving(a.task + a.attempt, a.reflection, a.group, 19_000_000, 384, 8)
    print(f"expected of the shared prefix by multiplications, attention included: {foretold:.2f} times (random model)")
    if a.out:
        save_table(table, a.out, "training_step", caption="One training step, by what is run.")
        like = {
            "prompt": a.task + a.attempt,
            "reflection": a.reflection,
            "group": a.group,
            "millions": found["plain"][0]["millions"],
        }
        write_json(a.out / "training_step.manifest.json", provenance() | {"shape": like, "measured": found})


if __name__ == "__main__":
    main()
