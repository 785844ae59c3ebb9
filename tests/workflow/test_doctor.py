"""`r3-repro doctor`: three real steps here; what it finds wrong and leaves behind. With two processes: `make test-box`."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import psutil
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from support import environment, patience
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

from r3_repro.config import model_path
from r3_repro.evaluation.benchmark_files import PUBLISHED
from r3_repro.planning.memory import GIB, lengths_of
from r3_repro.planning.models import shape_of
from r3_repro.runs.layout import open_run
from r3_repro.tasks.base import get_task
from r3_repro.utils.errors import SettingsError
from r3_repro.workflow import doctor, trial_steps
from r3_repro.workflow.cli import app


def states(report: dict[str, Any]) -> dict[str, str]:
    return {f["what"]: f["state"] for f in report["findings"]}


@pytest.mark.slow
def test_three_steps_with_the_profiles_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Nothing is left but the report."
    for key, value in environment(tmp_path, OMP_NUM_THREADS="1").items():
        monkeypatch.setenv(key, value)
    named = ["doctor", "--profile", "smoke", "--root", str(tmp_path), "--json", str(tmp_path / "report.json")]
    done = CliRunner().invoke(app, named)
    said = done.output
    assert done.exit_code == 0 and [f.name for f in tmp_path.iterdir()] == ["report.json"], said[-3000:]
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    measured = report["measured"]
    assert [r["step"] for r in measured["rows"]] == [1, 2, 3] and report["weights"] == "its own"
    assert all(r["grad_norm"] > 0 and r["seconds_reflect"] > 0 and r["seconds_update"] > 0 for r in measured["rows"])
    assert set(measured["seconds"]) == {"start", "checkpoint", "resume", "save"} and min(measured["seconds"].values()) > 0
    assert measured["checkpoint_gib"] > 0.003 and measured["host_gib"] > 0.1, "350,000 weights and their optimiser, and torch"
    assert set(report["plan"]["step"]) == {"reflect", "retry", "verify", "update"}
    assert states(report)["three steps"] == states(report)["settings"] == states(report)["chat template"] == "ok"
    assert {"git_commit", "versions", "hardware", "profile_hash"} <= report.keys() and report["profile"]["max_steps"] == 2
    assert "step 3 (resumed)" in said and "0 problems" in said


def test_a_terminated_doctor_leaves_nothing(warm: dict[str, str], tmp_path: Path) -> None:
    "With a training that hangs."
    line = [sys.executable, str(Path(__file__).with_name("hanging_doctor.py")), str(tmp_path)]
    process = subprocess.Popen(line, env=warm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    ends, trained = time.monotonic() + patience(60), []
    while not trained and process.poll() is None and time.monotonic() < ends:
        trained = [c for c in psutil.process_iter(["cmdline"]) if ["train", str(tmp_path)] == (c.info["cmdline"] or [])[-2:]]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=patience(60))
    assert process.returncode == 143 and trained, said[-2000:]
    assert all(map(trial_steps.is_gone, trained)) and list(tmp_path.iterdir()) == []


# ── What is wrong is said ──────────────────────────────────────────────────────────────────────────────────────────


def failing(text: str, code: int) -> list[str]:
    return [sys.executable, "-c", f"import sys; print({text!r}); sys.exit({code})"]


def test_a_training_that_fails_is_a_problem_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trial_steps.doctor_run(open_run("smoke"), tmp_path / "model", tmp_path)
    monkeypatch.setattr(trial_steps, "stage_command", lambda *_: failing("torch.OutOfMemoryError: CUDA out of memory", 1))
    assert "exit code 1: torch.OutOfMemoryError" in trial_steps.measure_steps(run, patience(60)).failure
    monkeypatch.setattr(trial_steps, "stage_command", lambda *_: [sys.executable, "-c", "import time; time.sleep(600)"])
    assert "limit of time" in trial_steps.measure_steps(run, 0.5).failure


STARTS_ANEW = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
stages = {f"seconds_{k}": 0.1 for k in ("reflect", "retry", "verify", "update")}
rows = [json.dumps({"step": n, "loss": 0.0} | stages) + chr(10) for n in (1, 2, 3)]
again = (folder / "checkpoints").exists()
folder.mkdir(parents=True, exist_ok=True)
(folder / "log.jsonl").write_text("".join(r.replace("0.1", "0.2") if again else r for r in rows[: 3 if again else 2]))
if not again:
    (folder / "checkpoints/checkpoint-2").mkdir(parents=True)
    (folder / "checkpoints/checkpoint-2/complete").touch()
"""


def test_a_training_that_starts_anew_was_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trial_steps.doctor_run(open_run("smoke"), tmp_path / "model", tmp_path)
    monkeypatch.setattr(trial_steps, "stage_command", lambda *_: [sys.executable, "-c", STARTS_ANEW, str(run.training)])
    assert "was not resumed" in trial_steps.measure_steps(run, patience(60)).failure


def test_wrong_options_end_with_2(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--profile", "smok", "--root", str(tmp_path)])
    assert done.exit_code == 2 and "did you mean [smoke]" in done.output and list(tmp_path.iterdir()) == []


def test_a_profile_for_gpus_is_refused_here_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Without a hub: the shape of a model of the paper is known."
    monkeypatch.setattr(huggingface_hub, "auth_check", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    report = doctor.examine(open_run("paper", root=str(tmp_path)))
    found = {f.what: f.state for f in report.findings}
    assert found["GPUs"] == "problem" and found["three steps"] == "not checked" and report.trial is None
    assert found["gate"] == "not checked", "one line, and no refusal"
    assert found["hub, model Qwen/Qwen2.5-1.5B-Instruct"] == "warning" and list(tmp_path.iterdir()) == []
    asked = {f"hub, dataset {spec.hub}" for spec in PUBLISHED.values()}
    assert {found[name] for name in asked} == {"warning"} and "scorer of MATH" in found, "benchmarks may come later"
    (plan,) = (f for f in report.findings if f.what == "plan")
    assert plan.found.startswith("H100: ") and plan.found.endswith("of 79.0 GiB on each GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is meant")
def test_a_profile_for_processors_is_planned_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Without the three steps, which have their own test."

    def tried(run: Any, small: Any, machine: Any, limit: float) -> trial_steps.Trial:
        plan = trial_steps.planned_step(run.profile, shape_of(run.profile.model), lengths_of(run.profile), machine)
        rows = [dict.fromkeys((f"seconds_{k}" for k in plan.step), 1.0) | {"step": n} for n in (1, 2, 3)]
        took = trial_steps.Measured(rows, dict.fromkeys(("start", "checkpoint", "resume", "save"), 1.0))
        return trial_steps.Trial([], took, plan, trial_steps.steps_table(took, plan))

    monkeypatch.setattr(doctor, "try_steps", tried)
    report = doctor.examine(open_run("smoke", root=str(tmp_path)))
    found = {f.what: f for f in report.findings}
    assert report.problems == 0 and (found["GPUs"].state, found["GPUs"].found) == ("ok", "none")
    main = psutil.virtual_memory().total / GIB
    assert found["plan"].found.startswith("this machine: ") and found["plan"].found.endswith(f"of {main:.1f} GiB of main memory")
    assert "plan (this machine)" in report.trial.table and "H100" not in doctor.findings_table(report.findings)


def test_a_turn_that_does_not_end_a_generation_is_a_problem(tmp_path: Path) -> None:
    "A template with another end than the tokenizer's; and the model's own settings may name it."
    p = open_run("smoke").profile
    shutil.copytree(model_path(p), tmp_path / "model")
    problems = get_task(p.task).problems("train", p.data_options)[:4]

    def look() -> doctor.Finding:
        return doctor.check_own_prompts(p, [], tmp_path / "model", 4096, problems)[-1]

    assert (look().what, look().state, look().found) == ("end of a turn", "ok", "<|end|>")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    end, tokenizer.eos_token = tokenizer.eos_token_id, "<|system|>"
    tokenizer.save_pretrained(tmp_path / "model")
    GenerationConfig(eos_token_id=None).save_pretrained(tmp_path / "model")
    assert look().state == "problem" and "a generation ends at <|system|>" in look().found and "eos_token_id" in look().change
    GenerationConfig(eos_token_id=[end]).save_pretrained(tmp_path / "model")
    assert look().state == "ok"
    tokenizer.pad_token = None
    assert "padding" in doctor.check_turn_end(tokenizer, [end]).found


def test_benchmarks_are_looked_at_before_the_last_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"problem": "1 + 1?", "solution": "It is $\\boxed{2}$.", "level": "Level 3", "type": "Algebra"}
    (tmp_path / "math").mkdir()
    (tmp_path / "math/test.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    p = open_run("paper", benchmarks=str(tmp_path), forgetting_tasks="MATH").profile
    monkeypatch.setattr(doctor, "check_scorer", lambda suite: {"math-verify": "0.9.0"})
    scorer, files = doctor.check_questions(p)
    assert (scorer.state, scorer.found) == ("ok", "math-verify 0.9.0")
    assert files.state == "problem" and "1 rows, not 5,000: cut off" in files.found
    (tmp_path / "rows.json").write_text('{"math/test": 1}', "utf-8")
    assert doctor.check_questions(p)[-1] == doctor.Finding(
        "benchmarks", "ok", "MATH test: 1 rows, a part of 5,000, published text: not known"
    )

    def missing(suite: Any) -> None:
        raise SettingsError("math-verify is not installed")

    monkeypatch.setattr(doctor, "check_scorer", missing)
    assert [f.state for f in doctor.check_questions(p)] == ["problem", "ok"]
    gone = p.model_copy(update={"benchmarks": str(tmp_path / "none")})
    assert "--fetch" in doctor.check_questions(gone)[-1].change and doctor.check_questions(gone)[-1].state == "problem"


def test_packages_that_clash_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.package_clashes() == []
    (info := tmp_path / "vllm-0.99.0.dist-info").mkdir()
    wants = "Requires-Dist: torch==9.9\nRequires-Dist: psutil>=900; extra == 'x'\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: 0.99.0\n{wants}", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    said = "\n".join(doctor.package_clashes())
    assert "vllm 0.99.0 wants torch==9.9" in said and "psutil" not in said
    assert "trl 1.16.0 wants vllm" in said, "TRL names the versions that it accepts"
    assert doctor.check_packages()[0].state == "problem"


def test_a_gated_name_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(name: str, **_: Any) -> None:
        raise GatedRepoError("gated", response=httpx.Response(403, request=httpx.Request("GET", "http://hub")))

    monkeypatch.setattr(huggingface_hub, "auth_check", gated)
    found = doctor.check_hub(open_run("paper", "function_calling").profile)
    assert [f.state for f in found] == ["problem", "problem"] and all("accept the licence" in f.change for f in found)


def test_the_revision_of_the_settings_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "By the check of the hub, the search for weights here, the tokenizer, and the shape that is trained."
    p, asked = open_run("paper", model="somebody/model", revision="v2", source="generate").profile, list[tuple[str, ...]]()
    config = AutoConfig.from_pretrained(model_path(open_run("smoke").profile))

    def note(what: str, answer: Any) -> Any:
        return lambda name, *_, **more: asked.append((what, name, more.get("revision", ""))) or answer

    commits = {"v2": "", "v3": "0123456789"}
    monkeypatch.setattr(huggingface_hub, "auth_check", note("access", None))
    monkeypatch.setattr(doctor, "hub_commit", lambda name, kind, revision="main": commits.get(revision))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", note("weights", str(tmp_path / "none")))
    monkeypatch.setattr(doctor, "load_tokenizer", note("tokenizer", None))
    monkeypatch.setattr(doctor, "stored_ends", lambda *_: [])
    monkeypatch.setattr(doctor, "check_prompts", lambda *_: [])
    monkeypatch.setattr(AutoConfig, "from_pretrained", note("shape", config))
    (found,) = doctor.check_hub(p)
    assert (found.state, found.what) == ("problem", "hub, model somebody/model@v2") and "no revision 'v2'" in found.found
    p = p.model_copy(update={"revision": "v3"})
    (found,) = doctor.check_hub(p)
    assert found.state == "ok" and "01234567" in found.found
    assert doctor.own_weights(p) is None and doctor.check_own_prompts(p, [found], None, 4096, []) == []
    trial_steps.write_shape(p, ["a prompt"], tmp_path / "shape")
    assert asked[-3:] == [
        ("weights", "somebody/model", "v3"), ("tokenizer", "somebody/model@v3", ""), ("shape", "somebody/model", "v3")
    ]  # fmt: skip


def test_ports_are_those_that_a_run_needs() -> None:
    "The launcher takes a port that is free; only vLLM's server needs one of a number."
    usual = open_run("smoke", processes=2, per_device_train_batch_size=8).profile
    assert doctor.check_host(usual, shape_of(usual.model), Path.cwd())[-1].found == "none needed"
    with socket.socket() as s:
        s.bind(("", 0))
        s.listen()
        own = {"use_vllm": True, "vllm_mode": "server", "vllm_group_port": s.getsockname()[1]}
        found = doctor.check_host(usual.model_copy(update=own), shape_of(usual.model), Path.cwd())[-1]
    assert found.state == "problem" and found.found == f"vllm_group_port {own['vllm_group_port']}: taken"


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A stand-in, since there is no GPU here."
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *name*) echo "NVIDIA H100 80GB HBM3, 580.95.05, 81559, 512";;\n'
        "*) while true; do echo 2048; echo 40960; sleep 0.05; done;; esac\n",
        "utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert doctor.gpus() == [doctor.Gpu("NVIDIA H100 80GB HBM3", "580.95.05", 81559 / 1024, 0.5)]
    file, ends = tmp_path / "memory.txt", time.monotonic() + patience(10)
    with trial_steps.gpu_memory(file):
        while trial_steps.most_memory(file) < 40 and time.monotonic() < ends:
            time.sleep(0.05)
    assert trial_steps.most_memory(file) == 40.0
