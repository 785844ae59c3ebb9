"""Two processes train the same as one, sharded or not: rewards, advantages, losses, gradients, weights; and they resume.

Processes talk over gloo, on processors. Nothing here says how fast or stable the same is on GPUs over NCCL.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from support import patience
from transformers import AutoModelForCausalLM

from r3_repro.config import find_home
from r3_repro.runs import launch as launching
from r3_repro.runs.launch import launch, stage_args, stage_command
from r3_repro.runs.layout import Run, open_run
from r3_repro.utils.errors import SettingsError

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("two_processes.py")
# Three groups of eight in a batch of 24: each of two processes has one and a half of them.
SIZE: dict[str, Any] = {"max_steps": 2, "batch_size": 24, "num_generations": 8, "save_steps": 1, "warmup_ratio": 0.0}
SIZE |= {"learning_rate": 2e-4}  # two steps must move the weights more than rounding does
EQUAL = ["reward", "retry_success", "frac_reward_zero_std", "reflection_tokens_mean", "retry_tokens_mean", "truncated_share"]
EQUAL += ["reflect_tokens", "retry_tokens", "learning_rate"]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(find_home()), *filter(None, [os.environ.get("PYTHONPATH")])])
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | offline | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def warm(warm: dict[str, str]) -> dict[str, str]:
    return warm | {"PYTHONPATH": os.pathsep.join([warm["PYTHONPATH"], str(find_home())])}


def drive(run: Run, trainings: list[dict[str, Any]], plan: Path, env: dict[str, str] | None = None) -> None:
    "Run trainings in the processes that the package's own launch line of a run starts."
    plan.write_text(json.dumps(trainings), "utf-8")
    line = stage_command("train", run)
    line[line.index("r3_repro") - 1 :] = [str(DRIVER), str(plan)]
    done = subprocess.run(
        line, cwd=find_home(), env=env or environment(), capture_output=True, encoding="utf-8", timeout=patience(240)
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def words(run: Run) -> list[str]:
    return stage_args("train", run)[2:]


def seen(out: Path) -> list[dict[str, Any]]:
    "What each process saw, by rank."
    return [json.loads(f.read_text("utf-8")) for f in sorted(out.parent.glob(f"{out.name}-*.json"))]


def log_of(run: Run) -> pd.DataFrame:
    return pd.read_json(run.training / "log.jsonl", lines=True)


def weights(run: Run) -> dict[str, np.ndarray]:
    "A trained model's weights; FSDP2 writes an output layer that is tied to the embedding a second time."
    found = load_file(run.training / "model" / "model.safetensors")
    tied = found.pop("lm_head.weight", None)
    assert tied is None or np.array_equal(tied, found["model.embed_tokens.weight"])
    return found


def apart(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    "The length of the difference between two models' weights."
    assert a.keys() == b.keys()
    return float(np.sqrt(sum(np.square(a[k] - b[k], dtype=np.float64).sum() for k in a)))


def base(run: Run) -> dict[str, np.ndarray]:
    return load_file(find_home() / run.profile.model / "model.safetensors")


ONE = {
    "whole": {"per_device_train_batch_size": 12, "loss_type": "dapo"},
    "cut": {"per_device_train_batch_size": 6, "loss_type": "bnpo"},
}
TWO = {
    "whole": {"per_device_train_batch_size": 6, "loss_type": "dapo"},
    "cut": {"per_device_train_batch_size": 6, "loss_type": "bnpo"},
}
SEEDS = {"whole": 0, "cut": 1}


def one(root: Path, kind: str) -> Run:
    return open_run("smoke", root=str(root / "one"), seed=SEEDS[kind], **SIZE, **ONE[kind])


def two(root: Path, kind: str, name: str = "two", **more: Any) -> Run:
    return open_run("smoke", root=str(root / name), seed=SEEDS[kind], processes=2, **SIZE, **TWO[kind], **more)


def coarse(root: Path) -> Run:
    "Larger micro-batches than in `cut`, of the same rows."
    return open_run(
        "smoke",
        root=str(root / "coarse"),
        seed=SEEDS["cut"],
        processes=2,
        **SIZE,
        **(TWO["cut"] | {"per_device_train_batch_size": 12}),
    )


def coins(root: Path, processes: int) -> Run:
    own = (ONE if processes == 1 else TWO)["whole"]
    name = "one" if processes == 1 else "two"
    return open_run("smoke", arm="random_reward", root=str(root / name), processes=processes, **SIZE, **own)


def plain(root: Path) -> Run:
    "plain GRPO with the tokens that two processes generated for r3."
    return open_run("smoke", arm="plain_grpo", root=str(root / "two"), processes=2, **SIZE, **TWO["whole"])


def cut_off(root: Path) -> Run:
    "A training that is stopped after its first step."
    return open_run("smoke", root=str(root / "end"), processes=2, **(SIZE | {"max_steps": 4}), **TWO["whole"])


@pytest.fixture(scope="module")
def root(warm: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Trained by one process, with a recording of what it sampled."
    root = tmp_path_factory.mktemp("processes")
    plans = [
        {"argv": words(one(root, k)), "mine": k == "whole", "keep_order": k == "cut", "record": str(root / f"{k}.json")}
        | {"out": str(root / f"one-{k}")}
        for k in ONE
    ]
    plans += [{"argv": words(coins(root, 1)), "out": str(root / "one-coins")}]
    drive(one(root, "whole"), plans, root / "plan-one.json", warm)
    for name in ("two", "coarse", "sharded", "unshared", "end"):
        for kept in ("smoke/countdown/dataset", "smoke/countdown/tiny-a/failures"):
            shutil.copytree(root / "one" / kept, root / name / kept)
    return root


@pytest.fixture(scope="module")
def together(root: Path, warm: dict[str, str]) -> Path:
    """By two processes: the same from the recording, plain and sharded, and some trainings with reflections of their own.

    One launch line, that of FSDP2, for all of them: to import everything takes longer than to train."""
    plans: list[dict[str, Any]] = [
        {"argv": words(two(root, k)), "keep_order": k == "cut", "replay": str(root / f"{k}.json"), "out": str(root / f"two-{k}")}
        for k in TWO
    ]
    plans += [{"argv": words(coarse(root)), "replay": str(root / "cut.json"), "out": str(root / "coarse")}]
    lucky = open_run("smoke", root=str(root / "two"), seed=2, processes=2, **SIZE, **TWO["whole"])
    plans += [{"argv": words(lucky), "succeeds": 1, "out": str(root / "lucky")}]
    plans += [{"argv": words(coins(root, 2)), "out": str(root / "two-coins")}]
    plans += [{"argv": words(plain(root)), "out": str(root / "plain")}]
    plans += [{"argv": words(cut_off(root)), "stop": 1, "out": str(root / "cut-off")}]
    run, tape = two(root, "whole", "sharded", sharding="fsdp2"), {"replay": str(root / "whole.json"), "sharded": True}
    own = open_run("smoke", root=str(root / "sharded"), seed=2, processes=2, **SIZE, **TWO["whole"], sharding="fsdp2")
    plans += [{"argv": words(run), **tape, "stop": 1, "out": str(root / "sharded-first")}]
    plans += [{"argv": words(run), **tape, "out": str(root / "sharded-second")}]
    unshared = two(root, "whole", "unshared", sharding="fsdp2", shared_prefix=False)
    plans += [{"argv": words(unshared), **tape, "out": str(root / "unshared")}]
    plans += [{"argv": words(own), "sharded": True, "hasty": 1, "out": str(root / "sharded-own")}]
    plans += [{"argv": words(half(root)), "sharded": True, "half": True, "out": str(root / "half")}]
    plans += [{"argv": words(adapted(root, "fsdp2")), "sharded": True, "out": str(root / "adapted")}]
    drive(run, plans, root / "plan-two.json", warm)
    return root


def half(root: Path) -> Run:
    "As on GPUs: in bfloat16, with checkpoints of activations, in several micro-batches."
    own = {
        "sharding": "fsdp2",
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
        "per_device_train_batch_size": 6,
        "learning_rate": 5e-7,
    }
    return open_run("smoke", root=str(root / "sharded"), seed=3, processes=2, **(SIZE | own))


def adapted(root: Path, sharding: str) -> Run:
    own = {"sharding": sharding, "lora_r": 4, "learning_rate": 1e-3}
    return open_run("smoke", root=str(root / "sharded"), seed=4, processes=2, **(SIZE | TWO["whole"] | own))


def check_adapted(run: Run) -> None:
    "What is saved is the whole model with the adapter in it, as transformers loads it."
    saved = weights(run)
    assert json.loads((run.training / "manifest.json").read_text("utf-8"))["steps"] == SIZE["max_steps"]
    assert {k: (v.shape, v.dtype) for k, v in saved.items()} == {k: (v.shape, v.dtype) for k, v in base(run).items()}
    assert apart(saved, base(run)) > 1e-5
    own = load_file(run.training / "adapter" / "adapter_model.safetensors")
    one = next(k for k in own if k.endswith("layers.0.mlp.down_proj.lora_B.weight"))
    change, scale = own[one] @ own[one.replace("lora_B", "lora_A")], run.profile.lora_alpha / run.profile.lora_r
    name = "model.layers.0.mlp.down_proj.weight"
    np.testing.assert_allclose(saved[name] - base(run)[name], scale * change, atol=1e-6)
    assert AutoModelForCausalLM.from_pretrained(run.training / "model").num_parameters() > 0


def same_training(a: Run, b: Run, loss: float, grad: float, weight: float) -> None:
    """Logs and weights of two trainings: tolerances are absolute, relative, and relative to how far the weights went.

    The weights as a whole: where a gradient is nothing but rounding, Adam makes a step of it all the same.
    `kl` and `entropy` are left out: what is logged is a mean of the means of micro-batches, in another grouping."""
    first, second = log_of(a), log_of(b)
    assert len(first) == len(second) == SIZE["max_steps"]
    for column in EQUAL:
        np.testing.assert_allclose(first[column], second[column], rtol=1e-6, err_msg=column)
    np.testing.assert_allclose(first["loss"], second["loss"], atol=loss, rtol=0)
    np.testing.assert_allclose(first["grad_norm"], second["grad_norm"], rtol=grad)
    moved = apart(weights(a), base(a))
    assert moved > 0.01, "training has hardly moved the weights"
    assert apart(weights(a), weights(b)) <= weight * moved


@pytest.mark.parametrize("kind", ["whole", "cut"])
def test_two_processes_train_as_one_does(together: Path, kind: str) -> None:
    """`whole`: half the micro-batch in each process, a loss that is normalised over the whole batch.
    `cut`: the same micro-batches, for `bnpo`, which is normalised over each of them."""
    (alone,), both = seen(together / f"one-{kind}"), seen(together / f"two-{kind}")
    assert alone["world"] == 1 and [s["world"] for s in both] == [2, 2] and "MULTI_CPU" in both[0]["kind"]
    for step in range(SIZE["max_steps"]):
        rewards, advantages = alone["rewards"][step], alone["advantages"][step]
        assert both[0]["rewards"][step] == both[1]["rewards"][step] == rewards
        assert 0 < sum(rewards) < len(rewards), "nothing to learn from: the test would say nothing"
        joined = both[0]["advantages"][step] + both[1]["advantages"][step]
        if kind == "cut":  # in the order of the batch
            np.testing.assert_allclose(joined, advantages, atol=1e-6)
        np.testing.assert_allclose(sorted(joined), sorted(advantages), atol=1e-6)
    same_training(one(together, kind), two(together, kind), loss=1e-6, grad=1e-4, weight=1e-3)


def test_a_group_is_compared_across_processes(together: Path) -> None:
    "The middle one of three groups lies half in one process and half in the other; its mean is taken over all eight."
    both, size, half = seen(together / "two-cut"), SIZE["num_generations"], SIZE["batch_size"] // 2
    spread = 0
    for step in range(SIZE["max_steps"]):
        middle = np.array(both[0]["rewards"][step][size : 2 * size])
        ours = np.array(both[0]["advantages"][step][size:half] + both[1]["advantages"][step][: 2 * size - half])
        wanted = (middle - middle.mean()) / (middle.std(ddof=1) + 1e-4)
        np.testing.assert_allclose(ours, wanted, atol=1e-5)
        spread += middle.std() > 0
    assert spread, "the middle group never had rewards that differ"


def test_a_token_budget_counts_what_both_processes_generate(together: Path) -> None:
    "Half of it would be reached after twice as many steps."
    run, both = plain(together), seen(together / "plain")
    log, manifest = log_of(run), json.loads((run.training / "manifest.json").read_text("utf-8"))
    r3 = json.loads((two(together, "whole").training / "manifest.json").read_text("utf-8"))
    assert manifest["token_budget"] == r3["reflect_tokens"] + r3["retry_tokens"] > 0
    spent = [sum(c["tokens"] for s in both for c in s["calls"] if c["step"] == k) for k in range(len(log))]
    assert all(sum(c["tokens"] for c in s["calls"]) > 0 for s in both) and log["reflect_tokens"].tolist() == spent
    assert abs(sum(spent) - manifest["token_budget"]) <= 0.6 * max(spent) and manifest["steps"] == len(log)


def test_bnpo_depends_on_the_micro_batch(together: Path) -> None:
    "The same reflections and rewards, another loss: why micro-batch and `processes` are part of a run's identity."
    fine, larger = log_of(two(together, "cut")), log_of(coarse(together))
    assert seen(together / "coarse")[0]["rewards"] == seen(together / "two-cut")[0]["rewards"]
    assert np.abs(fine["loss"] - larger["loss"]).max() > 1e-3


def test_every_process_takes_the_second_step(together: Path) -> None:
    "Also one whose retries all succeed: a process that skips a step leaves the others waiting."
    both, half = seen(together / "lucky"), SIZE["batch_size"] // 2
    wanted = [{"step": s, "turn": t, "prompts": half} for s in range(SIZE["max_steps"]) for t in (0, 1)]
    for process in both:
        assert [{k: c[k] for k in wanted[0]} for c in process["calls"]] == wanted
    assert all(r[half:] == [1.0] * half for r in both[0]["rewards"])
    assert any(min(r[:half]) == 0.0 for r in both[0]["rewards"])


def test_coins_fall_the_same_whoever_tosses_them(together: Path) -> None:
    (alone,), both = seen(together / "one-coins"), seen(together / "two-coins")
    assert both[0]["rewards"] == both[1]["rewards"] == alone["rewards"]
    assert len({tuple(r) for r in alone["rewards"]}) == SIZE["max_steps"] and all(0 < sum(r) < len(r) for r in alone["rewards"])


# ── Sharded ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sharded_training_is_the_same(together: Path) -> None:
    "The file that is shipped for `sharding = fsdp2`, through accelerate, transformers and TRL, and a resumed run."
    first, second = seen(together / "sharded-first"), seen(together / "sharded-second")
    assert all("FSDP" in s["kind"] and s["world"] == 2 for s in first + second)
    assert [c["step"] for c in first[0]["calls"]] == [0, 0] and [c["step"] for c in second[0]["calls"]] == [1, 1]
    a, b = two(together, "whole"), two(together, "whole", "sharded", sharding="fsdp2")
    same_training(a, b, loss=1e-6, grad=1e-4, weight=1e-3)
    assert {k: v.dtype for k, v in weights(b).items()} == {k: v.dtype for k, v in base(b).items()}, "not the whole model"


def test_a_shared_prefix_is_sharded_like_any_other_pass(together: Path) -> None:
    shared, plain = seen(together / "sharded-second"), seen(together / "unshared")
    assert all(s["shares"] for s in shared) and not any(s["shares"] for s in plain)
    runs_of = (two(together, "whole", n, sharding="fsdp2", shared_prefix=n == "sharded") for n in ("sharded", "unshared"))
    same_training(*runs_of, loss=1e-6, grad=1e-4, weight=1e-3)


def test_log_probabilities_stay_float32_and_gradients_in_pieces(together: Path) -> None:
    """At the published learning rate a step changes log-probabilities by less than bfloat16 can tell.

    accelerate's own policy rounds them to it, and keeps the gradients of the whole model on every GPU between micro-batches."""
    both, log = seen(together / "half"), log_of(half(together))
    assert all("FSDP" in s["kind"] and s["shares"] for s in both)
    assert all(s["types"] == ["torch.float32"] for s in both)
    assert all(s["whole gradients"] == [0] * (2 * SIZE["max_steps"]) for s in both)
    assert log["kl"].iloc[0] == 0 < log["kl"].iloc[1] < 1e-3, log["kl"].tolist()
    assert apart(weights(half(together)), base(half(together))) > 0


def test_a_sharded_adapter_is_saved_with_the_model_around_it(together: Path) -> None:
    check_adapted(adapted(together, "fsdp2"))


def test_a_process_that_is_done_helps_the_others_to_finish(together: Path) -> None:
    "Each token of the longest reflection gathers every layer from both processes; one that went on alone would wait for ever."
    both = seen(together / "sharded-own")
    assert all([c["turn"] for c in s["calls"]] == [0, 1] * SIZE["max_steps"] for s in both)
    longest = [max(c["longest"] for c in s["calls"] if c["turn"] == 0) for s in both]
    assert longest[1] == 3 < longest[0], "both wanted the same number of tokens: the test would say nothing"


# ── End to end ─────────────────────────────────────────────────────────────────────────────────────────────────────


TWO_MACHINES = """
import os, subprocess, sys
started = [subprocess.Popen(sys.argv[1:], env=os.environ | {"NODE_RANK": str(rank)}) for rank in (1, 0)]
sys.exit(max(p.wait() for p in started))
"""


def test_the_stage_trains_with_two_processes_and_resumes_on_two_machines(
    together: Path, warm: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    "As users start it: processes that sample, log, checkpoint and save one model, here by two launchers that meet at a port."
    root = together
    for key, value in warm.items():
        monkeypatch.setenv(key, value)
    run = cut_off(root)
    assert (run.training / "checkpoints/checkpoint-1/complete").exists() and not (run.training / "manifest.json").exists()
    first = (run.training / "log.jsonl").read_text("utf-8")
    (root / "each.py").write_text(TWO_MACHINES, "utf-8")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    each = shlex.join([sys.executable, str(root / "each.py")])
    for key, value in {
        "NNODES": 2,
        "NODE_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "R3_ON_EACH_MACHINE": each,
    }.items():
        monkeypatch.setenv(key, str(value))
    launch("train", run)
    assert re.search(r"train r3-seed0: 4 steps", capsys.readouterr().out)
    log = log_of(run)
    assert (run.training / "log.jsonl").read_text("utf-8").startswith(first) and log["step"].tolist() == [1, 2, 3, 4]
    assert log["loss"].notna().all() and (log["retry_tokens"] > 0).all()
    manifest = json.loads((run.training / "manifest.json").read_text("utf-8"))
    assert manifest["profile"]["processes"] == 2 and manifest["steps"] == 4
    assert apart(weights(run), base(run)) > 1e-5 and not (run.training / "checkpoints").exists()
    assert {len(r) for r in pd.read_json(run.training / "samples.jsonl", lines=True)["reflection"]} != {0}


REFUSES = "import sys\nsys.exit(print('r3_repro: no failures, see chapter 02', file=sys.stderr) or 2)\n"


def test_a_refusal_comes_through_the_launcher(tmp_path: Path, warm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    "torchrun says forty lines and more after a process has said why it does not run."
    for key, value in warm.items():
        monkeypatch.setenv(key, value)
    run = open_run("smoke", root=str(tmp_path), processes=2, **SIZE, **TWO["whole"])
    (tmp_path / "refuses.py").write_text(REFUSES, "utf-8")
    line = stage_command("train", run)
    line[line.index("r3_repro") - 1 :] = [str(tmp_path / "refuses.py")]
    monkeypatch.setattr(launching, "stage_command", lambda *_: line)
    with pytest.raises(SettingsError, match=r"^no failures, see chapter 02$"):
        launch("train", run)
