"""Access to a dataset's items: which part is the image, which the condition, and which axis holds the channels."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_data.types import ItemKey

_EXPECTED = ("a PIL image, a tensor or array of 2 or 3 dimensions", "a tensor or array of 4 dimensions")
Raw = Image.Image | Tensor | np.ndarray[Any, Any]


def find_image(item: object, key: ItemKey | None, batched: bool = False) -> Raw:
    """Find the image in a dataset's item: the item itself, or the value at ``key``, or the only image-like value.

    Args:
        item: What the dataset returned for an index.
        key: Index into a tuple, or key of a dict; ``None`` takes the only image-like value.
        batched: Whether ``item`` is a batch of items, so its image is a batch of images.

    Raises:
        TypeError: The item holds no image.
        ValueError: The item holds several images and no ``key`` is set, or there is no image at ``key``.
    """
    if _is_image(item, batched):
        return item
    values = _split_item(item)
    if values is None:
        raise TypeError(
            f"an item is a {_describe_value(item)}, but it must be {_EXPECTED[batched]}, or a tuple or dict that holds "
            "one. Change `dataset`, or wrap it so that it returns the image."
        )
    if key is not None:
        if key in values and _is_image(value := values[key], batched):
            return value
        raise ValueError(
            f"there is no image at {key!r}; the item holds {_describe_values(values)}. Change `dataset.image_key`."
        )
    images = [value for value in values.values() if _is_image(value, batched)]
    if len(images) == 1:
        return images[0]
    description = _describe_values(values)
    if not images:
        raise TypeError(f"the item holds no image, but {description}. Change `dataset` so that every item holds one.")
    raise ValueError(f"the item holds several images ({description}). Say which: `dataset.image_key`.")


def find_condition(item: object, key: ItemKey) -> object:
    """Find the condition in a dataset's item: the value at ``key``.

    The value must be one that ``torch.utils.data.default_collate`` can batch. PIL images are not.

    Args:
        item: What the dataset returned for an index.
        key: Index into a tuple, or key of a dict.

    Raises:
        ValueError: The item holds nothing, or ``None``, at ``key``.
    """
    values = _split_item(item)
    if values is None:
        raise ValueError(
            f"an item is a {_describe_value(item)}, not a tuple or dict, so there is nothing at {key!r}. Change "
            "`dataset.condition`."
        )
    if values.get(key) is None:
        problem = f"the condition at {key!r} is None" if key in values else f"there is no condition at {key!r}"
        raise ValueError(f"{problem}; the item holds {_describe_values(values)}. Change `dataset.condition`.")
    return values[key]


def to_chw(image: Tensor | np.ndarray[Any, Any], channels_last: bool | None = None) -> Tensor:
    """Return an array or tensor as a tensor with the channels first, in its own dtype.

    The channel axis is the first or the last of three: the one of length 4 or less, if only one of them is; else the
    shorter one. In a tie, NumPy arrays are taken as HWC and tensors as CHW, as their libraries have it.

    Args:
        image: Any real dtype; shape ``(height, width)``, ``(channels, height, width)`` or ``(height, width,
            channels)``.
        channels_last: Whether the last of three axes is the channel axis; ``None`` has the rule decide.

    Returns:
        Shape ``(channels, height, width)``, with one channel for two axes.

    Raises:
        TypeError: torch does not have the array's dtype.
        ValueError: The image has no pixels, or complex ones.
    """
    image = np.asarray(image) if isinstance(image, np.ndarray) else image  # a matrix would keep its two axes
    return to_bchw(image[None], channels_last)[0]


def to_bchw(images: Tensor | np.ndarray[Any, Any], channels_last: bool | None = None) -> Tensor:
    """Return a batch of images with the channels before the height: as :func:`to_chw`, with an axis more.

    Raises:
        TypeError: torch does not have the array's dtype.
        ValueError: The images have no pixels, or complex ones.
    """
    if channels_last is None:
        channels_last = images.ndim == 4 and channels_come_last(images.shape[1:], isinstance(images, np.ndarray))
    if isinstance(images, np.ndarray):
        # torch refuses read-only arrays, negative strides and foreign byte orders. np.require copies only such arrays.
        images = torch.from_numpy(np.require(images, images.dtype.newbyteorder("="), ["W", "C"]))
    values = images.detach().as_subclass(Tensor)  # torchvision's tv_tensors resize by rules of their own
    _check_pixels(values)
    if values.dim() == 3:
        return values[:, None]
    return values.permute(0, 3, 1, 2) if channels_last else values


def _check_pixels(images: Tensor) -> None:
    """Refuse a batch of images that have no pixels, or complex or quantized ones.

    Raises:
        ValueError: It is so.
    """
    if images.numel() == 0 or images.is_complex() or images.is_quantized:
        shape = tuple(images.shape[1:] if len(images) else images.shape)
        raise ValueError(
            f"an image must have pixels that are real numbers, but this one has shape {shape} and {images.dtype}. "
            "Change `dataset`."
        )


def channels_come_last(shape: Sequence[int], is_array: bool) -> bool:
    """Return whether the last of three axes is the channel axis, by the rule of :func:`to_chw`.

    Args:
        shape: Lengths of the three axes.
        is_array: Whether it is a NumPy array's shape, not a tensor's.
    """
    first, last = shape[0] <= 4, shape[-1] <= 4
    if first != last:
        return last
    if not first and shape[0] != shape[-1]:
        return shape[-1] < shape[0]
    return is_array  # NumPy images are usually HWC, torch images CHW


def _split_item(item: object) -> Mapping[Any, object] | None:
    if isinstance(item, Mapping):
        return item
    return dict(enumerate(item)) if isinstance(item, tuple | list) else None


def _describe_values(values: Mapping[Any, object]) -> str:
    return ", ".join(f"{name!r}: {_describe_value(value)}" for name, value in values.items())


def _is_image(value: object, batched: bool) -> TypeGuard[Raw]:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 4 if batched else value.ndim in (2, 3)
    return isinstance(value, Image.Image) and not batched


def _describe_value(value: object) -> str:
    kind = type(value).__name__
    if isinstance(value, Tensor | np.ndarray):
        return f"{kind} of {value.dtype} and shape {tuple(value.shape)}"
    return f"{kind} {value!r}" if isinstance(value, str | int | float) and len(repr(value)) < 60 else kind
