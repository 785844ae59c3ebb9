"""A server process of vLLM on this machine, for tests."""

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from support import patience

HOST = "127.0.0.1"
OPTIONS = ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64", "--block-size", "32", "--no-enable-chunked-prefill"]
OPTIONS += ["--kv-cache-memory-bytes", str(2**30), "--generation-config", "vllm", "--seed", "0"]


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


@contextlib.contextmanager
def serving(command: list[str], log: Path, **more: str) -> Iterator[str]:
    "Address of a server that is started by a command, and ended afterwards."
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"} | more
    with log.open("w", encoding="utf-8") as out:
        server = subprocess.Popen([*command, "--host", HOST, "--port", port, *OPTIONS], stdout=out, stderr=out, env=env)
    try:
        until = time.monotonic() + patience(400)
        while not answers(f"http://{HOST}:{port}/health"):
            assert server.poll() is None and time.monotonic() < until, log.read_text("utf-8")[-4000:]
            time.sleep(1)
        yield f"http://{HOST}:{port}"
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
