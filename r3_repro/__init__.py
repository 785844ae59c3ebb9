"""Replication of Reflect, Retry, Reward (arXiv 2505.24726), from problems to verdicts.

The names that a script or a notebook needs most; each is imported from its module when it is first used, so that
`import r3_repro` is fast and needs no torch:

    import r3_repro as r3

    run = r3.open_run("smoke")                  # profile x task x model x arm x seed, and its files
    r3.mine(run)                                # failures of the model, stored
    r3.train(run)                               # GRPO on the reflections of those failures
    r3.evaluate(run)                            # episodes of the held-out problems, stored
    r3.load_episodes(run.model_dir)             # a DataFrame, one row an episode
    r3.compare("a.parquet", "b.parquet")        # two tables, folders or runs, problem by problem, as a page
    r3.forgetting("models/base", "models/mine") # two models on MMLU-Pro, GSM8K, HellaSwag and MATH, item by item
"""

import importlib
import sys
from typing import Any

if sys.argv[:1] == ["-m"]:  # Python is looking for the module that it was asked to run
    _asked = next((b if a == "-m" else a[2:] for a, b in zip(sys.orig_argv, [*sys.orig_argv[1:], ""]) if a[:2] == "-m"), "")
    if _asked.startswith("r3_repro.") and _asked != "r3_repro.__main__":
        sys.stderr.write(f"r3_repro: {_asked} is no command but a module to import; r3-repro --help names the commands\n")
        raise SystemExit(2)

__version__ = "0.1.0"

# name -> where it is defined; __init__.pyi says the same to type checkers
_DEFINED_IN = {
    "Task": "tasks.base:Task",
    "Problem": "tasks.base:Problem",
    "Verdict": "tasks.base:Verdict",
    "get_task": "tasks.base:get_task",
    "Profile": "profiles:Profile",
    "load_profile": "config:load_profile",
    "Run": "runs.layout:Run",
    "open_run": "runs.layout:open_run",
    "open_engine": "engines.factory:open_engine",
    "run_episodes": "evaluation.episodes:run_episodes",
    "mine": "mining.failures:mine",
    "train": "training.train:train",
    "R3Config": "training.r3_config:R3Config",
    "R3Trainer": "training.trainer:R3Trainer",
    "evaluate": "evaluation.episodes:evaluate",
    "load_episodes": "analysis.loading:load_episodes",
    "compare": "analysis.compare:compare",
    "forgetting": "evaluation.benchmarks:forgetting",
    "SettingsError": "utils.errors:SettingsError",
    "EngineError": "utils.errors:EngineError",
}

__all__ = ["__version__", *_DEFINED_IN]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_hint(name)}", name=name)
    module, _, attribute = _DEFINED_IN[name].partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _hint(name: str) -> str:
    "What to do instead; `from r3_repro import config` asks here before it imports the module."
    import difflib
    from importlib.util import find_spec

    if name.startswith("_"):
        return ""
    if find_spec(f"{__name__}.{name}"):
        return f": it is a module, so import {__name__}.{name} first"
    close = difflib.get_close_matches(name, __all__, 1)
    return (
        f"; did you mean {close[0]!r}?"
        if close
        else f": it is none of {', '.join(__all__)}; import what is not listed from its module"
    )
