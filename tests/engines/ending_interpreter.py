"""Ends with a request under way, for test_servers.py.

python tests/engines/ending_interpreter.py URL MODEL
"""

import sys
import time

from r3_repro.engines.base import Request, SamplingParams
from r3_repro.engines.server import open_servers

engine = open_servers((sys.argv[1],), sys.argv[2])
engine.submit(Request(0, [1, 12], SamplingParams(16)))
time.sleep(0.3)
print("waiting", engine.pending)
