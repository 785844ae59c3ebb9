"""Trainings for test_two_processes.py, run in every process that a launch line starts.

    <the launch line of a profile> tests/training/two_processes.py PLAN

PLAN is a JSON file, a list of trainings. Each has `argv`, the arguments of `r3-repro train`, and `out`, and may have

    mine        mine the failures first
    record      write what is generated to this file
    replay      generate nothing: take what this file says, by step, turn and place in the whole batch, if the prompt is the same
    keep_order  do not shuffle the rows of a process before they are cut into micro-batches
    succeeds    a process whose retries all succeed, whatever they say
    stop        raise after the checkpoint of this step
    hasty       a process whose reflections end after three tokens
    sharded     train as the launch line says, which is that of FSDP2; without it, the launch line's sharding is taken back
    half        in bfloat16, which is refused on processors
    out         what this process saw goes to `<out>-<rank>.json`

Sampling depends on the random state of each process, so one process and two never draw the same reflections. What must be equal
is everything after sampling: with a recording, the same completions go through rewards, advantages, loss and optimiser.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback

import r3_repro.runs.preflight as checks
import r3_repro.training.grpo_config as configuration
import r3_repro.training.train as training
from r3_repro.workflow.cli import app

Plan = dict[str, Any]


PREPARE, CHECK = PartialState._prepare_backend, checks._check_processes
SHARDING = {k: v for k, v in os.environ.items() if k.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}


def set_sharding(on: bool) -> None:
    "Plain or sharded from here on. PyTorch shards on processors too, accelerate on GPUs only: it is told that these are GPUs."
    AcceleratorState._reset_state(reset_partial_state=True)
    for key, value in SHARDING.items():
        os.environ.pop(key, None)
        if on:
            os.environ[key] = value
    PartialState._prepare_backend = (lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)) if on else PREPARE  # type: ignore[method-assign]
    checks._check_processes = (lambda *_: None) if on else CHECK  # which tells users that there is no GPU
    if on and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")


def use_zero3() -> None:
    "With ZeRO-3. Transformers and accelerate take DeepSpeed on GPUs only: they are told that these processors are some."
    config = configuration.R3Config
    configuration.R3Config = lambda **given: config(**given | {"use_cpu": False})  # type: ignore[assignment,misc]
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]
    checks._check_processes = lambda *_: None


class Stop(TrainerCallback):
    "Raises after the checkpoint of a step."

    def __init__(self, step: int):
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise InterruptedError


def on_tape(trainer: Any, plan: Plan, tape: dict[str, Any], calls: list[Any]) -> Callable:
    "The trainer's generation, recorded or replayed, and noted in `calls`."
    sample = trainer._generate_single_turn

    def generate(prompts: list, *rest: Any, **options: Any) -> Any:
        step = trainer.state.global_step
        turn = sum(c["step"] == step for c in calls)
        first = trainer.accelerator.process_index * len(prompts)
        calls.append({"step": step, "turn": turn, "prompts": len(prompts), "longest": 0, "tokens": 0})
        keys = [f"{step} {turn} {first + i}" for i in range(len(prompts))]
        if "replay" in plan:
            assert [tape[k][0] for k in keys] == [list(p) for p in prompts], "these are not the prompts that were recorded"
            return [tape[k][1] for k in keys], None
        done, logprobs = sample(prompts, *rest, **options)
        calls[-1] |= {"longest": max(map(len, done)), "tokens": sum(map(len, done))}
        tape.update({k: [list(p), list(d)] for k, p, d in zip(keys, prompts, done, strict=True)})
        return done, logprobs

    return generate


def watched(trainer: Any, plan: Plan, tape: dict[str, Any], seen: dict[str, Any]) -> Any:
    "The trainer, changed as the plan says; what it does is noted in `seen`."
    trainer._generate_single_turn = on_tape(trainer, plan, tape, seen["calls"])
    score, pay = trainer._generate_and_score_completions, trainer._calculate_rewards

    def scored(inputs: Any) -> Any:
        out = score(inputs)
        seen["advantages"].append(out["advantages"].tolist())
        return out

    def paid(*args: Any) -> Any:
        out = pay(*args)
        seen["rewards"].append(out[:, -1].tolist())
        return out

    trainer._generate_and_score_completions, trainer._calculate_rewards = scored, paid
    forward, training_step = trainer._get_per_token_logps_and_entropies, trainer.training_step

    def forwarded(*args: Any, **more: Any) -> Any:
        out = forward(*args, **more)
        seen["types"] = sorted({*seen["types"], str(out[0].dtype)})
        seen["shares"] = trainer.shares_prefix
        return out

    def stepped(*args: Any, **more: Any) -> Any:
        out = training_step(*args, **more)
        layers = [m for m in trainer.model.modules() if isinstance(m, FSDPModule)]
        groups = [g for m in layers for g in m._get_fsdp_state()._fsdp_param_groups]
        whole = [x for g in groups for x in g.fsdp_params if x.unsharded_accumulated_grad is not None]
        seen["whole gradients"].append(len(whole))
        return out

    trainer._get_per_token_logps_and_entropies, trainer.training_step = forwarded, stepped
    if plan.get("succeeds") == trainer.accelerator.process_index:
        judge = trainer.reward_funcs[0]
        trainer.reward_funcs[0] = lambda *a, **k: [1.0 for _ in judge(*a, **k)]
    if plan.get("hasty") == trainer.accelerator.process_index:
        trainer.generation_config.max_new_tokens = 3
    if "stop" in plan:
        trainer.add_callback(Stop(plan["stop"]))
    seen |= {
        "world": trainer.accelerator.num_processes,
        "kind": str(trainer.accelerator.distributed_type),
    }
    return trainer


def train(plan: Plan) -> None:
    from trl.trainer import grpo_trainer

    machine = checks._check_machine
    if plan.get("half"):
        checks._check_machine = lambda *_: None
    if plan.get("mine"):
        app(["mine", *plan["argv"]], standalone_mode=False)
    tape = json.loads(Path(plan["replay"]).read_text("utf-8")) if "replay" in plan else {}
    seen: dict[str, Any] = {"calls": [], "advantages": [], "rewards": [], "types": [], "whole gradients": []}
    build, shuffle = training.build_trainer, grpo_trainer.shuffle_sequence_dict
    training.build_trainer = lambda *a: watched(build(*a), plan, tape, seen)
    if plan.get("keep_order"):
        grpo_trainer.shuffle_sequence_dict = lambda rows: rows
    try:
        app(["train", *plan["argv"]], standalone_mode=False)
    except InterruptedError:
        assert "stop" in plan
    finally:
        training.build_trainer, grpo_trainer.shuffle_sequence_dict, checks._check_machine = build, shuffle, machine
    rank = int(os.environ.get("RANK", 0))
    Path(f"{plan['out']}-{rank}.json").write_text(json.dumps(seen), "utf-8")
    if "record" in plan:
        Path(plan["record"]).write_text(json.dumps(tape), "utf-8")


if __name__ == "__main__":
    zero3 = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if zero3:
        use_zero3()
    for each in json.loads(Path(sys.argv[1]).read_text("utf-8")):
        if not zero3:
            set_sharding(bool(each.get("sharded")))
        train(each)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
