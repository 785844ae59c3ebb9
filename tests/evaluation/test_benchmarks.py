"""Benchmarks: the small suite end to end, what the model really sees, and that unlike results are refused."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import patience

from r3_repro.analysis.forgetting import by_arm, compare_items, load_results, make_forgetting
from r3_repro.config import load_profile
from r3_repro.evaluation import benchmarks
from r3_repro.evaluation.backends import as_lm
from r3_repro.evaluation.benchmark_files import exchange_result
from r3_repro.evaluation.benchmarks import PROTOCOL, graded_item, load_tasks, questions_of, run_benchmarks
from r3_repro.runs.layout import Run, open_run
from r3_repro.tasks.suites import SKILLS, suite_of
from r3_repro.utils.errors import SettingsError

LIMIT = 12
ROLES = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
TEMPLATES = {
    "with BOS": "<|bos|>" + ROLES + "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "without BOS": ROLES + "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "ends in a line break": ROLES + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
}


def random_model(folder: Path, seed: int = 0, template: str = "with BOS", adds_bos: bool = True) -> Path:
    """A random Llama with a byte-level tokenizer that, unlike most, also writes a BOS of its own."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({t: i for i, t in enumerate(special + letters)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(special)
    if adds_bos:
        raw.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|end|>", padding_side="left"
    )
    tokenizer.chat_template = TEMPLATES[template]
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small_run(root: Path, **settings) -> Run:
    model = random_model(root / "random-llama")
    settings = {"forgetting_limit": LIMIT, "forgetting_suite": "tiny"} | settings
    return open_run("tiny", model=str(model), root=str(root), **settings)


def add_trained(run: Run, name: str, seed: int | None) -> Path:
    """A trained model of the run: a copy of the base (seed None), or other random weights."""
    folder = run.model_dir / "training" / name / "model"
    if seed is None:
        shutil.copytree(run.root / "random-llama", folder)
    else:
        random_model(folder, seed)
    (folder.parent / "manifest.json").write_text("{}", "utf-8")  # written last: this training has ended
    return folder


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a base, an exact copy of it as `r3`, and other weights as `random_reward`, all examined."""
    run = small_run(tmp_path_factory.mktemp("forgetting"))
    add_trained(run, "r3-seed0", None)
    add_trained(run, "random_reward-seed3", 5)
    assert run_benchmarks(run) == ["vanilla", "r3-seed0", "random_reward-seed3"]
    return run


def answering(known: dict[str, tuple[str, str]], right: bool):
    """An lm-eval model that knows the answers: gives each right, or each wrong."""
    from lm_eval.api.model import LM

    class Oracle(LM):
        tokenizer_name = "oracle"

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            assert [m["role"] for m in chat_history] == ["user"] and add_generation_prompt
            return chat_history[0]["content"]

        def chat_template(self, chat_template=False):
            return ""

        def loglikelihood(self, requests):
            chosen = [(known[question][0] == choice) == right for question, choice in (r.args for r in requests)]
            return [(0.0 if c else -50.0, False) for c in chosen]

        def generate_until(self, requests):
            return [known[q][1] if right else known[q][1] + "0" for q, _ in (r.args for r in requests)]

        def loglikelihood_rolling(self, requests):
            raise NotImplementedError

    return Oracle()


@pytest.mark.parametrize("right", [True, False])
def test_who_knows_the_answers_gets_everything_right_and_the_opposite_nothing(tmp_path: Path, right: bool) -> None:
    import lm_eval

    suite = suite_of("tiny")
    items = [item for skill in SKILLS.values() for item in skill.items("test")]
    known = {i.question: (i.answer, i.response or i.answer) for i in items}
    tasks, manager = load_tasks(suite, tmp_path)
    report = lm_eval.simple_evaluate(answering(known, right), tasks=tasks, task_manager=manager, **PROTOCOL)
    scores = {b.name: graded_item(b, report) for b in suite}
    assert {name: s["value"] for name, s in scores.items()} == dict.fromkeys(scores, float(right))
    assert all(s["n"] >= 250 and s["correct"] == str(int(right)) * s["n"] for s in scores.values())
    assert all(e["ok"] == right for s in scores.values() for e in s["examples"])


def test_results_have_every_item_and_every_hash(examined: Run) -> None:
    results = load_results(examined.model_dir / "forgetting")
    assert list(results) == ["vanilla", "r3-seed0", "random_reward-seed3"]
    for name, result in results.items():
        assert set(result["tasks"]) == set(SKILLS) and result["lm_eval_version"] == "0.4.13"
        assert set(result["hashes"]) == {"model", "protocol", "chat_template", "items"}
        for score in result["tasks"].values():
            assert score["n"] == len(score["correct"]) == LIMIT
            assert {"metric", "stderr", "config", "items"} <= set(score)
            assert score["value"] == pytest.approx(score["correct"].count("1") / LIMIT)
        manifest = json.loads((examined.model_dir / "forgetting" / f"{name}.manifest.json").read_text("utf-8"))
        assert manifest["stage"] == "forgetting" and manifest["hashes"] == result["hashes"]
        assert (manifest["arm"], manifest["seed"]) == (result["arm"], result["seed"])
    models = [r["hashes"]["model"] for r in results.values()]
    assert models[0] == models[1] != models[2]


def test_the_same_weights_differ_nowhere_and_others_do(examined: Run) -> None:
    results = load_results(examined.model_dir / "forgetting")
    same = compare_items(results["vanilla"], results["r3-seed0"])
    assert (same[["difference", "gained", "lost"]] == 0).all(axis=None)
    other = compare_items(results["vanilla"], results["random_reward-seed3"])
    assert (other.gained + other.lost).sum() > 0
    assert other.difference.to_numpy() == pytest.approx(((other.gained - other.lost) / other.n).to_numpy())


def test_finished_work_is_kept_and_changed_weights_are_examined_again(examined: Run, tmp_path: Path) -> None:
    run = replace(examined, root=tmp_path)
    shutil.copytree(examined.root, tmp_path, dirs_exist_ok=True)
    files = {f.name: f for f in (run.model_dir / "forgetting").glob("*.json")}
    stamps = {name: f.stat().st_mtime_ns for name, f in files.items()}
    run_benchmarks(run)
    assert {name: f.stat().st_mtime_ns for name, f in files.items()} == stamps
    random_model(run.model_dir / "training/random_reward-seed3/model", seed=6)
    run_benchmarks(run)
    changed = {name for name, f in files.items() if f.stat().st_mtime_ns != stamps[name]}
    assert changed == {"random_reward-seed3.json", "random_reward-seed3.manifest.json"}


def test_a_lost_manifest_is_made_again(examined: Run, tmp_path: Path) -> None:
    "A process killed between a result and its manifest must not leave a result that never gets one."
    run = replace(examined, root=tmp_path)
    shutil.copytree(examined.root, tmp_path, dirs_exist_ok=True)
    folder = run.model_dir / "forgetting"
    before = json.loads((folder / "vanilla.manifest.json").read_text("utf-8"))["hashes"]
    (folder / "vanilla.manifest.json").unlink()
    kept = (folder / "r3-seed0.json").stat().st_mtime_ns
    run_benchmarks(run)
    assert json.loads((folder / "vanilla.manifest.json").read_text("utf-8"))["hashes"] == before
    assert (folder / "r3-seed0.json").stat().st_mtime_ns == kept


def test_a_training_without_manifest_is_not_examined(examined: Run, tmp_path: Path) -> None:
    "Weights that lie there because a process was killed while it saved them are no result of any training."
    run = replace(examined, root=tmp_path)
    shutil.copytree(examined.root, tmp_path, dirs_exist_ok=True)
    add_trained(run, "r3-seed7", 7)
    (run.model_dir / "training/r3-seed7/manifest.json").unlink()
    assert run_benchmarks(run) == ["vanilla", "r3-seed0", "random_reward-seed3"]


@pytest.mark.parametrize(
    ("key", "value"), [("protocol", "other"), ("chat_template", "other"), ("items", "other"), ("config", "other")]
)
def test_unlike_examinations_are_refused(examined: Run, key: str, value: str) -> None:
    results = load_results(examined.model_dir / "forgetting")
    after = results["r3-seed0"]
    (after["tasks"]["geography"] if key == "config" else after["hashes"])[key] = value
    with pytest.raises(ValueError, match=r"examined alike|configured differently"):
        by_arm(results)


def stored(folder: Path) -> dict[str, bytes]:
    "Results, manifests and samples."
    files = [f for f in folder.rglob("*") if f.is_file() and f.name.endswith((".json", ".jsonl")) and "questions" not in f.parts]
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def test_results_of_another_protocol_are_kept_and_come_back(
    examined: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    "A changed limit costs no finished result, and a second thought no second examination."
    shutil.copytree(examined.root, tmp_path, dirs_exist_ok=True)
    run, few = replace(examined, root=tmp_path), examined.profile.model_copy(update={"forgetting_limit": 2})
    folder = run.model_dir / "forgetting"
    before, results = stored(folder), load_results(folder)
    short = results["vanilla"]["hashes"]["protocol"][:8]
    run_benchmarks(replace(run, profile=few))
    assert {len(t["correct"]) for r in load_results(folder).values() for t in r["tasks"].values()} == {2}
    aside = folder / "other_protocols" / short
    assert stored(aside) == before and load_results(aside) == results
    assert (
        f"forgetting, r3-seed0: the result under another protocol is kept in other_protocols/{short}" in capsys.readouterr().out
    )
    limited = {name: text for name, text in stored(folder).items() if "other_protocols" not in name}
    assert limited.keys() == before.keys() and limited != before
    monkeypatch.setattr(benchmarks, "open_backend", lambda *_: pytest.fail("a model was loaded"))
    run_benchmarks(run)
    assert {name: text for name, text in stored(folder).items() if "other_protocols" not in name} == before
    assert "is taken back from" in capsys.readouterr().out and stored(aside) == {}
    run_benchmarks(replace(run, profile=few))
    assert stored(folder).items() >= limited.items()


def test_a_result_whose_weights_are_gone_moves_aside_with_the_others(examined: Run, tmp_path: Path) -> None:
    "Else tables could not be made: its protocol is not that of the others."
    shutil.copytree(examined.root, tmp_path, dirs_exist_ok=True)
    run, folder = replace(examined, root=tmp_path), examined.model_dir.relative_to(examined.root) / "forgetting"
    shutil.rmtree(run.model_dir / "training/random_reward-seed3")
    make_forgetting(run.model_dir)  # still of one protocol
    few = replace(run, profile=examined.profile.model_copy(update={"forgetting_limit": 2}))
    assert run_benchmarks(few) == ["vanilla", "r3-seed0"] == list(load_results(tmp_path / folder))
    make_forgetting(run.model_dir)
    run_benchmarks(run)
    assert "random_reward-seed3" in load_results(tmp_path / folder)


def test_two_models_of_the_hub_with_like_names_are_two_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, base = benchmarks.model_hash, random_model(tmp_path / "base")
    monkeypatch.setattr(benchmarks, "model_hash", lambda path: f"Qwen/Qwen2.5-{Path(path).name}@{usual(path)}")
    how = {"forgetting_suite": "tiny", "forgetting_limit": 2, "dtype": "float32", "root": tmp_path / "runs"}
    for name, seed in (("one", 1), ("two", 2)):
        benchmarks.forgetting(base, random_model(tmp_path / name, seed), "geography", **how)
    (folder,) = {f.parent for f in (tmp_path / "runs").rglob("vanilla.json")}
    assert len(load_results(folder)) == 3 and len(list(folder.glob("samples/*/geography.jsonl"))) == 3
    other = random_model(tmp_path / "elsewhere/base", 3)  # a base of the same name
    benchmarks.forgetting(other, tmp_path / "one", "geography", **how)
    assert len({f.parent for f in (tmp_path / "runs").rglob("vanilla.json")}) == 2


@pytest.mark.parametrize("wrong", ["base", "trained"])
def test_a_pair_with_a_wrong_model_is_refused_in_words(tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "run_benchmarks", lambda *_: pytest.fail("it was begun"))
    there = random_model(tmp_path / "base")
    (tmp_path / "empty").mkdir()
    how = {"forgetting_suite": "tiny", "dtype": "float32", "root": tmp_path / "runs"}
    for path, said in (
        ("/nowhere/model", "no such folder"),
        ("~/nowhere-model", "nowhere-model' in it does not"),
        (tmp_path / "empty", "lacks"),
    ):
        pair = {"base": there, "trained": there} | {wrong: path}
        with pytest.raises(SettingsError, match=said):
            benchmarks.forgetting(**pair, **how)


@pytest.mark.parametrize("wrong", ["HellaSwag", "HellaSwag:many", "HellaSwag:-1"])
def test_a_number_of_items_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(SettingsError, match="write a benchmark's name, a colon and a number of items"):
        load_profile("paper", forgetting_limits=wrong)
    with pytest.raises(SettingsError, match="suite tiny has forgetting_limit alone"):
        load_profile("tiny", forgetting_limits="HellaSwag:5")
    with pytest.raises(SettingsError, match="no Hellaswag"):
        questions_of(load_profile("paper", forgetting_limits="Hellaswag:5"))


@pytest.mark.parametrize("stage", range(3))
def test_a_kill_while_results_are_moved_loses_none(
    examined: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    shutil.copytree(examined.model_dir / "forgetting", tmp_path, dirs_exist_ok=True)
    before, moves, usual = stored(tmp_path), iter(range(9)), Path.replace
    own = load_results(tmp_path)["vanilla"]["hashes"]["protocol"]

    def killed(self: Path, target: Path) -> Path:
        if next(moves) == stage:
            raise KeyboardInterrupt
        return usual(self, target)

    for wanted in ("f" * 16, own):
        moves = iter(range(9))
        monkeypatch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            exchange_result(tmp_path, "vanilla", wanted)
        monkeypatch.setattr(Path, "replace", usual)
        exchange_result(tmp_path, "vanilla", wanted)
        assert (wanted == own) == (tmp_path / "vanilla.json").is_file()
    assert stored(tmp_path) == before


def test_models_that_cannot_be_compared_are_refused_before_one_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Another chat template, or a context that a prompt does not fit, of the last of three models."
    run = small_run(tmp_path)
    add_trained(run, "r3-seed0", None)
    last = add_trained(run, "r3-seed1", 5)
    monkeypatch.setattr(benchmarks, "open_backend", lambda *_: pytest.fail("a model was loaded"))
    random_model(last, 5, "ends in a line break")
    with pytest.raises(SettingsError, match=r"vanilla and r3-seed1 have different chat templates.*give both the same"):
        run_benchmarks(run)
    random_model(last, 5)
    config = json.loads((last / "config.json").read_text("utf-8"))
    (last / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 96}), "utf-8")
    with pytest.raises(SettingsError, match=r"the context of .*r3-seed1/model is 96: lm-eval would cut the shots\. Take a model"):
        run_benchmarks(run)
    assert load_results(run.model_dir / "forgetting") == {}


@pytest.mark.parametrize("template", list(TEMPLATES))
@pytest.mark.parametrize("adds_bos", [True, False])
def test_lm_eval_sees_exactly_the_tokens_of_the_chat_template(tmp_path: Path, template: str, adds_bos: bool) -> None:
    lm = as_lm(str(random_model(tmp_path, template=template, adds_bos=adds_bos)), "float32", 4)
    question = [{"role": "user", "content": "What is the capital of Peru?"}]
    wanted = lm.tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=True, return_dict=False)
    prompt = lm.apply_chat_template(question)
    assert lm.tok_batch_encode([prompt, prompt])[0].tolist() == [wanted, wanted]
    context, choice = lm._encode_pair(prompt, "Lima")
    full = [*question, {"role": "assistant", "content": "Lima"}]
    answered = lm.tokenizer.apply_chat_template(full, tokenize=True, return_dict=False)
    if template != "ends in a line break":  # this template writes the answer without the line break
        assert context + choice == answered[: len(context + choice)]
    assert context + choice == wanted + lm.tokenizer.encode("Lima", add_special_tokens=False)
    assert (context + choice).count(lm.tokenizer.bos_token_id) == (1 if template == "with BOS" else 0)


def test_the_likelihood_of_a_choice_is_that_of_its_tokens_after_the_question(tmp_path: Path) -> None:
    import torch
    from lm_eval.api.instance import Instance

    lm = as_lm(str(random_model(tmp_path)), "float32", 8)
    asked = ("Peru?", "What is the capital of Peru?")
    prompts = [lm.apply_chat_template([{"role": "user", "content": q}]) for q in asked]
    pairs = [(prompt, choice) for prompt in prompts for choice in ("Lima", "Rome", "by the sea")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    for (prompt, choice), (got, _) in zip(pairs, lm.loglikelihood(requests, disable_tqdm=True), strict=True):
        before, after = (lm.tokenizer.encode(t, add_special_tokens=False) for t in (prompt, choice))
        with torch.no_grad():
            logp = lm.model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        wanted = sum(logp[len(before) - 1 + i, token].item() for i, token in enumerate(after))
        assert got == pytest.approx(wanted, abs=1e-4)


@pytest.mark.slow
def test_the_published_benchmarks_are_lm_evals_own_and_fail_early_without_a_network(tmp_path: Path) -> None:
    code = (
        "import lm_eval.tasks\nfrom pathlib import Path\nfrom r3_repro.evaluation.benchmarks import load_tasks\n"
        "from r3_repro.tasks.suites import BENCHMARK_SUITES\n"
        "once = lm_eval.tasks.TaskManager()\nlm_eval.tasks.TaskManager = lambda *a, **k: once\n"  # it reads ten thousand files
        "print([b.task in once.all_tasks for b in BENCHMARK_SUITES['paper']])\n"
        f"load_tasks(BENCHMARK_SUITES['paper'], Path({str(tmp_path)!r}))"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=patience(300), env=env)
    assert done.stdout.strip() == "[True, True, True, True]" and done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "SettingsError: benchmark MMLU-Pro" in last and "HF_HOME" in last and "forgetting_suite" in last
