"""Loss, gradient and weights of the trainer against GRPO written out by hand (the formula of TRL 0.17), for every arm."""

from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from r3_repro.config import load_profile, model_path
from r3_repro.engines.hf import load_model
from r3_repro.runs.layout import open_run
from r3_repro.tasks.base import get_task
from r3_repro.training.train import build_trainer

ROWS, GROUP, MICRO, BETA, EPSILON = 32, 8, 8, 0.04, 0.05
REWARDS = [1.0, 0, 0, 0, 1, 0, 0, 0] + [0.0] * 8 + [1.0, 1, 0, 1] * 2 + [1.0] * 8
"Of four groups: mixed, all wrong, mixed, all right."
AT_ONCE = [1.0] + [0.0] * 15 + [1.0, 0, 0, 1] * 2 + [1.0, 0] * 4
"With two rounds: the verdicts of the first retries."

CASES = [
    ("r3", {}), ("r3", {"shared_prefix": False}), ("r3", {"loss_type": "grpo"}), ("r3", {"zero_variance": "skip"}),
    ("all_tokens", {}), ("plain_grpo", {"loss_type": "grpo"}), ("random_reward", {}),
    ("r3", {"retries": 2}), ("r3", {"retries": 2, "loss_type": "grpo", "shared_prefix": False}), ("all_tokens", {"retries": 2}),
]  # fmt: skip


def failures() -> pd.DataFrame:
    task, smoke = get_task("countdown"), load_profile("smoke")
    some = task.problems("train", smoke.data_options)[:4]
    return pd.DataFrame([{"problem_id": p.id, "problem": p.dumps(), "attempt": "<answer> 1 + 1 </answer>"} for p in some])


def rewarded(trainer: Any, rewards: list[float]) -> None:
    "Every answer earns what the list says, from the last reward function, which is the one that pays."
    given = cycle(rewards)

    def paid(completions: list, **_: Any) -> list[float]:
        return [next(given) for _ in completions]

    trainer.reward_funcs[-1] = paid


def log_probs(model: Any, row: dict[str, Any]) -> torch.Tensor:
    "Log-probability of each completion token, from the logits of one plain pass."
    ids = torch.cat([row["prompt_ids"], row["completion_ids"]], 1)
    mask = torch.cat([row["prompt_mask"], row["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    return logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0][:, -row["completion_ids"].size(1) :]


def advantages_of(rewards: list[float]) -> torch.Tensor:
    r = torch.tensor(rewards).view(-1, GROUP)
    return ((r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)).flatten()


def loss_by_hand(policy: Any, old: Any, reference: Any, row: dict, advantages: torch.Tensor, p: Any) -> torch.Tensor:
    "The loss of one backward pass."
    mask = (row["completion_mask"] * row.get("tool_mask", 1)).float()
    now = log_probs(policy, row)
    with torch.no_grad():
        before, ref = log_probs(old, row), log_probs(reference, row)
    ratio, a = (now - before).exp(), advantages[:, None]
    loss = -torch.min(ratio * a, ratio.clamp(1 - EPSILON, 1 + EPSILON) * a)
    kl = (ref - now).exp() - (ref - now) - 1
    if p.zero_variance == "skip":
        kl = kl * (a != 0)
    each = (loss + BETA * kl) * mask
    mean = each.sum() / mask.sum() if p.loss_type == "bnpo" else (each.sum(1) / mask.sum(1)).mean()
    return mean / (ROWS // MICRO)


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize(("arm", "how"), CASES)
def test_loss_gradient_and_second_step_are_those_of_grpo_by_hand(arm: str, how: dict, tmp_path: Path) -> None:
    like = {
        "beta": BETA,
        "epsilon": EPSILON,
        "batch_size": ROWS,
        "num_generations": GROUP,
        "per_device_train_batch_size": MICRO,
        "num_iterations": 2,
    }
    run = open_run("smoke", arm=arm, root=str(tmp_path), **(like | {"save_steps": 2} | how))
    trainer, base = build_trainer(run, failures()), model_path(run.profile)
    rewarded(trainer, AT_ONCE + REWARDS if run.profile.retries > 1 else REWARDS)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = ROWS // MICRO
    with torch.no_grad():  # the policy has moved away from its reference
        g = torch.Generator().manual_seed(1)
        for p in trainer.model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=g))
    policy, old, reference = (load_model(base, "float32", device="cpu") for _ in range(3))
    for m in (policy, old):
        m.load_state_dict(trainer.model.state_dict())
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-3) for m in (trainer.model, policy)]
    inputs = [trainer.train_dataset[i // GROUP] for i in range(ROWS)]
    hand, texts, last_answers = advantages_of(REWARDS), [], trainer._count_answers
    trainer._count_answers = lambda prompts, answers, ok: (texts.append(answers.said), last_answers(prompts, answers, ok))
    for iteration in range(2):  # in the second, the ratio of probabilities is not 1, and is clipped
        losses = []
        for k in range(ROWS // MICRO):
            trainer._step = iteration * (ROWS // MICRO) + k
            loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(inputs))
            loss.backward()
            row = trainer._buffered_inputs[k]
            by_hand = loss_by_hand(policy, old, reference, row, hand[MICRO * k : MICRO * (k + 1)], run.profile)
            by_hand.backward()
            losses.append((loss.item(), by_hand.item()))
        with torch.no_grad():
            ratios = [(log_probs(policy, row) - log_probs(old, row)).exp() for row in trainer._buffered_inputs]
        if run.profile.retries > 1:  # rewarded after one reflection and after two, and not rewarded after two
            assert {(len(said), r) for said, r in zip(texts[0], REWARDS, strict=True)} == {(1, 1.0), (2, 1.0), (2, 0.0)}
        assert (iteration == 1) == any(bool(((r - 1).abs() > EPSILON).any()) for r in ratios)
        ours, expected = gradient(trainer.model), gradient(policy)
        assert losses == [pytest.approx((b, b), rel=1e-4, abs=2e-6) for _, b in losses]
        assert ours.norm() > 0 and (ours - expected).norm() / expected.norm() < 1e-4, (iteration, losses)
        for o in optimizers:
            o.step()
            o.zero_grad()
    moved = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (trainer.model, policy, old)]
    assert (moved[0] - moved[1]).norm() / (moved[0] - moved[2]).norm() < 5e-3
