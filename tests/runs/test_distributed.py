"""The launch line of a training, read by accelerate's own parser: what its configuration files really switch on.

ZeRO-3 is only parsed here; tests/on_deepspeed trains with it.
"""

import inspect
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from r3_repro.config import load_profile
from r3_repro.runs import launch as launching
from r3_repro.runs.distributed import CONFIGS, Machines, launch_line
from r3_repro.runs.layout import open_run

FILES = sorted(CONFIGS.glob("*.yaml"))


def parsed(machines: Machines = Machines(), **settings: Any) -> Any:  # noqa: B008
    "accelerate's view of the launch line of a profile."
    line = launch_line(load_profile("smoke", **settings), machines)
    assert line[1:3] == ["-m", "accelerate.commands.launch"]
    args = launch_command_parser().parse_args([*line[3:], "r3_repro", "train", "--profile", "smoke"])
    args, defaults, _ = _validate_launch_command(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return args


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    "Nothing of accelerate in the environment but what a test puts there."
    for key in list(os.environ):
        if key.startswith(("ACCELERATE_", "FSDP_", "PET_")):
            monkeypatch.delenv(key)
    return monkeypatch


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_file_has_only_keys_that_accelerate_knows(file: Path) -> None:
    "Unknown ones at the top are refused by accelerate; below, a misspelled key would be passed over in silence."
    config = load_config_from_file(str(file))
    assert isinstance(config, ClusterConfig)
    arguments = {a.dest for a in launch_command_parser()._actions}
    assert set(config.fsdp_config) | set(config.deepspeed_config) <= arguments


def test_one_process_is_started_without_a_launcher() -> None:
    assert launch_line(load_profile("smoke"), Machines()) == [sys.executable, "-m"]


@pytest.mark.parametrize(("stage", "growing"), [("train", True), ("mine", False)])
def test_training_gets_memory_in_segments_that_grow(
    stage: str, growing: bool, tmp_path: Path, own_environment: pytest.MonkeyPatch
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        own_environment.delenv(name, raising=False)
    said = "import os; print(os.environ.get('PYTORCH_ALLOC_CONF'))"
    own_environment.setattr(launching, "preflight", lambda *_: None)
    own_environment.setattr(launching, "stage_command", lambda *_: [sys.executable, "-c", said])
    run = open_run("smoke", root=str(tmp_path))
    assert launching.run_stage(stage, run) == ("expandable_segments:True" if growing else "None")
    own_environment.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    assert launching.run_stage(stage, run) == "None", "a choice of one's own is kept"


def test_several_processes_are_started_by_torchrun() -> None:
    args = parsed(processes=4, per_device_train_batch_size=4)
    assert args.multi_gpu and not (args.use_fsdp or args.use_deepspeed)
    prepare_multi_gpu_env(args)
    assert (args.nproc_per_node, args.module, args.main_process_port > 0) == ("4", True, True)


def test_several_machines(own_environment: pytest.MonkeyPatch) -> None:
    args = parsed(Machines(2, 1, "gpu7", 29511), processes=4, per_device_train_batch_size=4)
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.node_rank, args.nproc_per_node, args.rdzv_endpoint) == ("2", 1, "2", "gpu7:29511")
    args = parsed(Machines(2, 1, "gpu7", 29511), processes=4, per_device_train_batch_size=4, sharding="zero3")
    command, _ = prepare_deepspeed_cmd_env(args)
    assert command is None and (args.nnodes, args.node_rank, args.rdzv_endpoint) == ("2", 1, "gpu7:29511")


def test_fsdp2(own_environment: pytest.MonkeyPatch) -> None:
    args = parsed(processes=2, per_device_train_batch_size=8, sharding="fsdp2")
    assert args.use_fsdp and not (args.multi_gpu or args.use_deepspeed)
    env = prepare_multi_gpu_env(args)
    assert env["ACCELERATE_USE_FSDP"] == "true" and env["ACCELERATE_MIXED_PRECISION"] == "no"
    for key, value in env.items():
        own_environment.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT" and plugin.cpu_ram_efficient_loading is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy" and plugin.transformer_cls_names_to_wrap is None
    assert plugin.activation_checkpointing is False and type(plugin.cpu_offload).__name__ == "OffloadPolicy"


def test_zero3_as_far_as_it_can_be_read(own_environment: pytest.MonkeyPatch) -> None:
    args = parsed(processes=2, per_device_train_batch_size=8, sharding="zero3", dtype="bfloat16")
    assert args.use_deepspeed and not (args.multi_gpu or args.use_fsdp) and args.mixed_precision == "bf16"
    command, env = prepare_deepspeed_cmd_env(args)
    assert command is None and args.nproc_per_node == "2"  # torchrun, not DeepSpeed's own launcher
    for key, value in env.items():
        own_environment.setenv(key, value)
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == 3 and plugin.zero3_init_flag and plugin.zero3_save_16bit_model
    config = plugin.deepspeed_config
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert config["gradient_accumulation_steps"] == "auto" and config["gradient_clipping"] == "auto"  # the trainer's own
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "none"


# ── What the page says of the installed libraries ──────────────────────────────────────────────────────────────────


def test_save_model_writes_weights_only_from_a_full_state_dict() -> None:
    "Why the finished model is saved in `full_state_dict`. If this fails, the libraries have changed: read the page again."
    from transformers import Trainer

    source = inspect.getsource(Trainer.save_model)
    assert 'if "FULL_STATE_DICT" in str(self.accelerator.state.fsdp_plugin.state_dict_type)' in source


def test_the_reference_model_is_sharded_as_one_piece() -> None:
    from trl.models.utils import prepare_fsdp

    source = inspect.getsource(prepare_fsdp)
    assert source.count("fully_shard(model, **fsdp2_kwargs)") == 1 and "broadcast" not in source and "load_full" not in source


def test_zero3_gathers_whole_weights_for_generation() -> None:
    from trl import GRPOConfig

    assert GRPOConfig.__dataclass_fields__["ds3_gather_for_generation"].default is True
