"""Servers that answer, are slow, lie, refuse and die: for real, over loopback."""

import json
import random
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_server import BROKEN, HOST, NO_HTTP, ODD, ODD_CHATS, FaultyServer, letters, number
from support import patience

from r3_repro.config import load_profile, model_path
from r3_repro.engines.base import Completion, Request, SamplingParams, complete, stream
from r3_repro.engines.chat import load_tokenizer, render
from r3_repro.engines.server import TRIES, Servers, open_servers
from r3_repro.evaluation.episodes import draw_seed, run_episodes
from r3_repro.tasks.base import attempt_messages, get_task, user
from r3_repro.tasks.function_calling.parser import Call, parse_calls
from r3_repro.utils.errors import EngineError, SettingsError

PATH = model_path(load_profile("smoke"))
TOKENIZER = load_tokenizer(PATH)
END = TOKENIZER.eos_token_id
ANSWER = letters([TOKENIZER.convert_tokens_to_ids(x) for x in "abcdefghijklmnop"], END, TOKENIZER.decode)
PROMPTS = [[user(f"Write {n}.")] for n in range(30)]
SEEDS = list(range(1000, 1030))
SHORT = SamplingParams(16)


@pytest.fixture(autouse=True)
def no_proxy_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", HOST)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., FaultyServer]]:
    "Makes servers, which end with the test."
    made: list[FaultyServer] = []

    def make(**settings: Any) -> FaultyServer:
        made.append(FaultyServer(ANSWER, **settings).start())
        return made[-1]

    yield make
    for server in made:
        server.die()


@pytest.fixture
def connect() -> Iterator[Callable[..., Servers]]:
    "Opens engines, which are closed with the test; afterwards the servers have forgotten the opening."
    made: list[Servers] = []

    def make(*asked: FaultyServer, **settings: Any) -> Servers:
        urls = tuple(s.url for s in asked)
        limits = {"rest": 0.02, "retries": 0, "patience": patience(10), "timeout": patience(5)}
        made.append(open_servers(urls, PATH, **limits | settings))
        for s in asked:
            s.reset()
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def expected(prompts: list[Any] = PROMPTS, seeds: list[int] = SEEDS, sampling: SamplingParams = SHORT) -> list[Completion]:
    "What the servers answer if nothing fails."
    out = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        text, ids, finish = ANSWER(render(TOKENIZER, prompt), seed, sampling.max_tokens)
        out.append(Completion(text, tuple(ids), finish, len(ids)))
    return out


def failures(engine: Servers) -> Counter:
    return sum((Counter(s["failures"]) for s in engine.stats.values()), Counter())


# ── What is asked and what comes back ──────────────────────────────────────────────────────────────────────────────


def test_answers_come_back_with_their_token_ids(serve: Any, connect: Any) -> None:
    server = serve()
    engine = connect(server)
    assert (engine.model, engine.context, engine.pending) == ("tiny", 256, 0)
    assert complete(engine, PROMPTS, SHORT, SEEDS) == expected()
    assert all(c.ids[-1] == END for c in expected()) and engine.pending == 0
    assert engine.stats[server.url] == {"answered": 30, "lost": 0, "odd": {}, "retries": 0, "failures": {}}


def test_answers_that_are_cut(serve: Any, connect: Any) -> None:
    short = SamplingParams(2)
    got = complete(connect(serve()), PROMPTS, short, SEEDS)
    assert got == expected(sampling=short) and {c.finish for c in got} == {"stop", "length"}


def test_prompts_may_be_token_ids(serve: Any, connect: Any) -> None:
    assert complete(connect(serve()), [render(TOKENIZER, p) for p in PROMPTS], SHORT, SEEDS) == expected()


def test_nothing_is_left_to_the_servers_defaults(serve: Any, connect: Any) -> None:
    server = serve()
    engine = connect(server)
    ((_, (answer,)),) = stream(
        engine, [Request("x", PROMPTS[0], SamplingParams(16, top_p=0.5, stop=("zz",), logprobs=True), seed=3)]
    )
    (asked,) = server.asked
    assert asked == {
        "model": "tiny",
        "prompt": render(TOKENIZER, PROMPTS[0]),
        "max_tokens": 16,
        "temperature": 1.0,
        "top_p": 0.5,
        "seed": 3,
        "stream": False,
        "stop": ["zz"],
        "logprobs": 1,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "return_token_ids": True,
    }
    assert answer.logprobs == tuple(-0.25 * (1 + i) for i in range(len(answer.ids)))
    complete(engine, PROMPTS[:1], SamplingParams(16, greedy=True, temperature=0.7, top_p=0.5), [0])
    assert (server.asked[-1]["temperature"], server.asked[-1]["top_p"]) == (0.0, 1.0)


def test_several_answers_are_those_of_the_seeds_one_by_one(serve: Any, connect: Any) -> None:
    a, b = serve(), serve()
    ((key, got),) = stream(connect(a, b, concurrency=2), [Request(("a", 1), PROMPTS[0], SHORT, seed=7, n=9)])
    assert key == ("a", 1) and got == expected([PROMPTS[0]] * 9, list(range(7, 16)))
    assert a.asked and b.asked and all("n" not in body for body in a.asked + b.asked)


@pytest.mark.parametrize("usage", [True, False])
def test_a_server_that_tells_no_token_ids(serve: Any, connect: Any, usage: bool) -> None:
    got = complete(connect(serve(tells_ids=False, tells_usage=usage)), PROMPTS, SHORT, SEEDS)
    assert [(c.text, c.finish) for c in got] == [(c.text, c.finish) for c in expected()] and all(c.ids == () for c in got)
    if usage:
        assert [c.tokens for c in got] == [c.tokens for c in expected()]
    else:
        assert [c.tokens for c in got] == [len(TOKENIZER(c.text, add_special_tokens=False)["input_ids"]) + 1 for c in got]


def test_a_server_that_refuses_extensions_gets_plain_requests(serve: Any, connect: Any) -> None:
    server = serve(knows=False)
    with pytest.warns(UserWarning, match="refuses min_p, repetition_penalty, return_token_ids, top_k: its own defaults apply"):
        engine = connect(server)
        got = complete(engine, PROMPTS, SHORT, SEEDS)
    assert [c.text for c in got] == [c.text for c in expected()] and len(server.asked) == 30


def test_chat(serve: Any, connect: Any) -> None:
    server = serve(context=None)
    engine = connect(server, api="chat")
    assert engine.tokenizer is None and engine.context == 10**9
    tools = [{"type": "function", "function": {"name": "look_up", "description": "", "parameters": {"type": "object"}}}]
    prompts = [*PROMPTS, [user("Find it.") | {"tools": json.dumps(tools)}]]
    got = complete(engine, prompts, SamplingParams(16, logprobs=True), [*SEEDS, 1])
    sent = {body["seed"]: body["messages"] for body in server.asked}
    for prompt, seed, c in zip(PROMPTS, SEEDS, got, strict=False):
        text, ids, finish = ANSWER(prompt, seed, 16)
        assert sent[seed] == prompt and (c.text, c.ids, c.finish, c.tokens) == (text, (), finish, len(ids))
        assert c.logprobs is not None and len(c.logprobs) == len(ids)
    (written,) = sent[1]
    assert (
        written.keys() == {"role", "content"} and '"look_up"' in written["content"] and "Request: Find it." in written["content"]
    )
    with pytest.raises(ValueError, match="not token ids"):
        engine.submit(Request("x", [1, 2], SHORT))
    with pytest.raises(SettingsError, match="tool_format = template"):
        open_servers((server.url,), api="chat", tool_format="template")


def test_a_prompt_that_does_not_fit_is_refused_before_it_is_sent(serve: Any, connect: Any) -> None:
    server = serve(context=40)
    engine = connect(server)
    with pytest.raises(ValueError, match="context of 40"):
        engine.submit(Request("x", PROMPTS[0], SamplingParams(39)))
    assert engine.pending == 0 and engine.collect() == [] and server.asked == []


def test_the_context_is_the_smallest_of_all_or_the_models_own(serve: Any, connect: Any) -> None:
    assert connect(serve(context=200), serve(context=100), serve(context=None)).context == 100
    assert (
        connect(serve(context=None)).context
        == json.loads((Path(PATH) / "config.json").read_text("utf-8"))["max_position_embeddings"]
    )


# ── How many at once, and where ────────────────────────────────────────────────────────────────────────────────────


def test_the_order_and_the_servers_do_not_matter_nothing_is_lost_or_doubled(serve: Any, connect: Any) -> None:
    rng = random.Random(0)
    jitter = [rng.random() * 0.03 for _ in range(300)]
    a, b = serve(delay=lambda n: jitter[n]), serve(delay=lambda n: jitter[-1 - n])
    engine = connect(a, b, concurrency=8)
    requests = [Request(i, p, SHORT, s, n=1 + i % 4) for i, (p, s) in enumerate(zip(PROMPTS, SEEDS, strict=True))]
    for order in (requests, requests[::-1], rng.sample(requests, len(requests))):
        a.reset(), b.reset()
        got = list(stream(engine, order))
        assert sorted(key for key, _ in got) == list(range(30))
        for key, answers in got:
            n = 1 + key % 4
            assert answers == expected([PROMPTS[key]] * n, list(range(SEEDS[key], SEEDS[key] + n)))
        given = Counter((json.dumps(p), s) for p, s in a.given + b.given)
        assert len(given) == sum(r.n for r in requests) and set(given.values()) == {1}
        assert a.given and b.given


def test_no_more_are_under_way_than_concurrency_allows(serve: Any, connect: Any) -> None:
    a, b = (serve(delay=lambda n: patience(0.1)) for _ in range(2))
    engine = connect(a, b, concurrency=4)
    assert complete(engine, PROMPTS, SHORT, SEEDS) == expected()
    assert (a.most, b.most) == (4, 4)


def test_room_shrinks_and_grows(serve: Any, connect: Any) -> None:
    engine = connect(serve(), serve(), concurrency=4)
    assert engine.capacity == 16
    engine.submit(Request("a", PROMPTS[0], SHORT, n=3))
    assert engine.capacity == 13 and engine.pending == 1
    assert len(engine.collect()) == 1 and engine.capacity == 16 and engine.pending == 0


def test_a_slow_server_gets_fewer_requests(serve: Any, connect: Any) -> None:
    slow, fast = serve(delay=lambda n: 0.2), serve(delay=lambda n: 0.005)
    assert complete(connect(slow, fast, concurrency=2), PROMPTS, SHORT, SEEDS) == expected()
    assert 0 < len(slow.given) < len(fast.given)


# ── Failures that pass ─────────────────────────────────────────────────────────────────────────────────────────────

PASSING = {
    **{f"status {n}": f"status {n}" for n in (408, 429, 500, 503)},
    **dict.fromkeys(["garbage", *BROKEN], "broken answer"),
    **dict.fromkeys(["truncated", "reset", *NO_HTTP], "connection"),
}


@pytest.mark.parametrize("fault", PASSING)
def test_one_server_fails_three_times_and_recovers(serve: Any, connect: Any, fault: str) -> None:
    server = serve()
    engine = connect(server, concurrency=4)
    server.plan = [fault] * 3
    assert complete(engine, PROMPTS, SHORT, SEEDS) == expected()
    assert failures(engine) == {PASSING[fault]: 3} and engine.stats[server.url]["answered"] == 30
    assert 30 <= len(server.given) <= 33, "where nothing was answered meanwhile, it is asked for its model and a few tokens again"


@pytest.mark.parametrize("fault", PASSING)
def test_one_server_always_fails_the_other_answers(serve: Any, connect: Any, fault: str) -> None:
    bad, good = serve(), serve(delay=lambda n: 0.005)
    engine = connect(bad, good, concurrency=4)
    bad.fault = fault
    assert complete(engine, PROMPTS, SHORT, SEEDS) == expected()
    assert engine.stats[good.url]["answered"] == 30 and engine.stats[bad.url]["answered"] == 0
    assert 1 <= failures(engine)[PASSING[fault]] <= 15, "a failing server is to be left alone"


@pytest.mark.parametrize("fault", [*PASSING, "slow"])
def test_the_only_server_always_fails(serve: Any, connect: Any, fault: str) -> None:
    server, timeout = serve(), patience(0.4 if fault == "slow" else 5)
    engine = connect(server, concurrency=4, patience=0.5, timeout=timeout)
    assert complete(engine, PROMPTS[:5], SHORT, SEEDS[:5]) == expected()[:5]
    server.fault, server.slow = fault, 2 * timeout
    began = time.monotonic()
    with pytest.raises(EngineError) as e:
        complete(engine, PROMPTS, SHORT, SEEDS)
    assert 0.4 < time.monotonic() - began < patience(20)
    kind = PASSING.get(fault, f"no answer within {timeout:g} s").replace("status ", "").replace("connection", "no connection")
    for part in (server.url, kind, "no server has answered for 0.5 s", "start again: finished work is kept"):
        assert part in str(e.value)
    with pytest.raises(EngineError):  # it stays so
        engine.collect()
    with pytest.raises(EngineError):
        engine.submit(Request("x", PROMPTS[0], SHORT))


def test_the_package_itself_asks_again(serve: Any, connect: Any) -> None:
    server = serve()
    engine = connect(server, retries=2, concurrency=1)
    server.plan = ["status 500", "status 429", "", "status 503"]
    assert complete(engine, PROMPTS, SHORT, SEEDS) == expected()
    assert engine.stats[server.url] == {"answered": 30, "lost": 0, "odd": {}, "retries": 3, "failures": {}}


def test_it_waits_as_long_as_the_server_says(serve: Any, connect: Any) -> None:
    server = serve()
    engine = connect(server, retries=1)
    server.headers, server.plan = {"Retry-After": "1"}, ["status 429"]
    began = time.monotonic()
    assert complete(engine, PROMPTS[:1], SHORT, SEEDS[:1]) == expected()[:1]
    assert time.monotonic() - began >= 1 and engine.stats[server.url]["retries"] == 1


def test_repetitions_of_requests_that_fail_in_the_end_are_counted(serve: Any, connect: Any) -> None:
    server = serve()
    engine = connect(server, retries=1)
    server.plan = ["status 500"] * 2
    assert complete(engine, PROMPTS[:1], SHORT, SEEDS[:1]) == expected()[:1]
    counts = engine.stats[server.url]
    assert (counts["answered"], counts["retries"], counts["failures"]) == (1, 1, {"status 500": 1})


def test_a_request_that_hangs_goes_to_another_server(serve: Any, connect: Any) -> None:
    hung, good = serve(), serve()
    engine = connect(hung, good, timeout=0.3, retries=5)
    hung.fault = "slow"
    assert complete(engine, PROMPTS, SHORT, SEEDS) == expected()
    assert engine.stats[good.url]["answered"] == 30 and failures(engine).keys() == {"timeout"}


def test_two_servers_that_fail_at_random(serve: Any, connect: Any) -> None:
    rng = random.Random(1)
    faults = ["status 500", "status 429", "garbage", "truncated", "no text", "reset", *[""] * 6]
    a, b = serve(), serve()
    engine = connect(a, b, concurrency=4, patience=patience(10))
    a.plan, b.plan = ([rng.choice(faults) for _ in range(60)] for _ in range(2))
    got = list(stream(engine, (Request(i, p, SHORT, s) for i, (p, s) in enumerate(zip(PROMPTS, SEEDS, strict=True)))))
    assert sorted(k for k, _ in got) == list(range(30)) and [c for _, (c,) in sorted(got)] == expected()
    assert sum(failures(engine).values()) > 3


# ── Servers that die and come back ─────────────────────────────────────────────────────────────────────────────────


def test_one_server_dies_in_the_middle(serve: Any, connect: Any) -> None:
    doomed, good = serve(delay=lambda n: 0.01), serve(delay=lambda n: 0.01)
    engine = connect(doomed, good, concurrency=4)
    doomed.plan = [""] * 6 + ["die"]
    got = list(stream(engine, (Request(i, p, SHORT, s) for i, (p, s) in enumerate(zip(PROMPTS, SEEDS, strict=True)))))
    assert doomed.http is None and sorted(k for k, _ in got) == list(range(30)), "lost or doubled"
    assert [c for _, (c,) in sorted(got)] == expected()
    assert 3 <= engine.stats[doomed.url]["answered"] <= 9 and engine.stats[doomed.url]["failures"].keys() == {"connection"}
    assert sum(s["answered"] for s in engine.stats.values()) == 30


def test_a_server_that_comes_back_is_used_again_and_asked_for_its_model_first(serve: Any, connect: Any) -> None:
    gone, good = serve(), serve(delay=lambda n: 0.01)
    engine = connect(gone, good, concurrency=2)
    gone.die()
    assert complete(engine, PROMPTS, SHORT, SEEDS) == expected()
    gone.start()
    deadline = time.monotonic() + patience(20)
    while not gone.given and time.monotonic() < deadline:
        assert complete(engine, PROMPTS[:8], SHORT, SEEDS[:8]) == expected()[:8]
    assert gone.given and gone.looks == 1


def test_a_server_that_comes_back_with_another_model_ends_the_run(serve: Any, connect: Any) -> None:
    gone, good = serve(), serve(delay=lambda n: 0.01)
    engine = connect(gone, good, concurrency=2)
    gone.die()
    assert complete(engine, PROMPTS, SHORT, SEEDS) == expected()
    gone.start(models=("other",))
    with pytest.raises(EngineError, match=f"{gone.port}.* serves 'other', another server 'tiny'"):
        for _ in range(200):
            complete(engine, PROMPTS[:8], SHORT, SEEDS[:8])
    assert gone.given == []


def test_the_only_server_is_started_again_in_time(serve: Any, connect: Any) -> None:
    server = serve()
    engine = connect(server, patience=patience(20))
    server.plan = [""] * 10 + ["die"]

    def revive() -> None:
        while server.http is not None:
            time.sleep(0.05)
        server.start()

    threading.Thread(target=revive, daemon=True).start()
    assert complete(engine, PROMPTS, SHORT, SEEDS) == expected()
    assert engine.stats[server.url]["answered"] == 30


def test_all_servers_die(serve: Any, connect: Any) -> None:
    a, b = serve(), serve()
    engine = connect(a, b, concurrency=2, patience=0.5)
    a.plan, b.plan = [""] * 5 + ["die"], [""] * 5 + ["die"]
    done = []
    with pytest.raises(EngineError) as e:
        for key, answers in stream(engine, (Request(i, p, SHORT, SEEDS[i]) for i, p in enumerate(PROMPTS))):
            done.append((key, answers))
    assert 8 <= len(done) <= 12, "what was finished is handed out first"
    assert all(answers == [expected()[key]] for key, answers in done)
    assert a.url in str(e.value) and b.url in str(e.value) and "no connection" in str(e.value)


def test_requests_under_way_before_a_failure_are_waited_for(serve: Any, connect: Any) -> None:
    "One broken connection while long answers are being generated does not start the clock."
    server, arrived = serve(), threading.Event()
    engine = connect(server, concurrency=4, patience=0.2)

    def delay(n: int) -> float:  # the first breaks when all four are at the server
        arrived.set() if n == 3 else None
        return 0 if n == 0 and arrived.wait(patience(20)) else 1.5

    server.delay, server.plan = delay, ["reset"]
    assert complete(engine, PROMPTS[:4], SHORT, SEEDS[:4]) == expected()[:4]


# ── Opening ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_opening_needs_one_server(serve: Any, connect: Any) -> None:
    down, good = serve(), serve(delay=lambda n: 0.01)
    down.die()
    engine = connect(down, good, concurrency=2)
    assert complete(engine, PROMPTS, SHORT, SEEDS) == expected()
    down.start()
    deadline = time.monotonic() + patience(20)
    while not down.given and time.monotonic() < deadline:
        complete(engine, PROMPTS[:8], SHORT, SEEDS[:8])
    assert down.looks == 1 and down.given


def test_opening_waits_for_a_server_that_is_still_starting(serve: Any, connect: Any) -> None:
    server = serve()
    server.die()
    threading.Timer(0.4, server.start).start()
    assert complete(connect(server, patience=patience(20)), PROMPTS, SHORT, SEEDS) == expected()


def test_opening_without_any_server(serve: Any, connect: Any) -> None:
    down = serve()
    down.die()
    with pytest.raises(EngineError, match=f"no server has answered for 0.5 s.*{down.port}.*no connection"):
        connect(down, patience=0.5)
    assert not [t for t in threading.enumerate() if t.name == "servers"]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({}, {"models": ("other",)}, "another server"),
        ({"models": ()}, None, "serves no model"),
        ({"models": ("a", "b")}, None, r"several models \(a, b\)"),
        ({"key": "right"}, None, "OPENAI_API_KEY"),
        ({"context": 16}, None, "context"),
    ],
)
def test_opening_servers_that_cannot_be_used(serve: Any, connect: Any, first: dict, second: dict | None, said: str) -> None:
    made = [serve(**settings) for settings in (first, second) if settings is not None]
    for server in made:
        server.refuse = {TOKENIZER.bos_token_id: "status 400"} if "context" in first else {}
        server.message = "maximum context length is 16 tokens"
    with pytest.raises(EngineError, match=said):
        connect(*made)


def test_the_model_is_found_among_several_by_its_name(serve: Any, connect: Any) -> None:
    assert connect(serve(models=("other", PATH))).model == PATH


def test_a_model_of_another_vocabulary_is_noticed(serve: Any, connect: Any) -> None:
    server = serve()
    server.answer = lambda *_: ("Paris", [9, 10, 11], "stop")
    with pytest.raises(EngineError, match=r"not the profile's model.*'Paris' there"):
        connect(server)


@pytest.mark.parametrize("address", ["http://a:port/v1", "http://[/v1", "http:///v1"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(SettingsError, match=r"servers = .* is not an address"):
        open_servers((address,), api="chat")


def test_an_address_without_v1(serve: Any, connect: Any) -> None:
    server = serve()
    with pytest.raises(EngineError, match="may lack /v1"):
        open_servers((server.url.removesuffix("/v1"),), PATH, patience=0.2)


def test_a_server_that_joins_with_a_smaller_context_ends_the_run(serve: Any, connect: Any) -> None:
    late, good = serve(context=100), serve(delay=lambda n: 0.01)
    late.die()
    engine = connect(late, good, concurrency=2)
    late.start()
    with pytest.raises(EngineError, match="context of 100 tokens, other servers 256"):
        for _ in range(200):
            complete(engine, PROMPTS[:8], SHORT, SEEDS[:8])


# ── Refusals ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "advice"),
    [(400, "max-model-len"), (401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "another name"), (422, "server_api")],
)
def test_a_refusal_ends_the_run_at_once(serve: Any, connect: Any, status: int, advice: str) -> None:
    server, other = serve(), serve()
    engine = connect(server, other, retries=2)
    server.plan, server.message = [f"status {status}"], "This model's maximum context length is 256 tokens"
    with pytest.raises(EngineError) as e:
        complete(engine, PROMPTS, SHORT, SEEDS)
    for part in (server.url, "refused request", str(status), server.message, advice):
        assert part in str(e.value)
    assert sum(f.startswith("status") for f in failures(engine)) == 1 and server.plan == []


def test_a_model_that_is_no_longer_served(serve: Any, connect: Any) -> None:
    server = serve()
    engine = connect(server)
    server.models = ("other",)
    with pytest.raises(EngineError, match="The model `tiny` does not exist"):
        complete(engine, PROMPTS, SHORT, SEEDS)


def test_the_key_is_sent_and_never_shown(serve: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(key="right-one")
    monkeypatch.setenv("OPENAI_API_KEY", "right-one")
    engine = connect(server)
    assert complete(engine, PROMPTS, SHORT, SEEDS) == expected()
    server.key = "changed"  # it answers with the key that it was sent
    with pytest.raises(EngineError, match=r"401 wrong key: Bearer \*\*\*") as e:
        complete(engine, PROMPTS, SHORT, SEEDS)
    assert "right-one" not in str(e.value) and "right-one" not in repr(engine.stats)


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match=r"'http://a:8000/v1' .*OPENAI_API_KEY") as e:
        open_servers(("http://me:secret@a:8000/v1",), api="chat")
    assert "secret" not in str(e.value)


# ── Odd answers ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("api", "kind"), [*(("chat", k) for k in ODD | ODD_CHATS), *(("completions", k) for k in ODD)])
def test_an_unusual_answer_is_read_and_counted(serve: Any, connect: Any, api: str, kind: str) -> None:
    server = serve(tells_ids=False)
    engine = connect(server, api=api)
    _, text, finish, counted = (ODD | ODD_CHATS)[kind]
    usual = complete(engine, PROMPTS[:3], SHORT, SEEDS[:3])
    server.plan = ["", kind, ""]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        got = [complete(engine, [p], SHORT, [s])[0] for p, s in zip(PROMPTS, SEEDS[:3], strict=False)]
        engine.close()
    assert [got[0], got[2]] == [usual[0], usual[2]] and failures(engine) == {}
    assert got[1].text == (usual[1].text if text is None else text) and got[1].finish == (finish or usual[1].finish)
    assert engine.stats[server.url]["odd"] == ({counted: 1} if counted else {})
    assert [str(w.message) for w in told] == (
        [f"{server.url}, request '0': {counted}; such answers are counted", f"{server.url}: 6 answers; 1 {counted}"]
        if counted
        else []
    )


def test_a_call_that_the_server_has_read_is_written_back_in_the_format_that_was_asked_for(serve: Any, connect: Any) -> None:
    server = serve()
    engine = connect(server, api="chat", tool_format="hermes")
    server.fault = "a call"
    with pytest.warns(UserWarning, match="tool calls"):
        (got,) = complete(engine, PROMPTS[:1], SHORT, [1])
        engine.close()
    assert got.text == '<tool_call>\n{"name": "look_up", "arguments": {"of": "x"}}\n</tool_call>'
    assert parse_calls(got.text).calls == (Call("look_up", {"of": "x"}),)


def ask_all(engine: Servers, prompts: list[Any]) -> tuple[dict[int, Completion], list[str]]:
    "Completions by place, and what was told."
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        requests = (Request(i, p, SHORT, i) for i, p in enumerate(prompts))
        got = {key: answer for key, (answer,) in stream(engine, requests)}
        engine.close()
    return got, [str(w.message) for w in told]


NAMED = {
    "status 500": "500 out of order",
    "no choices": "choices: none", "choices missing": "choices: none", "choices null": "choices: Input should be",
    "an error with status 200": "error: upstream is gone", "no text": "choices.0.message: missing",
    "message null": "choices.0.message: missing", "text of a wrong type": "choices.0.message.content: 'int' is not text",
    "a part that is an image": "choices.0.message.content.1: 'image_url' is not text",
    "a call without a name": "choices.0.message.tool_calls.0.function.name: Field required",
    "aborted": "choices.0.finish_reason: 'abort' is none of", "an unknown end": "choices.0.finish_reason: 'tired' is none of",
    "an end of a wrong type": "choices.0.finish_reason: Input should be", "a list": "body: Input should be",
    "a stream that breaks off": "finish_reason: the stream broke off", "a stream with an error": "error: upstream is gone",
}  # fmt: skip
GONE = Completion("", (), "lost", 0)


@pytest.mark.parametrize(
    ("fault", "api", "concurrency"),
    [
        *((f, "chat", 4) for f in ["status 500", *BROKEN]),
        *((f, "completions", 1) for f in ("status 500", "no text", "an unknown end")),
    ],
)
def test_an_answer_that_is_never_understood_costs_that_answer_alone(
    serve: Any, connect: Any, fault: str, api: str, concurrency: int
) -> None:
    server = serve()
    engine = connect(server, concurrency=concurrency, api=api, patience=patience(30))
    server.refuse = {12 if api == "completions" else "Bad.": fault}
    good, bad = ([1, 13], [1, 12]) if api == "completions" else ([user("Good.")], [user("Bad.")])
    n = 25 * concurrency + 10
    got, told = ask_all(engine, [bad if i == 5 else good for i in range(n)])
    assert [k for k, c in got.items() if c == GONE] == [5] and len(got) == n
    assert engine.stats[server.url]["lost"] == 1 and failures(engine)[PASSING.get(fault, fault)] >= TRIES
    assert told[0].startswith(f"{server.url} has no answer to request '5': ") and told[0].endswith("counts as lost")
    assert api == "completions" or NAMED[fault] in told[0]
    assert told[-1] == f"{server.url}: {n - 1} answers; 1 lost"


@pytest.mark.parametrize("fault", ["an error with status 200", "an unknown end", "status 500"])
def test_the_last_requests_do_not_end_the_run_nor_any_restart(serve: Any, connect: Any, fault: str) -> None:
    "Nothing else is answered any more, as after a restart: the first question shows that the server works."
    server = serve()
    engine = connect(server, api="chat", patience=patience(0.6), concurrency=4)
    server.refuse = {"Bad.": fault}
    got, told = ask_all(engine, [[user("Bad.")]] * 2)
    assert got == {0: GONE, 1: GONE} and server.url in told[0] and NAMED[fault] in told[0]


@pytest.mark.parametrize("fault", ["status 503", "status 429", "reset"])
def test_what_passes_is_never_given_up_without_an_answer_to_others(serve: Any, connect: Any, fault: str) -> None:
    server = serve()
    engine = connect(server, api="chat", patience=0.5)
    server.refuse = {"Bad.": fault}
    with pytest.raises(EngineError, match="no server has answered"):
        complete(engine, [[user("Bad.")]], SHORT, [1])


def test_a_prompt_that_a_filter_refuses_costs_its_answer(serve: Any, connect: Any) -> None:
    server = serve()
    engine = connect(server, api="chat", retries=2)
    server.refuse, server.code, server.message = {"Bad.": "status 400"}, "content_filter", "The prompt was filtered"
    got, told = ask_all(engine, [[user("Good.")], [user("Bad.")]])
    assert got[1] == GONE and got[0].text and "The prompt was filtered" in told[0]
    assert failures(engine) == {"status 400": 1}


def test_many_answers_that_are_not_understood_end_the_run(serve: Any, connect: Any) -> None:
    server = serve()
    engine = connect(server, concurrency=4, patience=patience(0.6))
    server.refuse = {12: "an unknown end"}
    done = []
    said = r"11 of \d+ answers are lost; .*'tired' is none of .*Look at the servers"
    with pytest.raises(EngineError, match=said), pytest.warns(UserWarning, match="counts as lost"):
        for key, _ in stream(engine, (Request(i, [1, 12 + i % 2], SHORT, i) for i in range(10_000))):
            done.append(key)
    assert len(done) == len(set(done)) >= 11


def test_a_server_with_a_lower_limit_of_its_own_ends_the_run(serve: Any, connect: Any) -> None:
    server = serve()
    engine = connect(server)
    server.answer = lambda *_: ("ab", [9, 10], "length")
    with pytest.raises(EngineError, match=r"cut an answer at 2 tokens, but max_tokens = 16.*--generation-config vllm"):
        complete(engine, PROMPTS, SHORT, SEEDS)


def test_filtered_answers_count_as_cut(serve: Any, connect: Any) -> None:
    server = serve(tells_ids=False)
    engine = connect(server)
    server.answer = lambda *_: ("ab", [9, 10], "content_filter")
    with pytest.warns(UserWarning, match=f"{server.url}, request .*: filtered; such answers are counted"):
        assert complete(engine, PROMPTS, SHORT, SEEDS) == [Completion("ab", (), "length", 2)] * 30
    assert engine.stats[server.url]["odd"] == {"filtered": 30}


def test_an_error_of_our_own_is_told_and_does_not_hang(serve: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = connect(serve())
    monkeypatch.setattr("r3_repro.engines.server.request_body", lambda *_: 1 / 0)
    with pytest.raises(EngineError, match="ZeroDivisionError") as e:
        complete(engine, PROMPTS, SHORT, SEEDS)
    assert isinstance(e.value.__cause__, ZeroDivisionError)


# ── Closing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_closing_drops_what_is_pending_and_ends_the_thread(serve: Any, connect: Any) -> None:
    server = serve()
    engine = connect(server, timeout=60)
    server.fault, server.slow = "slow", patience(10)
    for i in range(5):
        engine.submit(Request(i, PROMPTS[i], SHORT))
    assert engine.pending == 5
    began = time.monotonic()
    engine.close()
    engine.close()
    assert time.monotonic() - began < patience(8), "it waited for the server"
    assert engine.pending == 0 and engine.collect() == []
    assert not [t for t in threading.enumerate() if t.name == "servers"]
    with pytest.raises(EngineError, match="closed"):
        engine.submit(Request("x", PROMPTS[0], SHORT))


def test_the_interpreter_ends_with_requests_under_way(serve: Any, warm: dict[str, str]) -> None:
    server = serve(tells_ids=False)
    server.refuse, server.slow = {12: "slow"}, patience(3)
    line = [sys.executable, str(Path(__file__).with_name("ending_interpreter.py")), server.url, PATH]
    done = subprocess.run(line, capture_output=True, encoding="utf-8", timeout=patience(120), env=warm)
    assert (done.returncode, done.stdout) == (0, "waiting 1\n"), done.stderr
    assert "Traceback" not in done.stderr and "Task was destroyed" not in done.stderr


def test_the_answers_of_these_tests_differ() -> None:
    assert len({c.text for c in expected()}) > 20 and len({c.tokens for c in expected()}) > 3
    assert number([1], 1) != number([1], 2) != number([2], 2)


# ── Draws ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_draw_of_a_problem_is_an_answer_of_its_own(serve: Any, connect: Any) -> None:
    "Three draws a problem: each request is there once, with the seed of its draw, whoever answers first."
    profile = load_profile("smoke", draws=3)
    task, server = get_task(profile.task), serve(delay=lambda n: 0.02 * (n % 3))
    problems = task.problems("test", profile.data_options)[:6]
    rows = run_episodes(connect(server), task, problems, profile, "sampled")
    assert list(zip(rows.problem_id, rows.draw, strict=True)) == [(p.id, d) for p in problems for d in range(3)]
    asked = Counter((json.dumps(body["prompt"]), body["seed"]) for body in server.asked)
    assert len(asked) == len(server.asked) == 3 * 18 and len({seed for _, seed in asked}) == 3 * 18
    for p, row in zip([p for p in problems for _ in range(3)], rows.itertuples(), strict=True):
        seed = draw_seed(profile, "sampled", "attempt", p.id, draw=row.draw)
        assert row.attempt == ANSWER(render(TOKENIZER, attempt_messages(task, p)), seed, profile.max_answer_tokens)[0]
