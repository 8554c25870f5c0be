"""What a dataset holds: its items looked at one by one, bad ones too, and added up."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_data._nested import leaves
from ddpm_data.cli.checking.duplicates import digest
from ddpm_data.cli.checking.header import Header
from ddpm_data.images.items import find_condition, find_image
from ddpm_data.images.processor import ItemProcessor
from ddpm_data.loading.collate import collate_conditions
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources._paths import path_of
from ddpm_data.types import ItemKey

# What is kept of each good item: digests instead of pixels and paths (0: none is known), so that a million are 32 MB.
ROW = np.dtype([("index", "i8"), ("content", "u8"), ("path", "u8"), ("height", "i4"), ("width", "i4")])
_CLASSES = 10_000  # different conditions that are counted
_SHORT = 40  # characters of a condition that may be a class

Rows = np.ndarray[Any, Any]


class Bad(NamedTuple):
    """An item that cannot be used.

    Attributes:
        item: Its place in the dataset.
        path: Its file, where that is known.
        cause: The kind of error, and what it says.
    """

    item: int
    path: str | None
    cause: str


class ImageForm(NamedTuple):
    """What an image becomes: its dtype and shape, as the processor wants it."""

    dtype: str
    shape: torch.Size
    nbytes: int


class ItemStats:
    """What some of a dataset's items hold.

    Attributes:
        bad: Those that cannot be used.
        counts: How many there are of each kind, in each of several respects: ``counts["mode"]["RGB"]``.
        classes: How many have each condition, where these are whole numbers or short strings.
        forms: What they become, each with the first item that does.
        span: The lowest and highest value of floats and of images of more than 8 bits.
        moments: Of latents: how many values a channel, their sum and their squares' sum, by the number of channels.
        seconds: What reading, decoding and fitting the good ones took.
        condition_bytes: Of one item's condition, at most.
    """

    def __init__(self) -> None:
        self.bad: list[Bad] = []
        self.counts: dict[str, Counter[Any]] = {}
        self.classes: Counter[int | str] = Counter()
        self.forms: dict[ImageForm, int] = {}
        self.span = (float("inf"), float("-inf"))
        self.moments: dict[int, Rows] = {}
        self.seconds = 0.0
        self.condition_bytes = 0
        self._rows: list[Rows] = []

    def __len__(self) -> int:
        return len(self.bad) + sum(map(len, self._rows))

    @property
    def rows(self) -> Rows:
        """What is kept of each good item, in the dataset's order: an array of ``ROW``."""
        return np.concatenate([np.empty(0, ROW), *self._rows])

    def merge(self, other: "ItemStats") -> None:
        """Take in what other items hold, those after these."""
        self.bad += other.bad
        self._rows += other._rows
        for respect, counts in other.counts.items():
            self.counts.setdefault(respect, Counter()).update(counts)
        for name, count in other.classes.items():
            if name in self.classes or len(self.classes) < _CLASSES:
                self.classes[name] += count
        self.forms |= {form: item for form, item in other.forms.items() if form not in self.forms}
        self.span = min(self.span[0], other.span[0]), max(self.span[1], other.span[1])
        for channels, sums in other.moments.items():
            self.moments[channels] = self.moments.get(channels, 0) + sums
        self.seconds += other.seconds
        self.condition_bytes = max(self.condition_bytes, other.condition_bytes)

    def add_item(
        self,
        index: int,
        get: Callable[[], object],
        processor: ItemProcessor,
        condition: ItemKey | None = None,
        path: str | None = None,
    ) -> Tensor | None:
        """Take in one item.

        Args:
            index: Its place in the dataset, after those looked at before.
            get: Returns it.
            processor: How it becomes an image, or a latent.
            condition: Where it holds its condition; ``None`` takes none.
            path: Its file, where that is known.

        Returns:
            The image as the processor wants it; nothing if the item is bad.
        """
        try:
            with warnings.catch_warnings(action="ignore"):  # PIL's, of what it makes do with
                started = perf_counter()
                item = get()
                image = find_image(item, processor.image_key)
                header = Header.of(image) if isinstance(image, Image.Image) else None
                raw = processor.decode(item)
                fitted = processor.convert(raw)
                seconds = perf_counter() - started
                if condition is not None:
                    self._condition(find_condition(item, condition))
        except Exception as error:  # a dataset of the user's may raise anything
            self.bad.append(Bad(index, path, f"{type(error).__name__}: {error}"))
            return None
        self.seconds += seconds
        self.forms.setdefault(form := _form(fitted), index)
        self._count("form", form)
        height, width = raw.shape[-2:]
        if header is not None and isinstance(image, Image.Image):
            height, width = self._file(header, image)
        else:
            self._count("mode", str(raw.dtype).removeprefix("torch."))
            self._count("channels", len(raw))
            if raw.dtype not in (torch.uint8, torch.bool):
                self._widen(float(raw.double().min()), float(raw.double().max()))
        if fitted.is_floating_point():
            values = fitted.double().flatten(1)
            sums = torch.stack([torch.full((len(values),), values.shape[1]), values.sum(1), values.square().sum(1)])
            self.moments[len(values)] = self.moments.get(len(values), 0) + sums.numpy()
        row = (index, digest(raw), digest(path) if path else 0, height, width)
        self._rows.append(np.array([row], ROW))
        return fitted

    def packed(self) -> "ItemStats":
        """The same, its rows in one array, as it is sent from a worker."""
        self._rows = [self.rows]
        return self

    def _file(self, header: Header, image: Image.Image) -> tuple[int, int]:
        """Take in what a PIL image says, now that it has been decoded; its height and width."""
        self._count("mode", header.mode)
        self._count("channels", header.channels)
        if header.kind:
            self._count("format", header.kind)
        if header.is_deep:
            values = np.asarray(image)
            self._widen(float(values.min()), float(values.max()))
        size = header.shown(image)
        for what, is_so in header.has(image).items():
            self._count("has", what, is_so)
        return size

    def _condition(self, condition: object) -> None:
        tensors = [leaf for leaf in leaves(collate_conditions("this set", [condition])) if isinstance(leaf, Tensor)]
        self.condition_bytes = max(self.condition_bytes, sum(tensor.nbytes for tensor in tensors))
        self._count("condition", _kind(condition))
        if isinstance(condition, Tensor | np.ndarray | np.generic) and condition.ndim == 0:
            condition = condition.item()
        if isinstance(condition, int) or (isinstance(condition, str) and len(condition) <= _SHORT):
            self.classes[condition] += 1

    def _count(self, respect: str, what: object, number: int = 1) -> None:
        self.counts.setdefault(respect, Counter())[what] += number

    def _widen(self, low: float, high: float) -> None:
        self.span = min(self.span[0], low), max(self.span[1], high)


class ItemStatsDataset(Dataset[ItemStats]):
    """A map-style dataset's items, some at once, so that workers can look at them.

    Args:
        images: The dataset, and how its items become images.
        count: How many at once.
    """

    def __init__(self, images: MapStyleImages, count: int) -> None:
        self.images = images
        self.count = count

    def __len__(self) -> int:
        return -(-len(self.images.dataset) // self.count)

    def __getitem__(self, number: int) -> ItemStats:
        dataset, survey = self.images.dataset, ItemStats()
        for index in range(number * self.count, min(len(dataset), (number + 1) * self.count)):
            get = partial(dataset.__getitem__, index)
            survey.add_item(index, get, self.images.processor, self.images.condition, path_of(dataset, index))
        return survey.packed()


def _form(fitted: Tensor) -> ImageForm:
    return ImageForm(str(fitted.dtype).removeprefix("torch."), fitted.shape, fitted.nbytes)


def _kind(condition: object) -> str:
    if isinstance(condition, Tensor | np.ndarray):
        shape = f" of shape {tuple(condition.shape)}" if condition.ndim else ""
        return str(condition.dtype).removeprefix("torch.") + shape
    if isinstance(condition, Mapping):
        return f"dict of {', '.join(f'{name}: {_kind(value)}' for name, value in condition.items())}"
    if isinstance(condition, Sequence) and not isinstance(condition, str):
        return f"{type(condition).__name__} of {', '.join(map(_kind, condition))}"
    return type(condition).__name__
