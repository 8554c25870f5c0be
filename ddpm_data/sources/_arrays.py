"""The array behind a dataset, where there is one: whole batches are gathered from it at once, with no call an item."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from ddpm_data.images.items import channels_come_last
from ddpm_data.types import ItemKey

_DTYPES = (torch.uint8, torch.bool, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)


class MapDataset(Protocol):
    """What every map-style dataset has."""

    def __len__(self) -> int:
        """How many items."""
        ...

    def __getitem__(self, index: int, /) -> Any:  # noqa: ANN401  # any item is the point
        """One item."""
        ...


class BackingArray:
    """What a dataset's items are cut from: an array with a row for each.

    Args:
        array: ``(count, channels, height, width)``, in memory or mapped into it, whatever its strides; of conditions
            ``(count, ...)``.
        rows: Which of its rows a dataset's items are, int64; ``None`` is all of them in order.
    """

    def __init__(self, array: Tensor, rows: Tensor | None = None) -> None:
        self.array = array
        self.rows = rows

    def gather(self, indices: Tensor) -> Tensor:
        """What some items have, in the array's dtype, shape ``(batch, ...)``."""
        rows = indices if self.rows is None else self.rows[indices]
        if self.array.is_contiguous() or self.array.dim() != 4:
            return self.array.index_select(0, rows)
        # A row is one run of bytes in this order too, where the channels come last.
        return self.array.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)

    def subset(self, indices: Sequence[int]) -> "BackingArray":
        """The same array in another order, or some of it."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return BackingArray(self.array, rows if self.rows is None else self.rows[rows])


class BackingArrays(NamedTuple):
    """The arrays of a dataset's images and, where they are wanted, of its conditions."""

    images: BackingArray
    conditions: BackingArray | None

    def contain(self, indices: Tensor, images: Sequence[Tensor], conditions: object) -> bool:
        """Whether they have what some items gave, which tells that the dataset makes nothing else of them."""
        if self.conditions is None:
            return all_equal(self.images.gather(indices), images)
        kept = self.conditions.gather(indices)
        return (
            isinstance(conditions, Tensor)
            and all_equal(kept, conditions)
            and all_equal(self.images.gather(indices), images)
        )


def find_backing_arrays(
    dataset: object, image_key: ItemKey | None, condition: ItemKey | None, channels_first: bool
) -> BackingArrays | None:
    """The arrays that a dataset's items are cut from, if all that is wanted of them is in one."""
    images = find_backing_array(dataset, image_key, channels_first)
    conditions = None if condition is None else find_backing_conditions(dataset, condition)
    return (
        None if images is None or (condition is not None and conditions is None) else BackingArrays(images, conditions)
    )


def all_equal(some: Tensor | Sequence[Tensor], others: Tensor | Sequence[Tensor]) -> bool:
    """Whether rows agree in every value and in dtype."""
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(some, others, strict=True))


def find_backing_array(dataset: object, image_key: ItemKey | None, channels_first: bool = False) -> BackingArray | None:
    """The array that a dataset's images are cut from, if it is one of the kinds known to do nothing else to them.

    These are tensors and NumPy arrays themselves, ``TensorDataset``, torchvision's datasets that keep their images in
    ``data`` and were given no ``transform``, subsets of all these, and datasets that have a :class:`BackingArray` as
    ``backing_array``, or a dict of tensors as ``columns``.
    """
    own = getattr(dataset, "backing_array", None)
    if isinstance(own, BackingArray):
        return own
    if inner := _inner(dataset):
        array = find_backing_array(inner.dataset, image_key, channels_first)
        return array.subset(inner.indices) if array else None
    if isinstance(dataset, Tensor | np.ndarray):
        return _wrap_array(dataset, channels_first)
    if columns := _columns(dataset):
        found = [column for key, column in columns.items() if image_key in (key, None) and column.dim() in (3, 4)]
        return _wrap_array(found[0], channels_first) if len(found) == 1 else None
    if _is_torchvisions(dataset) and image_key in (None, 0) and getattr(dataset, "transform", None) is None:
        return _wrap_array(getattr(dataset, "data", None), channels_first)
    return None


def find_backing_conditions(dataset: object, key: ItemKey) -> BackingArray | None:
    """The array that a dataset's conditions are taken from, as :func:`find_backing_array` for images."""
    if inner := _inner(dataset):
        array = find_backing_conditions(inner.dataset, key)
        return array.subset(inner.indices) if array else None
    if key in (columns := _columns(dataset)):
        return BackingArray(columns[key].detach())
    if _is_torchvisions(dataset) and key == 1 and getattr(dataset, "target_transform", None) is None:
        targets = getattr(dataset, "targets", None)
        return BackingArray(torch.as_tensor(targets)) if isinstance(targets, list | Tensor) and len(targets) else None
    return None


def _inner(dataset: object) -> Subset[object] | None:
    is_plain = type(dataset).__getitem__ is Subset.__getitem__ if isinstance(dataset, Subset) else False
    return dataset if isinstance(dataset, Subset) and is_plain else None


def _columns(dataset: object) -> Mapping[ItemKey, Tensor]:
    if isinstance(dataset, TensorDataset) and type(dataset).__getitem__ is TensorDataset.__getitem__:
        return dict(enumerate(dataset.tensors))
    own = getattr(dataset, "columns", None)
    is_column = isinstance(own, dict) and all(isinstance(column, Tensor) for column in own.values())
    return cast(Mapping[ItemKey, Tensor], own) if is_column else {}


def _is_torchvisions(dataset: object) -> bool:
    method = getattr(type(dataset), "__getitem__", None)
    return getattr(method, "__module__", "").startswith("torchvision.datasets.")


def _wrap_array(array: object, channels_first: bool) -> BackingArray | None:
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
        return BackingArray(values[:, None])
    channels_last = not channels_first and channels_come_last(values.shape[1:], isinstance(array, np.ndarray))
    return BackingArray(values.permute(0, 3, 1, 2) if channels_last else values)
