"""The box and the doctor are started as in the tests of the workflow: they are imported from there."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "workflow"))
