"""Any dataset seen as uint8 CHW images, with a stated policy for values, channels and size."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ddpm_data import checks
from ddpm_data.items import ImageKey, find_image, pixels
from ddpm_data.permutation import Part, permute
from ddpm_data.philox import Key, Purpose

T = TypeVar("T")


class MapDataset(Protocol):
    """What every map-style dataset has."""

    def __len__(self) -> int:
        """How many items."""
        ...

    def __getitem__(self, index: int, /) -> Any:  # noqa: ANN401  # any item is the point
        """One item."""
        ...


class ImagePolicy:
    """How items become uint8 CHW images.

    Args:
        image_key: Place in a tuple, or key in a dict, where an item holds its image; ``None`` takes the only
            image-like value there is.
        image_size: Pixels, one number (a square) or ``(height, width)``: images are resized until they just cover it
            (bilinear, antialiased), then centre-cropped. ``None`` leaves sizes alone.
        value_range: ``(lowest, highest)`` possible value of float and wide-integer images, mapped to 0 and 255 and
            rounded, which loses nothing where the source had 8 bits. uint8 images need none.
        channels: 3 (grey is repeated), 1 (colour becomes luma, ITU-R 601), or ``None``: as they come.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: It has no possible value.
    """

    def __init__(
        self,
        image_key: ImageKey | None = None,
        image_size: int | Sequence[int] | None = None,
        value_range: Sequence[float] | None = None,
        channels: int | None = None,
    ) -> None:
        self.image_key = image_key
        self.image_size = _size(image_size)
        self.value_range = _range(value_range)
        if channels not in (None, 1, 3) or isinstance(channels, bool):
            raise ValueError(
                f"channels={channels!r}: 1, 3 or null (as they come) is needed. Change `dataset.channels`."
            )
        self.channels = channels

    def __call__(self, item: object) -> Tensor:
        """One item's image, uint8, shape ``(channels, height, width)``.

        Raises:
            TypeError: The item holds no image.
            ValueError: It holds several, or one that the policy cannot convert.
        """
        return self.fit(self.pixels(item))

    def pixels(self, item: object) -> Tensor:
        """The item's image in its own dtype, shape ``(channels, height, width)``."""
        return pixels(find_image(item, self.image_key))

    def fit(self, image: Tensor) -> Tensor:
        """The image's values, channels and size as the policy wants them, uint8."""
        return self._resize(self._convert(self._to_uint8(image)))

    def _to_uint8(self, image: Tensor) -> Tensor:
        if image.dtype == torch.bool:
            return image.to(torch.uint8) * 255
        if image.dtype == torch.uint8:
            return image
        values = image.double()
        low, high = float(values.min()), float(values.max())
        if self.value_range is None:
            raise ValueError(_no_range(f"the image is {image.dtype} and spans", low, high))
        bottom, top = self.value_range
        half_a_level = (top - bottom) / 510
        if not (low >= bottom - half_a_level and high <= top + half_a_level):  # so that NaN is refused too
            raise ValueError(
                f"values span {low:.4g} to {high:.4g}, outside value_range=({bottom:g}, {top:g}); clipping would "
                "lose them. Change `dataset.value_range`, or mend the image."
            )
        return ((values - bottom) * (255 / (top - bottom))).round_().clamp_(0, 255).to(torch.uint8)

    def _convert(self, image: Tensor) -> Tensor:
        count = image.shape[0]
        if self.channels in (None, count):
            return image
        if self.channels == 3 and count == 1:
            return image.expand(3, -1, -1)
        if self.channels == 1 and count == 3:
            return cast(Tensor, F.rgb_to_grayscale(image))
        raise ValueError(
            f"an image of {count} channels cannot become one of {self.channels} without a guess. "
            "Change `dataset.channels`."
        )

    def _resize(self, image: Tensor) -> Tensor:
        if self.image_size is None or image.shape[1:] == self.image_size:
            return image
        height, width = image.shape[1:]
        scale = max(self.image_size[0] / height, self.image_size[1] / width)
        cover = [max(self.image_size[0], int(height * scale)), max(self.image_size[1], int(width * scale))]
        resized = F.resize(image, cover, interpolation=InterpolationMode.BILINEAR, antialias=True)
        return cast(Tensor, F.center_crop(resized, list(self.image_size)))


class Images(Dataset[Tensor]):
    """A map-style dataset, or some of it, seen as uint8 CHW images.

    Args:
        dataset: Anything with ``__getitem__`` and ``__len__``; its ``__getitems__``, if any, fetches whole batches.
        policy: How an item becomes an image.
        name: What to call it in errors.
        part: Which items belong to the set; ``None`` is all. Indices are the dataset's all the same.
    """

    def __init__(self, dataset: MapDataset, policy: ImagePolicy, name: str, part: Part | None = None) -> None:
        self.dataset = dataset
        self.policy = policy
        self.name = name
        self.part = part

    def __len__(self) -> int:
        return len(self.dataset) if self.part is None else len(self.part)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """Images of several of the dataset's items, each uint8, shape ``(channels, height, width)``."""
        return [read(f"{self.name}[{index}]", self.policy, item) for index, item in self._items(indices)]

    def check(self) -> None:
        """Look at up to 128 items (all, if there are no more) and raise what a batch would raise, but now.

        Raises:
            TypeError: An item holds no image.
            ValueError: Nothing there, an image the policy cannot convert, or images of several shapes.
        """
        if len(self) == 0:
            raise ValueError(
                f"{self.name} is empty: there is nothing to draw a batch from. Check `dataset.{self.name}`."
            )
        # Where size and channels are both asked for, shapes cannot differ, and a few looks tell type and range.
        count = min(len(self), 8 if self.policy.image_size and self.policy.channels else 128)
        shuffled = permute(torch.arange(count), len(self), Key(0, 0), Purpose.CHECK)  # even steps would meet patterns
        places = torch.tensor(sorted({0, len(self) - 1, *shuffled.tolist()}))
        items = self._items((places if self.part is None else self.part.indices(places)).tolist())
        raw = [read(f"{self.name}[{index}]", self.policy.pixels, item) for index, item in items]
        self._check_range(raw)
        indices = [index for index, _ in items]
        named = zip(indices, raw, strict=True)
        images = [read(f"{self.name}[{index}]", self.policy.fit, image) for index, image in named]
        same_shape(self.name, indices, images)

    def _check_range(self, raw: list[Tensor]) -> None:
        if self.policy.value_range is not None or raw[0].dtype in (torch.uint8, torch.bool):
            return
        low = min(float(image.double().min()) for image in raw)
        high = max(float(image.double().max()) for image in raw)
        seen = f"{self.name} holds {raw[0].dtype} images, and the {len(raw)} looked at span"
        raise ValueError(_no_range(seen, low, high))

    def _items(self, indices: Sequence[int]) -> list[tuple[int, object]]:
        fetch = getattr(self.dataset, "__getitems__", None)
        items = fetch(list(indices)) if callable(fetch) else [self.dataset[index] for index in indices]
        return list(zip(indices, items, strict=True))


def read(where: str, convert: Callable[[T], Tensor], value: T) -> Tensor:
    """Convert a value to an image, or say where the one that cannot be comes from.

    Raises:
        OSError, TypeError, ValueError: What ``convert`` raised, with ``where`` before its message.
    """
    try:
        return convert(value)
    except (TypeError, ValueError, OSError) as error:
        # Not type(error): the constructors of some subclasses want more than a message.
        kind = next(kind for kind in (TypeError, ValueError, OSError) if isinstance(error, kind))
        raise kind(f"{where}: {error}") from error


def same_shape(name: str, indices: Sequence[int], images: Sequence[Tensor]) -> None:
    """Refuse images that could not share a batch.

    Raises:
        ValueError: Two shapes differ; both are named, with the key to set.
    """
    for index, image in zip(indices, images, strict=True):
        if image.shape != images[0].shape:
            key = "channels" if image.shape[0] != images[0].shape[0] else "image_size"
            raise ValueError(
                f"{name}[{indices[0]}] is {tuple(images[0].shape)} and {name}[{index}] is {tuple(image.shape)} "
                f"(channels, height, width): images of a batch must share a shape. Set `dataset.{key}`."
            )


def _no_range(seen: str, low: float, high: float) -> str:
    ranges = ((0, 1), (-1, 1), (0, 255), (0, 65535))
    likely = next((f", here most likely [{a}, {b}]" for a, b in ranges if a <= low and high <= b), "")
    return (
        f"{seen} {low:.4g} to {high:.4g}. Which values are black and white cannot be known from that, and a wrong "
        f"guess would train on washed-out images. Set `dataset.value_range` to the (lowest, highest) possible value"
        f"{likely}."
    )


def _size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"image_size={size!r}: one number or (height, width) is needed. Change `dataset.image_size`.")
    height, width = (checks.whole("DDPMDataModule", "dataset.image_size", side, 1) for side in sides)
    return height, width


def _range(value_range: Sequence[float] | None) -> tuple[float, float] | None:
    if value_range is None:
        return None
    if not isinstance(value_range, Sequence) or isinstance(value_range, str) or len(value_range) != 2:
        raise TypeError(f"value_range={value_range!r}: (lowest, highest) is needed. Change `dataset.value_range`.")
    low, high = (checks.number("DDPMDataModule", "dataset.value_range", value) for value in value_range)
    if low >= high:
        raise ValueError(
            f"value_range=({low:g}, {high:g}): the lowest must be below the highest. Change `dataset.value_range`."
        )
    return low, high
