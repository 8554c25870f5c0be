"""What a dataset's item holds: which part of it is the image, which the condition, and which axes are which."""

from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_data.types import ItemKey

_WANTED = ("a PIL image, a tensor or array of 2 or 3 dimensions", "a tensor or array of 4 dimensions")
Raw = Image.Image | Tensor | np.ndarray[Any, Any]


def find_image(item: object, key: ItemKey | None, batched: bool = False) -> Raw:
    """The image in a dataset's item: the item itself, or the value at ``key``, or the only image-like value.

    Args:
        item: What the dataset gave.
        key: Place in a tuple, or key in a dict.
        batched: Whether it is a batch of items, and its image a batch of images.

    Raises:
        TypeError: There is none.
        ValueError: There are several, or none at ``key``.
    """
    if _is_image(item, batched):
        return item
    values = _parts(item)
    if values is None:
        raise TypeError(
            f"an item is a {_describe(item)}; {_WANTED[batched]}, or a tuple or dict that holds one, is needed. Change "
            "`dataset`, or wrap it so that it returns the image."
        )
    parts = _listed(values)
    if key is not None:
        if key in values and _is_image(value := values[key], batched):
            return value
        raise ValueError(f"there is no image at {key!r}; the item holds {parts}. Change `dataset.image_key`.")
    found = [value for value in values.values() if _is_image(value, batched)]
    if not found:
        raise TypeError(f"the item holds no image, but {parts}. Change `dataset`, so that an item holds one.")
    if len(found) > 1:
        raise ValueError(f"the item holds several images ({parts}). Say which: `dataset.image_key`.")
    return found[0]


def find_condition(item: object, key: ItemKey) -> object:
    """What a dataset's item holds at ``key``, ready to be batched: PIL images, say, are not.

    Raises:
        ValueError: It holds nothing there, or ``None``.
    """
    values = _parts(item)
    if values is None:
        raise ValueError(f"an item is a {_describe(item)}, with nothing at {key!r}. Change `dataset.condition`.")
    if values.get(key) is None:
        raise ValueError(
            f"there is no condition at {key!r}; the item holds {_listed(values)}. Change `dataset.condition`."
        )
    return values[key]


def to_chw(image: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """A tensor's or array's values in their own dtype, shape ``(channels, height, width)``.

    Of three axes the channels are the first or the last, whichever is at most 4 long; else the shorter; if that leaves
    a tie, NumPy's images are HWC and torch's CHW, as their libraries have it.

    Raises:
        TypeError: The dtype is one torch does not know.
        ValueError: There are no pixels, or they are complex numbers.
    """
    is_array = isinstance(image, np.ndarray)
    if isinstance(image, np.ndarray):
        # torch takes no read-only arrays, negative strides or foreign byte orders; np.require copies only those.
        image = torch.from_numpy(np.require(image, image.dtype.newbyteorder("="), ["W", "C"]))
    values = image.detach()
    if values.numel() == 0 or values.is_complex():
        raise ValueError(f"an image has pixels, real numbers; this one is {tuple(values.shape)} of {values.dtype}.")
    if values.dim() == 2:
        return values[None]
    return values.permute(2, 0, 1) if channels_come_last(values.shape, is_array) else values


def channels_come_last(shape: torch.Size, is_array: bool) -> bool:
    """Whether three axes are height, width, channels; see :func:`to_chw`."""
    first, last = shape[0] <= 4, shape[-1] <= 4
    if first != last:
        return last
    if not first and shape[0] != shape[-1]:
        return shape[-1] < shape[0]
    return is_array  # NumPy's images are HWC, torch's CHW


def _parts(item: object) -> Mapping[Any, object] | None:
    if isinstance(item, Mapping):
        return item
    return dict(enumerate(item)) if isinstance(item, tuple | list) else None


def _listed(values: Mapping[Any, object]) -> str:
    return ", ".join(f"{name!r}: {_describe(value)}" for name, value in values.items())


def _is_image(value: object, batched: bool) -> TypeGuard[Raw]:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 4 if batched else value.ndim in (2, 3)
    return isinstance(value, Image.Image) and not batched


def _describe(value: object) -> str:
    kind = type(value).__name__
    if isinstance(value, Tensor | np.ndarray):
        return f"{kind} of {value.dtype} and shape {tuple(value.shape)}"
    return f"{kind} {value!r}" if isinstance(value, str | int | float) and len(repr(value)) < 60 else kind
