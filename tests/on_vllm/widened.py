"""The tiny base with larger heads, which computes the same: vLLM's attention on a CPU has no kernel for heads of 24 numbers.

    python tests/on_vllm/widened.py FOLDER     writes the model into FOLDER

Zeros fill the heads up. What hangs on their size is undone: attention divides by its square root, so the queries are multiplied
by as much; rotary frequencies are theta^(-2i/size), so theta is raised to the quotient of the sizes.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def widen(
    source: Path,  # folder of a Llama in safetensors
    target: Path,  # folder to be made
    size: int = 32,  # numbers a head
) -> Path:
    "Write the model with larger heads; returns its folder."
    shutil.copytree(source, target, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text("utf-8"))
    own = config["head_dim"]

    def filled(weight: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        "Rows of heads, each in two halves (rotary embedding pairs their numbers), with zeros after each half."
        halves = weight.view(-1, 2, own // 2, weight.shape[-1]) * scale
        return torch.nn.functional.pad(halves, (0, 0, 0, (size - own) // 2)).reshape(-1, weight.shape[-1]).contiguous()

    weights = load_file(source / "model.safetensors")
    for name, weight in weights.items():
        if "q_proj" in name:
            weights[name] = filled(weight, math.sqrt(size / own))
        elif "k_proj" in name or "v_proj" in name:
            weights[name] = filled(weight)
        elif "o_proj" in name:
            weights[name] = filled(weight.T).T.contiguous()
    config["head_dim"] = size
    config["rope_parameters"]["rope_theta"] **= size / own
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    return target


if __name__ == "__main__":
    from r3_repro.config import load_profile, model_path

    print(widen(Path(model_path(load_profile("tiny"))), Path(sys.argv[1])))
