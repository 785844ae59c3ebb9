"""A whole study as a rented box runs it, and the doctor with two processes: `make test-box`, which takes minutes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from support import environment, patience
from test_box import start as start_box
from test_doctor import states
from transformers import Qwen2Config

from r3_repro.planning.memory import lengths_of
from r3_repro.runs.layout import open_run


def examined(root: Path, *args: str) -> tuple[int, str, dict[str, Any]]:
    "Exit code, output and report of a doctor; nothing else may be left in its root."
    line = [sys.executable, "-m", "r3_repro", "doctor", "--profile", "smoke", "--root", str(root), *args]
    how: dict[str, Any] = {"cwd": root, "env": environment(root, OMP_NUM_THREADS="1"), "timeout": patience(300)}
    done = subprocess.run([*line, "--json", str(root / "report.json")], capture_output=True, encoding="utf-8", **how)
    said = done.stdout + done.stderr
    assert sorted(f.name for f in root.iterdir()) == ["report.json", "shape"], said[-3000:]
    return done.returncode, said, json.loads((root / "report.json").read_text("utf-8"))


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def test_a_box_is_lost_while_it_trains(tmp_path: Path) -> None:
    "The tiny model: killed once its failures are in the bucket; another box, with an empty disk, does the rest."
    model, shared = "smoke/countdown/tiny-a", tmp_path / "bucket"
    (quick := tmp_path / "no-doctor").write_text('#!/bin/bash\n[[ $3 == doctor ]] || exec "$REAL" "$@"\n', "utf-8")
    quick.chmod(0o755)
    lost = start_box(tmp_path, PYTHON=str(quick), R3_BACK_EVERY="0.2")
    mined, ends = shared / model / "failures/manifest.json", time.monotonic() + patience(200)
    while not mined.is_file() and lost.poll() is None and time.monotonic() < ends:
        time.sleep(0.05)
    os.killpg(lost.pid, signal.SIGKILL)
    said, _ = lost.communicate()
    assert mined.is_file() and not (shared / model / "tables/verdicts.csv").is_file(), said[-3000:]
    before = mined.read_bytes()
    shutil.rmtree(tmp_path / "disk")

    process = start_box(tmp_path)
    said, _ = process.communicate(timeout=patience(500))
    assert process.returncode == 0 and "everything done" in said, said[-4000:]
    assert mined.read_bytes() == before, "mined again"
    executed = {f.name[:2] for f in (shared / model / "notebooks").glob("*.ipynb")}
    assert executed == {"01", "02", "03", "04", "05", "06"} and (shared / model / "tables/verdicts.csv").is_file()
    assert (shared / model / "training/r3-seed0/model/model.safetensors").is_file()
    assert json.loads((shared / "doctor.json").read_text("utf-8"))["stage"] == "doctor"


def test_two_processes_and_random_weights_of_a_shape(tmp_path: Path) -> None:
    "Answers run to their limits, the prompts have the planned length, and each is forwarded once for its group."
    (shape := tmp_path / "shape").mkdir()
    Qwen2Config(vocab_size=5000, max_position_embeddings=4096, **SMALL).save_pretrained(shape)
    sets = ["--set", "processes=2", "--set", "per_device_train_batch_size=8"]
    code, said, report = examined(tmp_path, "--model", str(shape), "--task", "function_calling", *sets)
    rows, p = report["measured"]["rows"], open_run("smoke", "function_calling").profile
    assert report["weights"] == "random" and [r["step"] for r in rows] == [1, 2, 3], said[-3000:]
    assert {r["reflection_tokens_mean"] for r in rows} == {float(p.max_reflection_tokens)}
    assert {round(r["retry_tokens_mean"]) for r in rows} == {p.max_answer_tokens}
    prompt = lengths_of(p).prompt + p.max_answer_tokens
    assert min(r["forward_tokens"] for r in rows) > 2 * prompt, "two groups in each process"
    assert min(r["forward_tokens"] for r in rows) < 8 * prompt / 2, "and no prompt more than once for each"
    assert code == 1 and states(report)["chat template"] == "problem", "the folder has no tokenizer"
