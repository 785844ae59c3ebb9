"""What warm/server.py runs is a process like any other: its streams, folder, variables, exit code, signals, and its death."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import patience, shared_python, warm_python

SAYS = """
import json, os, sys
print(json.dumps([os.getcwd(), os.environ["ASKED"], sys.argv[1:], sys.orig_argv[1:], input()]))
print("wrong", file=sys.stderr)
sys.exit(3)
"""
SLEEPS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with warm_python(tmp_path_factory.mktemp("warm"), modules=["sqlite3"]) as env:
        yield env


def script(folder: Path, source: str) -> list[str]:
    "A command line of which sitecustomize.py takes care."
    (folder / "tests").mkdir()
    (folder / "tests/program.py").write_text(source, "utf-8")
    return [sys.executable, "-u", str(folder / "tests/program.py")]


def test_a_program_has_its_clients_surroundings(warm: dict[str, str], tmp_path: Path) -> None:
    line = [*script(tmp_path, SAYS), "a b", "c"]
    done = subprocess.run(line, env=warm | {"ASKED": "x"}, cwd=tmp_path, input="typed\n", capture_output=True, encoding="utf-8")
    assert json.loads(done.stdout) == [str(tmp_path.resolve()), "x", ["a b", "c"], line[1:], "typed"], done.stderr
    assert done.stderr == "wrong\n" and done.returncode == 3


def test_it_is_a_fork_of_what_has_imported_the_modules(warm: dict[str, str], tmp_path: Path) -> None:
    line = script(tmp_path, "import sys, os; print('sqlite3' in sys.modules, os.getppid())")
    there, parent = subprocess.run(line, env=warm, capture_output=True, encoding="utf-8").stdout.split()
    assert there == "True" and "server.py" in " ".join(psutil.Process(int(parent)).cmdline())


def test_it_may_become_another_program(warm: dict[str, str], tmp_path: Path) -> None:
    "As the command that starts a training's processes does."
    line = script(
        tmp_path, "import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(0.5); exit(4)'])"
    )
    assert subprocess.run(line, env=warm, timeout=patience(30)).returncode == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
@pytest.mark.parametrize("hit", ["client", "program"])
def test_signals_reach_both(number: int, code: int, hit: str, warm: dict[str, str], tmp_path: Path) -> None:
    with subprocess.Popen(script(tmp_path, SLEEPS), env=warm, stdout=subprocess.PIPE, encoding="utf-8") as client:
        assert client.stdout is not None
        program = psutil.Process(int(client.stdout.readline()))
        assert program.pid != client.pid
        os.kill(client.pid if hit == "client" else program.pid, number)
        assert client.wait(patience(20)) == code
    until = time.monotonic() + patience(20)
    while program.is_running() and time.monotonic() < until:
        time.sleep(0.01)
    assert not program.is_running()


def test_a_run_of_tests_has_one_server_and_whoever_started_it_waits_for_the_others(tmp_path: Path) -> None:
    line = script(tmp_path, "import os; print(os.getppid())")
    starter, other = (shared_python(tmp_path, ["sqlite3"]) for _ in range(2))
    asked = [subprocess.run(line, env=one.__enter__(), capture_output=True, encoding="utf-8") for one in (starter, other)]
    (server,) = {int(done.stdout) for done in asked}
    leaves = threading.Thread(target=starter.__exit__, args=(None, None, None))
    leaves.start()
    leaves.join(0.5)
    assert leaves.is_alive() and psutil.pid_exists(server)
    other.__exit__(None, None, None)
    leaves.join(patience(20))
    assert not leaves.is_alive() and not psutil.pid_exists(server)
