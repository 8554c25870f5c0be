"""Items that cannot be used: named in errors, or replaced, counted and limited."""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_data._keys import warn
from ddpm_data.images.decode import UNREADABLE
from ddpm_data.types import ImageBatch

_WHITE, _DARK = 65535, 16383  # of 16-bit images: the white assumed, and a peak of 14 bits
_WARNINGS_PER_EPOCH = 3  # bad items that are named one by one
ITEM_ERRORS = (OSError, TypeError, ValueError, RuntimeError)  # the kinds of error that a bad item ends up as


class BadItem(NamedTuple):
    """An item that cannot be used.

    Attributes:
        item: Its index in the dataset; from an iterable source, how many items came before it.
        reason: The error that it raised.
        path: Its file, if known; in training, ``reason`` contains it.
    """

    item: int
    reason: str
    path: str | None = None


class WorkerBatch(NamedTuple):
    """A batch as a worker sends it.

    Attributes:
        images: The batch for the transform.
        bad_items: The items that were replaced.
    """

    images: ImageBatch
    bad_items: tuple[BadItem, ...]


class BadItemCounter:
    """Counts one stage's replaced items per epoch, names the first few, and stops a run that has too many.

    Args:
        name: The stage, for messages.
        limit: Share of an epoch's images that may be replaced, in ``[0, 1]``.
        length: Images per epoch and process; ``None`` if only the source knows.
        report: A function that gets the name and the count at the end of an epoch with replaced items.
    """

    def __init__(
        self, name: str, limit: float, length: int | None, report: Callable[[str, int], None] = lambda name, count: None
    ) -> None:
        self.name = name
        self.limit = limit
        self.length = length
        self.report = report
        self.begin()

    def begin(self) -> None:
        """Start counting from 0, as at the beginning of an epoch."""
        self.seen = 0
        self.bad_items: list[BadItem] = []

    def add(self, bad_items: Sequence[BadItem], images: int) -> None:
        """Count the replaced items of one batch.

        Args:
            bad_items: Those that were replaced.
            images: Images in the batch.

        Raises:
            ValueError: There have been too many.
        """
        self.seen += images
        for item in bad_items[: max(0, _WARNINGS_PER_EPOCH - len(self.bad_items))]:
            warn(f"replaced by a neighbour: {item.reason}", stacklevel=2)
        self.bad_items += bad_items
        # If the length is unknown, one bad item among the first few images does not yet exceed the limit.
        total = self.length if self.length is not None else max(self.seen, 1 / self.limit if self.limit else 0)
        if bad_items and len(self.bad_items) > self.limit * total:
            raise ValueError(
                f"{len(self.bad_items)} of the first {self.seen} {self.name} images cannot be used, more than "
                f"max_bad_fraction={self.limit:g} of {total:.0f} allows; the last: {bad_items[-1].reason}. "
                "`ddpm-data check` lists them all. Repair the data, or change `loader.max_bad_fraction`."
            )

    def end(self) -> None:
        """Print and report the epoch's count, if it is not 0."""
        if count := len(self.bad_items):
            tqdm.write(f"{self.name}: {count} of {self.seen} images were bad and replaced", file=sys.stderr)
            self.report(self.name, count)


def with_item_context(where: str, error: Exception, path: str | None = None, could_replace: bool = False) -> Exception:
    """Return an error of a built-in type that names the item.

    Args:
        where: The item, such as ``train[3]``.
        error: The error that the dataset raised.
        path: The item's file, if it is known.
        could_replace: Whether bad items could be replaced, but are not: then that of an image file says so.

    Returns:
        One of ``ITEM_ERRORS``. A ``MemoryError`` is returned unchanged: it is not the item's fault.
    """
    if isinstance(error, MemoryError):
        return error
    # Not type(error): the constructors of some subclasses take more than a message.
    kind = next((kind for kind in ITEM_ERRORS if isinstance(error, kind)), RuntimeError)
    message = str(error) if kind is not RuntimeError else f"{type(error).__name__}: {error}"
    if could_replace and isinstance(error, OSError) and UNREADABLE in message:
        message += (
            ". Repair or remove it, or set `loader.on_bad_item` to replace. (ddpm-data check lists all such items.)"
        )
    return kind(f"{where} ({path}): {message}" if path and path not in message else f"{where}: {message}")


def check_same_shape(name: str, indices: Sequence[int], images: Sequence[Tensor]) -> None:
    """Refuse images that cannot share a batch.

    Raises:
        ValueError: Two shapes differ; both items are named, with the key to set.
    """
    for index, image in zip(indices, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(shape_mismatch_message(name, indices[0], images[0].shape, index, image.shape))


def shape_mismatch_message(name: str, index: int, shape: torch.Size, other: int, other_shape: torch.Size) -> str:
    """Describe two images that cannot share a batch."""
    key = "channels" if shape[0] != other_shape[0] else "image_size"
    return (
        f"{name}[{index}] is {tuple(shape)} and {name}[{other}] is {tuple(other_shape)} (channels, height, width): "
        f"images of a batch must share a shape. Set `dataset.{key}`."
    )


def length_changed_message(name: str, now: int, planned: int) -> str:
    """Describe a dataset that has another length than when its batches were planned."""
    return (
        f"{name} has {now:,} items now, and had {planned:,} when its batches were planned, but positions in the stream "
        "are counted by the length. Have __len__ of the dataset return the largest number in every epoch, and let "
        "__getitem__ choose among fewer of them."
    )


def small_images_message(name: str, raw: Sequence[Tensor], size: tuple[int, int]) -> str | None:
    """Describe the images that have to be enlarged; ``None`` if there are none."""
    small = [image.shape[-2:] for image in raw if image.shape[-2] < size[0] or image.shape[-1] < size[1]]
    if not small:
        return None
    height, width = min(small, key=torch.Size.numel)
    return (
        f"{len(small)} of the {len(raw)} {name} images looked at are smaller than image_size={tuple(size)}, down to "
        f"({height}, {width}), and are enlarged: a model learns to draw blurred images. Lower `dataset.image_size`, or "
        "remove these images."
    )


class PeakCounter:
    """Counts images whose white is assumed, and finds their highest value.

    Attributes:
        count: How many images there were.
        peak: The highest of their values.
    """

    def __init__(self) -> None:
        self.count = 0
        self.peak = 0.0

    def add(self, peak: float | None) -> None:
        """Add what :meth:`~ddpm_data.images.processor.ItemProcessor.find_peak` returns of an item."""
        if peak is not None:
            self.count += 1
            self.peak = max(self.peak, peak)

    def merge(self, other: "PeakCounter") -> None:
        """Add the images of another counter."""
        self.count += other.count
        self.peak = max(self.peak, other.peak)

    def message(self, name: str) -> str | None:
        """Describe 16-bit images of a dataset that all end far below white; ``None`` if one does not."""
        if not 0 < self.peak <= _DARK:
            return None
        white = 2 ** max(8, int(self.peak).bit_length()) - 1
        return (
            f"the {self.count} 16-bit {name} images looked at have values up to {self.peak:.0f}, far below {_WHITE}, "
            f"their white: a model would see nearly black ones. If their white is {white}, set `dataset.value_range` "
            f"to [0, {white}]; if they are meant to be dark, set it to [0, {_WHITE}]."
        )

    def warn(self, name: str) -> None:
        """Warn of such images, if there are any."""
        if message := self.message(name):
            warn(message, stacklevel=2)
