"""What the tests of evaluation share."""

from dataclasses import replace

import pytest

from r3_repro.tasks.base import Problem, Verdict
from r3_repro.tasks.countdown import task as countdown


@pytest.fixture
def right_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    "Countdown without its verifier: the answer `right` is right, any other is wrong. A prompt begins with its problem's id."
    usual = countdown.TASK

    def verify(problem: Problem, text: str, rule: str = "strict") -> Verdict:
        return Verdict(text == "right", "" if text == "right" else "wrong", text)

    monkeypatch.setattr(countdown, "TASK", replace(usual, verify=verify, prompt=lambda p: f"[{p.id}] {usual.prompt(p)}"))
