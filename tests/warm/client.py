"""Has the server run a command, and is, to who started it, that command: signals go on to it, its status comes back.

Runs without site-packages, as ``client.py PYTHON SOCKET arguments``. Whatever the server is not for goes to PYTHON.
"""

import array
import json
import os
import signal
import socket
import sys

# What decides at import, in Python, OpenMP, MKL and torch, or by the dynamic linker. (scikit-learn sets some of KMP_.)
DECIDED_AT_IMPORT = ("PYTHON", "OMP_", "MKL_", "LD_", "TORCH_LOGS", "CUDA_")
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)


def decided(environment: "dict[str, str]") -> "dict[str, str]":
    return {k: v for k, v in environment.items() if k.startswith(DECIDED_AT_IMPORT) and k != "PYTHONPATH"}


def skip_flags(arguments: "list[str]") -> "list[str]":
    """Leave out the flags before a script, ``-m`` or ``-c``: -u (torchrun), and this Python's own (multiprocessing)."""
    own = ["-B"] if os.environ.get("PYTHONDONTWRITEBYTECODE") else []
    while arguments and arguments[0] in ("-u", *own):
        arguments = arguments[1:]
    return arguments


def is_for_the_server(arguments: "list[str]") -> bool:
    """Whether this is a script, ``-m`` or ``-c`` whose start takes time."""
    words = skip_flags(arguments)
    if not words or (words[0].startswith("-") and words[0] not in ("-m", "-c")):
        return False
    if any(name.startswith("COVERAGE_") for name in os.environ):  # each process is measured from its start
        return False
    return not any("multiprocessing.resource_tracker" in word for word in words[:2])


def list_open() -> "list[int]":
    """List the descriptors that the command is given: the standard streams, and a pipe or so of multiprocessing's."""
    numbers = sorted(map(int, os.listdir("/proc/self/fd")))  # among them the one that lists them, closed by now
    return [number for number in numbers if os.path.exists(f"/proc/self/fd/{number}")]


def main(python: str, path: str, arguments: "list[str]") -> int:
    if not is_for_the_server(arguments):
        os.execv(python, [python, *arguments])
    descriptors = list_open()
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(path)
    except OSError:
        server.close()
        os.execv(python, [python, *arguments])
    umask = os.umask(0)
    os.umask(umask)
    ignored = [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN]
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "umask": umask,
        "ignored": ignored,
        "descriptors": descriptors,
    }
    sent = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    server.sendmsg([json.dumps(request).encode() + b"\0"], sent)
    replies = server.makefile()
    first = replies.readline().split()
    if first[:1] == ["refused"]:  # the environment decides at import
        server.close()
        os.execv(python, [python, *arguments])
    process = int(first[1])
    for number in PASSED_ON:
        signal.signal(number, lambda received, frame: os.kill(process, received))
    status = int(replies.readline().split()[1])
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) in PASSED_ON:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    return os.WEXITSTATUS(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
