"""A process of the server's is, to who started it, a process of Python's own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(warm.python() == sys.executable, reason="no server on this system, or COLD_PYTHON"),
]
STATE = """
import json, os, sys
import ddpm_data
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ["MINE"], __name__, sys.stdin.read(), os.umask(0)]))
print(ddpm_data.__file__, file=sys.stderr)
"""

SLEEPER = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest in the background of a script ignores it
try:
    print(os.getpid(), flush=True)  # here, or the signal could come before the block
    time.sleep(600)
except KeyboardInterrupt:
    print("stopped", flush=True)
time.sleep(600)
"""


def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([warm.python(), *arguments], capture_output=True, text=True, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("way", ["script", "-m", "-c"])
def test_a_process_has_what_it_was_given(way: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(STATE)
    arguments = {"script": ["mine.py"], "-m": ["-m", "mine"], "-c": ["-c", STATE]}[way]
    environment = os.environ | {"MINE": "é", "PYTHONPATH": str(Path(__file__).parents[2])}
    answers = []
    for python in (warm.python(), sys.executable):
        command = [python, *arguments, "a b", ""]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, input="said", capture_output=True, text=True, umask=0o27
        )
        answers.append((done.returncode, done.stdout, done.stderr))
    assert answers[0] == answers[1]
    assert answers[0][0] == 0


@pytest.mark.parametrize("pythonpath", [None, str(Path(__file__).parents[2]), os.pathsep.join(["one", "/other"])])
@pytest.mark.parametrize("way", ["script", "-m", "-c"])
def test_it_looks_for_modules_where_python_does(way: str, pythonpath: str | None, tmp_path: Path) -> None:
    """Above all in the folder that ``pip install -e`` names, which is also the server's own folder."""
    code = "import sys; print(*dict.fromkeys(sys.path), sep=chr(10))"
    (tmp_path / "mine.py").write_text(code)
    arguments = {"script": ["mine.py"], "-m": ["-m", "mine"], "-c": ["-c", code]}[way]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": pythonpath} if pythonpath else {}
    found, expected = (
        subprocess.run([executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        for executable in (warm.python(), sys.executable)
    )
    assert found.stdout.splitlines() == expected.stdout.splitlines() != []


def test_no_two_draw_the_same() -> None:
    code = "import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1).item())"
    drawn = [run("-c", code).stdout.split() for _ in range(2)]
    assert len({number for numbers in drawn for number in numbers}) == 6


def test_its_end_is_pythons() -> None:
    for code in ("1", "raise SystemExit(3)", "raise SystemExit('no')", "1 / 0", "raise KeyboardInterrupt"):
        warm_one, cold = run("-c", code), subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert warm_one.returncode == cold.returncode
        assert warm_one.stderr.splitlines()[-1:] == cold.stderr.splitlines()[-1:]
    assert run("-c", "import os; os.kill(os.getpid(), 9)").returncode == -signal.SIGKILL


def test_signals_go_on_to_it_and_it_ends_with_who_stands_for_it() -> None:
    with subprocess.Popen([warm.python(), "-c", SLEEPER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopped\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert process.stdout.read() == ""  # ends when the process has closed it
    assert not Path(f"/proc/{number}/exe").exists()


def test_what_is_decided_at_import_is_not_imitated() -> None:
    code = "import sys; print(sys.executable, sys.flags.optimize)"
    assert run("-c", code).stdout.split() == [warm.python(), "0"]
    assert run("-O", "-c", code).stdout.split() == [sys.executable, "1"]
    assert run("-c", code, env=os.environ | {"PYTHONOPTIMIZE": "1"}).stdout.split() == [sys.executable, "1"]


def test_its_processes_start_warm_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        """
import multiprocessing, subprocess, sys

class Mine: pass

def put(queue):
    queue.put((sys.executable, Mine()))

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=put, args=(queue,))
        process.start()
        executable, mine = queue.get()
        assert type(mine) is Mine and executable == sys.executable
        process.join()
    subprocess.run([sys.executable, "-c", "import sys; print(sys.executable)"])
"""
    )
    done = run(tmp_path / "mine.py")
    assert done.stdout.strip() == warm.python(), done.stderr
