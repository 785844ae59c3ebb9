"""A training with a token budget: where it ends, its learning rate, a kill, and whose budget it is."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from two_processes import Stop

from r3_repro.config import load_profile, model_path
from r3_repro.data import prepare
from r3_repro.engines.chat import load_tokenizer
from r3_repro.engines.hf import load_model
from r3_repro.runs.layout import Run, open_run
from r3_repro.tasks.base import get_task
from r3_repro.training.monitoring import TrainingStopped
from r3_repro.training.r3_config import R3Config
from r3_repro.training.train import as_trained, is_trained, training_identity
from r3_repro.training.trainer import R3Trainer
from r3_repro.utils.errors import SettingsError
from r3_repro.utils.files import write_json, write_parquet

BASE = model_path(load_profile("smoke"))
ROWS, STEPS, WARM = 8, 40, 4


def letters(completions: list, **_: Any) -> list[float]:
    "A reward that differs within groups and makes attempts longer."
    return [len(c[0]["content"]) / 100 for c in completions]


def make_trainer(folder: Path, loss_on: str = "attempt", **settings: Any) -> R3Trainer:
    alone = loss_on == "attempt"
    like = {
        "max_steps": STEPS, "warmup_steps": WARM, "lr_scheduler_type": "cosine", "num_generations": 4, "seed": 3,
        "per_device_train_batch_size": ROWS, "max_completion_length": 12, "learning_rate": 5e-3, "beta": 0.0, "use_cpu": True,
        "bf16": False, "logging_steps": 1, "report_to": [], "save_strategy": "no", "gradient_checkpointing": False,
        "disable_tqdm": True, "shuffle_dataset": False,
    }  # fmt: skip
    data = [{"prompt": f"Make {k} from 1 and {k - 1}.", "attempt": "1"} for k in range(3, 3 + 2 * STEPS)]
    return R3Trainer(
        model=load_model(BASE, "float32", device="cpu"), reward_funcs=letters, processing_class=load_tokenizer(BASE),
        args=R3Config(str(folder), loss_on=loss_on, **like | settings), train_dataset=Dataset.from_list(data),
        reflection_request="" if alone else "What went wrong?",
    )  # fmt: skip


def drifting(trainer: R3Trainer, change: int, first: int = 40) -> None:
    "Let it generate completions whose length changes with each step."

    def generate(prompts: list, *_: Any, **__: Any) -> Any:
        step = trainer.state.global_step
        g = torch.Generator().manual_seed(step)
        return torch.randint(5, 200, (len(prompts), first + change * step), generator=g).tolist(), None

    trainer._generate_single_turn = generate


def rows(trainer: R3Trainer) -> pd.DataFrame:
    "The log, a row a step, with the tokens of the step."
    log = pd.DataFrame([row for row in trainer.state.log_history if "loss" in row])
    return log.assign(tokens=log["r3/reflect_tokens"] + log["r3/retry_tokens"])


@pytest.mark.parametrize("change", [2, -1, 0])
def test_training_ends_at_the_step_nearest_to_its_budget_whatever_the_lengths(change: int, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, token_budget=4000, max_completion_length=200)
    drifting(trainer, change)
    trainer.train()
    spent = rows(trainer).tokens
    assert spent.tolist() == [ROWS * (40 + change * k) for k in range(len(spent))]
    following = ROWS * (40 + change * len(spent))
    off = [abs(total - 4000) for total in (spent.sum() - spent.iloc[-1], spent.sum(), spent.sum() + following)]
    assert off[1] == min(off) and off[1] <= max(spent.iloc[-1], following) / 2
    assert {2: 10, -1: 15, 0: 12}[change] == len(spent) == trainer.state.global_step


def test_the_learning_rate_is_the_cosine_at_the_same_share_of_the_tokens(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, token_budget=4000, max_completion_length=200)
    drifting(trainer, 2)
    trainer.train()
    log, warm = rows(trainer), WARM / STEPS
    before = (log.tokens.cumsum() - log.tokens) / 4000  # when a step's learning rate is set
    cosine = [s / warm if s < warm else (1 + math.cos(math.pi * (s - warm) / (1 - warm))) / 2 for s in before]
    assert log.learning_rate.tolist() == pytest.approx([5e-3 * c for c in cosine], rel=1e-6)
    assert log.learning_rate.iloc[1] > 0 and log.learning_rate.iloc[-1] < 5e-4


def test_reflections_retries_and_refilled_completions_count(tmp_path: Path) -> None:
    how = {"zero_variance": "refill", "refill_rounds": 2, "max_retry_length": 6}
    trainer = make_trainer(tmp_path, "reflection", token_budget=1500, **how)
    trainer.reward_funcs = [lambda completions, **_: [float(i % 8 == 0) for i in range(len(completions))]]
    trainer.train()
    log = rows(trainer)
    assert log["r3/refilled"].sum() > 0 and (log["r3/retry_tokens"] > 0).all()
    assert trainer.lr_scheduler.tokens == log.tokens.sum() and abs(log.tokens.sum() - 1500) <= log.tokens.max()


def test_too_few_steps_for_the_budget_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, token_budget=4000, max_completion_length=200, max_steps=5)
    drifting(trainer, 0)
    with pytest.raises(TrainingStopped, match=r"5 steps with 1,600 of 4,000 tokens.*else raise max_steps"):
        trainer.train()


@pytest.mark.parametrize("more", [{}, {"num_iterations": 2}])
def test_a_resumed_training_ends_as_one_that_was_never_interrupted(more: dict[str, int], tmp_path: Path) -> None:
    ends = []
    for name in ("plain", "cut"):
        how = {"token_budget": 1200, "save_strategy": "steps", "save_steps": 2, "beta": 0.0} | more
        trainer = make_trainer(tmp_path / name, **how)
        if name == "cut":
            trainer.add_callback(Stop(4))
            with pytest.raises(InterruptedError):
                trainer.train()
            trainer = make_trainer(tmp_path / name, **how)
        trainer.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-4") if name == "cut" else None)
        ends.append((rows(trainer), {k: v.clone() for k, v in trainer.model.state_dict().items()}))
        assert not (tmp_path / name / f"checkpoint-{trainer.state.global_step}").exists()  # it would take one step more
    (plain, weights), (cut, same) = ends
    columns = ["step", "tokens", "learning_rate", "loss", "grad_norm"]
    assert len(plain) > 6 and plain[columns].equals(cut[columns])
    assert all(torch.equal(weights[k], same[k]) for k in weights)
    spent = plain.tokens[plain.tokens > 0]
    assert abs(spent.sum() - 1200) <= 0.6 * spent.max() and len(plain) == len(spent) * more.get("num_iterations", 1)


@pytest.fixture
def matched(tmp_path: Path) -> Run:
    "plain GRPO whose r3 has a record, as have the mined failures."
    run = open_run("smoke", arm="plain_grpo", root=str(tmp_path))
    prepare(run)
    some = get_task("countdown").problems("train", run.profile.data_options)[:3]
    failed = [{"problem_id": p.id, "problem": p.dumps(), "attempt": "<answer> 1 + 1 </answer>"} for p in some]
    write_parquet(run.failures / "failures.parquet", pd.DataFrame(failed))
    write_json(run.failures / "summary.json", {"tokens": 2000, "attempts": 100})
    write_json(replace(run, arm="r3").training / "manifest.json", {"reflect_tokens": 3000, "retry_tokens": 1000, "steps": 2})
    return run


def test_the_budget_is_part_of_the_identity_of_plain_grpo_and_of_no_other(matched: Run) -> None:
    identity = training_identity(as_trained(matched))
    assert identity["settings"]["token_budget"] == 4000
    for arm in ("r3", "all_tokens", "permuted_reward"):
        assert "token_budget" not in training_identity(as_trained(replace(matched, arm=arm)))["settings"]
    (matched.training / "model").mkdir(parents=True)
    for name, content in {"manifest.json": {}, "model/config.json": {}, "identity.json": identity}.items():
        write_json(matched.training / name, content)
    assert is_trained(matched)
    record = replace(matched, arm="r3").training / "manifest.json"
    write_json(record, json.loads(record.read_text("utf-8")) | {"retry_tokens": 1001})
    with pytest.raises(SettingsError, match=r"token_budget \(was 4000, is 4001\)"):
        is_trained(matched)
