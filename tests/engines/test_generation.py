"""Generation that runs each prompt once: the completions of transformers' own method, for several kinds of models."""

import random
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from r3_repro.config import load_profile, model_path
from r3_repro.engines import generation, hf
from r3_repro.engines.base import Request, SamplingParams, stream
from r3_repro.engines.chat import load_tokenizer, to_completion
from r3_repro.engines.generation import RowCache, generate_plain, generate_rows, rows_attention, why_plain
from r3_repro.engines.hf import Transformers, load_model

PATH = model_path(load_profile("tiny"))
TOKENIZER = load_tokenizer(PATH)
IDS = {"eos_token_id": 5, "pad_token_id": 0, "bos_token_id": 1, "vocab_size": len(TOKENIZER)}
SIZE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6}
KINDS: dict[str, Any] = {
    "llama": LlamaConfig(**IDS, **SIZE, num_key_value_heads=6, initializer_range=0.3),
    "qwen2": Qwen2Config(**IDS, **SIZE, num_key_value_heads=2, initializer_range=0.3),
    "qwen3": Qwen3Config(**IDS, **SIZE, num_key_value_heads=2, head_dim=16, initializer_range=0.3),
    "gpt2": GPT2Config(**IDS, n_embd=48, n_layer=2, n_head=4),
    "packed": LlamaConfig(**IDS, **SIZE | {"hidden_size": 192, "intermediate_size": 384}, num_key_value_heads=6),  # its MLPs
}
REFUSED: dict[str, Any] = {
    "sliding_window": MistralConfig(**IDS, **SIZE, num_key_value_heads=2, sliding_window=8),
    "softcap": Gemma2Config(**IDS, **SIZE, num_key_value_heads=2, head_dim=8),
}
HOW = {
    "sampled": (SamplingParams(14, logprobs=True), 0),
    "nucleus": (SamplingParams(14, temperature=0.9, top_p=0.6, logprobs=True), 0),
    "top_k": (SamplingParams(14, temperature=0.7, logprobs=True), 20),
    "greedy": (SamplingParams(14, greedy=True, logprobs=True), 0),
}


def made(config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases that matter
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_model(PATH)


def tokens(seed: int, *lengths: int) -> list[list[int]]:
    r = random.Random(seed)
    return [[r.randrange(6, len(TOKENIZER)) for _ in range(n)] for n in lengths]


def groups() -> list[list[int]]:
    "Four, three and one completions of prompts of different lengths, mixed."
    a, b, c = tokens(0, 20, 33, 7)
    return [b, a, a, c, b, a, b, a]


def same(ours: Any, plain: Any) -> None:
    assert ours.ids == plain.ids
    pairs = [(x, y) for a, b in zip(ours.logprobs, plain.logprobs, strict=True) for x, y in zip(a, b, strict=True)]
    assert pairs and max(abs(x - y) for x, y in pairs) < 1e-3


def compared(model: Any, how: SamplingParams, top_k: int) -> tuple[Any, Any]:
    "A first and a second turn, whose conversations differ from what is cached in the prompt, behind it, or not at all."
    prompts, seeds = groups(), list(range(8))
    first = generate_rows(model, TOKENIZER, prompts, how, seeds, top_k)
    same(first, generate_plain(model, TOKENIZER, prompts, how, seeds, top_k))
    more = tokens(1, 3, 90, 1, 5, 2, 8, 70, 4)  # pieces of 64 tokens, too
    again = [p + said + m for p, said, m in zip(prompts, first.ids, more, strict=True)]
    again[1] = prompts[1][:-2] + more[1]
    again[2] = prompts[2] + first.ids[2][:2] + more[2]
    again[3] = prompts[3]  # nothing behind the prompt
    second = generate_rows(model, TOKENIZER, again, how, seeds, top_k, first.cache)
    same(second, generate_plain(model, TOKENIZER, again, how, seeds, top_k))
    rows = [6, 1, 3]
    third = [again[r] + second.ids[r] + m for r, m in zip(rows, tokens(2, 4, 1, 2), strict=True)]
    ours = generate_rows(model, TOKENIZER, third, how, [1, 2, 3], top_k, second.cache, rows)
    same(ours, generate_plain(model, TOKENIZER, third, how, [1, 2, 3], top_k))
    return first, second


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", KINDS)
def test_three_turns_say_what_transformers_says(kind: str, how: str) -> None:
    model = made(KINDS[kind])
    assert why_plain(model) == ""
    first, _ = compared(model, *HOW[how])
    assert first.cache is not None and model.config._attn_implementation == "sdpa"


def test_rows_that_end_early_leave(tiny: Any) -> None:
    "Completions of very different lengths, so that the batch is halved more than once."
    first, second = compared(tiny, SamplingParams(40, logprobs=True), 0)
    assert len({len(i) for i in first.ids}) > 3 and second.cache.active < 3


def test_each_prompt_is_run_once(tiny: Any) -> None:
    prompts = groups()
    first = generate_rows(tiny, TOKENIZER, prompts, SamplingParams(1), list(range(8)))
    assert first.cache.computed == 20 + 33 + 7
    again = [p + said + [9, 9] for p, said in zip(prompts, first.ids, strict=True)]
    second = generate_rows(tiny, TOKENIZER, again, SamplingParams(1), list(range(8)), cache=first.cache)
    assert second.cache.computed == 60 + 8 * 3  # the sampled token, which had not been run, and two new ones


def test_a_row_does_not_depend_on_its_batch(tiny: Any) -> None:
    prompts, how = groups(), SamplingParams(20)
    whole = generate_rows(tiny, TOKENIZER, prompts, how, list(range(8))).ids
    assert [generate_rows(tiny, TOKENIZER, [p], how, [i]).ids[0] for i, p in enumerate(prompts)] == whole
    assert len({tuple(whole[i]) for i in (1, 2, 5, 7)}) > 1, "completions of one prompt differ by their seeds"


@pytest.mark.parametrize("why", REFUSED)
def test_other_attention_generates_as_before(why: str) -> None:
    model, how, top_k = made(REFUSED[why]), *HOW["sampled"]
    with pytest.warns(UserWarning, match=why):
        one = generate_rows(model, TOKENIZER, groups(), how, list(range(8)), top_k)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # said once
        two = generate_rows(model, TOKENIZER, groups(), how, list(range(8)), top_k)
    assert one == two == generate_plain(model, TOKENIZER, groups(), how, list(range(8)), top_k) and one.cache is None


def test_sharded_weights_generate_as_before() -> None:
    model = made(KINDS["llama"])
    layer = model.model.layers[0]
    layer.__class__ = type("Sharded", (FSDPModule, type(layer)), {})
    assert "sharded" in why_plain(model)


@pytest.mark.parametrize("spoiled", ["mask", "positions", "order of heads"])
def test_a_trial_sees_what_is_computed_wrong(spoiled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(KINDS["qwen2"])
    if spoiled == "mask":

        def attention(*args: Any, rows: Any = None, **how: Any) -> Any:
            if rows is not None:
                rows.hidden = torch.zeros_like(rows.hidden)
            return rows_attention(*args, rows=rows, **how)

        monkeypatch.setitem(generation.AttentionInterface._global_mapping, generation.ROWS_ATTENTION, attention)
    elif spoiled == "positions":
        forward = generation._forward

        def shifted(model: Any, cache: RowCache, ids: Any, real: Any) -> Any:
            cache.seen[:, 0] = True  # padding counts as a token
            return forward(model, cache, ids, real)

        monkeypatch.setattr(generation, "_forward", shifted)
    else:
        collect = generation._Grid.collect
        monkeypatch.setattr(generation._Grid, "collect", lambda self, x: collect(self, x).flip(1))
    assert why_plain(model) != ""


def test_dropout_checkpointing_and_the_mode_of_training(tiny: Any) -> None:
    "Generation is without dropout, uses its cache under gradient checkpointing, and leaves the model as it was."
    model = made(Qwen2Config(**IDS, **SIZE, num_key_value_heads=2, attention_dropout=0.5, initializer_range=0.3))
    expected = generate_rows(model, TOKENIZER, groups(), SamplingParams(9), list(range(8))).ids
    model.train()
    model.gradient_checkpointing_enable()
    found = generate_rows(model, TOKENIZER, groups(), SamplingParams(9), list(range(8)))
    assert found.ids == expected and found.cache is not None and model.training and model.is_gradient_checkpointing
    ids = torch.tensor([[7, 8, 9]])
    model(ids, labels=ids).loss.backward()
    assert model.lm_head.weight.grad is not None


def test_changed_weights_are_packed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    "Layers run from packed copies of their weights while rows are generated: none of them outlives the call."
    model, how, packed = made(KINDS["packed"]), SamplingParams(9), []
    kept = generation._packed_linear
    monkeypatch.setattr(generation, "_packed_linear", lambda *args: packed.append(1) or kept(*args))
    before = generate_rows(model, TOKENIZER, groups(), how, list(range(8))).ids
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data *= -3
    after = generate_rows(model, TOKENIZER, groups(), how, list(range(8))).ids
    assert packed and after != before and after == generate_plain(model, TOKENIZER, groups(), how, list(range(8))).ids


def test_an_adapter_generates(tiny: Any) -> None:
    model = get_peft_model(made(KINDS["qwen2"]), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.eval()
    plain = generate_plain(model, TOKENIZER, groups(), SamplingParams(9), list(range(8)))
    ours = generate_rows(model, TOKENIZER, groups(), SamplingParams(9), list(range(8)))
    assert ours.ids == plain.ids and ours.cache is not None
    with model.disable_adapter():
        assert generate_rows(model, TOKENIZER, groups(), SamplingParams(9), list(range(8))).ids != plain.ids


def test_a_stop_text_ends_a_row(tiny: Any) -> None:
    how = SamplingParams(20, stop=("e",))
    ours, plain = (f(tiny, TOKENIZER, groups(), how, list(range(8))) for f in (generate_rows, generate_plain))
    assert any(len(i) < 20 and i[-1] != 5 for i in ours.ids)
    one, two = ([to_completion(TOKENIZER, ids, [5], how, None) for ids in found.ids] for found in (ours, plain))
    assert one == two


def test_the_engine_runs_a_prompt_once_for_its_attempts(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, how = tokens(3, 40)[0], SamplingParams(12)
    run: list[int] = []
    start = RowCache.__init__

    def counted(self: RowCache, model: Any, prompts: list[list[int]]) -> None:
        start(self, model, prompts)
        run.append(self.computed)

    monkeypatch.setattr(RowCache, "__init__", counted)
    ((_, many),) = stream(Transformers(tiny, TOKENIZER, 64), [Request("p", prompt, how, seed=7, n=64)])
    assert run == [40]
    assert [list(c.ids) for c in many] == generate_plain(tiny, TOKENIZER, [prompt] * 64, how, list(range(7, 71))).ids


@pytest.mark.parametrize("kind", ["qwen2", "sliding_window"])
@pytest.mark.parametrize(("rows", "most", "largest"), [(64, 0, 11), (3, 0, 3), (64, 150, 4), (5, 100, 3), (64, 1, 1)])
@pytest.mark.filterwarnings("ignore:.*runs a prompt once for each")
def test_rows_and_tokens_limit_a_batch_and_change_nothing(
    kind: str, rows: int, most: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    "Whether a model hands rows out one by one, or all at the end of a batch."
    model, how, batches, usual = made((KINDS | REFUSED)[kind]), SamplingParams(14, logprobs=True), list[Any](), hf.stream_rows
    monkeypatch.setattr(hf, "stream_rows", lambda m, t, prompts, *how: batches.append(prompts) or usual(m, t, prompts, *how))
    asked = [
        Request(i, p, how, 10 * i, n) for i, (p, n) in enumerate(zip(tokens(5, 20, 33, 7, 20, 12), (2, 1, 3, 1, 4), strict=True))
    ]
    found = dict(stream(Transformers(model, TOKENIZER, rows, most), asked))
    assert max(map(len, batches)) == largest
    assert all(len(b) == 1 or len(b) * (max(map(len, b)) + 14) <= (most or 10**9) for b in batches)
    for r in asked:
        plain = generate_plain(model, TOKENIZER, [r.prompt] * r.n, how, [r.seed + k for k in range(r.n)])
        assert [list(c.ids) for c in found[r.key]] == plain.ids
        pairs = [(c.logprobs, own) for c, own in zip(found[r.key], plain.logprobs, strict=True)]
        assert all(ours == pytest.approx(own, abs=1e-3) for ours, own in pairs)


def test_a_batch_with_an_error_is_dropped_and_the_others_are_not(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, how, forward, left = Transformers(tiny, TOKENIZER, 3), SamplingParams(30), generation._forward, [2]
    assert why_plain(tiny) == ""  # tried before

    def failing(*args: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("out of order")
        return forward(*args)

    for i, p in enumerate(tokens(6, 10, 11, 12, 13)):
        engine.submit(Request(i, p, how, seed=i))
    monkeypatch.setattr(generation, "_forward", failing)
    with pytest.raises(RuntimeError, match="out of order"):
        while engine.pending:
            engine.collect()
    assert tiny.config._attn_implementation == "sdpa"
    assert [key for key, _ in stream(engine, [])] == [3] and engine.pending == 0
