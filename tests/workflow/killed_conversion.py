"""A conversion for test_local_models.py that is killed before it is checked.

python tests/workflow/killed_conversion.py PACKAGED FOLDER WHEEL
"""

import json
import os
import signal
import sys
from pathlib import Path

from r3_repro.workflow import local_models as lm

lm.check_conversion = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
lm.convert_smollm2(Path(sys.argv[2]), Path(sys.argv[3]), lm.Packaged(**json.loads(sys.argv[1])))
