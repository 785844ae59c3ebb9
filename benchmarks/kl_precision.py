"""What bfloat16 does to the logged KL, what float32 takes back, and what that costs.

    python benchmarks/kl_precision.py                             # a random model of 12 layers
    python benchmarks/kl_precision.py --model Qwen/Qwen2.5-1.5B-Instruct      # on a GPU
    python benchmarks/kl_precision.py --out results/benchmarks/kl_precision

A copy of the model is moved by so many steps of the published learning rate, each weight by 5e-7 a step in a random direction.
TRL's estimate of the KL is computed over random tokens in three ways: everything in bfloat16, the last layer in float32
(`cast_lm_head_to_fp32`), everything in float32 (`kl_float32` in the log). Seconds are medians over `--rounds`, the ways in turn;
on a CPU they say nothing about a GPU, whose bfloat16 is fast.
"""

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, Qwen2Config
from trl.trainer.utils import add_fused_lm_head

from r3_repro.reporting.tables import save_table
from r3_repro.runs.layout import provenance
from r3_repro.utils.files import write_json

WAYS = {"bfloat16": (True, False), "last layer in float32": (True, True), "float32": (False, False)}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def models(a: argparse.Namespace, fp32_head: bool) -> tuple[Any, Any]:
    "The model and a copy, with TRL's head."
    torch.manual_seed(0)
    if a.model == "random":
        size = dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=6, num_key_value_heads=2)
        before = AutoModelForCausalLM.from_config(Qwen2Config(vocab_size=8000, **size))
    else:
        before = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
    before = before.to(DEVICE).eval()
    after = copy.deepcopy(before)
    for model in (before, after):
        add_fused_lm_head(model, cast_lm_head_to_fp32=fp32_head)
    return before, after


@torch.no_grad()
def kl_of(before: Any, after: Any, ids: torch.Tensor, half: bool) -> tuple[float, float]:
    "TRL's estimate, nats per token, and seconds of the two passes."
    began = time.perf_counter()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
        r, p = (m(input_ids=ids, labels=ids, fused_lm_head=True).log_probs.float() for m in (before, after))
    kl = ((r - p).exp() - (r - p) - 1).mean().item()
    return kl, time.perf_counter() - began


def measured(a: argparse.Namespace) -> pd.DataFrame:
    "A row for each number of steps and way."
    built = {way: (*models(a, head), half) for way, (half, head) in WAYS.items()}
    start = copy.deepcopy(built["float32"][0].state_dict())
    rows = []
    for steps in a.steps:
        g = torch.Generator().manual_seed(steps)
        moved = {k: v + 5e-7 * steps * torch.randn(v.shape, generator=g).sign().to(v.device) for k, v in start.items()}
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        kl: dict[str, float] = {}
        for _, after, _ in built.values():
            after.load_state_dict(moved)
        ids = torch.randint(0, built["float32"][0].config.vocab_size, (8, a.tokens), generator=g).to(DEVICE)
        for _ in range(a.rounds):
            for way, (before, after, half) in built.items():
                kl[way], took = kl_of(before, after, ids, half)
                seconds[way].append(took)
        fastest = statistics.median(seconds["bfloat16"])
        for way in WAYS:
            m = statistics.median(seconds[way])
            rows.append({
                "steps": steps, "computed in": way, "KL, nats per token": f"{kl[way]:.1e}",
                "times the true KL": f"{kl[way] / kl['float32']:.0f}", "seconds": round(m, 3),
                "times bfloat16's": round(m / fastest, 2),
            })  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="random", help="'random', or a folder or hub name")
    ap.add_argument("--steps", type=int, nargs="+", default=[10, 200])
    ap.add_argument("--tokens", type=int, default=256, help="of each of 8 rows")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--out", type=Path, help="folder for the table and its manifest")
    a = ap.parse_args()
    table = measured(a)
    print(table.to_markdown(index=False))
    if a.out:
        save_table(
            table, a.out, "kl_precision", caption="The KL of a policy from its reference, by the precision of both passes."
        )
        write_json(a.out / "kl_precision.manifest.json", provenance() | {"model": Path(a.model).name, "device": DEVICE})


if __name__ == "__main__":
    main()
