"""The array behind a dataset, if there is one: a batch is gathered from it at once, without one call per item."""

import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate

from ddpm_data._bytes import all_equal
from ddpm_data.images.items import channels_come_last
from ddpm_data.types import ItemKey

_DTYPES = (
    *(torch.uint8, torch.bool, torch.int16, torch.int32, torch.int64),
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
)


class MapDataset(Protocol):
    """The interface of every map-style dataset.

    It asks for no types, so that jsonargparse, which compares annotations, finds it in classes that have none.
    """

    def __len__(self) -> Any:  # noqa: ANN401
        """Return the number of items, an int."""
        ...

    def __getitem__(self, index: Any, /) -> Any:  # noqa: ANN401
        """Return one item."""
        ...


class IterDataset(Protocol):
    """The interface of every dataset with an order of its own; it asks for no types either."""

    def __iter__(self) -> Any:  # noqa: ANN401
        """Begin a pass over the items."""
        ...


class BackingArray:
    """The array that holds all items of a dataset, one row per item.

    Args:
        array: Images, shape ``(count, channels, height, width)``, or conditions, shape ``(count, ...)``; in memory or
            memory-mapped, with any strides.
        rows: The array's row for each item, int64, shape ``(len(dataset),)``; ``None`` takes all rows in order.
    """

    def __init__(self, array: Tensor, rows: Tensor | None = None) -> None:
        self.array = array
        self.rows = rows

    def gather(self, indices: Tensor) -> Tensor:
        """Gather the rows of several items.

        Args:
            indices: Indices into the dataset, int64, shape ``(batch,)``.

        Returns:
            The array's dtype, shape ``(batch, ...)``.
        """
        rows = indices if self.rows is None else self.rows[indices]
        if self.array.is_contiguous() or self.array.dim() != 4:
            return self.array.index_select(0, rows)
        # With the channels last a row is one run of bytes too, if the axes are put in that order first.
        return self.array.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)

    def subset(self, indices: Sequence[Any]) -> "BackingArray | None":
        """Return the same array behind a subset of the dataset, without a copy.

        Args:
            indices: The subset's indices into the dataset, in its order, as the user gave them.

        Returns:
            ``None`` where an index is no whole number, or out of range: asked item by item, the dataset answers itself.
        """
        rows = resolve_indices(indices, len(self.array if self.rows is None else self.rows))
        if rows is None:
            return None
        return BackingArray(self.array, rows if self.rows is None else self.rows[rows])


class BackingArrays(NamedTuple):
    """The arrays behind a dataset's images and conditions.

    Attributes:
        images: The images' array.
        conditions: The conditions' arrays, by key.
    """

    images: BackingArray
    conditions: Mapping[ItemKey, BackingArray]

    def gather_conditions(self, indices: Tensor) -> dict[ItemKey, Tensor]:
        """Gather the rows of several items from every array of conditions, see :meth:`BackingArray.gather`."""
        return {key: array.gather(indices) for key, array in self.conditions.items()}

    def contain(
        self, indices: Tensor, images: Sequence[Tensor], conditions: Sequence[Mapping[ItemKey, object]]
    ) -> bool:
        """Return whether the arrays hold what the dataset itself returned for some items.

        If not, the dataset changes its items on the way, and the arrays cannot stand in for it.

        Args:
            indices: Indices into the dataset, int64, shape ``(batch,)``.
            images: The dataset's images at these indices.
            conditions: Its conditions there, by key, one mapping per item.
        """
        for key, rows in self.gather_conditions(indices).items():
            try:
                batches = [default_collate([values[key]]) for values in conditions]  # a worker shares its memory
            except (TypeError, RuntimeError):  # no kind, or shape, that an array's rows have
                return False
            if not all(isinstance(batch, Tensor) for batch in batches) or not all_equal(rows, [b[0] for b in batches]):
                return False
        return all_equal(self.images.gather(indices), images)


def resolve_indices(indices: Sequence[Any], length: int) -> Tensor | None:
    """Return what a subset's indices mean, as Python has it: -1 is the last item.

    Args:
        indices: Whole numbers of any library, in a range, list, array or tensor.
        length: Items of the dataset.

    Returns:
        int64 in ``[0, length)``; ``None`` where an index is no whole number, or out of range.
    """
    try:
        values = indices.cpu().numpy() if isinstance(indices, Tensor) else indices
        if isinstance(values, range):
            array = np.arange(values.start, values.stop, values.step)
        elif isinstance(values, np.ndarray) and values.dtype.kind in "iu":
            array = values.astype(np.int64)
        else:
            array = np.fromiter(map(operator.index, values), np.int64, len(values))
    except (TypeError, OverflowError):
        return None
    if array.ndim != 1 or (array < -length).any() or (array >= length).any():
        return None
    return torch.from_numpy(np.where(array < 0, array + length, array).astype(np.int64, copy=False))


def find_backing_arrays(
    dataset: object, image_key: ItemKey | None, conditions: Sequence[ItemKey], channels_first: bool
) -> BackingArrays | None:
    """Find the arrays behind a dataset, if there is one for everything that is read from its items.

    Args:
        dataset: Any map-style dataset.
        image_key: Index into a tuple, or key of a dict, at which an item holds its image.
        conditions: The same for the conditions.
        channels_first: Whether the channels always come first in an array. If not, its shape decides.
    """
    images = find_backing_array(dataset, image_key, channels_first)
    arrays = {key: array for key in conditions if (array := find_backing_conditions(dataset, key))}
    return BackingArrays(images, arrays) if images and len(arrays) == len(conditions) else None


def find_backing_array(dataset: object, image_key: ItemKey | None, channels_first: bool = False) -> BackingArray | None:
    """Find the array behind a dataset's images, if the dataset is of a kind that returns its rows unchanged.

    These kinds are:

    - tensors and NumPy arrays themselves, and ``TensorDataset``
    - torchvision's datasets that keep their images in ``data`` and have no ``transform``
    - datasets with a :class:`BackingArray` as ``backing_array``, or with a dict of tensors as ``columns``
    - subsets of all these

    Args:
        dataset: Any map-style dataset.
        image_key: Index into a tuple, or key of a dict, at which an item holds its image; ``None`` takes the only
            image-like value.
        channels_first: Whether the channels always come first in an array. If not, its shape decides.
    """
    backing_array = getattr(dataset, "backing_array", None)
    if isinstance(backing_array, BackingArray):
        return backing_array
    if subset := _as_plain_subset(dataset):
        array = find_backing_array(subset.dataset, image_key, channels_first)
        return array.subset(subset.indices) if array else None
    if isinstance(dataset, Tensor | np.ndarray):
        return _wrap_array(dataset, channels_first)
    if columns := _get_columns(dataset):
        images = [column for key, column in columns.items() if image_key in (key, None) and column.dim() in (3, 4)]
        return _wrap_array(images[0], channels_first) if len(images) == 1 else None
    if _is_from_torchvision(dataset) and image_key in (None, 0) and getattr(dataset, "transform", None) is None:
        return _wrap_array(getattr(dataset, "data", None), channels_first)
    return None


def find_backing_conditions(dataset: object, key: ItemKey) -> BackingArray | None:
    """Find the array behind a dataset's conditions, as :func:`find_backing_array` does for images.

    Args:
        dataset: Any map-style dataset.
        key: Index into a tuple, or key of a dict, at which an item holds its condition.
    """
    if subset := _as_plain_subset(dataset):
        array = find_backing_conditions(subset.dataset, key)
        return array.subset(subset.indices) if array else None
    if key in (columns := _get_columns(dataset)):
        return BackingArray(columns[key].detach())
    if _is_from_torchvision(dataset) and key == 1 and getattr(dataset, "target_transform", None) is None:
        targets = getattr(dataset, "targets", None)
        return (
            BackingArray(torch.as_tensor(targets, device="cpu"))
            if isinstance(targets, list | Tensor) and len(targets)
            else None
        )
    return None


def _as_plain_subset(dataset: object) -> Subset[object] | None:
    """Return the dataset if it is a ``Subset`` whose ``__getitem__`` is torch's own."""
    is_plain = type(dataset).__getitem__ is Subset.__getitem__ if isinstance(dataset, Subset) else False
    return dataset if isinstance(dataset, Subset) and is_plain else None


def _get_columns(dataset: object) -> Mapping[ItemKey, Tensor]:
    if isinstance(dataset, TensorDataset) and type(dataset).__getitem__ is TensorDataset.__getitem__:
        return dict(enumerate(dataset.tensors))
    columns = getattr(dataset, "columns", None)
    are_tensors = isinstance(columns, dict) and all(isinstance(column, Tensor) for column in columns.values())
    return cast(Mapping[ItemKey, Tensor], columns) if are_tensors else {}


def _is_from_torchvision(dataset: object) -> bool:
    method = getattr(type(dataset), "__getitem__", None)
    return getattr(method, "__module__", "").startswith("torchvision.datasets.")


def _wrap_array(array: object, channels_first: bool) -> BackingArray | None:
    if isinstance(array, np.ndarray) and array.dtype.isnative and min(array.strides, default=-1) >= 0:
        with warnings.catch_warnings(action="ignore"):  # torch warns of read-only arrays, but nothing here writes
            try:
                values = torch.from_numpy(array)
            except TypeError:  # torch does not have the dtype
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
