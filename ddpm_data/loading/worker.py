"""What a worker process is needed for beside batches: a look at some items before training begins.

Nothing of the user's is opened in the parent that workers will inherit. A dataset that opens its file, archive or
client with the first item would otherwise share one file offset among forked workers (wrong images, without a word),
could not be sent to spawned ones, or would hang on locks of its threads. So where there are workers, items are read in
workers only.
"""

import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset

from ddpm_data.loading.bad_items import ITEM_ERRORS
from ddpm_data.loading.options import LoaderOptions

SHARED_MEMORY = Path("/dev/shm")  # what workers hand batches over in, where the system has it
# CPython before 3.11.10 (gh-112275): a process forked while another thread asks for the GIL may never wake up. gloo's
# threads do so when they let go of a collective's tensors; this long after, they are done.
_SECONDS_BEFORE_FORK = 0.01 if sys.version_info < (3, 11, 10) else 0.0


class _Outcome(NamedTuple):
    """What a call in a worker came to."""

    value: Any
    error: Exception | None
    warnings: list[Warning]


class _Call(Dataset[_Outcome]):
    """A dataset of one item: what a function returns."""

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
        return _Outcome(value, error, [w.message for w in caught if isinstance(w.message, Warning)])


def call_in_worker(options: LoaderOptions | None, name: str, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401  # any
    """Call a function that reads items: in a short-lived worker process, or here where there are no workers.

    Args:
        options: How many workers load, and how they start; ``None`` has none.
        name: What errors call the dataset.
        function: What to call. Where workers are spawned, it and its arguments are sent by pickle.
        arguments: Its arguments.

    Returns:
        What the function returns. Its warnings are issued here.

    Raises:
        OSError, RuntimeError, TypeError, ValueError: What the function raised.
        RuntimeError: The worker was killed, crashed, or took longer than ``options.timeout``.
    """
    if options is None or options.num_workers == 0:
        return function(*arguments)
    wait_before_fork()
    loader = DataLoader(
        _Call(function, arguments),
        batch_size=None,
        num_workers=1,
        collate_fn=_identity,
        multiprocessing_context=options.start_method,
        timeout=options.timeout,
        generator=torch.Generator(),  # else the seed of the worker would be drawn from the global one
    )
    with naming_lost_workers(name, options.timeout):
        [outcome] = loader
    for warning in outcome.warnings:
        warnings.warn(warning, stacklevel=2)
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


@contextmanager
def naming_lost_workers(name: str, timeout: float) -> Iterator[None]:
    """Have the error of a worker that was killed, crashed or hung say whose it was and what to look at.

    Args:
        name: What errors call the dataset.
        timeout: Seconds that are waited for a batch.

    Raises:
        RuntimeError: A worker was lost; other errors are left as they are.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader"):
            raise
        memory = f"memory ({SHARED_MEMORY} too)" if SHARED_MEMORY.is_dir() else "memory"
        raise RuntimeError(
            f"a worker that loads {name} images was killed, crashed, or gave no batch within {timeout:g} s "
            f"({type(error).__name__}: {error}). Look at the {memory} and at the dataset; change `loader.num_workers`, "
            "`loader.prefetch_factor` or `loader.timeout`."
        ) from error


def wait_before_fork() -> None:
    """Wait until no thread of torch's process group would keep a forked process from waking up."""
    if distributed.is_available() and distributed.is_initialized():
        time.sleep(_SECONDS_BEFORE_FORK)


def _identity(outcome: Any) -> Any:  # noqa: ANN401  # as DataLoader types it
    return outcome
