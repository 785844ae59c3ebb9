"""Our mining loop against a plain `LLM.generate` over the same prompts, on the same vLLM in the same process.

    make .venv-vllm/.done && .venv-vllm/bin/python benchmarks/mining_overhead.py

Both sides generate the same attempts (prompts, temperature, limit, seeds) with one engine, in turn, several times; each pair
of runs gives a ratio, and the median of the ratios is printed. Ours also judges every answer and writes it to the store. The
plain side is given all its requests at once. The model is a Llama with random weights: what matters is that a step takes as
long as a small model's step does, not what it says. `--hidden` and `--layers` choose its size; the smaller it is, the more
the loop weighs.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import SamplingParams

from r3_repro.config import model_path
from r3_repro.data import load_split
from r3_repro.engines.base import derive_seed
from r3_repro.engines.chat import load_tokenizer, render
from r3_repro.engines.vllm import VLLM
from r3_repro.mining.sampler import sample_attempts
from r3_repro.runs.layout import open_run, provenance
from r3_repro.tasks.base import attempt_messages, get_task
from r3_repro.utils.files import write_json


def random_model(folder: Path, tokenizer_at: str, hidden: int, layers: int) -> int:
    "A Llama of random weights with the tiny world's tokenizer; its parameters."
    tokenizer = load_tokenizer(tokenizer_at)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--problems", type=int, default=100)
    ap.add_argument("--samples", type=int, default=4)
    ap.add_argument("--tokens", type=int, default=48)
    ap.add_argument("--batch", type=int, default=64)
    ap.add_argument("--hidden", type=int, default=512)
    ap.add_argument("--layers", type=int, default=8)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--out", type=Path, help="file for the numbers, as JSON")
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as d:
        parameters = random_model(Path(d, "model"), model_path(open_run("tiny").profile), a.hidden, a.layers)
        options = {"train_size": a.problems, "attempts_per_problem": a.samples, "max_answer_tokens": a.tokens}
        run = open_run("tiny", root=d, model=str(Path(d, "model")), generation_batch=a.batch, **options)
        engine, task, problems = VLLM.load(run.profile.model, batch=a.batch), get_task("countdown"), load_split(run, "train")

        def plain() -> float:
            began, prompts, params = time.perf_counter(), [], []
            for p in problems:
                ids, seed = render(engine.tokenizer, attempt_messages(task, p)), derive_seed("attempts", p.id)
                for k in range(a.samples):
                    prompts.append({"prompt_token_ids": ids})
                    params.append(SamplingParams(temperature=1.0, max_tokens=a.tokens, seed=seed + k))
            engine.llm.generate(prompts, params, use_tqdm=False)
            return time.perf_counter() - began

        def ours(turn: int) -> float:
            began = time.perf_counter()
            assert sample_attempts(run, problems, Path(d, f"attempts-{turn}"), engine) == a.problems * a.samples
            return time.perf_counter() - began

        plain(), ours(-1)  # both warm
        pairs = [(plain(), ours(i)) if i % 2 else (ours(i), plain())[::-1] for i in range(a.rounds)]
    ratios = sorted(o / p for p, o in pairs)
    told = {
        "parameters": parameters, "attempts": a.problems * a.samples, "tokens": a.tokens, "batch": a.batch, "rounds": a.rounds,
        "plain_seconds": statistics.median(p for p, _ in pairs), "ours_seconds": statistics.median(o for _, o in pairs),
        "ratio_median": statistics.median(ratios), "ratio_low": ratios[0], "ratio_high": ratios[-1],
    }  # fmt: skip
    print(
        f"{parameters / 1e6:.1f}M parameters, {told['attempts']} attempts of {a.tokens} tokens, {a.batch} at once: plain "
        f"LLM.generate {told['plain_seconds']:.2f} s, our loop {told['ours_seconds']:.2f} s (medians of {a.rounds}); "
        f"ours / plain {told['ratio_median']:.3f} [{told['ratio_low']:.3f}, {told['ratio_high']:.3f}], median of pairs"
    )
    if a.out:
        write_json(a.out, told | provenance())


if __name__ == "__main__":
    main()
