"""FSDP2 with the reference sharded by layers, weights read by one process, and sharded checkpoints: two processes over gloo.

Nothing here says how fast or how large the same is on GPUs over NCCL.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import patience
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.testing import assert_close

from r3_repro.planning.models import Shape, random_model

pytestmark = pytest.mark.slow

SHARDED = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "ACCELERATE_TORCH_DEVICE": "cpu", "OMP_NUM_THREADS": "1",
}  # fmt: skip
LAYERS = 6


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied"])
def folder(request: Any, warm: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    "What two processes saw, of a model whose output layer is its own, or the embedding's."
    folder = tmp_path_factory.mktemp("sharded")
    torch.manual_seed(0)
    random_model(Shape("qwen2", LAYERS, 32, 4, 2, 8, 64, 100, request.param, 64)).save_pretrained(folder / "model")
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    line += [str(Path(__file__).with_name("sharding_processes.py")), str(folder)]
    done = subprocess.run(line, env=warm | SHARDED, capture_output=True, encoding="utf-8", timeout=patience(120))
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return folder


def seen(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in (0, 1)]


def tensors(part: Path) -> list[int]:
    "Bytes of the tensors in a part of a checkpoint."
    found = FileSystemReader(part).read_metadata().state_dict_metadata.values()
    return [x.size.numel() * x.properties.dtype.itemsize for x in found if isinstance(x, TensorStorageMetadata)]


def test_the_reference_says_what_the_plain_model_says(folder: Path) -> None:
    for process in seen(folder):
        found = process["references"]
        for way in ("one unit", "ours"):
            assert_close(torch.tensor(found[way]["log_probs"]), torch.tensor(found["plain"]), atol=1e-5, rtol=0)
            assert found[way]["log_probs"] == found[way]["again"]


def test_a_layer_of_the_reference_is_gathered_at_a_time(folder: Path) -> None:
    "TRL gathers all of it. Beside the layer that runs, the next may be on its way; the output layer stays for the pass."
    for process in seen(folder):
        found = process["references"]
        assert found["one unit"]["most"] == found["whole"]
        norm = 32 * 4
        assert found["layer"] <= found["ours"]["most"] <= 2 * found["layer"] + found["head"] + norm
        assert found["ours"]["after"] == 0 and found["own share"] <= 0.51 * found["whole"]


def test_weights_are_read_by_the_first_process_alone(folder: Path) -> None:
    assert [process["references"]["read"] for process in seen(folder)] == [True, False]


def test_all_processes_take_the_first_one_s_decision(folder: Path) -> None:
    assert [(process["rank"], process["from main"]) for process in seen(folder)] == [(0, 0), (1, 0)]


def test_each_process_writes_its_part_of_a_checkpoint_and_training_resumes_from_them(folder: Path) -> None:
    "The finished model is whole, though `save_model` alone would write no weights."
    both = [process["trained"] for process in seen(folder)]
    assert [b["kind"] for b in both] == ["SHARDED_STATE_DICT"] * 2, "the full kind is for the finished model alone"
    assert len(both[0]["loss"]) == 4 and both[0]["loss"] == both[1]["loss"]
    checkpoint = folder / "runs/checkpoint-2"
    for part in ("pytorch_model_fsdp_0", "optimizer_0"):
        assert len(list((checkpoint / part).glob("*.distcp"))) == 2
    base, straight, resumed = (load_file(folder / name / "model.safetensors") for name in ("model", "straight", "resumed"))
    assert set(base) <= set(straight) and set(straight) == set(resumed)
    for name, weight in straight.items():
        assert weight.dtype == torch.float32 and weight.shape == resumed[name].shape
        assert_close(weight, resumed[name], atol=1e-6, rtol=0)
    assert max(float((base[k] - straight[k]).abs().max()) for k in base) > 1e-2
    assert not list((folder / "nothing").glob("*.safetensors"))
    stored = [x for part in ("pytorch_model_fsdp_0", "optimizer_0") for x in tensors(checkpoint / part)]
    own, written = (sum(w.numel() for w in model.values()) for model in (base, straight))  # a tied output layer is written twice
    assert 4 * written + 8 * own <= sum(stored) <= 4 * written + 8 * own + 4 * len(stored), "and Adam counts its steps"
