"""What test_sharding.py runs in two processes: the reference, the weights and the checkpoints under FSDP2, over gloo.

    <torchrun> tests/training/sharding_processes.py FOLDER

FOLDER has a model in `model`. What each process saw goes to `FOLDER/RANK.json`, the trained models to `FOLDER/straight` and
`FOLDER/resumed`. PyTorch shards on processors too, accelerate on GPUs only: it is told that these are GPUs.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import DistributedType, PartialState
from datasets import Dataset
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_param import ShardedState
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from trl.models import prepare_fsdp
from trl.trainer import grpo_trainer
from trl.trainer.utils import add_fused_lm_head

from r3_repro.training.model_setup import from_main, full_state_dict, reference_loading

IDS = torch.arange(24).view(2, 12)


def scored(model: Any) -> list[list[float]]:
    "Log-probabilities of some tokens, as training asks a reference for them."
    with torch.no_grad():
        return model(input_ids=IDS, labels=IDS, fused_lm_head=True).log_probs.tolist()


def gathered(model: Any) -> int:
    "Bytes of a model's parameters that are whole in this process now."
    units = [m for m in model.modules() if isinstance(m, FSDPModule)]
    groups = {id(g): g for m in units for g in m._get_fsdp_state()._fsdp_param_groups}
    held = [x for g in groups.values() for x in g.fsdp_params if x.sharded_state == ShardedState.UNSHARDED]
    return sum(x.unsharded_param.nbytes for x in held)


def watched(model: Any) -> dict[str, Any]:
    "Log-probabilities, and the most bytes that are whole at any moment of a pass, and after it."
    seen: list[int] = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: seen.append(gathered(model)))
    log_probs = scored(model)
    return {"log_probs": log_probs, "most": max(seen), "after": gathered(model), "again": scored(model)}


def references(path: str, accelerator: Accelerator) -> dict[str, Any]:
    "The reference in TRL's way and in ours, each loaded in the first process alone, and the plain model."
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    plain = AutoModelForCausalLM.from_pretrained(path)
    add_fused_lm_head(plain)
    one_unit = AutoModelForCausalLM.from_pretrained(path)
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"
    add_fused_lm_head(one_unit)
    with reference_loading():
        ours = grpo_trainer.create_model_from_path(path)
        read = any(bool(w.any()) for w in ours.parameters())
        add_fused_lm_head(ours)
        ours = grpo_trainer.prepare_fsdp(ours, accelerator)
    found = {
        "read": read,
        "plain": scored(plain),
        "one unit": watched(prepare_fsdp(one_unit, accelerator)),
        "ours": watched(ours),
    }
    layers = [m for m in plain.modules() if type(m).__name__ in plain._no_split_modules]
    sizes = {"whole": plain, "layer": layers[0], "head": plain.lm_head, "embedding": plain.get_input_embeddings()}
    found["own share"] = sum(w.to_local().nbytes for w in ours.parameters() if isinstance(w, DTensor))
    return found | {name: sum(w.nbytes for w in m.parameters()) for name, m in sizes.items()}


def trainer(folder: Path, out: str, **more: Any) -> Trainer:
    rows = [{"input_ids": [i, i + 1, i + 2, i + 3], "labels": [i, i + 1, i + 2, i + 3]} for i in range(12)]
    args = TrainingArguments(
        str(folder / out), max_steps=4, per_device_train_batch_size=1, learning_rate=1e-2, seed=0, report_to=[],
        save_strategy="steps", save_steps=2, logging_steps=1, dataloader_pin_memory=False, **more,
    )  # fmt: skip
    return Trainer(AutoModelForCausalLM.from_pretrained(folder / "model"), args, train_dataset=Dataset.from_list(rows))


def trained(folder: Path) -> dict[str, Any]:
    "Four steps, and the last two of them again from the checkpoint; both models are saved."
    first = trainer(folder, "runs")
    first.train()
    with full_state_dict(first.accelerator):
        first.save_model(str(folder / "straight"))
    checkpoint = folder / "runs/checkpoint-2"
    second = trainer(folder, "again")
    second.train(resume_from_checkpoint=str(checkpoint))
    with full_state_dict(second.accelerator):
        second.save_model(str(folder / "resumed"))
    second.save_model(str(folder / "nothing"))
    kind = first.accelerator.state.fsdp_plugin.state_dict_type.name
    return {"kind": kind, "loss": [x["loss"] for x in first.state.log_history if "loss" in x]}


if __name__ == "__main__":
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]
    folder = Path(sys.argv[1])
    accelerator = Accelerator()
    seen = {"rank": accelerator.process_index, "from main": from_main(accelerator.process_index)}
    seen |= {"references": references(str(folder / "model"), accelerator)}
    seen |= {"trained": trained(folder)}
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(seen), "utf-8")
    torch.distributed.destroy_process_group()
