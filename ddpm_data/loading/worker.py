"""Calls in a worker process: check some items before training begins.

If there are workers, items are read only in workers, never in the main process. Otherwise a dataset that opens its
file, archive or client with the first item would open it in the main process. Forked workers would then share one file
offset and silently read wrong images, or hang on locks of the dataset's threads. For spawned workers, the dataset could
not be pickled.
"""

import atexit
import copy
import multiprocessing
import signal
import sys
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset

from ddpm_data._keys import Naming, use_naming, warn
from ddpm_data.loading.bad_items import ITEM_ERRORS
from ddpm_data.loading.collate import on_cpu
from ddpm_data.loading.options import LoaderOptions

SHARED_MEMORY = Path("/dev/shm")  # the memory for batches from workers, on systems that have it
# CPython before 3.11.10 (gh-112275): a process that is forked while another thread waits for the GIL may hang forever.
# gloo's threads wait for it when they release the tensors of a collective. After this pause they have finished.
_SECONDS_BEFORE_FORK = 0.01 if sys.version_info < (3, 11, 10) else 0.0

_FINALIZERS: "weakref.WeakKeyDictionary[object, Finalize]" = weakref.WeakKeyDictionary()  # by the iterator
_BEFORE_QUEUES = 11  # multiprocessing closes its queues, by which workers are told to end, with a priority of 10
_SECONDS_AFTER_SIGTERM = 30  # as many as SLURM leaves between SIGTERM and SIGKILL


class _Outcome(NamedTuple):
    """The result of a call in a worker."""

    value: Any
    error: Exception | None
    warnings: list[Warning]


class _Call(Dataset[_Outcome]):
    """A dataset of one item, the result of a function call."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> _Outcome:
        with warnings.catch_warnings(record=True) as caught:
            try:
                value, error = self.function(*self.arguments), None
            except ITEM_ERRORS as raised:
                raised.add_note("".join(traceback.format_exception(raised.__cause__ or raised)))
                value, error = None, raised
        return _Outcome(value, error, [_to_portable(w.message) for w in caught if isinstance(w.message, Warning)])


def _to_portable(warning: Warning) -> Warning:
    """Return a warning that another process can read: one of its built-in class, if not that very one."""
    try:
        ForkingPickler.dumps(warning)
        copy.copy(warning)  # which makes it anew, as unpickling would
    except Exception:  # a class of its own kind, with arguments of its own or defined in a function
        category: type[Warning] = next(base for base in type(warning).__mro__ if base.__module__ == "builtins")
        return category(f"{type(warning).__name__}: {warning}")
    return warning


def call_in_worker(options: LoaderOptions | None, name: str, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401  # any
    """Call a function that reads items: in a short-lived worker process, or without workers in this process.

    Args:
        options: The number of workers and their start method; ``None`` means no workers.
        name: The dataset's name in errors.
        function: The function to call. For a spawned worker, it and its arguments are pickled.
        arguments: Its arguments.

    Returns:
        The function's result. Its warnings are issued in this process.

    Raises:
        OSError, RuntimeError, TypeError, ValueError: The function raised it.
        RuntimeError: The worker was killed, crashed, or took longer than ``options.timeout``.
    """
    if options is None or options.num_workers == 0:
        return function(*arguments)
    check_importable(name, options.start_method, (function, arguments))
    wait_before_fork()
    loader = DataLoader(
        _Call(function, arguments),
        batch_size=None,
        num_workers=1,
        collate_fn=_identity,
        multiprocessing_context=options.start_method,
        timeout=options.timeout,
        generator=torch.Generator(),  # otherwise the worker's seed would be drawn from the global generator
    )
    with explain_lost_workers(name, options.timeout), on_cpu():
        [outcome] = loader
    for warning in outcome.warnings:
        warn(warning, stacklevel=2)
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def check_importable(name: str, start_method: str | None, work: object) -> None:
    """Refuse what a worker could not import: classes and functions of a notebook's cell, or of the prompt.

    A worker that is not forked imports the main module's file, if it has one, and the classes of what it is sent. It
    ends at once where it cannot.

    Args:
        name: What errors call the dataset.
        start_method: How workers start; ``None`` is the system's default.
        work: What they are sent.

    Raises:
        ValueError: A class or function of ``__main__`` is part of it, and ``__main__`` is no file; or its file is gone.
    """
    start_method = start_method or multiprocessing.get_start_method()
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if start_method == "fork" or getattr(main, "__spec__", None) or (path and Path(path).is_file()):
        return
    needed = f"the main module's file {path}"
    if path is None:
        finder = _MainFinder(BytesIO())
        with suppress(Exception):  # whatever cannot be pickled is an error of its own, when the worker starts
            finder.dump(work)
        if not finder.names:
            return
        needed = f"{', '.join(sorted(finder.names))}, defined in a notebook's cell or at the prompt"
    raise ValueError(
        f"{name} needs workers, which start by {start_method!r} and cannot import {needed}. Move it into a file and "
        "import it, or set `loader.num_workers` to 0, or `loader.multiprocessing_context` to fork where the system has "
        "that."
    )


class _MainFinder(ForkingPickler):
    """Notes the classes and functions of ``__main__`` that it meets."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file)
        self.names: set[str] = set()

    def reducer_override(self, value: Any) -> Any:  # noqa: ANN401  # as pickle types it
        """Note a name, and leave the pickling to others."""
        if isinstance(value, type | FunctionType) and value.__module__ == "__main__":
            self.names.add(value.__qualname__)
        return NotImplemented


@contextmanager
def explain_lost_workers(name: str, timeout: float) -> Iterator[None]:
    """Explain the error of a worker that was killed, crashed or hung: which dataset, and what to check.

    Args:
        name: The dataset's name in errors.
        timeout: Seconds to wait for a batch.

    Raises:
        RuntimeError: A worker was lost. Other errors pass unchanged.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader"):
            raise
        memory = f"memory ({SHARED_MEMORY} too)" if SHARED_MEMORY.is_dir() else "memory"
        raise RuntimeError(
            f"a worker that loads {name} images was killed, crashed, or gave no batch within {timeout:g} s "
            f"({type(error).__name__}: {error}). Check the {memory} and the dataset, or change `loader.num_workers`, "
            "`loader.prefetch_factor` or `loader.timeout`."
        ) from error


def start_worker(naming: Naming | None, _: int) -> None:
    """Have a worker name keys as the main process does, and serve the step that it finishes when a signal ends the run.

    A terminal sends Ctrl-C to the workers too, and SLURM and ``timeout`` send them SIGTERM. A worker that died of it
    would end the run with an error instead. The main process ends its workers by SIGTERM as well, if they hang, so
    they only outlast the first one, and not for long.
    """
    use_naming(naming)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGTERM, _outlast_one_signal)


def end_with_process(batches: object) -> None:
    """End an iterator's workers when this process ends, if it has not ended them before.

    Python ends what is left of daemonic processes by SIGTERM, and waits for them. Ours outlast that signal, for which
    the process would wait half a minute.

    Args:
        batches: The iterator of a DataLoader, with or without workers. Persistent workers have one for all epochs.
    """
    shut_down = getattr(batches, "_shutdown_workers", None)
    if shut_down is not None and batches not in _FINALIZERS:
        arguments = (weakref.WeakMethod(shut_down),)  # the method itself would keep the iterator, and its workers
        _FINALIZERS[batches] = Finalize(batches, _call, arguments, exitpriority=_BEFORE_QUEUES)


def _call(reference: "weakref.WeakMethod[Callable[[], None]]") -> None:
    if function := reference():
        function()


# A process that multiprocessing has started calls finalizers, but nothing of atexit. In others finalizers may come too
# late: torch's own function for atexit, after which a DataLoader ends no workers, may run before them, but after this.
@atexit.register
def _end_all_workers() -> None:
    for finalizer in list(_FINALIZERS.values()):
        try:
            finalizer()
        except Exception:  # whatever it is, the others end
            traceback.print_exc()


def _outlast_one_signal(number: int, _: FrameType | None) -> None:
    if sys.platform != "win32":
        signal.signal(number, signal.SIG_DFL)
        signal.alarm(_SECONDS_AFTER_SIGTERM)


def wait_before_fork() -> None:
    """Wait until no thread of torch's process group can make a forked process hang."""
    if distributed.is_available() and distributed.is_initialized():
        time.sleep(_SECONDS_BEFORE_FORK)


def _identity(outcome: Any) -> Any:  # noqa: ANN401  # as DataLoader types it
    return outcome
