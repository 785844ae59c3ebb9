"""The digest of code follows what code does: not where it is, nor what it is called, nor how it is written down."""

import importlib
import itertools
from pathlib import Path

import pytest

from r3_repro.analysis import reflection_effect
from r3_repro.reporting.tables import show_points
from r3_repro.utils.hashing import code_digest, digest, file_hash

MODULES = {
    "rules": """
import math
from PACKAGE.ranges import clamp

LIMIT = 3

def rule(x, scale=2):
    return clamp(math.floor(x * scale)) <= LIMIT
""",
    "ranges": """
from PACKAGE.shifts import shift

LOW, NAMES = 0, {"high": 9}

def clamp(x):
    return min(NAMES["high"], max(LOW, shift(x)))
""",
    "shifts": """
def shift(x):
    return x - 1
""",
}
NUMBER = itertools.count()


@pytest.fixture
def digest_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    "Writes a package of its own, with some modules replaced, and hashes what `entry` reaches."
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(entry: str = "rules.rule", **replaced: str) -> str:
        name = f"rules_package_{next(NUMBER)}"
        (tmp_path / name).mkdir()
        for module, source in {"__init__": "", **MODULES, **replaced}.items():
            (tmp_path / name / f"{module}.py").write_text(source.replace("PACKAGE", name), "utf-8")
        importlib.invalidate_caches()
        module, _, function = entry.partition(".")
        return code_digest([getattr(importlib.import_module(f"{name}.{module}"), function)])

    return made


SAME = {
    "nothing": {},
    "moved to another module": {
        "entry": "elsewhere.rule",
        "elsewhere": MODULES["rules"],
        "rules": "",
    },
    "all in one module, in another order": {
        "rules": MODULES["shifts"]
        + MODULES["rules"].replace("from PACKAGE.ranges import clamp", "")
        + MODULES["ranges"].replace("from PACKAGE.shifts import shift", ""),
        "ranges": "",
        "shifts": "",
    },
    "functions and constants renamed": {
        "entry": "rules.decide",
        "rules": MODULES["rules"].replace("rule(", "decide(").replace("clamp", "bounded").replace("LIMIT", "MOST"),
        "ranges": MODULES["ranges"].replace("clamp", "bounded").replace("LOW", "LEAST").replace("NAMES", "ENDS"),
    },
    "comments": {"rules": MODULES["rules"].replace("    return", "    # scaled, then bounded\n\n    return")},
    "layout": {
        "rules": MODULES["rules"]
        .replace("return clamp(math.floor(x * scale)) <=", "return (\n        clamp( math.floor(x*scale) )\n        <=")
        .replace("= LIMIT\n", "= LIMIT\n    )\n")
    },
    "docstrings": {
        "rules": '"""Rules."""\n' + MODULES["rules"].replace("scale=2):", 'scale=2):\n    "Is it small?"'),
        "shifts": MODULES["shifts"].replace("shift(x):", 'shift(x):\n    """One less."""'),
    },
    "annotations": {
        "rules": MODULES["rules"].replace("rule(x, scale=2):", "rule(x: float, scale: int = 2) -> bool:"),
        "ranges": MODULES["ranges"].replace("clamp(x):", "clamp(x: int) -> int:"),
    },
    "how another module is imported": {
        "rules": MODULES["rules"]
        .replace("from PACKAGE.ranges import clamp", "from PACKAGE import ranges")
        .replace("clamp(", "ranges.clamp("),
        "ranges": MODULES["ranges"]
        .replace("from PACKAGE.shifts import shift", "from .shifts import shift as moved")
        .replace("shift(x)", "moved(x)"),
    },
    "how a library is imported": {
        "rules": MODULES["rules"].replace("import math", "from math import floor").replace("math.floor", "floor")
    },
    "a library under another name": {
        "rules": MODULES["rules"].replace("import math", "import math as m").replace("math.floor", "m.floor")
    },
    "how a number is written": {"rules": MODULES["rules"].replace("LIMIT = 3", "LIMIT = 0b11").replace("scale=2", "scale=0x2")},
    "what is not reached": {"rules": MODULES["rules"] + "\nOTHER = 5\n\ndef other():\n    return OTHER\n"},
}
OTHER = {
    "a constant": ("rules", "LIMIT = 3", "LIMIT = 4"),
    "the type of a constant": ("rules", "LIMIT = 3", "LIMIT = 3.0"),
    "a constant of a reached function": ("ranges", "LOW, NAMES = 0,", "LOW, NAMES = 1,"),
    "a value inside a constant": ("ranges", '{"high": 9}', '{"high": 8}'),
    "an operator": ("rules", "<= LIMIT", "< LIMIT"),
    "a default argument": ("rules", "scale=2", "scale=3"),
    "a function of a library": ("rules", "math.floor", "math.ceil"),
    "a built-in function": ("ranges", "max(LOW", "min(LOW"),
    "the order of arguments": ("ranges", "max(LOW, shift(x))", "max(shift(x), LOW)"),
    "a reached function of a reached function": ("shifts", "x - 1", "x + 1"),
    "a number in it": ("shifts", "x - 1", "x - 2"),
    "which function is reached": ("ranges", "max(LOW, shift(x))", "max(LOW, abs(x))"),
}


@pytest.mark.parametrize("change", SAME)
def test_the_digest_survives(digest_of, change: str) -> None:
    assert digest_of() == digest_of(**SAME[change])


@pytest.mark.parametrize("change", OTHER)
def test_the_digest_changes_with(digest_of, change: str) -> None:
    module, old, new = OTHER[change]
    assert old in MODULES[module]
    assert digest_of() != digest_of(**{module: MODULES[module].replace(old, new)})


CLASSES = """
from dataclasses import dataclass

LEAST = 2

@dataclass(frozen=True)
class Evidence:
    "What a rule sees."

    seen: int = 1  # times

    @property
    def enough(self) -> bool:
        "Is it enough?"
        return self.seen >= LEAST

def rule(x):
    return Evidence(x).enough
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("What a rule sees.", "Everything.", True),
        ("  # times", "", True),
        ("Evidence", "Facts", True),
        (" -> bool", "", True),
        ("seen: int = 1", "seen: int = 2", False),
        ("seen >= LEAST", "seen > LEAST", False),
        ("LEAST = 2", "LEAST = 3", False),
    ],
)
def test_a_class_counts_with_its_defaults_methods_and_constants(digest_of, old: str, new: str, same: bool) -> None:
    assert old in CLASSES
    assert (digest_of(rules=CLASSES) == digest_of(rules=CLASSES.replace(old, new))) == same


def test_functions_of_modules_that_are_left_out_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    def digests() -> tuple[str, str]:
        shown = [reflection_effect.readable_effect]
        return code_digest(shown), code_digest(shown, leave_out=("r3_repro.reporting",))

    everything, less = digests()
    monkeypatch.setattr(reflection_effect, "show_p", show_points)  # both of them how a number is shown
    assert digests() == (digests()[0], less) and digests()[0] != everything


def test_values_and_files(tmp_path: Path) -> None:
    assert digest({"b": 1, "a": [1, 2]}) == digest({"a": [1, 2], "b": 1}) != digest({"a": [2, 1], "b": 1})
    (tmp_path / "one").write_text("1", "utf-8")
    before = file_hash(tmp_path)
    (tmp_path / "README.md").write_text("about the others", "utf-8")
    assert file_hash(tmp_path) == before
    (tmp_path / "two").write_text("2", "utf-8")
    assert file_hash(tmp_path) != before
