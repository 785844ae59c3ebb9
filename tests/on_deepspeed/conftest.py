"""What the tests of training say about two processes holds with ZeRO-3, too: they are imported from there."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "training"))
