"""Items that cannot be used: what to say of them, how many there are, and of images that do not go together."""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_data.types import ImageBatch

_NAMED = 3  # faults an epoch that are told one by one
ITEM_ERRORS = (OSError, TypeError, ValueError, RuntimeError)  # the kinds of error that a bad item's ends up as


class BadItem(NamedTuple):
    """An item that could not be used, and was replaced.

    Attributes:
        item: Its index, or how many came before it.
        why: The error it would have been.
    """

    item: int
    why: str


class WorkerBatch(NamedTuple):
    """A batch as a worker sends it: what the transform gets, and what had to be replaced for it."""

    examples: ImageBatch
    faults: tuple[BadItem, ...]


class BadItemCounter:
    """Counts one stage's replaced items epoch by epoch, names the first few, and stops a run that has too many.

    Args:
        name: The stage, for messages.
        limit: The share of an epoch's images that may be replaced, in ``[0, 1]``.
        length: Images an epoch, of this process; ``None`` where its source alone knows.
        report: Is told the number at an epoch's end, where there were any.
    """

    def __init__(self, name: str, limit: float, length: int | None, report: Callable[[str, int], None]) -> None:
        self.name = name
        self.limit = limit
        self.length = length
        self.report = report
        self.begin()

    def begin(self) -> None:
        """Count from nothing, as at the beginning of an epoch."""
        self.seen = 0
        self.faults: list[BadItem] = []

    def add(self, faults: Sequence[BadItem], images: int) -> None:
        """Count what had to be replaced in one batch.

        Raises:
            ValueError: There have been too many.
        """
        self.seen += images
        for fault in faults[: max(0, _NAMED - len(self.faults))]:
            warnings.warn(f"replaced by a neighbour: {fault.why}", stacklevel=2)
        self.faults += faults
        # Where the length is not known, a fault among the first few is not yet a share.
        whole = self.length if self.length is not None else max(self.seen, 1 / self.limit if self.limit else 0)
        if faults and len(self.faults) > self.limit * whole:
            raise ValueError(
                f"{len(self.faults)} of the first {self.seen} {self.name} images cannot be used, more than "
                f"max_bad_fraction={self.limit:g} of {whole:.0f} allows; the last: {faults[-1].why}. "
                "`python -m ddpm_data.check` lists them all. Mend the data, or change `loader.max_bad_fraction`."
            )

    def end(self) -> None:
        """Say how many there were, as at the end of an epoch."""
        if count := len(self.faults):
            tqdm.write(f"{self.name}: {count} of {self.seen} images were bad and replaced", file=sys.stderr)
            self.report(self.name, count)


def with_item_context(where: str, error: Exception, path: str | None = None) -> Exception:
    """An error that says which item it comes from, of a plain kind: what the item's dataset raised may be of any."""
    if isinstance(error, MemoryError):
        return error
    # Not type(error): the constructors of some subclasses want more than a message.
    kind = next((kind for kind in ITEM_ERRORS if isinstance(error, kind)), RuntimeError)
    message = str(error) if kind is not RuntimeError else f"{type(error).__name__}: {error}"
    return kind(f"{where} ({path}): {message}" if path and path not in message else f"{where}: {message}")


def check_same_shape(name: str, indices: Sequence[int], images: Sequence[Tensor]) -> None:
    """Refuse images that could not share a batch.

    Raises:
        ValueError: Two shapes differ; both are named, with the key to set.
    """
    for index, image in zip(indices, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(shape_mismatch_message(name, indices[0], images[0].shape, index, image.shape))


def shape_mismatch_message(name: str, index: int, shape: torch.Size, other: int, other_shape: torch.Size) -> str:
    """What to say of two images that could not share a batch."""
    key = "channels" if shape[0] != other_shape[0] else "image_size"
    return (
        f"{name}[{index}] is {tuple(shape)} and {name}[{other}] is {tuple(other_shape)} (channels, height, width): "
        f"images of a batch must share a shape. Set `dataset.{key}`."
    )


def small_images_message(name: str, raw: Sequence[Tensor], size: tuple[int, int]) -> str | None:
    """What to say of images that have to be enlarged, if there are any."""
    small = [image.shape[-2:] for image in raw if image.shape[-2] < size[0] or image.shape[-1] < size[1]]
    if not small:
        return None
    height, width = min(small, key=torch.Size.numel)
    return (
        f"{len(small)} of the {len(raw)} {name} images looked at are smaller than image_size={tuple(size)}, down to "
        f"({height}, {width}), and are enlarged: a model learns to draw blurred ones. Lower `dataset.image_size`, or "
        "leave them out."
    )
