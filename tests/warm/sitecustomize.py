"""Python runs this at its start if this folder is on `PYTHONPATH`: stages, launchers and test drivers go to `server.py`.

The server has imported everything already. It runs the program in a forked child with the files, folder, variables and arguments
of this process, which passes signals on and ends as the child does. If this process is killed, so is the child.
"""

import json
import os
import re
import signal
import socket
import sys
import tempfile

FORMS = r"(-u )?(-m (r3_repro|ipykernel_launcher|accelerate\.commands\.launch|torch\.distributed\.run)|\S+/tests/\S+\.py)( |$)"


def hand_over(address: str, argv: list[str]) -> None:
    "Let the server run `python ARGV`; does not return."
    with socket.socket(socket.AF_UNIX) as server, tempfile.TemporaryFile("w+", encoding="utf-8") as request:
        server.connect(address)
        json.dump({"argv": argv, "orig_argv": sys.orig_argv, "env": dict(os.environ), "cwd": os.getcwd()}, request)
        request.seek(0)
        for passed in (signal.SIGTERM, signal.SIGINT):
            signal.signal(passed, lambda number, _: server.sendall(bytes([number])))
        socket.send_fds(server, [b" "], [0, 1, 2, request.fileno()])
        code = int(server.recv(8))
    if code < 0:  # by a signal
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if os.environ.get("WARM_PREFIX") == sys.prefix and re.match(FORMS, " ".join(sys.orig_argv[1:])):
    hand_over(os.environ["WARM_SERVER"], [a for a in sys.orig_argv[1:] if a != "-u"])
