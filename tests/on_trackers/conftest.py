"""A training is killed and resumed as in the tests of training: they are imported from there."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "training"))
