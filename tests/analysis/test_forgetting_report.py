"""Forgetting from stored results alone: unlike results are refused, and tables and figure need no torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import patience

from r3_repro.analysis.forgetting import by_arm, load_results, make_forgetting, score_table, shown_scores
from r3_repro.tasks.suites import SKILLS
from r3_repro.utils.errors import SettingsError

LIMIT = 12


def store(root: Path) -> Path:
    "Store results of a vanilla model, of an exact copy as `r3`, and of another one as `random_reward`; returns the folder."
    folder = root / "tiny/countdown/some-model"
    (folder / "forgetting").mkdir(parents=True)
    for name, arm, seed, model in (
        ("vanilla", "vanilla", 0, 0),
        ("r3-seed0", "r3", 0, 0),
        ("random_reward-seed3", "random_reward", 3, 1),
    ):
        rng, tasks = np.random.default_rng(model), {}
        for skill in SKILLS:
            correct = "".join(map(str, rng.integers(0, 2, LIMIT)))
            tasks[skill] = {"correct": correct, "n": LIMIT, "value": correct.count("1") / LIMIT, "config": skill, "items": "i"}
        hashes = {"model": str(model), "protocol": "p", "chat_template": "c", "items": "i"}
        result = {"name": name, "arm": arm, "seed": seed, "suite": "tiny", "tasks": tasks, "hashes": hashes}
        (folder / "forgetting" / f"{name}.json").write_text(json.dumps(result), "utf-8")
        (folder / "forgetting" / f"{name}.manifest.json").write_text("{}", "utf-8")
    return folder


def test_the_same_answers_differ_nowhere_and_others_do(tmp_path: Path) -> None:
    results = load_results(store(tmp_path) / "forgetting")
    assert list(results) == ["vanilla", "r3-seed0", "random_reward-seed3"]
    arms = by_arm(results).set_index("arm")
    assert (
        len(arms) == 2 * len(SKILLS)
        and (arms.loc["r3"].difference == 0).all()
        and (arms.loc["random_reward"].difference != 0).any()
    )


@pytest.mark.parametrize(
    ("key", "value"), [("protocol", "other"), ("chat_template", "other"), ("items", "other"), ("config", "other")]
)
def test_unlike_examinations_are_refused(tmp_path: Path, key: str, value: str) -> None:
    results = load_results(store(tmp_path) / "forgetting")
    after = results["r3-seed0"]
    (after["tasks"]["geography"] if key == "config" else after["hashes"])[key] = value
    with pytest.raises(ValueError, match=r"examined alike|configured differently"):
        by_arm(results)


def test_who_is_at_chance_is_said_by_a_test(tmp_path: Path) -> None:
    "With four choices, 30 right of 100 may be luck and 35 are not; the result's own chance goes before the suite's."
    results = load_results(store(tmp_path) / "forgetting")
    vanilla = {"vanilla": results["vanilla"]}
    for right, lucky in ((30, True), (35, False)):
        results["vanilla"]["tasks"] = {"geography": {"correct": "1" * right + "0" * (100 - right), "n": 100}}
        cell = shown_scores(score_table(vanilla)).iloc[0, 1]
        assert cell.endswith(" (at chance)") is lucky, cell
    results["vanilla"]["tasks"]["geography"]["chance"] = 0.5
    assert shown_scores(score_table(vanilla)).iloc[:, 1].str.contains("at chance|50.0").all()


NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "lm_eval", "trl", "datasets"}:
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Refuse())
from r3_repro.analysis.forgetting import make_forgetting
print(len(make_forgetting(sys.argv[1])["by_arm"]))
"""


def test_tables_and_figure_need_no_torch_and_come_out_byte_identical(tmp_path: Path) -> None:
    made = []
    for part in ("one", "two"):
        folder = store(tmp_path / part)
        command = [sys.executable, "-c", NO_TORCH, str(folder)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=patience(120))
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(2 * len(SKILLS))
        files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.parent.name in ("tables", "figures")]
        made.append({f.name: f.read_bytes() for f in files})
    kinds = {"csv", "md", "tex"}
    tables = {f"{n}.{k}" for n in ("forgetting", "forgetting_by_seed", "forgetting_scores") for k in kinds}
    assert made[0] == made[1] and set(made[0]) == tables | {f"forgetting.{k}" for k in ("svg", "pdf", "png")}


def test_report_without_results_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no vanilla\.json in .*: run `r3-repro forgetting --profile tiny` first"):
        make_forgetting(tmp_path / "tiny/countdown/some-model")
