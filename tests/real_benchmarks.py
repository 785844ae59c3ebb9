"""The real rows of the published benchmarks as a folder, and as tasks for lm-eval by itself."""

import json
import shutil
from pathlib import Path

from support import DATA

ROWS = {
    "mmlu_pro/test": "test_sample", "mmlu_pro/validation": "validation", "gsm8k/test": "test", "gsm8k/train": "train_first500",
    "hellaswag/validation": "validation_500anet_500wikihow", "math/test": "math500_test",
}  # fmt: skip
"Split -> its file."

PARTS = {"mmlu_pro/test": 716, "gsm8k/train": 500, "hellaswag/validation": 1000, "math/test": 500}
"Rows of those that are parts of the published ones."

THERE = (DATA / "data/mmlu_pro").is_dir()
SMALL = DATA.parent / "models/SmolLM2-135M-Instruct"


def benchmark_folder(at: Path) -> Path:
    "A folder as the setting `benchmarks` wants it, which says what parts its files are."
    for key, name in ROWS.items():
        part = key.partition("/")[0]
        (at / part).mkdir(exist_ok=True)
        shutil.copyfile(DATA / f"data/{part}/{name}.jsonl", at / part / f"{name}.jsonl")
    (at / "rows.json").write_text(json.dumps(PARTS), "utf-8")
    return at


HELLASWAG = "include: {home}/hellaswag/hellaswag.yaml\ntask: hellaswag\ntraining_split: null\ndataset_path: json\n"
GSM8K = "include: {home}/gsm8k/gsm8k.yaml\ntask: gsm8k\ndataset_name: null\ndataset_path: json\n"


def plain_tasks(
    data: Path,  # from `benchmark_folder`
    at: Path,  # to be made
) -> None:
    "lm-eval's own HellaSwag and GSM8K on the raw files, without a line of this package."
    import lm_eval.tasks

    files = {
        "hellaswag": {"validation": f"{data}/hellaswag/{ROWS['hellaswag/validation']}.jsonl"},
        "gsm8k": {"test": f"{data}/gsm8k/test.jsonl", "train": f"{data}/gsm8k/{ROWS['gsm8k/train']}.jsonl"},
    }
    at.mkdir()
    for name, text in (("hellaswag", HELLASWAG), ("gsm8k", GSM8K)):
        kept = f"dataset_kwargs: {json.dumps({'data_files': files[name]})}\n"
        (at / f"{name}.yaml").write_text(text.format(home=Path(lm_eval.tasks.__file__).parent) + kept, "utf-8")
