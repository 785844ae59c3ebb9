"""Import modules once, then run Python programs in forked children, as `sitecustomize.py` hands them over.

    python tests/warm/server.py ADDRESS MODULE ...

A child is a process of its own that can be killed: only the interpreter's start and the imports are shared.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys


def run(files: list[int]) -> None:
    "Be the program that was handed over: its standard streams and its request."
    for stream, file in enumerate(files[:3]):
        os.dup2(file, stream)
    with open(files[3], encoding="utf-8") as f:
        request = json.load(f)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    argv, sys.orig_argv = request["argv"], request["orig_argv"]
    if argv[0] == "-m":
        sys.argv, sys.path[0] = argv[1:], os.getcwd()
        sys.modules.pop(argv[1], None)  # which runpy would warn of
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = argv, os.path.dirname(os.path.abspath(argv[0]))
        runpy.run_path(argv[0], run_name="__main__")


def report(status: int, client: socket.socket) -> None:
    "Tell a client how its program ended."
    with client, contextlib.suppress(OSError):  # the client was killed
        client.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def serve(listener: socket.socket) -> list[int]:
    "Fork a child for each client; in a child, return what it was given. Ends when standard input does."
    events, clients = selectors.DefaultSelector(), dict[int, socket.socket]()
    for there in (listener, sys.stdin):
        events.register(there, selectors.EVENT_READ)
    while True:
        for key, _ in events.select(0.02 if clients else None):
            if key.fileobj is sys.stdin:
                sys.exit()
            if key.fileobj is listener:
                client, _ = listener.accept()
                _, files, _, _ = socket.recv_fds(client, 1, 4)
                if (child := os.fork()) == 0:
                    for there in (listener, client):
                        there.close()
                    return files
                for file in files:
                    os.close(file)
                clients[child] = client
                events.register(client, selectors.EVENT_READ, child)
            elif passed := key.fileobj.recv(1):
                os.kill(key.data, passed[0])
            else:  # the client was killed
                os.kill(key.data, signal.SIGKILL)
        for child, client in list(clients.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                events.unregister(clients.pop(child))
                report(status, client)


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        print("ready", flush=True)
        files = serve(listener)
    run(files)
