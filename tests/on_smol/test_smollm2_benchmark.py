"""The four benchmarks on real rows with a pretrained model and its tokenizer: the numbers are lm-eval's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_benchmark_files import folder, same_numbers, settings  # noqa: F401

from r3_repro.analysis.forgetting import load_results
from r3_repro.evaluation import benchmarks
from r3_repro.runs.layout import open_run


@pytest.mark.parametrize(("name", "limit"), [("HellaSwag", 12), ("GSM8K", 2)])
def test_the_numbers_of_a_pretrained_model_are_lm_evals_own(
    real: Path,
    folder: Path,  # noqa: F811
    tmp_path: Path,
    name: str,
    limit: int,
) -> None:
    same_numbers(real, folder, tmp_path, name, limit)


def test_all_four_are_answered_graded_and_not_asked_again(
    real: Path,
    folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = open_run("paper", model=str(real), root=str(tmp_path), **settings(folder, forgetting_limit=2, forgetting_tasks=""))
    benchmarks.run_benchmarks(run)
    found = load_results(run.model_dir / "forgetting")["vanilla"]
    assert {name: task["n"] for name, task in found["tasks"].items()} == dict.fromkeys(
        ("MMLU-Pro", "GSM8K", "HellaSwag", "MATH"), 2
    )
    for name in found["tasks"]:
        lines = (run.model_dir / f"forgetting/samples/vanilla/{name}.jsonl").read_text("utf-8").splitlines()
        answers: list[Any] = [json.loads(line)["resps"] for line in lines]
        assert len(answers) == 2
        if name == "HellaSwag":  # a log-likelihood for each ending
            assert all(len(endings) == 4 and all(float(e[0][0]) < 0 for e in endings) for endings in answers)
        else:  # text in words, as a random model has none
            assert all(len(text.split()) > 3 for ((text,),) in answers)
    monkeypatch.setattr(benchmarks, "open_backend", lambda *_: pytest.fail("a model was loaded again"))
    benchmarks.run_benchmarks(run)
