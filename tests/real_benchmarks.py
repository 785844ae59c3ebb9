"""The real rows of the published benchmarks as a folder, and as tasks for lm-eval by itself."""

import json
import shutil
from pathlib import Path
from typing import Any

from support import DATA

from r3_repro.workflow.local_models import local_model_folder

ROWS = {
    "mmlu_pro/test": "test_sample", "mmlu_pro/validation": "validation", "gsm8k/test": "test", "gsm8k/train": "train_first500",
    "hellaswag/validation": "validation_500anet_500wikihow", "math/test": "math500_test",
}  # fmt: skip
"Split -> its file."

PARTS = {"mmlu_pro/test": 716, "gsm8k/train": 500, "hellaswag/validation": 1000, "math/test": 500}
"Rows of those that are parts of the published ones."

THERE = (DATA / "data/mmlu_pro").is_dir()


def small_model() -> Path:
    "SmolLM2-135M-Instruct where `r3-repro models smollm2` writes it, or beside the real rows; the former if it is nowhere."
    own = local_model_folder()
    return next((at for at in (own, DATA.parent / "models" / own.name) if at.is_dir()), own)


SMALL = small_model()


def benchmark_folder(at: Path) -> Path:
    "A folder as the setting `benchmarks` wants it, which says what parts its files are."
    for key, name in ROWS.items():
        part = key.partition("/")[0]
        (at / part).mkdir(exist_ok=True)
        shutil.copyfile(DATA / f"data/{part}/{name}.jsonl", at / part / f"{name}.jsonl")
    (at / "rows.json").write_text(json.dumps(PARTS), "utf-8")
    return at


def rows_of(key: str) -> list[dict[str, Any]]:
    "The real rows of a split, as they are published."
    file = DATA / f"data/{key.partition('/')[0]}/{ROWS[key]}.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def math_answers() -> dict[str, str]:
    "Problem of MATH -> its answer as the data set has it, which lm-eval does not read."
    return {row["problem"]: row["answer"] for row in rows_of("math/test")}


def first_of(kinds: list[Any], each: int = 1) -> list[int]:
    "Where each kind comes first."
    return [k for k, kind in enumerate(kinds) if kinds[:k].count(kind) < each]


def odd_rows(at: Path) -> Path:
    "A folder of some real rows with all their oddities, and all shots."
    mmlu, gsm8k, swag, math = map(rows_of, ("mmlu_pro/test", "gsm8k/test", "hellaswag/validation", "math/test"))
    kept = {
        "mmlu_pro/test": first_of([(r["category"], len(r["options"]) == 3) for r in mmlu], 2),
        "gsm8k/test": first_of(["," in r["answer"].split("####")[1] for r in gsm8k], 10),
        "hellaswag/validation": first_of([("[header]" in r["ctx_a"], "[title]" in r["ctx_a"], r["label"]) for r in swag], 3),
        "math/test": first_of([(r["subject"], r["answer"].isdigit()) for r in math], 2),
    }
    at.mkdir()
    benchmark_folder(at)
    for key, places in kept.items():
        file = at / key.partition("/")[0] / f"{ROWS[key]}.jsonl"
        lines = file.read_text("utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[k] for k in places), "utf-8")
    (at / "rows.json").write_text(json.dumps(PARTS | {key: len(places) for key, places in kept.items()}), "utf-8")
    return at


TASK = "include: {home}/{folder}/{task}.yaml\ntask: {task}\ndataset_name: null\ndataset_path: json\n"
SUBJECTS = {
    "Algebra": "algebra", "Counting & Probability": "counting_and_prob", "Geometry": "geometry", "Number Theory": "num_theory",
    "Intermediate Algebra": "intermediate_algebra", "Prealgebra": "prealgebra", "Precalculus": "precalc",
}  # fmt: skip
"Subject of MATH -> the end of its task's name."


def plain_tasks(
    data: Path,  # from `benchmark_folder` or `odd_rows`
    at: Path,  # to be made
) -> None:
    "lm-eval's own four benchmarks on the raw files, without a line of this package; MATH: a file for each subject."
    import lm_eval.tasks

    home = Path(lm_eval.tasks.__file__).parent
    at.mkdir()
    raw = dict[str, dict[str, str]]()  # benchmark -> split -> file
    for key, name in ROWS.items():
        benchmark, _, split = key.partition("/")
        raw.setdefault(benchmark, {})[split] = f"{data}/{benchmark}/{name}.jsonl"
    tasks = {"hellaswag/hellaswag": raw["hellaswag"], "gsm8k/gsm8k": raw["gsm8k"]}
    tasks |= {f"mmlu_pro/{file.stem}": raw["mmlu_pro"] for file in sorted(home.glob("mmlu_pro/mmlu_pro_*.yaml"))}
    lines = Path(raw["math"]["test"]).read_text("utf-8").splitlines(keepends=True)
    for subject, end in SUBJECTS.items():
        own = at / f"{end}.jsonl"
        own.write_text("".join(line for line in lines if json.loads(line)["subject"] == subject), "utf-8")
        tasks[f"minerva_math/minerva_math_{end}"] = {"test": str(own)}
    for name, splits in tasks.items():
        folder, _, task = name.partition("/")
        text = TASK.format(home=home, folder=folder, task=task)
        text += "" if "train" in splits or folder == "mmlu_pro" else "training_split: null\n"
        (at / f"{task}.yaml").write_text(f"{text}dataset_kwargs: {json.dumps({'data_files': splits})}\n", "utf-8")
    for group in ("mmlu_pro/_mmlu_pro.yaml", "benchmarks/minerva_math.yaml"):
        shutil.copyfile(home / group, at / Path(group).name)
