"""A real `vllm serve` on this machine, driven by the server engine, against vLLM in this process."""

import sys
from collections.abc import Iterator

import pytest
from comparing import NEAR_TIE, TASKS, attempts, different, gaps
from serving import serving

from r3_repro.config import load_profile
from r3_repro.engines.base import Request, SamplingParams, complete, stream
from r3_repro.engines.factory import open_engine
from r3_repro.engines.hf import Transformers
from r3_repro.engines.server import Servers


@pytest.fixture(scope="module")
def served(wide: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    "Address of a server of the tiny model, under a name of its own."
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", wide, "--served-model-name", "tiny"]
    with serving(command, tmp_path_factory.mktemp("server") / "log.txt") as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def servers(served: str, wide: str) -> Iterator[Servers]:
    engine = open_engine(load_profile("tiny", engine="server", servers=served, server_patience=20), wide)
    yield engine
    engine.close()


@pytest.mark.parametrize("task", TASKS)
def test_a_server_answers_as_the_engine_in_this_process(slow: Transformers, servers: Servers, task: str) -> None:
    prompts, seeds = attempts(slow.tokenizer, task, 100)
    assert servers.context == 1024 and servers.model == "tiny"
    how = SamplingParams(TASKS[task], greedy=True, logprobs=True)
    ones, others = complete(slow, prompts, how, seeds), complete(servers, prompts, how, seeds)
    found = list(gaps(slow, prompts, ones, others))
    print(f"{len(found)} of 100 greedy answers differ, gaps {[f'{g:.1e}' for g in found]}")
    assert all(g < NEAR_TIE for g in found) and len(found) == different(ones, others) <= 2
    assert all(c.tokens == len(c.ids) for c in others)
    same = [(a, b) for a, b in zip(ones, others, strict=True) if a.ids == b.ids]
    assert max(abs(x - y) for a, b in same for x, y in zip(a.logprobs, b.logprobs, strict=True)) < 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_a_server_draws_from_the_seeds_that_it_is_given(slow: Transformers, servers: Servers, task: str) -> None:
    prompts, seeds = attempts(slow.tokenizer, task, 100)
    how = SamplingParams(TASKS[task], temperature=1.2, top_p=0.9)
    once = complete(servers, prompts, how, seeds)
    print(f"{different(once, complete(slow, prompts, how, seeds))} of 100 sampled answers differ from those of transformers")
    assert different(once, complete(slow, prompts, how, seeds)) <= 2
    four = dict(stream(servers, (Request(i, prompts[i], how, seeds[i], n=4) for i in range(25))))
    assert different([four[i][0] for i in range(25)], once[:25]) <= 1
    stopped = SamplingParams(TASKS[task], stop=("+", ": "))
    assert different(complete(servers, prompts, stopped, seeds), complete(slow, prompts, stopped, seeds)) <= 2


def test_what_does_not_fit_is_refused_before_it_is_sent(slow: Transformers, servers: Servers) -> None:
    prompts, _ = attempts(slow.tokenizer, "countdown", 1)
    with pytest.raises(ValueError, match="exceed the model's context of 1024"):
        servers.submit(Request("x", prompts[0], SamplingParams(1024)))
