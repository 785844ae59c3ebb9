"""Run nbdev-test on parts of the library, each in a forked child of this process, which is one of warm/server.py in the tests.

    python tests/notebooks/nbdev_parts.py FOLDER_OR_NOTEBOOK ...

Prints one JSON object for each: what was given, the exit code, and what nbdev-test said.
"""

import json
import os
import sys
import tempfile
import traceback

from nbdev.test import nbdev_test


def test_in_child(path: str) -> tuple[int, str]:
    "What nbdev-test ends with and says."
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        if (pid := os.fork()) == 0:
            for stream in (1, 2):
                os.dup2(said.fileno(), stream)
            try:
                nbdev_test(path, n_workers=0, cell_timing_min=0.0)
                code = 0
            except SystemExit as e:
                code = int(e.code or 0)
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        return code, said.read()


if __name__ == "__main__":
    for path in sys.argv[1:]:
        code, text = test_in_child(path)
        print(json.dumps({"path": path, "code": code, "said": text}), flush=True)
