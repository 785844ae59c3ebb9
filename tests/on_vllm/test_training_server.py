"""Training that asks a vLLM server for both steps: TRL's `server`, on a CPU, with weights that travel in a file."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from comparing import NEAR_TIE, attempts, different, gaps
from safetensors.numpy import load_file
from serving import HOST, serving
from support import patience

from r3_repro.config import find_home
from r3_repro.engines.base import SamplingParams, complete
from r3_repro.engines.hf import Transformers
from r3_repro.engines.vllm import VLLM, prefix_cache_hits
from r3_repro.runs.launch import stage_command
from r3_repro.runs.layout import Run, open_run
from r3_repro.runs.preflight import preflight
from r3_repro.utils.errors import SettingsError

SCRIPT = str(Path(__file__).with_name("weights_by_file.py"))
SETS = {"use_vllm": True, "vllm_mode": "server", "max_steps": 4, "beta": 0.0, "learning_rate": 1e-3, "warmup_ratio": 0.0}
"A rate that moves the policy far in a step: weights that were not handed over would show at once."
SAME = 1e-4  # nats; both compute in float32


@pytest.fixture(scope="module")
def server(wide: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = [sys.executable, SCRIPT, "serve", "--model", wide, "--logprobs-mode", "processed_logprobs"]
    with serving(command, tmp_path_factory.mktemp("server") / "log.txt", VLLM_SERVER_DEV_MODE="1") as url:
        yield url


def trained(wide: str, root: Path, server: str, arm: str, **sets: object) -> Run:
    run = open_run(
        "smoke", model=wide, arm=arm, root=str(root), seed=sets["processes"], vllm_server_base_url=server, **(SETS | sets)
    )
    preflight(run, "train")
    words = stage_command("train", run)
    at = words.index("r3_repro")
    words[at - 1 : at + 1] = [SCRIPT]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(find_home())}
    done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=patience(500), env=env, cwd=find_home())
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return run


@pytest.mark.parametrize(("arm", "processes"), [("r3", 1), ("all_tokens", 1), ("all_tokens", 2)])
def test_the_server_samples_from_the_weights_that_are_trained(
    arm: str, processes: int, wide: str, root: Path, server: str
) -> None:
    """At every sampled token its log-probability is the trainer's, after each update; with two processes the first asks for both.

    In `all_tokens` that holds of retries too: each was asked for with its own conversation, not with that of its group."""
    main = SimpleNamespace(is_main_process=True)
    asked = SimpleNamespace(mode="server", vllm_client=SimpleNamespace(base_url=server), accelerator=main)
    with prefix_cache_hits(asked) as counted:
        run = trained(wide, root, server, arm, processes=processes, per_device_train_batch_size=8)
    log = pd.read_json(run.training / "log.jsonl", lines=True)
    print(log[["sampling_logp_difference", "entropy", "grad_norm", "reflect_tokens", "retry_tokens"]])
    assert log["step"].tolist() == [1, 2, 3, 4] and (log["grad_norm"] > 0).any() and (log["retry_tokens"] > 0).all()
    assert (log["sampling_logp_difference"] < SAME).all()
    a, b = load_file(Path(wide) / "model.safetensors"), load_file(run.training / "model/model.safetensors")
    assert max(float(np.abs(a[k] - b[k]).max()) for k in a) > 1e-4
    assert counted["queries"] > counted["hits"] > 0, "prompts of a group, and conversations that go on, come from the cache"


def test_what_was_trained_is_loaded_as_it_was_saved(wide: str, root: Path, server: str) -> None:
    "The folder of a trained model, in vLLM and in transformers: the same greedy answers, and not those of before."
    run = trained(wide, root, server, "r3", processes=1, per_device_train_batch_size=8)
    folder, how = str(run.training / "model"), SamplingParams(16, greedy=True)
    reference = Transformers.load(folder)
    prompts, seeds = attempts(reference.tokenizer, "countdown", 60)
    with contextlib.closing(VLLM.load(folder, "float32", batch=64)) as engine:
        ones, others = complete(reference, prompts, how, seeds), complete(engine, prompts, how, seeds)
    found = list(gaps(reference, prompts, ones, others))
    assert all(g < NEAR_TIE for g in found) and len(found) <= 4
    assert different(complete(Transformers.load(wide), prompts, how, seeds), ones) > 4, "training has changed no answer"


def test_a_server_that_cannot_be_trained_with_is_refused_at_once(wide: str, base: str, server: str) -> None:
    other = open_run("smoke", model=base, vllm_server_base_url=server, **SETS)
    with pytest.raises(SettingsError, match=r"serves .*tiny-wide, and .* is to be trained; start it as: VLLM_SERVER_DEV_MODE=1"):
        preflight(other, "train")
    with pytest.raises(SettingsError, match="no vLLM answers there"):
        preflight(open_run("smoke", model=wide, vllm_server_base_url=f"http://{HOST}:9", **SETS), "train")
