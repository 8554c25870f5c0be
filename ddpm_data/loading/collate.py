"""Images and conditions of several examples as one batch."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from ddpm_data._nested import leaves


def on_cpu() -> AbstractContextManager[object]:
    """Make tensors on the CPU where the user has set another default device: a context, for torch's own calls."""
    # Not always, since each call of torch's inside takes longer, also in workers that are forked there.
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def collate_images(name: str, images: Sequence[Tensor]) -> Tensor:
    """Make one batch of several images, in a worker straight in shared memory.

    Args:
        name: What errors call the dataset.
        images: Of one shape.

    Raises:
        RuntimeError: There is not enough shared memory.
    """
    with _naming_shared_memory(name):
        batch: Tensor = default_collate(list(images))
    return batch


def collate_conditions(name: str, conditions: Sequence[object], shares: bool = True) -> Any:  # noqa: ANN401  # any collatable kind
    """Make one batch of several examples' conditions, as ``torch.utils.data.default_collate`` does.

    Args:
        name: What errors call the dataset.
        conditions: One per example.
        shares: Whether a worker makes it in shared memory, as for a batch that it hands over.

    Raises:
        RuntimeError: There is not enough shared memory.
        TypeError: The conditions have a type that cannot be batched, or different shapes.
    """
    functions = default_collate_fn_map | {bytes: _list_bytes} | ({} if shares else {Tensor: _stack})
    try:
        with _naming_shared_memory(name), on_cpu():
            batch = collate(list(conditions), collate_fn_map=functions)
        if any(isinstance(leaf, Tensor) and leaf.is_quantized for leaf in leaves(batch)):
            raise TypeError("quantized tensors would take the scale of the first: dequantize() them")
        return batch
    except SharedMemoryError:
        raise
    except (TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise TypeError(
            f"the conditions of {name} do not make a batch ({next(iter(str(error).splitlines()), '')}): numbers, "
            "strings, tensors or arrays of one shape, or dicts or tuples of these, are needed. Change "
            "`dataset.condition`, or have the dataset give one of these. For images of several sizes or channels set "
            "`dataset.image_size` and `dataset.condition_images`."
        ) from error


class SharedMemoryError(RuntimeError):
    """A batch does not fit into what workers hand batches over in."""


def bytes_per_example(condition: Any) -> int:  # noqa: ANN401  # a batch of any kind
    """Count the bytes that an example's conditions take in a batch in shared memory; strings take none."""
    return sum(leaf[0].nbytes for leaf in leaves(condition) if isinstance(leaf, Tensor) and len(leaf))


def _list_bytes(values: Sequence[bytes], *, collate_fn_map: object = None) -> list[bytes]:
    # Lightning cannot move those of NumPy, which are a class of their own.
    return [bytes(value) if isinstance(value, bytes) else value for value in values]


def _stack(tensors: Sequence[Tensor], *, collate_fn_map: object = None) -> Tensor:
    return torch.stack(list(tensors))


@contextmanager
def _naming_shared_memory(name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "shared memory" not in str(error) and "No space left" not in str(error):
            raise
        raise SharedMemoryError(
            f"a batch of {name} does not fit into shared memory, where workers hand batches over ({error}). Lower "
            "`loader.batch_size`, `loader.num_workers` or `loader.prefetch_factor`, or make it larger (in a container: "
            "docker run --shm-size)."
        ) from error
