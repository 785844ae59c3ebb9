"""The four published benchmarks on real rows: files with their oddities, the sample, lm-eval's own numbers, kills, bad input."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from real_benchmarks import PARTS, ROWS, THERE, benchmark_folder, plain_tasks
from support import DATA, patience
from test_benchmarks import random_model

import r3_repro
from r3_repro.analysis.benchmark_items import benchmark_items
from r3_repro.analysis.forgetting import compare_items, load_results
from r3_repro.evaluation import benchmark_files, benchmarks
from r3_repro.evaluation.benchmark_files import benchmark_rows, check_benchmarks, fetch_benchmarks, read_questions, stratum
from r3_repro.runs.layout import open_run
from r3_repro.tasks.sources import read_file
from r3_repro.tasks.suites import suite_of
from r3_repro.utils.errors import SettingsError

GRADED = all(importlib.util.find_spec(m) for m in ("math_verify", "antlr4"))
TASKS = "MMLU-Pro GSM8K HellaSwag" + (" MATH" if GRADED else "")

if not THERE:
    pytest.skip(f"no real rows: R3_TEST_DATA names a folder with data/, not {DATA}", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The real rows as a folder of benchmarks, which says what parts they are."
    return benchmark_folder(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_model(tmp_path_factory.mktemp("model"))


def wide_model(at: Path, seed: int = 0, context: int = 32768, ends: int = 0) -> Path:
    "A random model with a context for thousands of bytes; one in `ends` of them ends an answer, or none does."
    random_model(at, seed)
    config, generation = (json.loads((at / f).read_text("utf-8")) for f in ("config.json", "generation_config.json"))
    (at / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}), "utf-8")
    stops = [2, *(range(5, config["vocab_size"], ends) if ends else ())]
    (at / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": stops}), "utf-8")
    return at


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A model whose answers are short: thousands of tokens take longer than all else."
    return wide_model(tmp_path_factory.mktemp("brief"), ends=8)


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    how = {"engine": "transformers", "dtype": "float32", "benchmarks": str(folder), "forgetting_tasks": TASKS}
    how |= {"forgetting_limit": 3, "forgetting_batch": 2}
    return how | more


# ── Files ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_real_rows_pass_with_all_their_oddities(folder: Path) -> None:
    found = check_benchmarks(str(folder))
    assert list(found["rows"]) == [716, 70, 1319, 500, 1000, 500]
    assert list(found["which"])[:3] == ["a part of 12,032", "all", "all"] and list(found["strata"]) == [14, 14, 1, 1, 2, 35]
    assert list(found["published"]) == ["not known", "as published", "as published", *["not known"] * 3]
    assert list(found["repeated"]) == [8, 0, 0, 0, 0, 0], "MMLU-Pro's authors keep questions that are there twice"
    mmlu, shots = benchmark_rows("MMLU-Pro", "test", str(folder)), benchmark_rows("MMLU-Pro", "validation", str(folder))
    assert min(len(r["options"]) for r in mmlu) == 3 and sum("N/A" in r["options"] for r in shots) == 21
    assert any("," in r["answer"].split("####")[1] for r in benchmark_rows("GSM8K", "test", str(folder)))
    assert any("[header]" in r["ctx_a"] for r in benchmark_rows("HellaSwag", "validation", str(folder)))


def test_parquet_and_the_hubs_layout_give_the_same_rows(folder: Path, tmp_path: Path) -> None:
    for benchmark, split, old, new in (
        ("MATH", "test", "math/math500_test", "math/{}/test-00000-of-00001"),
        ("HellaSwag", "validation", "hellaswag/validation_500anet_500wikihow", "hellaswag/data/validation-00000-of-00001"),
    ):
        rows = pd.read_json(folder / f"{old}.jsonl", lines=True, dtype=False)
        if benchmark == "MATH":  # of the hub: a folder for each subject, `type`, and levels in words
            rows = rows.rename(columns={"subject": "type"}).assign(level="Level " + rows["level"].astype(str))
        for subject, some in rows.groupby("type") if benchmark == "MATH" else [("", rows)]:
            file = tmp_path / f"{new.format(subject)}.parquet"
            file.parent.mkdir(parents=True)
            some.to_parquet(file)
        (tmp_path / "rows.json").write_text(json.dumps(PARTS), "utf-8")
        ours, theirs = (benchmark_rows(benchmark, split, str(f)) for f in (folder, tmp_path))
        assert sorted(json.dumps(r | {"id": ""}) for r in ours) == sorted(json.dumps(r | {"id": ""}) for r in theirs)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def fewer(file: Path) -> None:
    file.write_text("\n".join(file.read_text("utf-8").split("\n")[:9]), "utf-8")


def changed(**values: Any):
    def change(file: Path) -> None:
        first, *rest = file.read_text("utf-8").split("\n")
        file.write_text("\n".join([json.dumps(json.loads(first) | values), *rest]), "utf-8")

    return change


def every(**values: Any):
    def change(file: Path) -> None:
        rows = [json.loads(line) | values for line in file.read_text("utf-8").splitlines()]
        file.write_text("\n".join(map(json.dumps, rows)), "utf-8")

    return change


def one(file: Path) -> None:
    lines = file.read_text("utf-8").splitlines()
    file.write_text("\n".join(lines[:1] * len(lines)), "utf-8")


def again(file: Path) -> None:
    "Beside it, as the hub lays it out."
    (file.parent / "main").mkdir()
    shutil.copyfile(file, file.parent / "main" / f"{file.stem}-00000-of-00001.jsonl")


SEVERAL = r"several files of one split: \S+/main/\S+, \S+\.jsonl; remove one$"


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("gsm8k/test", again, rf"2,638 rows, not 1,319: too many: {SEVERAL}"),
        ("gsm8k/train", again, rf"500 of 1,000 rows repeat others, first row 501, the same as row 1: {SEVERAL}"),
        ("gsm8k/test", one, r"1,318 of 1,319 rows repeat others, first row 2, the same as row 1: get it again$"),
        ("gsm8k/test", every(answer="It is 7.\n#### 7"), r"1,319 rows, .*differs from the published rows.*; get it again$"),
        ("mmlu_pro/validation", every(cot_content="A"), r"70 rows, .*differs from the published rows.*; get it again$"),
        ("mmlu_pro/test", changed(category="alchemy"), r"MMLU-Pro, test: lm-eval has no task 'mmlu_pro_alchemy'"),
        ("gsm8k/test", Path.unlink, r"GSM8K: no test\.jsonl or test\.parquet in .*--fetch"),
        ("gsm8k/test", cut, r"row test\.jsonl:1319 is cut off, or no JSON object"),
        ("gsm8k/test", fewer, r"9 rows, not 1,319: cut off, or another version.*\{\"gsm8k/test\": 9\}"),
        ("gsm8k/test", changed(answer="2,125"), r"row \S+:1 has no number after ####"),
        ("math/test", changed(problem=None), r"row \S+:1 has no text in column 'problem': another version"),
        ("math/test", changed(level=6), r"row \S+:1 has level 6, not 1 to 5"),
        ("math/test", changed(solution="It is 2."), r"row \S+:1 has no \\boxed answer"),
        ("math/test", changed(subject="Logic"), r"row \S+:1 has subject 'Logic'"),
        ("math/test", changed(subject=["Algebra"]), r"row \S+:1 has subject \['Algebra'\]"),
        (
            "hellaswag/validation",
            changed(label=""),
            r"row \S+:1 has no label from 0 to 3: the labels of the test split are secret",
        ),
        ("hellaswag/validation", changed(endings=["a"]), r"row \S+:1 has no list of 4 endings"),
        ("mmlu_pro/test", changed(options=["a", "b"]), r"row \S+:1 has no list of 3 to 10 options"),
        (
            "mmlu_pro/test",
            changed(options=["a", "b", "c"], answer="D"),
            r"row \S+:1 has answer 'D', which names none of its 3 options",
        ),
    ],
)
def test_bad_files_are_refused_before_a_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, damage: Any, said: str
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / f"{file.partition('/')[0]}/{ROWS[file]}.jsonl")
    monkeypatch.setattr(benchmarks, "check_scorer", lambda suite: {})
    monkeypatch.setattr(benchmarks, "open_backend", lambda *_: pytest.fail("a model was loaded"))
    run = open_run(
        "paper", root=str(tmp_path / "runs"), benchmarks=str(tmp_path), engine="transformers", dtype="float32", forgetting_batch=2
    )
    for checked in (lambda: benchmarks.run_benchmarks(run, {}), lambda: check_benchmarks(str(tmp_path))):
        with pytest.raises(SettingsError, match=said):
            checked()


def test_other_rows_are_run_only_if_they_are_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "And then `--check` tells so; the order of rows, and columns that are not used, are no difference."
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    file, suite = tmp_path / "gsm8k/test.jsonl", suite_of("paper", ("GSM8K",))
    lines = file.read_text("utf-8").splitlines()
    file.write_text("\n".join(json.dumps(json.loads(line) | {"source": "x"}) for line in lines[::-1]), "utf-8")
    assert list(check_benchmarks(str(tmp_path), suite)["published"]) == ["as published", "not known"]
    every(answer="#### 7")(file)
    monkeypatch.setattr(benchmark_files, "hub_rows", lambda *_: [row for _, row in read_file(file)])
    with pytest.raises(
        SettingsError, match=r'differs .*: the hub has another version now; --fetch FOLDER and \{"gsm8k/test": 1319\}'
    ):
        benchmark_rows("GSM8K", "test")
    (tmp_path / "rows.json").write_text(json.dumps(PARTS | {"gsm8k/test": 1319}), "utf-8")
    found = check_benchmarks(str(tmp_path), suite)
    assert list(found["published"]) == ["differs from the published rows", "not known"] and found["which"][0] == "all"


def test_a_subject_without_its_shots_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    every(category="law")(tmp_path / "mmlu_pro/validation.jsonl")
    (tmp_path / "rows.json").write_text(json.dumps(PARTS | {"mmlu_pro/validation": 70}), "utf-8")
    suite = suite_of("paper", ("MMLU-Pro",))
    asked, said = read_questions(suite, 20, str(tmp_path)), "MMLU-Pro, validation: 0 rows for mmlu_pro_biology, 5 are shown"
    for checked in (lambda: check_benchmarks(str(tmp_path), suite), lambda: benchmarks.load_tasks(suite, tmp_path, asked)):
        with pytest.raises(SettingsError, match=said):
            checked()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"gsm8k/test": 9', r"holds no JSON object \(Expecting"),
        ('["gsm8k/test"]', r"holds no JSON object \(a list\): write splits and their rows, such as \{\"mmlu_pro/test\": 716\}"),
        ('{"gsm8k/test": 9, "gsm8k/test": 8}', "holds no JSON object .*'gsm8k/test' is there twice"),
        ('{"gsm8k/tset": 9}', "'gsm8k/tset' is not a split: use mmlu_pro/test, mmlu_pro/validation, gsm8k/test"),
        *(
            (f'{{"gsm8k/test": {rows}}}', r"gsm8k/test is .*: use a whole number from 1 to 1319")
            for rows in ("2638", "0", "9.0", "true", '"9"', "null", "[9]")
        ),
    ],
)
def test_a_wrong_list_of_parts_is_named(folder: Path, tmp_path: Path, text: str, said: str) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "rows.json").write_text(text, "utf-8")
    with pytest.raises(SettingsError, match=rf"{tmp_path}/rows\.json:? {said}"):
        check_benchmarks(str(tmp_path))


def test_what_the_hub_gives_is_laid_out_and_a_licence_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    def served(hub: str, config: str, split: str) -> Any:
        spec = next(s for s in benchmark_files.PUBLISHED.values() if s.hub == hub)
        rows = pd.read_json(folder / f"{spec.folder}/{ROWS[f'{spec.folder}/{split}']}.jsonl", lines=True, dtype=False)
        own = (
            rows[rows["subject"].str.lower().str.replace("&", "and") == config.replace("_", " ")]
            if len(spec.configs) > 1
            else rows
        )
        return datasets.Dataset.from_pandas(own, preserve_index=False)

    monkeypatch.setattr(datasets, "load_dataset", served)
    (tmp_path / "rows.json").write_text(json.dumps(PARTS), "utf-8")
    found = fetch_benchmarks(str(tmp_path))
    assert list(found["digest"])[:5] == list(check_benchmarks(str(folder))["digest"])[:5]
    again(tmp_path / "gsm8k/test.jsonl")
    (tmp_path / "gsm8k/test.jsonl").unlink()
    (tmp_path / "gsm8k/train.jsonl").unlink()
    assert fetch_benchmarks(str(tmp_path)).equals(found), "a file that the hub named is as good as one of the same rows"
    said = capsys.readouterr().out
    assert f"GSM8K, test: left as it is, {tmp_path}/gsm8k/main/test-00000-of-00001.jsonl" in said and "GSM8K, train" not in said

    def gated(*_: Any, **__: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'TIGER-Lab/MMLU-Pro' is a gated dataset on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(SettingsError, match=r"MMLU-Pro.*wants its licence accepted: do so on its page, then log in"):
        fetch_benchmarks(str(tmp_path / "other"))


# ── The sample ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sample_keeps_the_proportions_of_its_strata(folder: Path) -> None:
    whole, some = (read_questions(suite_of("paper"), n, str(folder)) for n in (0, 100))
    for name, (items, shots) in some.rows.items():
        every, taken = (Counter(map(stratum, rows)) for rows in (whole.rows[name][0], items))
        assert len(items) == 100 and shots == whole.rows[name][1]
        assert all(abs(taken[s] - 100 * n / every.total()) <= 1 for s, n in every.items())
        place = {r["id"]: k for k, r in enumerate(whole.rows[name][0])}
        assert [place[r["id"]] for r in items] == sorted(place[r["id"]] for r in items)
    assert some.hashes() == read_questions(suite_of("paper"), 100, str(folder)).hashes() != whole.hashes()


# ── Runs ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_models_in_three_lines(folder: Path, brief: Path, tmp_path: Path) -> None:
    model, other = brief, wide_model(tmp_path / "other", seed=5, ends=8)
    how = settings(folder)
    table = r3_repro.forgetting(model, other, root=tmp_path / "runs", **how)
    assert list(table["task"]) == TASKS.split() and (table["n"] == 3).all()
    assert (table["low"] <= table["difference"]).all() and (table["difference"] <= table["high"]).all()
    chances = dict(zip(table["task"], table["chance"], strict=True))
    assert chances["HellaSwag"] == 0.25 and chances["GSM8K"] == 0 and 0.1 <= chances["MMLU-Pro"] <= 1 / 3
    assert (table["p_before"] <= 1).all() and (table["p_after"] > 0.025).any()  # models made of noise
    (home,) = (tmp_path / "runs").glob("pairs/*/paper/*/*/forgetting")
    results = load_results(home)
    for result in results.values():
        assert {t: v["items"] for t, v in result["protocol"]["published"].items()} == {
            b.task: 3 for b in suite_of("paper", tuple(TASKS.split()))
        }
        manifest = json.loads((home / f"{result['name']}.manifest.json").read_text("utf-8"))
        assert manifest["benchmarks"] == {b: t["config"] for b, t in result["tasks"].items()}
        for name, score in result["tasks"].items():
            logged = [json.loads(line) for line in (home / f"samples/{result['name']}/{name}.jsonl").open(encoding="utf-8")]
            assert len(logged) == score["n"] and all("resps" in s and s["doc"]["id"] for s in logged)
    items = benchmark_items(home)
    for result in results.values():
        own = items[(items.arm == result["name"])].groupby("task").outcome
        right = own.agg(lambda outcomes: int((outcomes == "right").sum())).to_dict()
        assert right == {b: s["correct"].count("1") for b, s in result["tasks"].items()}
    assert items.prompt.str.contains("\n\nRight answer: .", regex=True).all() and (items.label != "").all()
    assert len(results) == 2 and not list((home / "answers").iterdir())
    stamps = {f: f.stat().st_mtime_ns for f in home.glob("*.json")}
    again = r3_repro.forgetting(model, other, root=tmp_path / "runs", **how)
    assert again.equals(table) and {f: f.stat().st_mtime_ns for f in home.glob("*.json")} == stamps
    few = r3_repro.forgetting(model, model, "HellaSwag", root=tmp_path / "few", **how | {"forgetting_tasks": "HellaSwag"})
    vanilla = json.loads(next((tmp_path / "few").glob("pairs/*/paper/*/*/forgetting/vanilla.json")).read_text("utf-8"))
    assert list(few["difference"]) == [0]
    with pytest.raises(ValueError, match="were not examined alike: protocol"):
        compare_items(vanilla, list(results.values())[1])


def test_benchmarks_have_numbers_of_items_of_their_own(folder: Path, brief: Path, tmp_path: Path) -> None:
    "Also where lm-eval's limit, which is one for all, would cut them."
    how = settings(folder, forgetting_tasks="HellaSwag GSM8K", forgetting_limit=2, root=tmp_path)
    table = r3_repro.forgetting(brief, brief, forgetting_limits="HellaSwag:5", **how)
    assert dict(zip(table["task"], table["n"], strict=True)) == {"GSM8K": 2, "HellaSwag": 5}
    assert set(r3_repro.forgetting(brief, brief, **how)["n"]) == {2} and len(list(tmp_path.rglob("vanilla.json"))) == 2


PLAIN = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager
model, tasks, folder, out = sys.argv[1:]
report = lm_eval.simple_evaluate(
    "hf", model_args={"pretrained": model, "add_bos_token": False, "dtype": "float32"}, tasks=tasks.split(), batch_size=2,
    device="cpu", apply_chat_template=True, fewshot_as_multiturn=True, bootstrap_iters=0, log_samples=True,
    samples=json.load(open(folder + "/samples.json")), task_manager=TaskManager(include_path=folder, include_defaults=False),
)
with open(out, "w") as f:
    json.dump({"results": report["results"], "samples": report["samples"]}, f, default=str)
"""


def plainly(model: Path, data: Path, at: Path, items: dict[str, list[int]]) -> dict[str, Any]:
    "lm-eval by itself, in a process of its own, on the raw files."
    plain_tasks(data, at)
    (at / "samples.json").write_text(json.dumps(items), "utf-8")
    command = [sys.executable, "-c", PLAIN, str(model), " ".join(items), str(at), str(at / "out.json")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=patience(600))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((at / "out.json").read_text("utf-8"))


def same_numbers(model: Path, folder: Path, tmp_path: Path, names: str, limit: int) -> None:
    "Also called by on_smol/test_smollm2_benchmark.py."
    how = settings(folder, forgetting_limit=limit, forgetting_tasks=names)
    run = open_run("paper", model=str(model), root=str(tmp_path), **how)
    suite = suite_of("paper", tuple(names.split()))
    asked = read_questions(suite, limit, str(folder))
    benchmarks.run_benchmarks(run)
    items = {b.task: [int(r["id"].split("-")[1]) for r in asked.rows[b.name][0]] for b in suite}
    theirs = plainly(model, folder, tmp_path / "plain", items)
    ours = load_results(run.model_dir / "forgetting")["vanilla"]["tasks"]
    for b in suite:
        assert ours[b.name]["value"] == theirs["results"][b.task][b.metric]
        logs = run.model_dir / f"forgetting/samples/vanilla/{b.name}.jsonl"
        said = [json.loads(line)["resps"] for line in logs.read_text("utf-8").splitlines()]
        chosen = [s for s in theirs["samples"][b.task] if s["filter"] == b.metric.split(",")[1]]
        assert said == [s["resps"] for s in chosen]


def test_the_numbers_are_lm_evals_own(folder: Path, model: Path, tmp_path: Path) -> None:
    same_numbers(model, folder, tmp_path, "GSM8K HellaSwag", 4)


def test_a_kill_costs_the_running_batch(folder: Path, brief: Path, warm: dict[str, str], tmp_path: Path) -> None:
    def started(root: str, batches: int) -> subprocess.CompletedProcess:
        program = Path(__file__).with_name("killed_benchmark.py")
        command = [sys.executable, str(program), str(brief), str(tmp_path / root), str(folder), str(batches)]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=patience(300), env=warm)

    killed, resumed, whole = started("a", 3), started("a", 99), started("b", 99)
    assert killed.returncode == -signal.SIGKILL and resumed.returncode == whole.returncode == 0, resumed.stderr[-2000:]
    assert [d.stdout.count("batch") for d in (killed, resumed, whole)] == [3, 1, 4]
    one, two = (json.loads(next((tmp_path / r).rglob("vanilla.json")).read_text("utf-8")) for r in "ab")
    assert one == two


def test_prompts_that_do_not_fit_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "open_backend", lambda *_: pytest.fail("a model was loaded"))
    model = wide_model(tmp_path / "model", context=2048)
    run = open_run("paper", model=str(model), root=str(tmp_path), **settings(folder, forgetting_tasks="HellaSwag GSM8K"))
    with pytest.raises(
        SettingsError, match=r"GSM8K: its longest prompt has .* tokens and an answer up to 256, the context of .* is 2,048"
    ):
        benchmarks.run_benchmarks(run)


def test_a_missing_or_clashing_scorer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"math-verify": "0.9.0", "antlr4-python3-runtime": "4.13.2", "sympy": "1.14.0"}
    monkeypatch.setattr(benchmark_files, "version", lambda package: found[package])
    with pytest.raises(SettingsError, match=r"antlr4-python3-runtime 4\.13\.2 is installed.*wants 4\.11: pip install"):
        benchmark_files.check_scorer(suite_of("paper"))

    def missing(package: str) -> str:
        raise benchmark_files.PackageNotFoundError(package)

    monkeypatch.setattr(benchmark_files, "version", missing)
    with pytest.raises(SettingsError, match=r"math-verify is not installed: pip install 'lm-eval\[math\]==0\.4\.13'"):
        benchmark_files.check_scorer(suite_of("paper"))
    assert benchmark_files.check_scorer(suite_of("tiny")) == benchmark_files.check_scorer(suite_of("paper", ("GSM8K",))) == {}
