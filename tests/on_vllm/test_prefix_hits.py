"""The prefix cache in training with a vLLM in the same process (with a server: `test_training_server.py`)."""

import contextlib
from types import SimpleNamespace

from comparing import attempts

from r3_repro.engines.vllm import VLLM, prefix_cache_hits


def test_hits_of_a_training_step_are_counted(wide: str) -> None:
    "As TRL has its vLLM: counters off, and a group's prompt once for each completion."
    from vllm import SamplingParams as Params

    engine = VLLM.load(wide, "float32", batch=64, disable_log_stats=True)
    asked, _ = attempts(engine.tokenizer, "countdown", 5)
    size = engine.llm.llm_engine.vllm_config.cache_config.block_size
    prompts = [{"prompt_token_ids": p} for p in asked]
    colocated = SimpleNamespace(mode="colocate", llm=engine.llm)
    with contextlib.closing(engine):
        engine.llm.generate(prompts, Params(max_tokens=2), use_tqdm=False)
        with prefix_cache_hits(colocated) as counted:
            engine.llm.generate(prompts * 3, Params(max_tokens=2), use_tqdm=False)
        engine.llm.generate(prompts, Params(max_tokens=2), use_tqdm=False)  # behind the block
    assert counted["queries"] == 3 * sum(len(p) for p in asked)
    assert counted["hits"] == 3 * sum((len(p) - 1) // size * size for p in asked) > 0
