"""The glossary of a training's log says what is in the log, under the names of TRL."""

import json
import re
from collections import defaultdict

from support import REPOSITORY

from r3_repro.training.callbacks import _FROM_TRL, log_row
from r3_repro.training.monitoring import completion_shares, step_metrics, success_by


def glossary() -> dict[str, str]:
    "Column -> name in TRL, as the table in monitoring.ipynb has them; a dash for none."
    cells = json.loads((REPOSITORY / "nbs/training/monitoring.ipynb").read_text("utf-8"))["cells"]
    (text,) = (source for c in cells if (source := "".join(c["source"])).startswith("## Glossary"))
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {name: row[1].strip("`") for row in rows for name in re.findall(r"`(\w+)`", row[0])}


def test_every_column_is_explained_and_no_other() -> None:
    counted = defaultdict(float, {"right_at_once": 1, "answers: TASK": 1, "right: TASK": 1})  # all that can be counted
    own = step_metrics(counted, {}) | completion_shares(counted) | success_by(counted)
    assert sorted(glossary()) == sorted(log_row({}, own, 0.0, 1.0))


def test_one_round_of_one_task_logs_what_it_always_did() -> None:
    plain, more = step_metrics(defaultdict(float), {}), step_metrics(defaultdict(float, right_at_once=1), {})
    assert sorted(more.keys() - plain.keys()) == ["first_retry_success", "rounds_mean"]


def test_names_in_trl_are_those_that_the_log_is_read_from() -> None:
    own = {ours: theirs for ours, theirs in glossary().items() if theirs != "–"}
    assert own == {ours: theirs for theirs, ours in _FROM_TRL.items()} | {"reflection_tokens_mean": "completions/mean_length"}
