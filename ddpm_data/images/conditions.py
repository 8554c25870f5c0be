"""What batches are conditioned on: where an item holds it, and which parts of it are images that move with their image.

This is the one place that knows which parts of an item beside the image are images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_data._checks import check_key
from ddpm_data.images.decode import ResizeSpec, Size, exif_orientation, load_image, upright_size
from ddpm_data.images.items import channels_come_last, find_condition, find_image, to_bchw, to_chw
from ddpm_data.images.levels import to_uint8
from ddpm_data.images.processor import ImageProcessor, ItemProcessor, check_range, resize_and_crop
from ddpm_data.types import ItemKey

Keys = ItemKey | Sequence[ItemKey] | None


@dataclass(frozen=True)
class ConditionImage:
    """How a condition that is an image is resized with its image.

    Args:
        interpolation: ``"nearest"`` for label maps, such as masks: the values stay the whole numbers that they are.
            ``"bilinear"``, antialiased, for pictures, such as edges, depth or an image to edit.
        value_range: ``(lowest, highest)`` possible value of a picture of floats or wide integers, as
            :class:`~ddpm_data.images.processor.ImageProcessor` takes it for images.
        channels: Number of channels of a picture, likewise; ``None`` keeps its own.
    """

    interpolation: str
    value_range: tuple[float, float] | None = None
    channels: int | None = None


class Conditions:
    """A reader of conditions: finds them in items, and gives those that are images their image's size and crop.

    Args:
        keys: Index into a tuple, or key of a dict, at which an item holds its condition. Several make a dict of
            conditions. ``None`` takes none.
        images: The conditions that are images, by key: ``"nearest"``, ``"bilinear"`` or a mapping of
            :class:`ConditionImage`'s arguments. ``None`` in place of these says that a condition is no image, although
            it looks like one. Inside a condition that is a dict, the dict's keys count.
        processor: What the items' images are made by.
        flips: Whether training mirrors images.

    Raises:
        TypeError: A key is neither a place nor a key.
        ValueError: No key is given, or one twice; or ``images`` says something that is unknown or without effect.
    """

    def __init__(
        self,
        keys: Keys = None,
        images: Mapping[ItemKey, Any] | None = None,
        processor: ItemProcessor | None = None,
        flips: bool = False,
    ) -> None:
        self.is_single = keys is None or not isinstance(keys, Sequence) or isinstance(keys, str)
        listed = [] if keys is None else [keys] if self.is_single else list(keys)  # type: ignore[arg-type]  # a sequence
        self.keys: tuple[ItemKey, ...] = tuple(map(_check_condition_key, listed))
        if not self.is_single and len(set(self.keys)) != max(1, len(self.keys)):
            raise ValueError(
                f"condition={keys!r}: a list needs at least one key, and each of them once. Change `dataset.condition`."
            )
        declared = {} if images is None else images
        if not isinstance(declared, Mapping):
            raise TypeError(
                f"condition_images={images!r}: a mapping from a condition's key to nearest or bilinear is "
                "needed. Change `dataset.condition_images`."
            )
        if declared and not self.keys:
            raise ValueError(
                f"condition_images={dict(declared)!r}: there is no condition. Set `dataset.condition` to the keys of "
                "all conditions."
            )
        self.images = {key: _check_image(key, how) for key, how in declared.items() if how is not None}
        self.not_images = {key for key, how in declared.items() if how is None}
        self.flips = flips
        stretch = getattr(processor, "resize", "cover") == "stretch"
        size = None if processor is None else processor.image_size
        self._resize = None if size is None else ResizeSpec(size, stretch)
        self._image_key = None if processor is None else processor.image_key
        self._pictures = {
            key: ImageProcessor(
                image_size=size,
                value_range=how.value_range,
                channels=how.channels,
                resize=getattr(processor, "resize", "cover"),
                background=getattr(processor, "background", "white"),
            )
            for key, how in self.images.items()
            if how.interpolation == "bilinear"
        }

    def __bool__(self) -> bool:
        return bool(self.keys)

    def find(self, item: object, batched: bool = False) -> Any:  # noqa: ANN401  # any collatable kind
        """Find an item's condition. Lists of numbers become tensors, since a batch of them is one.

        Args:
            item: What the dataset returned for an index; not yet decoded, since that may change its image's size.
            batched: Whether ``item`` is a batch of items.

        Returns:
            The condition, with its images as they are in the item; a dict where several were asked for.

        Raises:
            ValueError: There is no condition at a key; or one is an image that its image would move away from, since
                :attr:`images` does not name it.
        """
        if not self.keys:
            return None
        condition = self.join({key: find_condition(item, key) for key in self.keys})
        if not batched:
            condition = self._map_named(_join_numbers, condition)
        self._refuse_unnamed_images(item, condition, batched)
        return condition

    def join(self, values: Mapping[ItemKey, Any]) -> Any:  # noqa: ANN401  # any collatable kind
        """Return one condition of the values at all keys: the only one itself, or a dict of several."""
        return values[self.keys[0]] if self.is_single else {key: values[key] for key in self.keys}

    def split(self, condition: Any) -> dict[ItemKey, Any]:  # noqa: ANN401  # any collatable kind
        """Return the values at all keys of what :meth:`join` made of them."""
        return {key: condition if self.is_single else condition[key] for key in self.keys}

    def convert(
        self,
        condition: Any,  # noqa: ANN401  # any collatable kind
        image: Tensor,
        crop_offsets: Tensor | None = None,
        batched: bool = False,
    ) -> Any:  # noqa: ANN401
        """Convert the images in a condition to uint8 of their image's size, resized and cropped as it is.

        Args:
            condition: What :meth:`find` returned.
            image: The item's decoded image, shape ``(..., channels, height, width)``.
            crop_offsets: As :meth:`~ddpm_data.images.processor.ImageProcessor.convert` takes them.
            batched: Whether it is the condition of a batch.

        Returns:
            The condition with its images as uint8, shape ``(..., channels, height, width)``.

        Raises:
            OSError: An image cannot be decoded.
            TypeError, ValueError: It is no image, has other proportions than its image, or values out of range.
        """

        def convert_image(value: object, key: ItemKey) -> Tensor:
            height, width = image.shape[-2:]
            pixels = self._decode(value, key, batched, (height, width))
            if self._resize is None:
                _refuse_turned(key, pixels, (height, width))
                return pixels
            target = self._resize.target(height, width)
            if not self._resize.stretch:
                _check_proportions(key, pixels, target)
            elif target not in ((height, width), tuple(pixels.shape[-2:])):  # as what has been stretched in decoding
                _refuse_turned(key, pixels, (height, width))
            is_nearest = self.images[key].interpolation == "nearest"
            return resize_and_crop(pixels, target, self._resize.size, crop_offsets, is_nearest)

        return self.map_images(convert_image, condition)

    def map_images(self, function: Callable[[Any, ItemKey], Any], condition: Any) -> Any:  # noqa: ANN401  # as above
        """Call a function with each image in a condition and its key in :attr:`images`, and put in what it returns.

        Raises:
            ValueError: The condition has no such keys as :attr:`images` names.
        """
        if not self.images:
            return condition
        missing = set(self.images)

        def replace(value: object, key: ItemKey) -> object:
            if key not in self.images:
                return value
            missing.discard(key)
            return function(value, key)

        result = self._map_named(replace, condition)
        if missing:
            names = ", ".join(map(repr, self._list_names(condition)))
            raise ValueError(
                f"condition_images names {', '.join(map(repr, missing))}, but the condition holds {names}. Change "
                "`dataset.condition_images` or `dataset.condition`."
            )
        return result

    def describe(self) -> list[object] | None:
        """Return what decides the conditions' values, for a fingerprint; ``None`` where there are none."""
        if not self.keys:
            return None
        images = sorted(([repr(key), *vars(how).values()] for key, how in self.images.items()), key=str)
        return [self.is_single, list(map(repr, self.keys)), images]

    def _map_named(self, function: Callable[[Any, ItemKey], Any], condition: Any) -> Any:  # noqa: ANN401  # as above
        """Call a function with each value in nested dicts and its innermost key."""

        def walk(value: Any, key: ItemKey) -> Any:  # noqa: ANN401  # as above
            if isinstance(value, Mapping):
                return {name: walk(part, name) for name, part in value.items()}
            return function(value, key)

        return self.join({key: walk(value, key) for key, value in self.split(condition).items()})

    def _list_names(self, condition: Any) -> list[ItemKey]:  # noqa: ANN401  # as above
        names: list[ItemKey] = []
        self._map_named(lambda _, key: names.append(key), condition)
        return names

    def _refuse_unnamed_images(self, item: object, condition: Any, batched: bool) -> None:  # noqa: ANN401  # as above
        unnamed: list[tuple[ItemKey, Any]] = []

        def collect(value: object, key: ItemKey) -> None:
            is_array = isinstance(value, Tensor | np.ndarray) and value.ndim - batched in (2, 3)
            if key not in self.images and (isinstance(value, Image.Image) or (is_array and key not in self.not_images)):
                unnamed.append((key, value))

        self._map_named(collect, condition)
        if not unnamed:
            return
        size = _size_of(find_image(item, self._image_key, batched), batched)
        moves = self.flips or (self._resize is not None and self._resize.size != size)
        for key, value in unnamed:
            is_pil = isinstance(value, Image.Image)
            if is_pil or (moves and _looks_like_image(value, size, batched)):
                own_size = _size_of(value, batched)
                reason = (
                    "PIL images make no batch as they are"
                    if is_pil
                    else "`dataset.flip`, `dataset.image_size` or `dataset.crop` would move the image away from it"
                )
                raise ValueError(
                    f"the condition {key!r} is an image of {own_size[0]} x {own_size[1]} pixels beside an image of "
                    f"{size[0]} x {size[1]}, and {reason}. Say how it is resized with its image: "
                    f"`dataset.condition_images={{{key}: nearest}}` for label maps and masks, `bilinear` for pictures"
                    f"{'' if is_pil else ', `null` if it is no image'}."
                )

    def _decode(self, value: Any, key: ItemKey, batched: bool, size: Size) -> Tensor:  # noqa: ANN401  # whatever the item holds
        """Decode a condition that is an image to uint8, shape ``(..., channels, height, width)``."""
        is_image = isinstance(value, Image.Image) or (
            isinstance(value, Tensor | np.ndarray) and value.ndim - batched in (2, 3)
        )
        if not is_image:
            raise TypeError(
                f"condition_images names {key!r}, but it is a {type(value).__name__}, not an image. Change "
                "`dataset.condition_images`."
            )
        try:
            if self.images[key].interpolation == "nearest":
                return _to_labels(_read_labels(value, batched, size))
            picture = self._pictures[key]
            raw = to_bchw(value) if batched else picture.decode(value)
            return picture.convert_channels(to_uint8(raw, picture.value_range))
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"the condition {key!r}: {error} (For a condition: `dataset.condition_images={{{key}: ...}}`.)"
            ) from error


def _check_condition_key(key: object) -> ItemKey:
    checked = check_key("dataset.condition", key)
    if checked is None:
        raise TypeError("condition: null is no key of a list. Change `dataset.condition`.")
    return checked


def _check_image(key: ItemKey, how: object) -> ConditionImage:
    options = {"interpolation": how} if isinstance(how, str) else vars(how) if isinstance(how, ConditionImage) else how
    message = (
        f"condition_images={{{key!r}: {how!r}}}: expected nearest or bilinear, or a mapping of interpolation and, for "
        "bilinear, value_range and channels. Change `dataset.condition_images`."
    )
    if not isinstance(options, Mapping):
        raise TypeError(message)
    if not {"interpolation"} <= set(options) <= {"interpolation", "value_range", "channels"}:
        raise ValueError(message)
    value_range = check_range(options.get("value_range"), f"dataset.condition_images.{key}.value_range")
    image = ConditionImage(options["interpolation"], value_range, options.get("channels"))
    is_plain = (image.value_range, image.channels) == (None, None)
    if image.channels not in (None, 1, 3, 4) or image.interpolation not in ("nearest", "bilinear"):
        raise ValueError(message)
    if image.interpolation == "nearest" and not is_plain:
        raise ValueError(message)
    return image


def _size_of(image: Image.Image | Tensor | np.ndarray[Any, Any], batched: bool) -> Size:
    """Return the height and width that an image has once it is upright."""
    if isinstance(image, Image.Image):
        return upright_size(image)
    shape = torch.Size(image.shape[1:] if batched else image.shape)
    is_last = len(shape) == 3 and channels_come_last(shape, isinstance(image, np.ndarray))
    height, width = shape[:2] if is_last else shape[-2:]
    return height, width


def _looks_like_image(value: Tensor | np.ndarray[Any, Any], size: Size, batched: bool) -> bool:
    """Tell whether an array has its image's size, or one to four channels of its proportions."""
    shape = value.shape[1:] if batched else value.shape
    own_size = _size_of(value, batched)
    if own_size == size:
        return True
    is_picture = len(shape) == 3 and (shape[0] <= 4 or shape[-1] <= 4) and min(own_size) >= 4
    return is_picture and own_size[0] * size[1] == own_size[1] * size[0]


def _check_proportions(key: ItemKey, pixels: Tensor, target: Size) -> None:
    """Refuse an image that would be distorted; sides that were rounded to whole pixels may be one off."""
    height, width = pixels.shape[-2:]
    if abs(height * target[1] - width * target[0]) > max(target) + max(height, width):
        raise ValueError(
            f"the condition {key!r} is {height} x {width} and its image, before it is cropped, {target[0]} x "
            f"{target[1]}: they differ in proportions, so no part of one matches the other. Change the dataset, or "
            "`dataset.condition_images`."
        )


def _refuse_turned(key: ItemKey, pixels: Tensor, size: Size) -> None:
    """Refuse an image that has its image's proportions with the sides swapped; others may differ on purpose."""
    height, width = pixels.shape[-2:]
    is_swapped = abs(height * size[0] - width * size[1]) <= max(size) + max(height, width)
    if is_swapped and (height > width) != (size[0] > size[1]) and height != width:
        raise ValueError(
            f"the condition {key!r} is {height} x {width} and its image {size[0]} x {size[1]}: one of the two lies on "
            "its side, as where only one file has an EXIF orientation. Change the dataset, or "
            "`dataset.condition_images`."
        )


def _read_labels(value: Any, batched: bool, size: Size) -> Tensor:  # noqa: ANN401  # a PIL image, tensor or array
    """Read a label map's values as they are stored: of a palette image the indices.

    Args:
        value: The map.
        batched: Whether it is a batch of maps.
        size: Of its image. A map may have many channels, one per class, and its image's proportions tell which axis
            they are.
    """
    if not isinstance(value, Image.Image):
        shape, channels_last = value.shape[batched:], None
        if len(shape) == 3:
            fits_first, fits_last = (side[0] * size[1] == side[1] * size[0] for side in (shape[-2:], shape[:2]))
            channels_last = fits_last if fits_first != fits_last else None
        return (to_bchw if batched else to_chw)(value, channels_last)
    load_image(value)
    orientation = exif_orientation(value)
    labels = to_chw(np.array(value))
    labels = labels.transpose(1, 2) if orientation.transpose else labels
    return labels.flip(orientation.flip_axes) if orientation.flip_axes else labels


def _to_labels(labels: Tensor) -> Tensor:
    if labels.dtype in (torch.uint8, torch.bool):
        return labels.to(torch.uint8)
    whole = labels.to(torch.uint8)
    if not torch.equal(whole.to(labels.dtype), labels):
        low, high = float(labels.double().min()), float(labels.double().max())
        raise ValueError(
            f"a label map holds whole numbers from 0 to 255, but this one, {labels.dtype}, spans {low:.6g} to "
            f"{high:.6g}. Renumber the labels, or write bilinear if it is a picture."
        )
    return whole


def _join_numbers(value: Any, key: ItemKey) -> Any:  # noqa: ANN401  # any kind
    """Return a list of numbers, also nested, as a tensor, as Hugging Face gives arrays; anything else as it is."""
    first = value
    while isinstance(first, list) and first:
        first = first[0]
    if not isinstance(value, list) or isinstance(first, bool) or not isinstance(first, int | float | np.number):
        return value
    try:
        return torch.tensor(value, device="cpu")
    except (TypeError, ValueError):  # of several kinds, or of several lengths
        return value
