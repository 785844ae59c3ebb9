"""Benchmarks by other engines than transformers: the adapter on real rows, and servers that answer, fail, have another model."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faulty_server import HOST, FaultyServer
from lm_eval.api.instance import Instance
from real_benchmarks import THERE
from support import DATA, patience
from test_benchmarks import random_model

from r3_repro.analysis.forgetting import compare_items, load_results, make_forgetting
from r3_repro.config import load_profile, model_path
from r3_repro.engines.base import LOST, SamplingParams, complete
from r3_repro.engines.chat import render
from r3_repro.engines.hf import Transformers
from r3_repro.evaluation import backends, benchmarks
from r3_repro.evaluation.backends import SCORING, EngineLM, as_lm, resumable
from r3_repro.evaluation.benchmarks import dry_run_benchmarks, load_tasks, requests_of, run_benchmarks
from r3_repro.runs.layout import Run, open_run
from r3_repro.tasks.base import user
from r3_repro.tasks.suites import suite_of
from r3_repro.utils.errors import EngineError, SettingsError

TINY = model_path(load_profile("tiny"))
LIMIT = 5


@pytest.fixture(autouse=True)
def no_proxy_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", HOST)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


# ── The adapter ────────────────────────────────────────────────────────────────────────────────────────────────────────


def real_requests(tokenizer: Any, n: int) -> tuple[list[Instance], list[Instance]]:
    "Endings of HellaSwag and questions of GSM8K, rendered as chats: real rows, but without shots, which a small context holds."

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (DATA / f"data/{name}.jsonl").read_text("utf-8").splitlines()[:n]]

    render = backends.chat_renderer(tokenizer)
    stories = [(render([user(r["ctx"])]), f" {e}") for r in rows("hellaswag/validation_500anet_500wikihow") for e in r["endings"]]
    asked = [(render([user(r["question"])]), {"until": ["Question:", "</s>"], "max_gen_toks": 24}) for r in rows("gsm8k/test")]
    return [Instance("loglikelihood", {}, a, i) for i, a in enumerate(stories)], [
        Instance("generate_until", {}, a, i) for i, a in enumerate(asked)
    ]


@pytest.mark.skipif(not THERE, reason=f"no real rows in {DATA}")
@pytest.mark.parametrize("which", ["tiny", "random"])
def test_the_adapter_says_what_hflm_says_on_real_rows(which: str, tmp_path: Path) -> None:
    path = TINY if which == "tiny" else str(random_model(tmp_path))
    theirs, ours = as_lm(path, "float32", 8), EngineLM(Transformers.load(path, batch=8))
    likely, asked = real_requests(theirs.tokenizer, 6)
    if which == "random":  # its context is short, and a letter is a token
        likely, asked = ([i for i in some if len(theirs.tok_encode(i.args[0])) < 150] for some in (likely, asked))
    pairs = list(zip(theirs.loglikelihood(likely), ours.loglikelihood(likely), strict=True))
    assert pairs and max(abs(a[0] - b[0]) for a, b in pairs) < 1e-3 and [a[1] for a, _ in pairs] == [b[1] for _, b in pairs]
    assert theirs.generate_until(asked) == ours.generate_until(asked)


def test_a_special_token_among_the_stop_texts_ends_an_answer(tmp_path: Path) -> None:
    "As with `HFLM` for one answer alone: it is not in the text, and still ends it."
    path = str(random_model(tmp_path))
    ours, theirs = EngineLM(Transformers.load(path, batch=8)), as_lm(path, "float32", 1)
    said = ours.engine
    prompt = ours.apply_chat_template([user("a")])
    ids = complete(said, [ours.tok_encode(prompt)], SamplingParams(40, greedy=True), [0])[0].ids
    tokenizer = ours.tokenizer
    named = Counter(i for i in ids if i < 256)
    stop = tokenizer.convert_ids_to_tokens(named.most_common(1)[0][0])
    tokenizer.add_special_tokens({"additional_special_tokens": [stop]})
    theirs.tokenizer.add_special_tokens({"additional_special_tokens": [stop]})
    asked = [Instance("generate_until", {}, (prompt, {"until": [stop], "max_gen_toks": 40}), 0)]
    assert ours.generate_until(asked) == theirs.generate_until(asked)
    assert len(ours.generate_until(asked)[0]) < len(tokenizer.decode(ids, skip_special_tokens=True))


@pytest.mark.slow
def test_a_pool_on_ray_gives_the_answers_of_transformers(tmp_path: Path) -> None:
    how = {"forgetting_limit": LIMIT, "forgetting_batch": 4, "forgetting_tasks": "geography expression"}
    runs = [open_run("tiny", root=str(tmp_path / e), **how, **more) for e, more in (("hf", {}), ("ray", RAY))]
    for run in runs:
        run_benchmarks(run)
    one, two = (load_results(run.model_dir / "forgetting")["vanilla"] for run in runs)
    assert {b: t["correct"] for b, t in one["tasks"].items()} == {b: t["correct"] for b, t in two["tasks"].items()}
    assert two["protocol"]["backend"]["engine"] == "ray" and "backend" not in one["protocol"]


RAY = {"engine": "ray", "ray_engine": "transformers", "replicas": 2}


# ── Servers ────────────────────────────────────────────────────────────────────────────────────────────────────────────

Serve = Callable[..., FaultyServer]


@pytest.fixture(scope="module")
def model() -> Transformers:
    return Transformers.load(TINY, batch=8)


@pytest.fixture
def serve(model: Transformers) -> Iterator[Serve]:
    "Makes servers of the tiny model, which end with the test."
    made, lock = list[FaultyServer](), threading.Lock()

    def answer(prompt: Any, seed: int, max_tokens: int) -> tuple[str, list[int], str]:
        ids = render(model.tokenizer, prompt) if isinstance(prompt[0], dict) else prompt
        with lock:
            (c,) = complete(model, [ids], SamplingParams(max_tokens, greedy=True), [seed])
        return c.text, list(c.ids), c.finish

    def scores(prompt: list[int]) -> list[tuple[float, float]]:
        with lock:
            (c,) = complete(model, [prompt], SCORING, [0])
        return [(s.logprob, s.logprob if s.likeliest else s.logprob / 2) for s in c.prompt_logprobs]

    def make(**how: Any) -> FaultyServer:
        made.append(FaultyServer(answer, **{"models": (TINY,), "context": 1024, "scores": scores} | how).start())
        return made[-1]

    yield make
    for server in made:
        server.die()


def served(server: FaultyServer, root: Path, **more: Any) -> Run:
    how = {"engine": "server", "servers": server.url, "forgetting_limit": LIMIT, "forgetting_batch": 4}
    return open_run("tiny", root=str(root), **how | {"server_patience": patience(0.6)} | more)


def graded(run: Run, name: str = "vanilla") -> dict[str, str]:
    return {b: t["correct"] for b, t in load_results(run.model_dir / "forgetting")[name]["tasks"].items()}


def said(run: Run, benchmark: str) -> list[Any]:
    file = run.model_dir / f"forgetting/samples/vanilla/{benchmark}.jsonl"
    return [json.loads(line)["resps"] for line in file.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "What transformers say."
    run = open_run("tiny", root=str(tmp_path_factory.mktemp("usual")), forgetting_limit=LIMIT, forgetting_batch=4)
    run_benchmarks(run)
    return run


def test_a_server_gives_the_scores_of_transformers(serve: Serve, usual: Run, tmp_path: Path) -> None:
    run = served(serve(), tmp_path)
    run_benchmarks(run)
    assert graded(run) == graded(usual)
    for benchmark in ("word_problem", "expression"):
        assert said(run, benchmark) == said(usual, benchmark)
    for one, two in zip(said(run, "geography"), said(usual, "geography"), strict=True):
        assert [a[0][0] for a in one] == pytest.approx([b[0][0] for b in two], abs=1e-3)
    before, after = (load_results(r.model_dir / "forgetting")["vanilla"] for r in (usual, run))
    with pytest.raises(ValueError, match=r"not examined alike: protocol .*backend: transformers and .*'engine': 'server'"):
        compare_items(before, after)


def test_a_chat_server_gets_conversations_and_generates(serve: Serve, usual: Run, tmp_path: Path) -> None:
    server = serve()
    run = served(server, tmp_path, server_api="chat", forgetting_tasks="word_problem expression")
    run_benchmarks(run)
    assert graded(run) == {b: c for b, c in graded(usual).items() if b in graded(run)} and len(graded(run)) == 2
    assert all(m["role"] == "user" for body in server.asked for m in body["messages"])
    result = load_results(run.model_dir / "forgetting")["vanilla"]
    assert result["hashes"]["chat_template"] == "known to the server alone"


def test_likelihoods_are_refused_by_a_chat_server_before_it_is_asked(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    run = served(server, tmp_path, server_api="chat")
    for go in (run_benchmarks, lambda run: dry_run_benchmarks(run, tmp_path)):
        with pytest.raises(
            SettingsError, match=r"benchmark geography, daily_life compares the likelihoods.*word_problem express"
        ):
            go(run)
    assert server.looks == 0 and not server.asked


@pytest.mark.parametrize("fault", ["ignores echo", "status 400"])
def test_a_server_that_does_not_score_prompts_is_refused_at_the_start(serve: Serve, fault: str, tmp_path: Path) -> None:
    server = serve(scores=None)
    if fault != "ignores echo":
        two = Transformers.load(TINY).tokenizer.encode("two words", add_special_tokens=False)
        server.refuse = {i: fault for i in two if i not in render(Transformers.load(TINY).tokenizer, [user("Hi")])}
    with pytest.raises(SettingsError, match=r"geography, daily_life compares.*server_api = completions, or engine = vllm"):
        run_benchmarks(served(server, tmp_path))
    assert len(server.asked) <= 2 and not list(tmp_path.rglob("vanilla.json"))


def test_a_context_that_is_too_small_is_told_at_the_start(serve: Serve, tmp_path: Path) -> None:
    server = serve(context=48)
    with pytest.raises(SettingsError, match=r"server's context is 48 tokens.*--max-model-len"):
        run_benchmarks(served(server, tmp_path))


def test_a_server_that_dies_costs_what_was_under_way(serve: Serve, usual: Run, tmp_path: Path) -> None:
    server = serve()
    run = served(server, tmp_path, forgetting_batch=2)
    server.plan = [""] * 12 + ["die"]
    with pytest.raises(EngineError, match="no server has answered"):
        run_benchmarks(run)
    assert not (run.model_dir / "forgetting/vanilla.json").exists()
    server.start()
    run_benchmarks(run)
    asked = Counter(json.dumps(prompt) for prompt, _ in server.given)
    once = open_run("tiny", root=str(tmp_path / "once"), **{**run.profile.flat(), "servers": serve().url})
    run_benchmarks(once)
    assert graded(run) == graded(once) == graded(usual)
    assert sum(n > 1 for p, n in asked.items()) <= 2 + 2, "more than what was under way, and the two questions of the start"


def test_a_model_is_examined_at_a_server_that_has_it_under_its_name(serve: Serve, usual: Run, tmp_path: Path) -> None:
    server = serve()
    run = served(server, tmp_path)
    trained = run.model_dir / "training/r3-seed0"
    shutil.copytree(TINY, trained / "model")
    (trained / "manifest.json").write_text("{}", "utf-8")
    with pytest.raises(
        SettingsError, match=r"has a model named .* is to be examined: serve it under that name \(vllm serve .*r3"
    ):
        run_benchmarks(run)
    assert graded(run) == graded(usual)  # of vanilla, which is kept
    other = served(serve(models=(str(trained / "model"),)), tmp_path)
    assert run_benchmarks(other) == ["vanilla", "r3-seed0"]
    assert graded(other, "r3-seed0") == graded(usual)


def test_an_answer_that_no_server_gives_is_wrong_and_counted(
    serve: Serve, usual: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    server = serve()
    run = served(server, tmp_path, forgetting_tasks="word_problem")
    tasks, manager = load_tasks(suite_of("tiny", ("word_problem",)), tmp_path)
    lm = EngineLM(Transformers.load(TINY))
    prompts = [set(lm.tok_encode(r.args[0])) for r in requests_of(tasks[0], manager, lm.tokenizer, LIMIT)]
    right = graded(usual)["word_problem"]
    place, token = next(
        (i, t) for i, p in enumerate(prompts) for t in sorted(p) if right[i] == "1" and sum(t in q for q in prompts) == 1
    )
    server.refuse, server.code, server.message = {token: "status 400"}, "content_filter", "The prompt was filtered"
    with pytest.warns(UserWarning, match="counts as lost"):
        run_benchmarks(run)
    assert graded(run)["word_problem"] == right[:place] + "0" + right[place + 1 :]
    manifest = json.loads((run.model_dir / "forgetting/vanilla.manifest.json").read_text("utf-8"))
    assert manifest["lost_answers"] == 1
    assert "1 answers were lost and count as wrong" in capsys.readouterr().out
    run_benchmarks(
        replace(run, arm="r3"), {"r3-seed0": (replace(run, arm="r3"), str(TINY))}
    )  # to be compared, of the same weights
    make_forgetting(run.model_dir)
    assert "answers were lost by a server" in (run.model_dir / "tables/forgetting.md").read_text("utf-8")


def test_a_lost_answer_is_not_kept_and_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, usual = Transformers.load(TINY), EngineLM._answers
    asked = [Instance("generate_until", {}, (f"Compute {k} + 1.", {"max_gen_toks": 6, "until": []}), 0) for k in range(3)]
    right, first = EngineLM(engine).generate_until(asked), EngineLM(engine)

    def lossy(self: EngineLM, requests: Iterator[Any], total: int, label: str) -> Iterator[tuple[int, Any]]:
        for i, answer in usual(self, requests, total, label):
            yield i, replace(answer, text="", ids=(), finish=LOST) if i == 1 else answer

    with monkeypatch.context() as m:
        m.setattr(EngineLM, "_answers", lossy)
        assert resumable(first, tmp_path / "answers.db").generate_until(asked) == [right[0], "", right[2]]
    assert len(first.lost) == 1 and right[1]
    numbers = list[int]()

    def counted(self: EngineLM, requests: Iterator[Any], total: int, label: str) -> Iterator[tuple[int, Any]]:
        numbers.append(total)
        return usual(self, requests, total, label)

    monkeypatch.setattr(EngineLM, "_answers", counted)
    again = EngineLM(engine)
    assert resumable(again, tmp_path / "answers.db").generate_until(asked) == right
    assert numbers == [1] and not again.lost


def test_a_dry_run_prices_what_a_server_does(serve: Serve, tmp_path: Path) -> None:
    priced = dry_run_benchmarks(served(serve(delay=lambda n: 0.05), tmp_path), tmp_path)
    assert list(priced["items"]) == [LIMIT] * 4 and (priced["s an item"] >= 0.01).all()


def test_a_dry_run_times_no_more_items_than_are_asked(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []
    monkeypatch.setattr(benchmarks, "batch_of", lambda p: 256)
    monkeypatch.setattr(benchmarks, "timed_benchmark", lambda *a: timed.append(a[-1]) or (0.1, ""))
    dry_run_benchmarks(served(serve(), tmp_path), tmp_path)
    assert timed == [LIMIT] * 4


def test_a_missing_package_is_named_before_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(benchmarks, "read_questions", lambda *_: pytest.fail("files were read"))
    with pytest.raises(SettingsError, match=r"engine = vllm, but vllm is not installed"):
        run_benchmarks(open_run("tiny", root=str(tmp_path), engine="vllm"))
