"""The array behind a dataset, where there is one: whole batches are gathered from it at once, with no call an item."""

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from ddpm_data.items import ImageKey, channels_come_last

_DTYPES = (torch.uint8, torch.bool, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)


class MapDataset(Protocol):
    """What every map-style dataset has."""

    def __len__(self) -> int:
        """How many items."""
        ...

    def __getitem__(self, index: int, /) -> Any:  # noqa: ANN401  # any item is the point
        """One item."""
        ...


class Gatherable(Protocol):
    """Images that can be had by the batch."""

    def gather(self, indices: Tensor, /) -> Tensor:
        """Those of some items, shape ``(batch, channels, height, width)``."""
        ...


class Stack:
    """Images of one shape in one array.

    Args:
        array: ``(count, channels, height, width)``, in memory or mapped into it, whatever its strides.
        rows: Which of its rows a dataset's items are, int64; ``None`` is all of them in order.
    """

    def __init__(self, array: Tensor, rows: Tensor | None = None) -> None:
        self.array = array
        self.rows = rows

    def gather(self, indices: Tensor) -> Tensor:
        """The images of some items in their own dtype, shape ``(batch, channels, height, width)``."""
        rows = indices if self.rows is None else self.rows[indices]
        if self.array.is_contiguous():
            return self.array.index_select(0, rows)
        # A row is one run of bytes in this order too, where the channels come last.
        return self.array.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)

    def subset(self, indices: Sequence[int]) -> "Stack":
        """The same images in another order, or some of them."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return Stack(self.array, rows if self.rows is None else self.rows[rows])


def stack_behind(dataset: object, image_key: ImageKey | None) -> Stack | None:
    """The array that a dataset's items are cut from, if it is one of the kinds known to do nothing else to them.

    These are tensors and NumPy arrays themselves, ``TensorDataset``, torchvision's datasets that keep their images in
    ``data`` and were given no ``transform``, subsets of all these, and datasets with a :class:`Stack` of their own, as
    ``stack``.
    """
    own = getattr(dataset, "stack", None)
    if isinstance(own, Stack):
        return own
    method = getattr(type(dataset), "__getitem__", None)
    if method is Subset.__getitem__ and isinstance(dataset, Subset):
        inner = stack_behind(dataset.dataset, image_key)
        return inner.subset(dataset.indices) if inner else None
    if isinstance(dataset, Tensor | np.ndarray):
        return _stack(dataset)
    if method is TensorDataset.__getitem__ and isinstance(dataset, TensorDataset):
        found = [
            tensor for i, tensor in enumerate(dataset.tensors) if image_key in (i, None) and tensor.dim() in (3, 4)
        ]
        return _stack(found[0]) if len(found) == 1 else None
    if getattr(method, "__module__", "").startswith("torchvision.datasets.") and image_key in (None, 0):
        return _stack(getattr(dataset, "data", None)) if getattr(dataset, "transform", None) is None else None
    return None


def _stack(array: object) -> Stack | None:
    if isinstance(array, np.ndarray) and array.dtype.isnative and min(array.strides, default=-1) >= 0:
        with warnings.catch_warnings(action="ignore"):  # of arrays that must not be written to: nothing here writes
            try:
                values = torch.from_numpy(array)
            except TypeError:  # a dtype torch does not have
                return None
    elif isinstance(array, Tensor):
        values = array.detach()
    else:
        return None
    fits = values.dim() in (3, 4) and values.dtype in _DTYPES and values.device.type == "cpu"
    if not fits:
        return None
    if values.dim() == 3:
        return Stack(values[:, None])
    channels_last = channels_come_last(values.shape[1:], isinstance(array, np.ndarray))
    return Stack(values.permute(0, 3, 1, 2) if channels_last else values)
