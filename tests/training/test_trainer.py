"""`R3Trainer` in scripts of others: evaluation, adapters, kinds of models, arguments that cannot work."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2MoeConfig

from r3_repro.config import find_home
from r3_repro.engines.base import SamplingParams
from r3_repro.engines.chat import load_tokenizer
from r3_repro.engines.generation import generate_plain, why_plain
from r3_repro.engines.hf import load_model
from r3_repro.training.r3_config import R3Config
from r3_repro.training.shared_prefix import unsupported_reason
from r3_repro.training.trainer import R3Trainer

BASE = str(find_home() / "r3_repro/assets/tiny-a")


def short(completions: list, **_: Any) -> list[float]:
    "A reward that differs within most groups, and is not 0 or 1."
    return [min(len(c[0]["content"]), 20) / 20 for c in completions]


def failures(n: int = 6) -> Dataset:
    return Dataset.from_list([{"prompt": f"Make {k} from 1 and {k - 1}.", "attempt": "1"} for k in range(3, 3 + n)])


def make_trainer(folder: Path, model: Any = None, more: dict[str, Any] | None = None, **settings: Any) -> R3Trainer:
    like = {
        "max_steps": 2, "num_generations": 4, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8,
        "max_completion_length": 12, "max_retry_length": 6, "learning_rate": 1e-3, "use_cpu": True, "bf16": False, "beta": 0.01,
        "logging_steps": 1,
        "report_to": [], "save_strategy": "no", "gradient_checkpointing": False, "disable_tqdm": True,
    }  # fmt: skip
    return R3Trainer(
        model=model if model is not None else load_model(BASE, "float32", device="cpu"), reward_funcs=short,
        args=R3Config(str(folder), **like | settings), train_dataset=failures(), processing_class=load_tokenizer(BASE),
        reflection_request="What went wrong?", **more or {},
    )  # fmt: skip


def rows(trainer: R3Trainer, column: str) -> list[Any]:
    return [row[column] for row in trainer.state.log_history if column in row]


def test_evaluation_changes_nothing_in_training_and_has_its_own_numbers(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path / "plain", sample_steps=1)
    plain.train()
    how = {"eval_strategy": "steps", "eval_steps": 1, "sample_steps": 1}
    both = make_trainer(tmp_path / "both", more={"eval_dataset": failures(8)}, **how)
    both.train()
    for column in ("loss", "r3/reflect_tokens", "r3/retry_success", "r3/retry_tokens"):
        assert rows(both, column) == rows(plain, column), column
    assert len(rows(both, "eval_r3/retry_success")) == 2 and rows(both, "eval_r3/reflect_tokens")[0] > 0
    assert len(both.samples) == len(plain.samples)


def test_the_sampler_is_compared_in_training_only(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, more={"eval_dataset": failures(8)})
    sampled = trainer._generate_single_turn

    def as_vllm(*args: Any, **more: Any) -> Any:
        ids, _ = sampled(*args, **more)
        return ids, [[-1.0] * len(i) for i in ids]

    trainer._generate_single_turn = as_vllm
    trainer.evaluate()
    assert trainer.counts["eval"]["sampler_rows"] == 0
    trainer.train()
    assert rows(trainer, "r3/sampler_ratio_mean")


def test_a_router_keeps_its_auxiliary_loss(tmp_path: Path) -> None:
    size = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    size |= {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Qwen2MoeConfig(vocab_size=len(load_tokenizer(BASE)), **size)).save_pretrained(
        tmp_path / "moe"
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "moe")
    with pytest.warns(UserWarning, match="router"):
        trainer = make_trainer(tmp_path, model, max_steps=1, model_init_kwargs=None)
        trainer.train()
    assert "aux_loss" in trainer.state.log_history[0] and rows(trainer, "r3/shared_prefix") == [0]


def test_soft_prompts_are_not_left_out_of_rollouts(tmp_path: Path) -> None:
    soft = get_peft_model(
        load_model(BASE, "float32", device="cpu"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    )
    assert "before the prompt" in why_plain(soft) and "before the prompt" in (unsupported_reason(soft, 100) or "")


def test_the_exact_kl_of_a_given_adapter_is_to_that_adapter(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(load_model(BASE, "float32", device="cpu"), config)
    trainer = make_trainer(tmp_path, adapted, max_steps=1, bf16=True, sample_steps=1)
    trainer.train()
    assert rows(trainer, "r3/kl_float32") == [pytest.approx(0, abs=1e-9)]


def test_plain_generation_pads_on_the_left_whatever_the_tokenizer_does() -> None:
    model, tokenizer = load_model(BASE, "float32", device="cpu"), load_tokenizer(BASE)
    prompts, greedy = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7]], SamplingParams(8, greedy=True)
    left = generate_plain(model, tokenizer, prompts, greedy, [0, 1]).ids
    tokenizer.padding_side = "right"
    assert generate_plain(model, tokenizer, prompts, greedy, [0, 1]).ids == left


def test_running_out_of_memory_is_not_taken_for_an_unsupported_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(BASE, "float32", device="cpu")

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(model.model, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        why_plain(model)


@pytest.mark.parametrize(
    ("more", "settings", "message"),
    [
        ({"eval_dataset": Dataset.from_list([{"prompt": "1?"}])}, {}, "the evaluation set lacks"),
        ({"train": failures().to_iterable_dataset()}, {"zero_variance": "refill", "refill_rounds": 1}, "streamed"),
        ({}, {"remove_unused_columns": True}, "remove_unused_columns"),
        ({}, {"loss_on": "attempt", "retry_turn": "Again."}, "has no retry"),
        ({}, {"use_vllm": True, "vllm_importance_sampling_correction": True, "min_p": 0.1}, "would vanish"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(more: dict, settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        R3Trainer(
            model="no/such-model", reward_funcs=short, args=R3Config(str(tmp_path), use_cpu=True, bf16=False, **settings),
            train_dataset=more.pop("train", failures()), reflection_request="What went wrong?", **more,
        )  # fmt: skip
