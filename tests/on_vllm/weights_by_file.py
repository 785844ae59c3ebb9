"""A vLLM server and a training that asks it, with weights handed over in a file where GPUs use NCCL: for test_training_server.py.

    python tests/on_vllm/weights_by_file.py serve [options of vLLM's server]
    python tests/on_vllm/weights_by_file.py train [arguments of r3-repro train]

All but the carrier is what users run: TRL's client, its requests, vLLM's endpoints, and the loading of weights by name.
"""

import runpy
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import keep_weights  # noqa: F401
from safetensors.torch import load_file, save_file
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo


@dataclass
class Nothing(WeightTransferInitInfo):
    "There is no group of processes to join."


@dataclass
class File(WeightTransferUpdateInfo):
    "A safetensors file."

    path: str


class ByFile(WeightTransferEngine[Nothing, File]):
    "The server's end."

    init_info_cls, update_info_cls = Nothing, File

    def init_transfer_engine(self, init_info: Nothing) -> None: ...

    def start_weight_update(self) -> None: ...

    def finish_weight_update(self) -> None: ...

    def receive_weights(self, update_info: File) -> None:
        self.model.load_weights(load_file(update_info.path).items())

    def shutdown(self) -> None: ...


# Here, and not in `main`: processes that the server spawns import this file again.
WeightTransferEngineFactory.register_engine("file", ByFile)


def send_by_file() -> None:
    "The trainer's end: TRL's client, with a file."
    from trl.generation.vllm_client import VLLMClient

    def join(self: VLLMClient, device: object = 0) -> None:
        self._post(f"{self.base_url}/init_weight_transfer_engine", json={"init_info": {}})

    def send(self: VLLMClient, metadata: list, named: Iterator) -> None:
        weights = {name: w.detach().clone().contiguous() for name, w in named}
        assert list(weights) == [name for name, *_ in metadata]
        with tempfile.TemporaryDirectory() as d:
            save_file(weights, f"{d}/weights.safetensors")
            self._start_weight_update()
            self._post(f"{self.base_url}/update_weights", json={"update_info": {"path": f"{d}/weights.safetensors"}})
            self._finish_weight_update()

    VLLMClient.init_communicator, VLLMClient.update_named_params = join, send


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "serve":
        sys.argv[1:] = ["--weight-transfer-config", '{"backend": "file"}', *rest]
        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
    else:
        send_by_file()
        from r3_repro.workflow.cli import app

        app([what, *rest])
