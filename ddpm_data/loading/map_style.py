"""Map-style datasets, which have ``__getitem__`` and ``__len__``: item by item, or whole batches from an array."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_data._bytes import all_equal, bytes_of
from ddpm_data._distributed import World
from ddpm_data._keys import warn
from ddpm_data.images.conditions import Conditions
from ddpm_data.images.processor import ItemProcessor
from ddpm_data.loading.bad_items import (
    ITEM_ERRORS,
    BadItem,
    PeakCounter,
    WorkerBatch,
    check_same_shape,
    length_changed_message,
    small_images_message,
    with_item_context,
)
from ddpm_data.loading.collate import bytes_per_example, collate_conditions, collate_images
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.loading.samplers import BatchRequest, EvalSampler, Order, StreamSampler
from ddpm_data.loading.stage_images import ItemBatch, StageBatches
from ddpm_data.loading.worker import SHARED_MEMORY, call_in_worker
from ddpm_data.rng.permutation import RandomSubset, permute
from ddpm_data.rng.philox import Key, Purpose, words
from ddpm_data.sources._arrays import BackingArrays, MapDataset, find_backing_arrays
from ddpm_data.sources._epochs import EpochTeller, changes_with_epoch
from ddpm_data.sources._paths import path_of
from ddpm_data.sources._undecoded import without_decoding
from ddpm_data.types import BatchMeta, ImageBatch, Stage

_NAMED = 8  # items by which processes tell whether they have the same ones
_NEIGHBOURS = 64  # neighbours to try instead of a bad item


class RawItem(NamedTuple):
    """An item before the processor converts its image.

    Attributes:
        item: Its index in the dataset.
        image: As decoded, shape ``(channels, height, width)``.
        condition: As the item holds it; ``None`` where none is asked for.
        peak: Its highest value, if a white is assumed for it; see
            :meth:`~ddpm_data.images.processor.ItemProcessor.find_peak`.
    """

    item: int
    image: Tensor
    condition: Any
    peak: float | None = None


class Inspection(NamedTuple):
    """The findings from a check of some items.

    Attributes:
        serves_arrays: Whether the dataset returns the rows of its arrays unchanged.
        is_stored: Whether an array in memory holds the final images, so that a cache would not help.
        bytes_per_image: Bytes of one image in a batch, with its condition.
        small_images: The warning about images that have to be enlarged; ``None`` if there are none.
        dark_images: The warning about 16-bit images whose values end far below white; ``None`` if there are none.
    """

    serves_arrays: bool
    is_stored: bool
    bytes_per_image: int
    small_images: str | None
    dark_images: str | None


class DecodedStore(Protocol):
    """A store of items that have been decoded before."""

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one image in a batch, with its condition."""
        ...

    @property
    def bad_items(self) -> Mapping[int, str]:
        """The items that could not be used, with the reasons; another stands in the place of each."""
        ...

    def batch(self, indices: Tensor, /) -> ItemBatch:
        """Return some of the items."""
        ...


class MapStyleImages(Dataset[Tensor]):
    """The images of a map-style dataset, or of a subset of it.

    The methods are those of :class:`~ddpm_data.loading.stage_images.StageImages`, and some for map-style data alone.

    Attributes:
        items: The dataset, or what reads its items without decoding them, see
            :func:`~ddpm_data.sources._undecoded.without_decoding`.

    Args:
        dataset: Anything with ``__getitem__`` and ``__len__``; its ``__getitems__``, if any, fetches whole batches.
        processor: Makes an image of an item.
        name: What errors call the dataset.
        subset: Which items belong to the set; ``None`` is all. Indices stay those of the dataset.
        conditions: Where an item holds its conditions, and which of them are images; ``None`` takes none.
        replaces: Whether a neighbour takes the place of an item that cannot be used, instead of an error.
        store: The dataset's images and conditions, if they have been decoded before.
        epochs: Tells the dataset its epoch; one for all stages that may share a dataset.
    """

    brings_workers = False
    is_strided = False

    def __init__(
        self,
        dataset: MapDataset,
        processor: ItemProcessor,
        name: str,
        subset: RandomSubset | None = None,
        conditions: Conditions | None = None,
        replaces: bool = False,
        store: DecodedStore | None = None,
        epochs: EpochTeller | None = None,
    ) -> None:
        self.dataset = dataset
        self.processor = processor
        self.name = name
        self.subset = subset
        self.conditions = conditions or Conditions()
        self.replaces = replaces
        self.store = store
        self.epochs = epochs or EpochTeller()
        self._inspection: Inspection | None = None
        self._arrays = self._find_arrays()
        self.items = without_decoding(dataset)

    def __len__(self) -> int:
        return len(self.dataset) if self.subset is None else len(self.subset)

    @property
    def length(self) -> int:
        """Examples per epoch."""
        return len(self)

    def __getitem__(self, index: int) -> Tensor:
        """Return one item's image, as a batch has it."""
        return self.batch([index]).images[0]

    def first_items(self, count: int, options: LoaderOptions | None = None) -> ItemBatch:
        """Return the set's first items."""
        batch: ItemBatch = call_in_worker(
            options, self.name, self.batch, self._indices(torch.arange(min(count, len(self)), device="cpu"))
        )
        return batch

    def batch(
        self, indices: Sequence[int] | np.ndarray[Any, Any] | Tensor, crop_offsets: Tensor | None = None
    ) -> ItemBatch:
        """Return several items as one batch.

        Args:
            indices: The dataset's.
            crop_offsets: Where to crop each, see :meth:`~ddpm_data.images.processor.ImageProcessor.convert`.

        Raises:
            OSError, RuntimeError: An item cannot be read.
            TypeError: It holds no image, or conditions do not make a batch.
            ValueError: An image cannot be converted, or images differ in shape.
        """
        indices = torch.as_tensor(indices, device="cpu")
        if self.store is not None:
            return self._read_store(self.store, indices)
        if self._arrays is not None:
            raw, columns = self._arrays.images.gather(indices), self._arrays.gather_conditions(indices)
            with suppress(TypeError, ValueError):  # loaded one by one, below, the error comes with the item's index
                converted = self.processor.convert(raw, crop_offsets).contiguous()
                condition = self.conditions.join(columns) if columns else None
                return ItemBatch(converted, self.conditions.convert(condition, raw, crop_offsets, batched=True))
        return self._load_batch(indices.tolist(), crop_offsets)

    def load_raw(self, indices: Sequence[int]) -> list[RawItem]:
        """Load several items, without converting them; bad ones that will be replaced are left out.

        Raises:
            OSError, RuntimeError, TypeError, ValueError: An item is bad and not replaced, or all are bad.
        """
        good: list[RawItem] = []
        errors: list[Exception] = []
        items = self._fetch(indices)
        for number, index in enumerate(indices):
            try:
                item = self._read_item(index, items[number : number + 1])
                good.append(RawItem(index, *self._decode_item(index, item), self.processor.find_peak(item)))
            except ITEM_ERRORS as error:
                errors.append(error)
                if not self.replaces:
                    raise
        if not good:
            raise errors[0]
        return good

    def inspect(self, options: LoaderOptions | None = None, warns: bool = True) -> Inspection:
        """Check up to 128 items, and raise now what a batch would raise later.

        Args:
            options: The loader's options. If they have workers, the items are read in a worker.
            warns: Whether to warn about images that have to be enlarged.

        Raises:
            OSError, RuntimeError: An item cannot be read.
            TypeError: An item holds no image, or conditions do not make a batch.
            ValueError: The set is empty, an image cannot be converted, or images differ in shape.
        """
        if len(self) == 0:
            raise ValueError(
                f"{self.name} is empty: there is nothing to draw a batch from. Check `dataset.{self.name}`."
            )
        inspection: Inspection = call_in_worker(options, self.name, self._inspect)
        self._inspection = inspection
        if not inspection.serves_arrays:
            self._arrays = None
        for message in (inspection.small_images, inspection.dark_images):
            if warns and message:
                warn(message, stacklevel=2)
        return inspection

    def _inspect(self) -> Inspection:
        # If size and channels are given, shapes cannot differ, and fewer items show the dtype and range.
        size = self.processor.image_size
        count = min(len(self), 32 if size and self.processor.channels else 128)
        # Even steps could meet a pattern.
        shuffled = permute(torch.arange(count, device="cpu"), len(self), Key(0, 0), Purpose.CHECK)
        places = torch.tensor(sorted({0, len(self) - 1, *shuffled.tolist()}), device="cpu")
        raw = self.load_raw(self._indices(places).tolist())
        images = [item.image for item in raw]
        self.processor.check_items(self.name, images)
        indices = torch.tensor([item.item for item in raw], device="cpu")
        serves_arrays = self._arrays is not None and self._arrays.contain(
            indices, images, [self.conditions.split(item.condition) for item in raw]
        )
        converted = {item.item: example for item in raw if (example := self._convert_or_skip(item)) is not None}
        if not converted:
            self._call(raw[0].item, self._convert, raw[0].image, raw[0].condition)  # which raises
        pixels = [image for image, _ in converted.values()]
        check_same_shape(self.name, list(converted), pixels)
        bytes_per_image = pixels[0].nbytes
        if self.conditions:
            conditions = [condition for _, condition in converted.values()]
            bytes_per_image += bytes_per_example(collate_conditions(self.name, conditions, shares=False))
        is_complete = len(converted) == len(images)
        is_stored = serves_arrays and is_complete and all_equal(pixels, images)
        small_images = small_images_message(self.name, images, size) if size else None
        peaks = PeakCounter()
        for item in raw:
            peaks.add(item.peak)
        dark_images = peaks.message(self.name)
        return Inspection(serves_arrays, is_stored, bytes_per_image, small_images, dark_images)

    def train_order(self, options: LoaderOptions, world: World, key: Key, epoch: Callable[[], int]) -> Order:
        """Return the order of the training stream on one rank: shuffled by the key."""
        return StreamSampler(len(self), options.batch_size, *world, key, options.drop_last, self.subset)

    def eval_order(self, options: LoaderOptions, world: World) -> Order:
        """Return the set's own order."""
        return EvalSampler(len(self), options.batch_size, *world, self.subset)

    def stream_identity(self, options: LoaderOptions, world: World) -> dict[str, int]:
        """Return the length. Batch size and ranks only divide the stream."""
        return {"length": len(self)}

    def name_items(self) -> dict[str, str]:
        """Return the names of a few items' files, the size of one, and of rows of an array digests of their bytes."""
        count = min(len(self), _NAMED)
        places = [number * (len(self) - 1) // max(1, count - 1) for number in range(count)]
        indices = self._indices(torch.tensor(places, device="cpu"))
        names: dict[str, str] = {}
        with suppress(Exception):  # attributes of the user's may raise anything
            for index in indices.tolist():
                path = path_of(self.dataset, index)
                if path is None:
                    break
                names[f"the file of {self.name}[{index}]"] = Path(path).name
        if self._inspection is None:
            return names  # a cache's are known by their files alone
        names[f"the size of an example of {self.name}"] = f"{self._inspection.bytes_per_image:,} bytes"
        if self._inspection.serves_arrays:
            for index, image in zip(indices.tolist(), self.batch(indices.tolist()).images, strict=True):
                digest = blake2b(bytes_of(image).data, digest_size=8).hexdigest()
                names[f"the digest of {self.name}[{index}]"] = digest
        return names

    def batches(self, stage: Stage, options: LoaderOptions, world: World, key: Key) -> "MapStyleBatches":
        """Return the batches of any rank, loaded on request.

        Raises:
            ValueError: The batches that workers keep ready would not fit into shared memory.
        """
        self._check_shared_memory(options)
        crops = stage == "train" and self.processor.crop == "random"
        return MapStyleBatches(self, stage, key if crops else None)

    def _check_shared_memory(self, options: LoaderOptions) -> None:
        """Refuse batches that do not fit into shared memory, where a bus error would kill the worker."""
        if not options.num_workers or not SHARED_MEMORY.is_dir():
            return
        measured = self.store or self._inspection
        needed = options.shm_bytes(measured.bytes_per_image) if measured else 0
        free = shutil.disk_usage(SHARED_MEMORY).free
        if needed > free:
            raise ValueError(
                f"{options.num_workers} workers with {options.prefetch_factor or 2} batches of {options.batch_size} "
                f"images each need {needed / 1e6:.3g} MB of shared memory, and {SHARED_MEMORY} has {free / 1e6:.3g} MB "
                "free (in a container: docker run --shm-size). Lower `loader.num_workers`, `loader.prefetch_factor` or "
                "`loader.batch_size`."
            )

    def _indices(self, places: Tensor) -> Tensor:
        """Return the dataset's indices of some places in the set."""
        return places if self.subset is None else self.subset.indices(places)

    def _read_store(self, store: DecodedStore, indices: Tensor) -> ItemBatch:
        """Return stored items. Bad ones are replaced as without a store: by the next good ones of the same split."""
        if not store.bad_items:
            return store.batch(indices)
        wanted = indices.tolist()
        bad_items = tuple(BadItem(index, store.bad_items[index]) for index in wanted if index in store.bad_items)
        good = [self._find_good_neighbour(store, index) if index in store.bad_items else index for index in wanted]
        return store.batch(torch.tensor(good, device="cpu"))._replace(bad_items=bad_items)

    def _find_good_neighbour(self, store: DecodedStore, index: int) -> int:
        for neighbour in self._neighbours(index):
            if neighbour not in store.bad_items:
                return neighbour
        raise ValueError(store.bad_items[index])

    def _load_batch(self, indices: list[int], crop_offsets: Tensor | None) -> ItemBatch:
        items, bad_items = self._fetch(indices), []
        images, conditions = [], []
        for number, index in enumerate(indices):
            crop_offset = None if crop_offsets is None else crop_offsets[number]
            try:
                image, condition = self._load_example(index, crop_offset, items[number : number + 1])
            except ITEM_ERRORS as error:
                image, condition = self._load_neighbour(index, crop_offset, error)
                bad_items.append(BadItem(index, str(error)))
            images.append(image)
            conditions.append(condition)
        check_same_shape(self.name, indices, images)
        condition = collate_conditions(self.name, conditions) if self.conditions else None
        return ItemBatch(collate_images(self.name, images), condition, tuple(bad_items))

    def _convert_or_skip(self, item: RawItem) -> tuple[Tensor, Any] | None:
        """Convert an item; return nothing if it is bad and will be replaced."""
        try:
            example: tuple[Tensor, Any] = self._call(item.item, self._convert, item.image, item.condition)
        except ITEM_ERRORS:
            if not self.replaces:
                raise
            return None
        return example

    def _convert(self, raw: Tensor, condition: object, crop_offset: Tensor | None = None) -> tuple[Tensor, Any]:
        """Convert an item's image, and its condition's images with it."""
        return self.processor.convert(raw, crop_offset), self.conditions.convert(condition, raw, crop_offset)

    def __getstate__(self) -> dict[str, object]:
        """Leave out what a worker finds again in its own copy of the dataset."""
        return self.__dict__ | {"_arrays": self._arrays is not None, "items": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._arrays = self._find_arrays() if state["_arrays"] else None
        self.items = without_decoding(self.dataset)

    def _find_arrays(self) -> BackingArrays | None:
        if changes_with_epoch(self.dataset):
            return None
        return find_backing_arrays(
            self.dataset, self.processor.image_key, self.conditions.keys, self.processor.channels_first
        )

    def _fetch(self, indices: Sequence[int]) -> list[Any]:
        """Fetch items all at once; return none if the dataset cannot do so or if one of them is bad."""
        fetch = getattr(self.items, "__getitems__", None)
        if callable(fetch):
            with suppress(Exception):  # fetched one by one, below, the error names the bad item
                items = list(fetch(list(indices)))
                return items if len(items) == len(indices) else []
        return []

    def _load_example(self, index: int, crop_offset: Tensor | None, fetched: Sequence[Any] = ()) -> tuple[Tensor, Any]:
        raw, condition = self._decode_item(index, self._read_item(index, fetched))
        example: tuple[Tensor, Any] = self._call(index, self._convert, raw, condition, crop_offset)
        return example

    def _read_item(self, index: int, fetched: Sequence[Any]) -> Any:  # noqa: ANN401  # any item
        return fetched[0] if fetched else self._call(index, self.items.__getitem__, index)

    def _decode_item(self, index: int, item: object) -> tuple[Tensor, Any]:
        condition = self._call(index, self.conditions.find, item)
        return self._call(index, self.processor.decode, item), condition

    def _call(self, index: int, function: Any, *arguments: Any) -> Any:  # noqa: ANN401  # any call about one item
        """Call a function, and name the item in its error."""
        try:
            return function(*arguments)
        except Exception as error:  # a user's dataset may raise anything
            path = path_of(self.dataset, index)
            raise with_item_context(f"{self.name}[{index}]", error, path, not self.replaces) from error

    def _load_neighbour(self, index: int, crop_offset: Tensor | None, error: Exception) -> tuple[Tensor, Any]:
        """Load the replacement for a bad item: the next good item of the split, the same in every run."""
        for neighbour in self._neighbours(index) if self.replaces else ():
            with suppress(*ITEM_ERRORS):
                return self._load_example(neighbour, crop_offset)
        raise error

    def _neighbours(self, index: int) -> Iterator[int]:
        for step in range(1, min(_NEIGHBOURS, len(self)) + 1):
            yield int(self._indices(torch.tensor([(index + step) % len(self)], device="cpu")))


class MapStyleBatches(StageBatches):
    """Batches of images with their positions: ``batches[request]``.

    Args:
        images: The images.
        stage: The stage that gets the batches.
        key: The seed's key, if images are cropped by their positions; otherwise ``None``.
    """

    def __init__(self, images: MapStyleImages, stage: Stage, key: Key | None) -> None:
        self.images = images
        self.stage = stage
        self.key = key
        self._length, self._items = len(images), len(images.dataset)

    def __len__(self) -> int:
        """Count the examples, as Lightning's search for a batch size asks to know where to stop."""
        return len(self.images)

    def __getitem__(self, request: BatchRequest) -> WorkerBatch:
        position = torch.arange(request.positions.start, request.positions.stop, device="cpu")
        epoch = request.positions.start // self._length if self.stage == "train" else 0
        self.images.epochs.tell(self.images.dataset, epoch)
        if len(self.images.dataset) != self._items:
            raise ValueError(length_changed_message(self.images.name, len(self.images.dataset), self._items))
        crop_offsets = None
        if self.key is not None:
            crop_offsets = torch.cat(words(self.key, Purpose.CROP, self.stage, position)[:2], dim=1)
        images, condition, bad_items = self.images.batch(request.indices, crop_offsets)
        return WorkerBatch(ImageBatch(images, BatchMeta(position, self.stage, condition)), bad_items)


Images = MapStyleImages  # its name before 0.1, kept for 0.1
