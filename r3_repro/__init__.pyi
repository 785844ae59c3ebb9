# What r3_repro/__init__.py imports when it is first used; tests/test_facade.py compares the two.
from r3_repro.analysis.compare import compare as compare
from r3_repro.analysis.loading import load_episodes as load_episodes
from r3_repro.config import load_profile as load_profile
from r3_repro.engines.factory import open_engine as open_engine
from r3_repro.evaluation.benchmarks import forgetting as forgetting
from r3_repro.evaluation.episodes import evaluate as evaluate
from r3_repro.evaluation.episodes import run_episodes as run_episodes
from r3_repro.mining.failures import mine as mine
from r3_repro.profiles import Profile as Profile
from r3_repro.runs.layout import Run as Run
from r3_repro.runs.layout import open_run as open_run
from r3_repro.tasks.base import Problem as Problem
from r3_repro.tasks.base import Task as Task
from r3_repro.tasks.base import Verdict as Verdict
from r3_repro.tasks.base import get_task as get_task
from r3_repro.training.r3_config import R3Config as R3Config
from r3_repro.training.train import train as train
from r3_repro.training.trainer import R3Trainer as R3Trainer
from r3_repro.utils.errors import EngineError as EngineError
from r3_repro.utils.errors import SettingsError as SettingsError

__version__: str
__all__ = [
    "EngineError",
    "Problem",
    "Profile",
    "R3Config",
    "R3Trainer",
    "Run",
    "SettingsError",
    "Task",
    "Verdict",
    "__version__",
    "compare",
    "evaluate",
    "forgetting",
    "get_task",
    "load_episodes",
    "load_profile",
    "mine",
    "open_engine",
    "open_run",
    "run_episodes",
    "train",
]
