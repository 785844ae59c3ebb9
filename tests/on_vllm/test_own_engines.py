"""What needs a vLLM of its own: other end tokens, mining, and what goes wrong. A process has one at a time on a CPU."""

import json
import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest
import torch
from comparing import TASKS, attempts, different

from r3_repro.engines.base import Request, SamplingParams, complete
from r3_repro.engines.hf import Transformers
from r3_repro.engines.vllm import VLLM
from r3_repro.utils.errors import EngineError, SettingsError


def test_every_end_token_of_the_model_ends_an_answer(slow: Transformers, wide: str, tmp_path: Path) -> None:
    "A second one, known only to generation_config.json, which also has sampling defaults that must not count."
    prompts, seeds = attempts(slow.tokenizer, "countdown", 100)
    second = complete(slow, prompts[:1], SamplingParams(16, greedy=True), [0])[0].ids[1]
    folder = str(shutil.copytree(wide, tmp_path / "model"))
    own = {"eos_token_id": [slow.tokenizer.eos_token_id, second], "temperature": 0.01, "top_k": 1, "repetition_penalty": 3.0}
    (tmp_path / "model/generation_config.json").write_text(json.dumps(own), "utf-8")
    engine, other = VLLM.load(folder, "float32", batch=64), Transformers.load(folder)
    for how in (SamplingParams(16, greedy=True), SamplingParams(16)):
        ones, others = complete(other, prompts, how, seeds), complete(engine, prompts, how, seeds)
        assert different(ones, others) <= 2
        assert any(c.ids[-1] == second and c.finish == "stop" for c in others)
    engine.close()


@pytest.mark.parametrize("task", TASKS)
def test_mining_finds_the_same_failures(task: str, wide: str, tmp_path: Path) -> None:
    "The profile `smoke` with either engine, as the command line would mine it."
    from r3_repro.mining.failures import mine
    from r3_repro.runs.layout import open_run

    found = []
    for engine in ("vllm", "transformers"):
        run = open_run("smoke", task, wide, root=str(tmp_path / engine), engine=engine)
        mined = mine(run)
        found.append(set(zip(mined.problem_id, mined.attempt, strict=True)))
    print(f"{len(found[0])} failures, {len(found[0] & found[1])} of them the same with transformers")
    assert len(found[0]) == len(found[1]) == 16 and len(found[0] & found[1]) >= 14


# ── Trouble ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_too_little_memory_is_said_with_a_remedy(wide: str) -> None:
    with pytest.raises(
        SettingsError, match=r"(?s)cannot start model .*KV cache.*lower gpu_memory_utilization.*use a smaller model"
    ):
        VLLM.load(wide, "float32", kv_cache_memory_bytes=2**18)


def test_several_copies_in_one_process_are_refused(wide: str) -> None:
    with pytest.raises(SettingsError, match="data_parallel_size=2"):
        VLLM.load(wide, "float32", data_parallel_size=2)


def test_a_vllm_that_fails_is_not_asked_again(slow: Transformers, wide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, seeds = attempts(slow.tokenizer, "countdown", 9)
    engine = VLLM.load(wide, "float32", batch=8)
    for i in range(8):
        engine.submit(Request(i, prompts[i], SamplingParams(1 + i), seeds[i]))
    assert 0 < len(engine.collect()) < 8

    def broken():
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(engine.llm.llm_engine.engine_core, "get_output", broken)
    for again in (engine.collect, engine.collect, lambda: engine.submit(Request(8, prompts[8], SamplingParams(16), 0))):
        with pytest.raises(EngineError, match=r"no memory left.*lower gpu_memory_utilization or generation_batch"):
            again()
    engine.close()


def test_a_killed_vllm_is_noticed(slow: Transformers, wide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    "In a process of its own, as on GPUs: the same answers, and an error instead of endless waiting when it is killed."
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    prompts, seeds = attempts(slow.tokenizer, "countdown", 100)
    engine = VLLM.load(wide, "float32", batch=64)
    (core,) = [p for p in psutil.Process().children() if "EngineCore" in p.name()]
    assert (
        different(complete(engine, prompts, SamplingParams(16), seeds), complete(slow, prompts, SamplingParams(16), seeds)) <= 2
    )
    complete(engine, prompts, SamplingParams(1), seeds)
    assert engine.prefix_cache()[1] > 0
    for i in range(100):
        engine.submit(Request(i, prompts[i], SamplingParams(900, temperature=2.0), seeds[i]))
    os.kill(core.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="vLLM cannot go on"):
        while engine.pending:
            engine.collect()
    with pytest.raises(EngineError):
        engine.submit(Request("x", prompts[0], SamplingParams(1), 0))
    engine.close()
