"""The command that plans a run: every preset fits, what does not fit is refused with a remedy that works, nothing is guessed."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from support import REPOSITORY
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig
from typer.testing import CliRunner

from r3_repro.config import find_home, load_profile, model_path
from r3_repro.engines import hf
from r3_repro.evaluation.backends import batch_of
from r3_repro.planning import here, room
from r3_repro.planning.memory import (
    H100,
    Lengths,
    MicroBatch,
    generation_problems,
    lengths_of,
    remedies,
    training_problems,
    vllm_context,
)
from r3_repro.planning.models import MODELS, contamination, parameters, random_model, shape_of
from r3_repro.planning.plan import benchmark_batch, pass_flops
from r3_repro.planning.room import check_room, memory_limit, room_needed
from r3_repro.profiles import inconsistencies
from r3_repro.runs.launch import stage_command
from r3_repro.runs.layout import open_run
from r3_repro.training.shared_prefix import ATTN_NAME, pack, prefix_parts
from r3_repro.utils.errors import SettingsError
from r3_repro.workflow.cli import app

TRAINED = [(m.name, task) for m in MODELS.values() if m.trained and m.shape for task in m.tasks]
EVALUATED = [(m.name, task) for m in MODELS.values() if not m.trained and m.shape for task in m.tasks]
UNKNOWN = [m.name for m in MODELS.values() if m.shape is None]


def said(*args: str) -> tuple[int, str, str]:
    "Exit code, output and refusal of the command."
    done = CliRunner().invoke(app, ["plan", *args])
    if isinstance(done.exception, Exception):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


# ── Presets ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("model", "task"), TRAINED)
def test_every_trained_model_plans_for_its_gpus(model: str, task: str) -> None:
    p = load_profile("paper", task=task, model=model)
    accumulation, rest = divmod(256, p.per_device_train_batch_size * p.processes)
    assert p.batch_size == 256 and rest == 0 and accumulation >= 1 and 256 % p.num_generations == 0
    assert 4 <= p.processes <= 8, "published: 4 to 8 H100 a model"
    assert p.use_vllm and p.vllm_mode == "colocate" and p.tensor_parallel_size == 1
    code, out, err = said("--profile", "paper", "--model", model, "--task", task)
    assert (code, err) == (0, "")
    rows = p.per_device_train_batch_size
    assert f"per_device_train_batch_size {rows} x accumulation {accumulation} x processes {p.processes}" in out
    for what in ("optimiser", "gradients", "reference", "vLLM's share", "activations"):
        assert what in out
    for what in ("mining", "training", "evaluation", "GPU hours"):
        assert what in out
    assert all(stage in out for stage in ("reflect ", "retry ", "verify ", "update ")) and "Assumed, not measured" in out


@pytest.mark.parametrize(("model", "task"), EVALUATED)
def test_every_baseline_plans_for_evaluation_alone(model: str, task: str) -> None:
    p = load_profile("paper", task=task, model=model)
    assert p.tensor_parallel_size > 1 and MODELS[model].shape.heads % p.tensor_parallel_size == 0  # type: ignore[union-attr]
    code, out, err = said("--model", model, "--task", task)
    assert (code, err) == (0, "") and "optimiser" not in out and "evaluation, 1 model" in out
    code, _, err = said("--model", model, "--task", task, "--set", "tensor_parallel_size=1", "--gpu-memory", "60")
    assert code == 2 and f"--set tensor_parallel_size={p.tensor_parallel_size}" in err


def test_every_model_with_a_section_is_known_and_the_other_way_round() -> None:
    sections = re.findall(r"^\[paper\.(.+/.+?)\]", (REPOSITORY / "settings.ini").read_text("utf-8"), re.M)
    assert sorted(sections) == sorted(m.name for m in MODELS.values() if m.shape)


@pytest.mark.parametrize(("table", "task"), [("table1_apigen", "function_calling"), ("table2_countdown", "countdown")])
def test_the_models_of_the_published_tables_are_there(table: str, task: str) -> None:
    def plain(name: str) -> str:
        return re.sub(r"[ -]|\(.*\)|instruct", "", name.lower())

    ours = {plain(m.name.split("/")[-1]): m for m in MODELS.values() if task in m.tasks}
    rows = pd.read_csv(REPOSITORY / f"results/published/{table}.csv")["model"].unique()
    single = [r for r in rows if "," not in r]
    assert len(single) >= 4
    for row in single:
        assert ours[plain(row)].trained == ("not trained" not in row)
    for row in set(rows) - set(single):  # several in one row: each is named in it
        assert any(plain(name) in plain(row.replace("(", " ").replace("/", " Qwen-2.5-")) for name in ours), row


# ── Processors ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is meant")
def test_a_plan_for_processors_prints_the_overhead_that_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "measured_rates", lambda: (3e11, 2e10))
    assert "and 60 ms a token in generation" in said("--profile", "smoke")[1]
    assert "and 3 ms a token in generation" in said()[1]
    assert "and 3 to 30 ms a token in generation" in said("--set", "engine=transformers")[1]


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"forgetting_batch": 5},
        {"engine": "vllm"},
        {"engine": "ray"},
        {"engine": "ray", "ray_engine": "transformers"},
        {"engine": "server", "servers": "http://host:8000/v1", "server_concurrency": 7},
    ],
    ids=str,
)
def test_benchmarks_are_planned_with_the_batch_that_they_get(
    gpu: bool, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    p = load_profile("smoke", **{"forgetting_batch": 0} | settings)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(hf, "memory_beside", lambda _: 10.0**12)
    assert benchmark_batch(p, H100 if gpu else replace(H100, name="this machine")) == batch_of(p)


# ── Shared prefixes ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pass_over_packed_rows_is_counted_as_torch_counts_it() -> None:
    s = replace(MODELS["Qwen/Qwen2.5-7B-Instruct"].shape, layers=2)  # type: ignore[type-var]
    ids = torch.arange(40).repeat(8, 3)
    ids[:, 100:] = torch.arange(8)[:, None]
    packed = pack(ids, torch.ones_like(ids), 20)
    parts, length = prefix_parts(packed.block), packed.input_ids.size(1)
    moved = {k: getattr(parts, k).to("meta") for k in ("column", "seen", "flat")}
    parts = replace(parts, **moved, at=(parts.at[0].to("meta"), parts.at[1].to("meta")))
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = random_model(s)
        model.set_attn_implementation(ATTN_NAME)
        passing, positions = torch.ones(1, 1, 1, length, dtype=torch.bool), torch.arange(length)[None]
        words = torch.zeros(1, length, s.hidden)
        how = {"attention_mask": passing, "position_ids": positions, "shared_prefix": parts, "use_cache": False}
        model.model(inputs_embeds=words, **how)
    batch = MicroBatch(8, 1, 100, 20, shared=True)
    assert length == batch.tokens and counter.get_total_flops() / pass_flops(s, batch) == pytest.approx(1, abs=1e-5)


def test_a_micro_batch_that_splits_groups_is_warned_of() -> None:
    _, whole, _ = said("--model", "Qwen/Qwen2.5-7B-Instruct")
    code, split, _ = said("--model", "Qwen/Qwen2.5-7B-Instruct", "--set", "per_device_train_batch_size=4")
    assert code == 0 and "WARNING" not in whole and "--set per_device_train_batch_size=8" in split
    now, then = map(float, re.findall(r"an update takes ([\d.]+) s, and ([\d.]+) with", split)[0])
    assert then < now and f"update {then:.1f}" in whole and f"update {now:.1f}" in split
    _, plain, _ = said("--set", "per_device_train_batch_size=4", "--set", "shared_prefix=false")
    assert "splits groups" not in plain


# ── Main memory and disk ───────────────────────────────────────────────────────────────────────────────────────────


def test_memory_and_disk_are_shown_and_refused() -> None:
    code, out, _ = said("--model", "meta-llama/Llama-3.1-8B-Instruct")
    assert code == 0 and "Main memory: 59.8 GiB" in out and "Disk: 269.2 GiB" in out
    code, _, err = said("--model", "meta-llama/Llama-3.1-8B-Instruct", "--host-memory", "80", "--disk", "200")
    assert code == 2 and "main memory, there are 80.0" in err and "of disk" in err
    assert said("--model", "meta-llama/Llama-3.1-8B-Instruct", "--host-memory", "120", "--disk", "300")[0] == 0


def test_a_training_is_refused_on_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "What its own checkpoints take is not counted against it: they are replaced."
    run = open_run("tiny", root=str(tmp_path))
    need = room_needed(run.profile, shape_of(run.profile.model))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage._replace(free=int(need.disk) - 1000))
    with pytest.raises(SettingsError, match="of disk"):
        check_room(run)
    old = run.training / "checkpoints/checkpoint-1"
    old.mkdir(parents=True)
    (old / "optimizer.pt").write_bytes(bytes(1001))
    check_room(run)


def test_only_the_first_process_of_a_machine_looks_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A later one would count the weights that the others have loaded."
    run = open_run("tiny", root=str(tmp_path))
    monkeypatch.setattr(room, "memory_limit", lambda: 1000.0)
    for rank in ("0", None):
        monkeypatch.setenv("LOCAL_RANK", rank) if rank else monkeypatch.delenv("LOCAL_RANK")
        with pytest.raises(SettingsError, match="main memory"):
            check_room(run)
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_room(run)


@pytest.mark.parametrize(
    ("line", "folder", "names", "prefix"),
    [
        ("0::/job/step", "job", ("memory.max", "memory.current"), ""),
        ("9:memory:/job/step", "memory/job", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"),
        ("9:cpu:/x\n7:memory:/not/here", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"),
    ],
)
def test_cached_files_count_as_free(tmp_path: Path, line: str, folder: str, names: tuple[str, str], prefix: str) -> None:
    "In control groups of version 2, of version 1, and of version 1 as a container sees its own."
    group = tmp_path / "cgroup" / folder
    group.mkdir(parents=True)
    (tmp_path / "own").write_text(line + "\n", "utf-8")
    texts = ("1000", "900", f"anon 40\n{prefix}inactive_file 500\n{prefix}active_file 100")
    for name, text in zip((*names, "memory.stat"), texts, strict=True):
        (group / name).write_text(text + "\n", "utf-8")
    assert memory_limit(tmp_path / "cgroup", tmp_path / "own") == 700
    (group / "memory.stat").unlink()
    assert memory_limit(tmp_path / "cgroup", tmp_path / "own") == 100


def test_a_shape_from_the_hub_is_that_of_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, config = [], AutoConfig.from_pretrained(model_path(load_profile("tiny")))
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name, revision=None: asked.append((name, revision)) or config)
    assert shape_of("somebody/model", "v2") == shape_of(load_profile("tiny").model)
    assert set(asked) >= {("somebody/model", "v2")} and {revision for name, revision in asked if "/model" in name} == {"v2"}


# ── What does not fit ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "args",
    [
        ("--model", "Qwen/Qwen2.5-7B-Instruct", "--set", "sharding=none"),
        ("--model", "Qwen/Qwen2.5-3B-Instruct", "--set", "processes=1", "--set", "sharding=none"),
        ("--model", "Qwen/Qwen2.5-1.5B-Instruct", "--set", "per_device_train_batch_size=64"),
        ("--model", "Qwen/Qwen2.5-7B-Instruct", "--set", "vllm_gpu_memory_utilization=0.15"),
        ("--model", "Qwen/Qwen2.5-1.5B-Instruct", "--gpu-memory", "39"),
    ],
)
def test_a_refusal_names_settings_that_do_fit(args: tuple[str, ...]) -> None:
    code, out, err = said(*args)
    assert code == 2 and "memory of a GPU" in out and err.startswith("r3_repro: ")
    ways = err.split("it would fit with any of these: ")[1].splitlines()[0].split("; ")
    assert ways
    for way in ways:
        assert said(*args, *way.split())[0] == 0, way


def test_where_nothing_helps_the_refusal_says_so() -> None:
    code, _, err = said("--model", "Qwen/Qwen2.5-7B-Instruct", "--gpu-memory", "8")
    assert code == 2 and "take GPUs with more memory" in err and "gpu_memory_utilization" in err


def test_a_context_that_is_too_short_is_refused() -> None:
    p = load_profile("paper", max_answer_tokens=20000)
    found = training_problems(p, shape_of(p.model), lengths_of(p), H100)
    assert any("the context of" in x and "max_answer_tokens" in x for x in found)


def test_remedies_are_possible_profiles() -> None:
    p = load_profile("paper", model="Qwen/Qwen2.5-7B-Instruct", sharding="none", processes=1)
    s, tok = shape_of(p.model), lengths_of(p)
    found = remedies(p, s, tok, H100)
    assert found and all(not inconsistencies(p.model_copy(update=way)) for way in found)


def test_heads_must_be_divisible() -> None:
    p = load_profile("paper", model="Qwen/Qwen2.5-7B-Instruct", tensor_parallel_size=8)  # it has 28 heads
    (found,) = generation_problems(p, shape_of(p.model), H100)
    assert "[1, 2, 4]" in found


@pytest.mark.parametrize(
    ("wrong", "said_"),
    [
        ("max_stepps=3", "did you mean 'max_steps'"),
        ("sharding=fsdp2 processes=1", "sharding = 'fsdp2'"),
        ("per_device_train_batch_size=60", "not divisible"),
    ],
)
def test_wrong_settings_are_refused_as_everywhere(wrong: str, said_: str) -> None:
    sets = [x for pair in wrong.split() for x in ("--set", pair)]
    code, out, err = said(*sets)
    assert (code, out) == (2, "") and said_ in err


# ── Other models ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", UNKNOWN)
def test_what_is_not_known_of_a_model_is_not_guessed(model: str) -> None:
    code, out, err = said("--model", model)
    assert (code, out) == (2, "") and "nothing can be planned" in err and model in err


def test_a_model_that_nobody_has_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, out, err = said("--model", "Qwen/Qwen2.5-7B-Instrukt")
    assert (code, out) == (2, "") and "Did you mean 'Qwen/Qwen2.5-7B-Instruct'?" in err


def test_a_configuration_in_a_folder_is_enough(tmp_path: Path) -> None:
    base = Path(model_path(load_profile("tiny")))
    shutil.copyfile(base / "config.json", tmp_path / "config.json")
    code, out, err = said("--profile", "tiny", "--model", str(tmp_path))
    assert (code, err) == (0, "") and "contamination" in out.lower() and "unknown" in out
    counted = json.loads((tmp_path / "config.json").read_text("utf-8"))
    shape = shape_of(str(tmp_path))
    assert shape.hidden == counted["hidden_size"] and parameters(shape) == shape.counted > 0
    code, _, err = said("--profile", "tiny", "--model", str(tmp_path), "--gpu-memory", "0.5")
    assert code == 2 and "there are 0.5" in err


# ── The rule against contamination ─────────────────────────────────────────────────────────────────────────────────


def test_a_late_model_is_warned_of_and_not_refused() -> None:
    code, out, _ = said("--model", "meta-llama/Llama-3.1-8B-Instruct", "--task", "function_calling")
    assert code == 0 and "WARNING, contamination: late" in out and "23 July 2024" in out
    code, out, _ = said("--model", "meta-llama/Llama-3.1-8B-Instruct", "--task", "countdown")
    assert code == 0 and "WARNING" not in out and "Contamination: ok" in out
    assert contamination("Palmyra 1.7B", "countdown")[0] == "unknown"


# ── What the rest of the package takes from a preset ───────────────────────────────────────────────────────────────


def test_a_stage_is_launched_with_the_presets_of_its_model() -> None:
    "Also where a value of the command line is the profile's own and the model's section says something else."
    plain = stage_command("train", open_run("paper", model="Qwen/Qwen2.5-7B-Instruct"))
    assert "--num_processes=8" in plain and not any(c.startswith("--set") for c in plain)
    changed = stage_command("train", open_run("paper", model="Qwen/Qwen2.5-7B-Instruct", processes=4))
    assert "--num_processes=4" in changed and "--set=processes=4" in changed
    assert load_profile("paper").processes == 4 and changed[changed.index("--model") + 1] == "Qwen/Qwen2.5-7B-Instruct"


def test_a_stage_is_launched_where_the_file_alone_would_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "settings.ini"
    own.write_text((find_home() / "settings.ini").read_text("utf-8") + "\n[one]\nbased_on = paper\nprocesses = 1\n", "utf-8")
    monkeypatch.setenv("R3_SETTINGS", str(own))
    with pytest.raises(SettingsError, match="sharding = 'fsdp2'"):
        open_run("one", model="Qwen/Qwen2.5-7B-Instruct")
    run = open_run("one", model="Qwen/Qwen2.5-7B-Instruct", sharding="none", lora_r=32)
    sets = dict(c.removeprefix("--set=").split("=", 1) for c in stage_command("train", run) if c.startswith("--set="))
    again = open_run("one", arm="r3", **sets)
    assert again.profile == run.profile


def test_vllm_keeps_room_for_twice_the_longest_conversation() -> None:
    assert vllm_context(1000, 32768) == 2000 and vllm_context(20000, 32768) == 32768


def test_lengths_stay_within_the_limits() -> None:
    p = load_profile("paper", max_answer_tokens=100, max_reflection_tokens=50)
    assert lengths_of(p, prompt=10) == Lengths(10, 200, 100, 50, question=200)
