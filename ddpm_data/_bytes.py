"""Tensors as bytes, which every dtype has: NumPy has no bfloat16 or float8, and torch compares no complex32."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SAME_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # of the dtypes that NumPy lacks


def bytes_of(values: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor's values as bytes, row by row.

    Args:
        values: Any dtype and shape, on the CPU.

    Returns:
        uint8, shape ``(values.nbytes,)``. The tensor's own memory, where that is contiguous.
    """
    flat: np.ndarray[Any, Any] = values.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat


def all_equal(rows: Tensor | Sequence[Tensor], other_rows: Tensor | Sequence[Tensor]) -> bool:
    """Return whether two batches agree in every bit, in dtype and in shape, row by row. NaN is equal to itself."""
    pairs = zip(rows, other_rows, strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and np.array_equal(bytes_of(a), bytes_of(b)) for a, b in pairs)


def to_array(values: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor as an array, of integers of the same width where NumPy lacks the dtype: see :func:`from_array`.

    Args:
        values: Any dtype and shape, on the CPU.
    """
    values = values.detach().contiguous()
    try:
        array: np.ndarray[Any, Any] = values.numpy()
    except TypeError:
        array = values.view(_SAME_WIDTH[values.dtype.itemsize]).numpy()
    return array


def from_array(array: np.ndarray[Any, Any], dtype: str | None = None) -> Tensor:
    """Return what :func:`to_array` was given, without a copy.

    Args:
        array: What it returned.
        dtype: The tensor's, as ``str`` writes it (``"torch.bfloat16"``); ``None`` is the array's.
    """
    values = torch.from_numpy(array)
    return values if dtype is None else values.view(getattr(torch, dtype.removeprefix("torch.")))
