"""Statistics of a dataset: each item is read, good or bad, and added to the totals."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from ddpm_data.images.conditions import Conditions
from ddpm_data.images.decode import REDUCED_FORMATS, read_content, split_rows
from ddpm_data.images.items import find_image
from ddpm_data.images.processor import ImageProcessor, ItemProcessor
from ddpm_data.loading.bad_items import BadItem, PeakCounter
from ddpm_data.loading.collate import collate_conditions
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources._paths import path_of

# One row per good item. It holds digests instead of pixels and paths, so that a million items take 32 MB. A path digest
# of 0 means that the path is not known.
ROW = np.dtype([("index", "i8"), ("content", "u8"), ("path", "u8"), ("height", "i4"), ("width", "i4")])
_MAX_CLASSES = 10_000  # different conditions that are counted
_MAX_CLASS_LENGTH = 40  # characters of a condition that may be a class

Rows = np.ndarray[Any, Any]


class ImageForm(NamedTuple):
    """The form in which the processor delivers an image.

    Attributes:
        dtype: Name of the dtype, such as ``uint8``.
        shape: Channels, height and width.
        nbytes: Bytes of memory.
    """

    dtype: str
    shape: torch.Size
    nbytes: int


class ItemStats:
    """The statistics of some or all items of a dataset.

    Attributes:
        bad_items: The items that cannot be used.
        counts: Items by property and value, such as ``counts["mode"]["RGB"]``.
        classes: Items by condition, where conditions are whole numbers or short strings.
        label: The condition of the item that was added last, if it is such a class.
        forms: The forms in which the processor delivers images, each with the index of its first item.
        value_range: The lowest and highest value of floats and of images of more than 8 bits.
        moments: For latents, by the number of channels: values per channel, their sum, and the sum of their squares,
            shape ``(3, channels)``.
        peaks: The highest value of the images whose white is assumed.
        seconds: The time spent on reading and processing the good items.
        condition_bytes: Bytes of the largest condition.
    """

    def __init__(self) -> None:
        self.bad_items: list[BadItem] = []
        self.counts: dict[str, Counter[Any]] = {}
        self.classes: Counter[int | str] = Counter()
        self.label: int | str | None = None
        self.forms: dict[ImageForm, int] = {}
        self.value_range = (float("inf"), float("-inf"))
        self.moments: dict[int, Rows] = {}
        self.peaks = PeakCounter()
        self.seconds = 0.0
        self.condition_bytes = 0
        self._rows: list[Rows] = []

    def __len__(self) -> int:
        return len(self.bad_items) + sum(map(len, self._rows))

    @property
    def rows(self) -> Rows:
        """One row per good item, in the dataset's order: an array of dtype ``ROW``."""
        return np.concatenate([np.empty(0, ROW), *self._rows])

    def merge(self, other: "ItemStats") -> None:
        """Add the statistics of later items."""
        self.bad_items += other.bad_items
        self._rows += other._rows
        for name, counts in other.counts.items():
            self.counts.setdefault(name, Counter()).update(counts)
        for condition, count in other.classes.items():
            if condition in self.classes or len(self.classes) < _MAX_CLASSES:
                self.classes[condition] += count
        self.forms |= {form: index for form, index in other.forms.items() if form not in self.forms}
        self._widen_range(*other.value_range)
        for channels, sums in other.moments.items():
            self.moments[channels] = self.moments.get(channels, 0) + sums
        self.peaks.merge(other.peaks)
        self.seconds += other.seconds
        self.condition_bytes = max(self.condition_bytes, other.condition_bytes)

    def add_item(
        self,
        index: int,
        read_item: Callable[[], object],
        processor: ItemProcessor,
        conditions: Conditions | None = None,
        path: str | None = None,
    ) -> Tensor | None:
        """Read and process one item, and add it to the statistics.

        Args:
            index: Its index in the dataset, greater than those added before.
            read_item: Returns the item.
            processor: Makes an image, or a latent, of it.
            conditions: Where it holds its conditions, and which of them are images; ``None`` takes none.
            path: Its file, where that is known.

        Returns:
            The image as the processor delivers it, or ``None`` if the item is bad.
        """
        self.label = None
        try:
            with warnings.catch_warnings(action="ignore"):  # PIL warns of damage that it can read past
                started = perf_counter()
                item = read_item()
                image = find_image(item, processor.image_key)
                header = Header.from_image(image) if isinstance(image, Image.Image) else None
                condition = conditions.find(item) if conditions else None
                raw = processor.decode(item)
                processed = processor.convert(raw)
                seconds = perf_counter() - started
                if conditions:
                    self._add_condition(conditions.convert(condition, raw))
        except Exception as error:  # a dataset of the user's may raise anything
            self.bad_items.append(BadItem(index, f"{type(error).__name__}: {error}", path))
            return None
        self.seconds += seconds
        self.peaks.add(processor.find_peak(item))
        form = ImageForm(_dtype_name(processed.dtype), processed.shape, processed.nbytes)
        self.forms.setdefault(form, index)
        self._count("form", form)
        height, width = raw.shape[-2:]
        if header is not None and isinstance(image, Image.Image):
            height, width = self._add_pil_image(header, image)
        else:
            self._add_array(raw)
        if processed.is_floating_point():
            self._add_moments(processed)
        row = (index, digest(_read_content(image, raw, processor)), digest(path) if path else 0, height, width)
        self._rows.append(np.array([row], ROW))
        return processed

    def pack(self) -> "ItemStats":
        """Join the rows into one array, which a worker sends faster, and return the statistics."""
        self._rows = [self.rows]
        return self

    def _add_pil_image(self, header: Header, image: Image.Image) -> tuple[int, int]:
        """Add the properties of a decoded PIL image; returns its height and width."""
        self._count("mode", header.mode)
        self._count("channels", header.channels)
        if header.format:
            self._count("format", header.format)
        if header.is_deep:
            values = np.asarray(image)
            self._widen_range(float(values.min()), float(values.max()))
        size = header.decoded_size(image)
        for name, is_present in header.find_features(image).items():
            self._count("has", name, is_present)
        return size

    def _add_array(self, raw: Tensor) -> None:
        self._count("mode", _dtype_name(raw.dtype))
        self._count("channels", len(raw))
        if raw.dtype not in (torch.uint8, torch.bool):
            self._widen_range(float(raw.double().min()), float(raw.double().max()))

    def _add_moments(self, latent: Tensor) -> None:
        values = latent.double().flatten(1)
        sums = torch.stack([torch.full((len(values),), values.shape[1]), values.sum(1), values.square().sum(1)])
        self.moments[len(values)] = self.moments.get(len(values), 0) + sums.numpy()

    def _add_condition(self, condition: object) -> None:
        tensors = [leaf for leaf in leaves(collate_conditions("this set", [condition])) if isinstance(leaf, Tensor)]
        self.condition_bytes = max(self.condition_bytes, sum(tensor.nbytes for tensor in tensors))
        self._count("condition", _describe_condition(condition))
        if isinstance(condition, Tensor | np.ndarray | np.generic) and condition.ndim == 0:
            condition = condition.item()
        if isinstance(condition, int) or (isinstance(condition, str) and len(condition) <= _MAX_CLASS_LENGTH):
            self.label = condition
            self.classes[condition] += 1

    def _count(self, name: str, value: object, number: int = 1) -> None:
        self.counts.setdefault(name, Counter())[value] += number

    def _widen_range(self, low: float, high: float) -> None:
        self.value_range = min(self.value_range[0], low), max(self.value_range[1], high)


class ItemStatsDataset(Dataset[ItemStats]):
    """A map-style dataset in blocks of items, so that DataLoader workers can compute their statistics.

    Args:
        images: The dataset, and how its items become images.
        block_size: Items per block.
    """

    def __init__(self, images: MapStyleImages, block_size: int) -> None:
        self.images = images
        self.block_size = block_size

    def __len__(self) -> int:
        return -(-len(self.images.dataset) // self.block_size)

    def __getitem__(self, block: int) -> ItemStats:
        dataset, stats = self.images.dataset, ItemStats()
        for index in range(block * self.block_size, min(len(dataset), (block + 1) * self.block_size)):
            read_item = partial(self.images.items.__getitem__, index)
            stats.add_item(index, read_item, self.images.processor, self.images.conditions, path_of(dataset, index))
        return stats.pack()


def _read_content(image: object, raw: Tensor, processor: ItemProcessor) -> Iterable[Tensor]:
    """Return what tells an image from its copies: its values before they are reduced to 8 bits, or resized.

    JPEG files have 8 bits anyway, and may have been decoded at a reduced size only.
    """
    if isinstance(image, Image.Image) and isinstance(processor, ImageProcessor) and image.format not in REDUCED_FORMATS:
        return read_content(image, processor.background, processor.channels)
    return split_rows(raw)


def _dtype_name(dtype: torch.dtype | np.dtype[Any]) -> str:
    return str(dtype).removeprefix("torch.")


def _describe_condition(condition: object) -> str:
    if isinstance(condition, Tensor | np.ndarray):
        shape = f" of shape {tuple(condition.shape)}" if condition.ndim else ""
        return _dtype_name(condition.dtype) + shape
    if isinstance(condition, Mapping):
        return f"dict of {', '.join(f'{name}: {_describe_condition(value)}' for name, value in condition.items())}"
    if isinstance(condition, Sequence) and not isinstance(condition, str):
        return f"{type(condition).__name__} of {', '.join(map(_describe_condition, condition))}"
    return type(condition).__name__
