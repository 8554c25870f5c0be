"""Any map-style dataset as its processor wants it: item by item, or whole batches from the array it is cut from."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ddpm_data.images.items import find_condition
from ddpm_data.images.processor import ItemProcessor
from ddpm_data.loading.bad_items import ITEM_ERRORS, BadItem, check_same_shape, small_images_message, with_item_context
from ddpm_data.loading.collate import collate_conditions
from ddpm_data.rng.permutation import RandomSubset, permute
from ddpm_data.rng.philox import Key, Purpose
from ddpm_data.sources._arrays import BackingArrays, MapDataset, all_equal, find_backing_arrays
from ddpm_data.sources._paths import path_of
from ddpm_data.types import ItemKey

_NEIGHBOURS = 64  # tried in place of a bad item


class ItemBatch(NamedTuple):
    """Some of a dataset's items.

    Attributes:
        images: uint8, shape ``(batch, channels, height, width)``, contiguous; latents are floats.
        condition: Their conditions, batched; ``None`` where none is asked for.
        faults: Of the items asked for, those that were replaced.
    """

    images: Tensor
    condition: Any = None
    faults: tuple[BadItem, ...] = ()


class RawItem(NamedTuple):
    """An item as it is, before the processor fits it."""

    item: int
    raw: Tensor
    condition: Any


class DecodedStore(Protocol):
    """Where batches of items are kept that have been decoded before."""

    def batch(self, indices: Tensor, /) -> ItemBatch:
        """Some of the items."""
        ...


class MapStyleImages(Dataset[Tensor]):
    """A map-style dataset, or some of it, as its processor wants it.

    Args:
        dataset: Anything with ``__getitem__`` and ``__len__``; its ``__getitems__``, if any, fetches whole batches.
        processor: How an item becomes an image.
        name: What to call it in errors.
        part: Which items belong to the set; ``None`` is all. Indices are the dataset's all the same.
        condition: Where an item holds its condition; ``None`` takes none.
        replaces: Whether a neighbour takes the place of an item that cannot be used, instead of an error.
        cache: The dataset's images and conditions, if they have been decoded before.
    """

    def __init__(
        self,
        dataset: MapDataset,
        processor: ItemProcessor,
        name: str,
        part: RandomSubset | None = None,
        condition: ItemKey | None = None,
        replaces: bool = False,
        cache: DecodedStore | None = None,
    ) -> None:
        self.dataset = dataset
        self.processor = processor
        self.name = name
        self.part = part
        self.condition = condition
        self.replaces = replaces
        self.cache = cache
        self.is_stored = False  # whether an array holds the images as they are wanted; known once they are checked
        self.bytes_per_image = 0  # in a batch; known once they are checked
        self._arrays = self._find_arrays()

    def __len__(self) -> int:
        return len(self.dataset) if self.part is None else len(self.part)

    def __getitem__(self, index: int) -> Tensor:
        """An item's image, as a batch has it."""
        return self.batch([index]).images[0]

    def first(self) -> list[int]:
        """The first item's index, as a list of one."""
        return [0 if self.part is None else int(self.part.indices(torch.tensor([0])))]

    def batch(self, indices: Sequence[int] | np.ndarray[Any, Any], crop_offsets: Tensor | None = None) -> ItemBatch:
        """Several items as one batch.

        Args:
            indices: The dataset's.
            crop_offsets: Where to crop each, see :meth:`~ddpm_data.images.processor.ImageProcessor.convert`.

        Raises:
            OSError, RuntimeError: An item cannot be had.
            TypeError: It holds no image, or conditions do not make a batch.
            ValueError: An image cannot be converted, or images differ in shape.
        """
        wanted = torch.as_tensor(indices)
        if self.cache is not None:
            return self.cache.batch(wanted)
        if self._arrays is not None:
            images, conditions = self._arrays
            with suppress(ValueError):  # one by one, below, it comes with the item's index
                fitted = self.processor.convert(images.gather(wanted), crop_offsets).contiguous()
                return ItemBatch(fitted, conditions.gather(wanted) if conditions else None)
        return self._collated(wanted.tolist(), crop_offsets)

    def _collated(self, places: list[int], crop_offsets: Tensor | None) -> ItemBatch:
        items, faults = self._fetched(places), []
        images, conditions = [], []
        for number, index in enumerate(places):
            crop_offset = None if crop_offsets is None else crop_offsets[number]
            try:
                image, condition = self._entry(index, crop_offset, items[number : number + 1])
            except ITEM_ERRORS as error:
                image, condition = self._neighbour(index, crop_offset, error)
                faults.append(BadItem(index, str(error)))
            images.append(image)
            conditions.append(condition)
        check_same_shape(self.name, places, images)
        condition = None if self.condition is None else collate_conditions(self.name, conditions)
        return ItemBatch(default_collate(images), condition, tuple(faults))  # in a worker straight into shared memory

    def load_raw(self, indices: Sequence[int]) -> list[RawItem]:
        """Several items as they are; bad ones are left out where they will be replaced, unless they all are.

        Raises:
            OSError, RuntimeError, TypeError, ValueError: As :meth:`batch`, of one item.
        """
        found: list[RawItem] = []
        bad: list[Exception] = []
        items = self._fetched(indices)
        for number, index in enumerate(indices):
            try:
                found.append(RawItem(index, *self._raw(index, items[number : number + 1])))
            except ITEM_ERRORS as error:
                bad.append(error)
                if not self.replaces:
                    raise
        if not found:
            raise bad[0]
        return found

    def inspect(self, warns: bool = True) -> None:
        """Look at up to 128 items (all, if no more), raise now what a batch would, and ``warns`` of small images.

        Raises:
            OSError, RuntimeError: An item cannot be had.
            TypeError: An item holds no image, or conditions do not make a batch.
            ValueError: Nothing there, an image the processor cannot convert, or images of several shapes.
        """
        if len(self) == 0:
            raise ValueError(
                f"{self.name} is empty: there is nothing to draw a batch from. Check `dataset.{self.name}`."
            )
        # Where size and channels are both asked for, shapes cannot differ, and fewer looks tell type and range.
        size = getattr(self.processor, "image_size", None)
        count = min(len(self), 32 if size and getattr(self.processor, "channels", None) else 128)
        shuffled = permute(torch.arange(count), len(self), Key(0, 0), Purpose.CHECK)  # even steps would meet patterns
        places = torch.tensor(sorted({0, len(self) - 1, *shuffled.tolist()}))
        looked = self.load_raw((places if self.part is None else self.part.indices(places)).tolist())
        raw = [one.raw for one in looked]
        self.processor.check_items(self.name, raw)
        indices = [one.item for one in looked]
        conditions = (
            None if self.condition is None else collate_conditions(self.name, [one.condition for one in looked])
        )
        if self._arrays is not None and not self._arrays.contain(torch.tensor(indices), raw, conditions):
            self._arrays = None  # the dataset makes something else of its arrays
        fitted = [(one, image) for one in looked if (image := self._fitted(one)) is not None]
        if not fitted:
            self._named(indices[0], self.processor.convert, raw[0])
        images = [image for _, image in fitted]
        check_same_shape(self.name, [one.item for one, _ in fitted], images)
        self.is_stored = self._arrays is not None and len(fitted) == len(raw) and all_equal(images, raw)
        self.bytes_per_image = images[0].nbytes
        if size and warns and (warning := small_images_message(self.name, raw, size)):
            warnings.warn(warning, stacklevel=2)

    def _fitted(self, looked: RawItem) -> Tensor | None:
        """The image as the processor wants it; nothing if it is bad and will be replaced."""
        try:
            image: Tensor = self._named(looked.item, self.processor.convert, looked.raw)
        except ITEM_ERRORS:
            if not self.replaces:
                raise
            return None
        return image

    def __getstate__(self) -> dict[str, object]:
        """A worker finds the arrays anew in its own copy of the dataset."""
        return self.__dict__ | {"_arrays": self._arrays is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._arrays = self._find_arrays() if state["_arrays"] else None

    def _find_arrays(self) -> BackingArrays | None:
        return find_backing_arrays(
            self.dataset, self.processor.image_key, self.condition, self.processor.channels_first
        )

    def _fetched(self, indices: Sequence[int]) -> list[Any]:
        """Items that the dataset gives all at once; nothing where it does not, or where one of them is bad."""
        fetch = getattr(self.dataset, "__getitems__", None)
        if callable(fetch):
            with suppress(Exception):  # asked for one by one, below, the bad one says which it is
                items = list(fetch(list(indices)))
                return items if len(items) == len(indices) else []
        return []

    def _entry(self, index: int, crop_offset: Tensor | None, fetched: Sequence[Any] = ()) -> tuple[Tensor, Any]:
        raw, condition = self._raw(index, fetched)
        return self._named(index, self.processor.convert, raw, crop_offset), condition

    def _raw(self, index: int, fetched: Sequence[Any]) -> tuple[Tensor, Any]:
        item = fetched[0] if fetched else self._named(index, self.dataset.__getitem__, index)
        raw = self._named(index, self.processor.decode, item)
        return raw, None if self.condition is None else self._named(index, find_condition, item, self.condition)

    def _named(self, index: int, call: Any, *arguments: Any) -> Any:  # noqa: ANN401  # any call about one item
        try:
            return call(*arguments)
        except Exception as error:  # a dataset of the user's may raise anything
            raise with_item_context(f"{self.name}[{index}]", error, path_of(self.dataset, index)) from error

    def _neighbour(self, index: int, crop_offset: Tensor | None, error: Exception) -> tuple[Tensor, Any]:
        """What takes a bad item's place: the next good one of the set, the same whenever it is asked for."""
        for neighbour in self._neighbours(index) if self.replaces else ():
            with suppress(*ITEM_ERRORS):
                return self._entry(neighbour, crop_offset)
        raise error

    def _neighbours(self, index: int) -> Iterator[int]:
        for step in range(1, min(_NEIGHBOURS, len(self)) + 1):
            place = (index + step) % len(self)
            yield place if self.part is None else int(self.part.indices(torch.tensor([place])))


Images = MapStyleImages  # its name before 0.1, kept for 0.1
