"""A Python whose imports are done: tests start their processes from it in milliseconds instead of nine seconds.

A server imports what every job of ours imports, then forks once per command. :func:`python` names an executable that
takes the place of ``sys.executable``: it has the server run its arguments as ``__main__`` in a process of its own, with
its own environment, folder, standard streams, signals and exit status. In that process, ``sys.executable`` is the same
executable, so launchers (Lightning's, torchrun) start their processes from the server, too.

Where the start itself is tested (imports, memory, an installed wheel), tests say ``sys.executable``. The ordinary
interpreter also runs what the server cannot imitate, see ``client.py``. ``COLD_PYTHON=1 pytest`` runs it everywhere.
"""

import atexit
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_FOLDER = "WARM_PYTHON"  # the variable by which processes of pytest-xdist share one server
_HERE = Path(__file__).parent


def start() -> None:
    """Start the server, if this is the first process of the session. It imports nothing before it is asked."""
    if _FOLDER in os.environ or "COLD_PYTHON" in os.environ or not hasattr(os, "pidfd_open"):
        return
    folder = Path(tempfile.mkdtemp(prefix="warm-python-"))
    executable = folder / "python"
    words = [sys.executable, "-IS", str(_HERE / "client.py"), sys.executable, str(folder / "socket")]
    executable.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    executable.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen(64)
        command = [sys.executable, "-m", "tests.warm.server", str(executable), str(listener.fileno())]
        kept = [listener.fileno()]
        # Pipes, or Python's streams would try to seek in what takes their place. The server ends when its input ends.
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        # PYTHONPATH is each command's own. Without it, all of the path after the folder is what the environment has.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        server = subprocess.Popen(command, cwd=_HERE.parent.parent, env=environment, pass_fds=kept, **pipes)
    assert server.stdin is not None
    atexit.register(shutil.rmtree, folder)
    atexit.register(server.wait)
    atexit.register(server.stdin.close)  # the last comes first
    os.environ[_FOLDER] = str(folder)


def python() -> str:
    """Return the executable for a test's command."""
    return str(Path(os.environ[_FOLDER]) / "python") if _FOLDER in os.environ else sys.executable
