"""The doctor for test_doctor.py, with a training that hangs.

python tests/workflow/hanging_doctor.py ROOT
"""

import sys

from r3_repro.runs.layout import open_run
from r3_repro.workflow import doctor, trial_steps

trial_steps.stage_command = lambda *_: [sys.executable, "-c", "import time; time.sleep(600)", "train", sys.argv[1]]
doctor.doctor(open_run("smoke", root=sys.argv[1]))
