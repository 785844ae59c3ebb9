"""Several rounds of reflection and retry in one conversation: what is generated, trained, paid, logged and refused."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from r3_repro.config import find_home, load_profile
from r3_repro.engines.chat import load_tokenizer
from r3_repro.engines.hf import load_model
from r3_repro.planning.memory import LENGTHS, activation_parts, later_rounds, longest_with_retry
from r3_repro.planning.models import shape_of
from r3_repro.runs.layout import open_run
from r3_repro.training.grpo_config import arm_of, grpo_config
from r3_repro.training.r3_config import R3Config
from r3_repro.training.trainer import R3Trainer
from r3_repro.utils.errors import SettingsError

BASE = str(find_home() / "r3_repro/assets/tiny-a")
REQUEST = "What went wrong?"
ROWS = [{"prompt": f"Make {k} from 1 and {k - 1}.", "attempt": "1"} for k in (3, 5)]


def scripted(*verdicts: list[int]) -> Any:
    "A verifier that says these verdicts, a list for each time it is asked; it keeps what it saw."
    said = iter(verdicts)

    def verifier(prompts: list, completions: list, **_: Any) -> list[float]:
        verifier.seen.append((prompts, [c[0]["content"] for c in completions]))  # type: ignore[attr-defined]
        return [float(ok) for ok in next(said)]

    verifier.seen = []  # type: ignore[attr-defined]
    return verifier


def make_trainer(folder: Path, reward: Any, **settings: Any) -> R3Trainer:
    like = {
        "num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 12, "max_retry_length": 6, "beta": 0,
        "use_cpu": True, "bf16": False, "report_to": [], "gradient_checkpointing": False, "disable_tqdm": True,
        "loss_type": "bnpo", "max_steps": 1, "logging_steps": 1, "save_strategy": "no",
    }  # fmt: skip
    trainer = R3Trainer(
        model=load_model(BASE, "float32", device="cpu"), reward_funcs=reward, args=R3Config(str(folder), **like | settings),
        train_dataset=Dataset.from_list(ROWS), processing_class=load_tokenizer(BASE), reflection_request=REQUEST,
    )  # fmt: skip
    trainer.model.train()
    return trainer


def recorded(trainer: R3Trainer) -> list[tuple[list, list]]:
    "Prompts and samples of each call of the trainer's generation."
    calls, single_turn = [], trainer._generate_single_turn

    def listening(ids: Any, *rest: Any, **options: Any) -> Any:
        out = single_turn(ids, *rest, **options)
        calls.append(([list(i) for i in ids], [list(i) for i in out[0]]))
        return out

    trainer._generate_single_turn = listening
    return calls


INPUTS = [ROWS[0]] * 4 + [ROWS[1]] * 4
FIRST, SECOND = [0, 1, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 1]  # of eight, then of the six that are left
PAID = [1, 1, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("loss_on", ["reflection", "reflection and retry"])
def test_reflections_up_to_the_first_success_are_paid_and_nothing_else_is_trained(loss_on: str, tmp_path: Path) -> None:
    reward = scripted(FIRST, PAID)
    trainer = make_trainer(tmp_path, reward, loss_on=loss_on, retries=2)
    calls = recorded(trainer)
    batch = trainer._generate_and_score_completions(INPUTS)
    (prompts, first), (_, retry), (later, second), (_, last) = calls
    left = [i for i, ok in enumerate(FIRST) if not ok]
    assert len(second) == len(last) == len(left) == 6
    for i in range(8):
        ids = batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist()
        trained = (batch["completion_mask"] * batch["tool_mask"])[i].bool()
        k = left.index(i) if i in left else None
        mine = [first[i], retry[i]] + ([] if k is None else [second[k], last[k]])
        kept = mine[::2] if loss_on == "reflection" else mine
        assert batch["completion_ids"][i][trained].tolist() == [*chain(*kept)]
        if k is not None:  # the second reflection was sampled after the very tokens that are trained on
            assert (prompts[i] + ids)[: len(later[k])] == later[k]
        assert ids[: len(first[i])] == first[i] and ids[-len(kept[-1]) :] == kept[-1]
    paid = batch["advantages"].view(2, 4) > 0
    assert paid.flatten().tolist() == [bool(x) for x in PAID]
    assert trainer.counted["answers"] == 8 and trainer.counted["texts"] == 14
    assert (trainer.counted["right"], trainer.counted["right_at_once"]) == (4, 2)
    assert trainer.counted["reflect_tokens"] == sum(map(len, first + second))
    assert trainer.counted["retry_tokens"] == sum(map(len, retry + last))


def test_the_verifier_sees_the_whole_conversation_and_the_last_retry(tmp_path: Path) -> None:
    reward = scripted(FIRST, PAID)
    trainer = make_trainer(tmp_path, reward, retries=2, sample_steps=1)
    calls = recorded(trainer)
    trainer._generate_and_score_completions(INPUTS)
    (_, _), (asked, answers) = reward.seen
    roles = [[m["role"] for m in talk] for talk in asked]
    assert list(map(len, roles)) == [5 if ok else 9 for ok in FIRST] and all(r[-1] == "user" for r in roles)
    wrong, decode = [m["content"] for m in asked[0]], trainer._tokenizer.decode
    assert wrong[2::4] == [REQUEST] * 2 and wrong[4] == wrong[8] == ROWS[0]["prompt"]
    assert answers[0] == decode(calls[3][1][0], skip_special_tokens=True)  # of the second round
    assert answers[1] == decode(calls[1][1][1], skip_special_tokens=True)
    shown = [s for s in trainer.samples if "earlier" in s]
    assert shown and shown[0]["reflection"] == wrong[7] and shown[0]["earlier"] == [[wrong[3], wrong[5]]]


def test_a_round_that_only_another_process_needs_changes_nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(folder: str, *verdicts: list[int], others: bool = False) -> tuple[Any, R3Trainer, list]:
        trainer = make_trainer(tmp_path / folder, scripted(*verdicts), retries=3)
        if others:  # another process has all of its conversations going on
            monkeypatch.setattr(trainer, "_together", lambda going, of: [*going, *(i for i in range(of) if i not in going)])
        calls = recorded(trainer)
        return trainer._generate_and_score_completions(INPUTS), trainer, calls

    alone, one, calls = run("alone", [1] * 8, [1] * 8)
    both, two, more = run("both", [1] * 8, [1] * 8, [1] * 8, others=True)
    assert len(calls) == 2 and len(more) == 6  # it keeps step, and drops what it gets
    assert alone["completion_ids"].tolist() == both["completion_ids"].tolist()
    names = ("answers", "texts", "right", "right_at_once", "reflect_tokens", "retry_tokens")
    assert [one.counted[n] for n in names] == [two.counted[n] for n in names]


def test_three_rounds_train_and_log(tmp_path: Path) -> None:
    def never(completions: list, **_: Any) -> list[float]:
        return [0.0 if len(c[0]["content"]) % 3 else 1.0 for c in completions]

    trainer = make_trainer(tmp_path, never, retries=3, learning_rate=1e-3)
    trainer.train()
    row = trainer.state.log_history[0]
    assert 1 < row["r3/rounds_mean"] <= 3 and row["r3/first_retry_success"] <= row["r3/retry_success"]
    assert row["grad_norm"] > 0 or row["frac_reward_zero_std"] == 1


def test_the_verifier_alone_is_asked_between_rounds_and_may_log(tmp_path: Path) -> None:
    asked = []

    def verifier(completions: list, log_extra: Any, log_metric: Any, **_: Any) -> list[float]:
        log_extra("words", [c[0]["content"] for c in completions])
        log_metric("asked_before", len(asked))
        asked.append(len(completions))
        return [0.0] * len(completions)

    def judge(completions: list, **_: Any) -> list[float]:
        asked.append(-len(completions))
        return [float(i % 2) for i in range(len(completions))]

    trainer = make_trainer(tmp_path, [verifier, judge], retries=2, reward_weights=[0.0, 1.0])
    trainer._generate_and_score_completions(INPUTS)
    assert asked == [8, 8, -8] and trainer.reward_funcs == [verifier, judge]
    assert trainer._metrics["train"]["asked_before"] == [1.0]  # logged once, at the end


@pytest.mark.parametrize("retries", [1, 2])
def test_a_leak_is_looked_for_with_the_row_of_the_data_set(retries: int, tmp_path: Path) -> None:
    trainer, seen = make_trainer(tmp_path, lambda completions, **_: [0.0] * len(completions), retries=retries), []
    trainer.leaks = lambda row, text: bool(seen.append((row["prompt"], text)))
    trainer._generate_and_score_completions(INPUTS)
    assert [prompt for prompt, _ in seen[:: 4 * retries]] == [r["prompt"] for r in ROWS] and len(seen) == 8 * retries


def test_retries_are_refused_where_they_would_be_ignored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="retries are ignored with loss_on = 'attempt'"):
        R3Config(str(tmp_path), use_cpu=True, bf16=False, loss_on="attempt", retries=2)
    with pytest.raises(ValueError, match="retries = 0"):
        R3Config(str(tmp_path), use_cpu=True, bf16=False, retries=0)
    with pytest.raises(SettingsError, match="plain_grpo has no retry"):
        arm_of(open_run("smoke", arm="plain_grpo", retries=2))
    with pytest.raises(SettingsError, match="plain_grpo trains on first attempts"):
        load_profile("smoke", retries=2, arms="r3 plain_grpo")
    assert grpo_config(open_run("smoke", retries=2)).retries == 2


def test_a_template_that_rewrites_the_conversation_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, scripted(), retries=2)
    trainer._tokenizer.chat_template = "{{ messages | length }}" + trainer._tokenizer.chat_template
    with pytest.raises(SettingsError, match="retries above 1"):
        trainer._generate_and_score_completions(INPUTS)


def test_the_plan_counts_all_rounds() -> None:
    one, two = load_profile("paper"), load_profile("paper", retries=2)
    tok, shape = LENGTHS["countdown"], shape_of(one.model)
    assert later_rounds(one, tok) == 0 and later_rounds(two, tok) > two.max_reflection_tokens + two.max_answer_tokens
    assert longest_with_retry(two, tok) - longest_with_retry(one, tok) == later_rounds(two, tok)
    assert activation_parts(two, shape, tok)[0].bytes > 1.5 * activation_parts(one, shape, tok)[0].bytes
