"""Imports what jobs import when the first command comes, then forks once per command; see the package."""

import array
import fcntl
import gc
import importlib
import json
import multiprocessing
import os
import selectors
import signal
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.warm.client import PASSED_ON, decided, skip_flags

IMPORTS = (
    *("hydra", "lightning", "sklearn.datasets", "torch.distributed.run"),
    *("ddpm_data.callbacks", "ddpm_data.datamodule", "ddpm_data.hydra", "ddpm_data.sources", "tests.conftest"),
)


def serve(listener: socket.socket) -> dict[str, Any]:
    """Fork for every command until the standard input ends. Returns in the forked processes only: what to run."""
    waiting = selectors.DefaultSelector()
    waiting.register(0, selectors.EVENT_READ)
    waiting.register(listener, selectors.EVENT_READ)
    commands: dict[int, tuple[socket.socket, int]] = {}  # by the process: its client, and a descriptor of the process
    while True:
        for key, _ in waiting.select():
            if key.fd == 0:
                for process in commands:
                    os.kill(process, signal.SIGKILL)
                sys.exit()
            elif key.fileobj is listener:
                client, _ = listener.accept()
                request, given = receive(client)
                if decided(request["environment"]) != decided(dict(os.environ)):
                    client.sendall(b"refused\n")
                    client.close()
                else:
                    import_all()
                    process = os.fork()
                    if not process:
                        for other, descriptor in commands.values():
                            other.close()
                            os.close(descriptor)
                        for open_one in (waiting, listener, client):
                            open_one.close()
                        # By way of high numbers: a descriptor's place may be another's for now.
                        moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 1000) for number in given]
                        for number in given:
                            os.close(number)
                        for number, place in zip(moved, request["descriptors"], strict=True):
                            os.dup2(number, place)
                            os.close(number)
                        return request
                    commands[process] = client, os.pidfd_open(process)
                    client.sendall(f"started {process}\n".encode())
                    waiting.register(client, selectors.EVENT_READ, ("client", process))
                    waiting.register(commands[process][1], selectors.EVENT_READ, ("process", process))
                for number in given:
                    os.close(number)
            else:
                what, process = key.data
                if process in commands and what == "client":  # whoever started the command has killed it
                    os.kill(process, signal.SIGKILL)
                elif process in commands:
                    client, descriptor = commands.pop(process)
                    _, status = os.waitpid(process, 0)
                    waiting.unregister(client)
                    waiting.unregister(descriptor)
                    try:
                        client.sendall(f"ended {status}\n".encode())
                    except OSError:
                        pass  # killed meanwhile
                    client.close()
                    os.close(descriptor)


def receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive a request and the descriptors that go with it."""
    content, rights = b"", array.array("i")
    while not content.endswith(b"\0"):
        part, ancillary, _, _ = client.recvmsg(1 << 20, socket.CMSG_SPACE(250 * rights.itemsize))
        content += part
        for _, _, numbers in ancillary:
            rights.frombytes(numbers)
    return json.loads(content[:-1]), list(rights)


def import_all() -> None:
    """Import what every job imports."""
    for name in IMPORTS:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def become(request: dict[str, Any], executable: str, own_path: list[str]) -> list[str]:
    """Give this process what the client's has; return the command's arguments."""
    import numpy
    import torch
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    numpy.random.seed()
    torch.seed()  # both are seeded from the system's randomness at a start
    os.setsid()
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number in PASSED_ON:
        handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else handler)
    rank_zero_only.rank = _get_rank() or 0  # Lightning decides this at its import
    sys.executable, sys.orig_argv = executable, [executable, *request["arguments"]]
    multiprocessing.set_executable(executable)
    arguments = skip_flags(request["arguments"])
    is_unbuffered = "-u" in request["arguments"][: -len(arguments)]
    for stream in (sys.stdout, sys.stderr):
        is_line_buffered = stream.isatty() or stream is sys.stderr
        stream.reconfigure(line_buffering=is_line_buffered, write_through=is_unbuffered)  # type: ignore[union-attr]
    first = {"-m": os.getcwd(), "-c": ""}.get(arguments[0], os.path.dirname(os.path.realpath(arguments[0])))
    searched = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [first, *map(os.path.abspath, searched), *own_path]
    sys.path_importer_cache.clear()
    return arguments


def run(arguments: list[str]) -> None:
    """Run ``python``'s arguments as ``__main__``."""
    import runpy

    main = sys.modules["__main__"] = sys.modules["__mp_main__"] = ModuleType("__main__")  # the other: multiprocessing's
    main.__dict__["__builtins__"] = __builtins__
    if arguments[0] == "-m":
        sys.argv = [arguments[1], *arguments[2:]]
        runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]  # what `python -m` calls
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = arguments
        main.__file__ = os.path.abspath(arguments[0])
        exec(compile(Path(arguments[0]).read_bytes(), main.__file__, "exec"), main.__dict__)


if __name__ == "__main__":
    OWN_PATH = sys.path[1:]  # the first is this folder, which an environment may have, too (pip install -e)
    run(become(serve(socket.socket(fileno=int(sys.argv[2]))), sys.argv[1], OWN_PATH))
