"""The sets a DataModule was given: datasets or factories, or a fraction of the training set, and what they need."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import TypeGuard, cast

from torch.utils.data import DataLoader, IterableDataset

from ddpm_data._checks import check_float
from ddpm_data._distributed import is_rank_zero
from ddpm_data.cache.store import Cache, open_or_build
from ddpm_data.images.processor import ItemProcessor
from ddpm_data.loading.iterable import IterableImages
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.loading.options import AnyImages, LoaderOptions
from ddpm_data.loading.prebatched import PrebatchedImages
from ddpm_data.rng.permutation import RandomSubset
from ddpm_data.rng.philox import Key
from ddpm_data.sources._arrays import MapDataset
from ddpm_data.types import ItemKey, Stage

SomeDataset = MapDataset | Iterable[object]
Source = SomeDataset | Callable[[], SomeDataset]
CONTRACT = (  # the README's lines
    "A dataset has `__len__` and `__getitem__(index)`, and gives the same item for the same index, in every process;",
    "or it has `__iter__`, which begins anew each time and gives what this process and this worker are to read.",
    "An item is a PIL image, a tensor or array (CHW, HWC, or HW), or a tuple, list or dict that holds one.",
)


class Splits:
    """Datasets by stage, each built once in this process.

    Args:
        sources: A dataset or factory for each stage; for ``val`` also the fraction of ``train`` to hold out.
        processor: How items become images.
        condition: Where an item holds its condition; ``None`` takes none.
        key: The seed's, which picks the held-out images.
        cache_dir: Folder for decoded images; ``None`` keeps none.
        loading: How images are decoded into it.

    Raises:
        TypeError: A source is neither a dataset nor a factory, or ``cache_dir`` no folder.
        ValueError: The fraction is not in ``(0, 1)``.
    """

    def __init__(
        self,
        sources: Mapping[Stage, Source | float | None],
        processor: ItemProcessor,
        condition: ItemKey | None,
        key: Key,
        cache_dir: str | Path | None,
        loading: LoaderOptions,
    ) -> None:
        if not isinstance(cache_dir, str | Path | None):
            raise TypeError(f"DDPMDataModule(cache_dir={cache_dir!r}): a folder is needed. Change `loader.cache_dir`.")
        if isinstance(condition, bool) or not isinstance(condition, int | str | None):
            raise TypeError(
                f"DDPMDataModule(condition={condition!r}): a tuple's place, a dict's key or null. Change "
                "`dataset.condition`."
            )
        self.processor = processor
        self.condition = condition
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.loading = loading
        self.fraction = _fraction(sources["val"])
        self._key = key
        if self.fraction and sources["train"] is None:
            raise ValueError(
                f"DDPMDataModule(train=None, val={self.fraction}): a fraction is held out of train. Give "
                "`dataset.train`, or a validation set."
            )
        self._sources = {stage: _source(stage, given) for stage, given in sources.items() if _is_given(stage, given)}
        self._built: dict[Stage, SomeDataset] = {}
        self._caches: dict[Stage, Cache] = {}
        self._images: dict[Stage, AnyImages] = {}

    def prepare(self, stages: Iterable[Stage]) -> None:
        """Call every factory, for what it downloads, and decode what some stages need into the cache.

        The datasets are kept for :meth:`open`.
        """
        for stage in self._sources:
            self._dataset(stage)
        if self.cache_dir is not None:
            for stage in stages:
                if self.has(stage):
                    self._cache(self._whole(stage))

    def has(self, stage: Stage) -> bool:
        """Whether there is a set for this stage."""
        return stage in self._sources or (stage == "val" and self.fraction is not None)

    def open(self, stage: Stage) -> AnyImages:
        """Build one stage's images and look at some of them, which an iterable source does not allow.

        Raises:
            TypeError: A factory returned no dataset, or an item holds no image.
            ValueError: The set is empty, or images cannot be converted or share no shape.
        """
        cache, images = self._cache(self._whole(stage)), self.unchecked(stage)
        if isinstance(images, MapStyleImages):
            images.cache = cache
            if cache is None:
                images.inspect(warns=is_rank_zero() and stage == self._whole(stage))  # a held-out part says nothing new
        self._images[stage] = images
        return images

    def unchecked(self, stage: Stage) -> AnyImages:
        """One stage's images without a cache, and without a look at any of them.

        Raises:
            TypeError: A factory returned no dataset.
            ValueError: The set leaves nothing to train or validate on.
        """
        whole = self._whole(stage)
        dataset = self._dataset(whole)
        if not _is_map_style(dataset):
            return self._iterable(stage, dataset)
        # A part is named after the whole: an index in an error is one of the dataset that was given.
        part = self._part(stage, len(dataset))
        return MapStyleImages(dataset, self.processor, whole, part, self.condition, self.loading.replaces)

    def _cache(self, stage: Stage) -> Cache | None:
        """What the cache has of a whole dataset; ``None`` where there is to be no cache, or no need of one."""
        dataset = self._dataset(stage)
        if self.cache_dir is None or stage in self._caches:
            return self._caches.get(stage)
        if not _is_map_style(dataset):
            raise ValueError(
                f"cache_dir={str(self.cache_dir)!r}: {stage} is a {type(dataset).__name__}, which gives its items in "
                "an order of its own, so that none could be found in a cache. Leave `loader.cache_dir` null."
            )
        if getattr(self.processor, "crop", "center") == "random":
            raise ValueError(
                f"cache_dir={str(self.cache_dir)!r}: a cache holds one crop of each image, and crop='random' wants "
                "another each epoch. Change `dataset.crop`, or leave `loader.cache_dir` null."
            )
        images = MapStyleImages(dataset, self.processor, stage, None, self.condition, self.loading.replaces)
        images.inspect(warns=is_rank_zero())
        if not images.is_stored:
            self._caches[stage] = open_or_build(images, self.cache_dir, self.loading)
        return self._caches.get(stage)

    def images(self, stage: Stage) -> AnyImages:
        """What :meth:`open` has built.

        Raises:
            RuntimeError: It has not.
        """
        if stage not in self._images:
            raise RuntimeError(f"the {stage} set is not open: call setup() before asking for its loader.")
        return self._images[stage]

    def _dataset(self, stage: Stage) -> SomeDataset:
        if stage not in self._built:
            source = self._sources[stage]
            self._built[stage] = _checked(stage, source() if _is_factory(source) else source)
        return self._built[stage]

    def _whole(self, stage: Stage) -> Stage:
        """The stage whose dataset it is, or is a part of."""
        return "train" if self._is_part(stage) else stage

    def _is_part(self, stage: Stage) -> bool:
        return self.fraction is not None and stage in ("train", "val")

    def _iterable(self, stage: Stage, dataset: SomeDataset) -> IterableImages | PrebatchedImages:
        if self._is_part(stage):
            raise ValueError(
                f"val={self.fraction}: a {type(dataset).__name__} gives its items in an order of its own, so none can "
                "be held out of train. Give a validation set, `dataset.val`."
            )
        if getattr(self.processor, "crop", "center") == "random":
            raise ValueError(
                f"crop='random': a {type(dataset).__name__} gives its items in an order of its own, and a crop is "
                "picked by the place in the stream. Crop in the dataset, or change `dataset.crop`."
            )
        if isinstance(dataset, DataLoader):
            return PrebatchedImages(dataset, self.processor, stage, self.condition)
        return IterableImages(
            cast(Iterable[object], dataset), self.processor, stage, self.condition, self.loading.replaces
        )

    def _part(self, stage: Stage, length: int) -> RandomSubset | None:
        if not self._is_part(stage):
            return None
        held_out = round(length * (self.fraction or 0.0))
        if length and not 0 < held_out < length:
            raise ValueError(
                f"val={self.fraction} of {length} training images leaves {length - held_out} to train and {held_out} "
                "to validate on. Change `dataset.val`, or give a validation set."
            )
        start, stop = (held_out, length) if stage == "train" else (0, held_out)
        return RandomSubset(self._key, length, start, stop)


def _fraction(val: object) -> float | None:
    if not isinstance(val, Real):
        return None
    fraction = check_float("DDPMDataModule", "dataset.val", val)
    if not 0 < fraction < 1:
        raise ValueError(
            f"DDPMDataModule(val={val}): a number is the fraction of train to hold out, in (0, 1). "
            "Change `dataset.val`."
        )
    return fraction


def _is_given(stage: Stage, source: object) -> bool:
    return source is not None and not (stage == "val" and isinstance(source, Real))


def _source(name: str, source: object) -> Source:
    return cast(Source, source) if _is_factory(source) else _checked(name, source)


def _is_factory(source: object) -> TypeGuard[Callable[[], SomeDataset]]:
    return callable(source) and (isinstance(source, type) or not hasattr(source, "__getitem__"))


def _is_map_style(dataset: object) -> TypeGuard[MapDataset]:
    sized = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return sized and not isinstance(dataset, IterableDataset)


def _checked(name: str, dataset: object) -> SomeDataset:
    kind = type(dataset).__name__
    if isinstance(dataset, str | Path):
        raise TypeError(
            f"{name} is a {kind}; for the image files in a folder give ddpm_data.sources.ImageFiles({str(dataset)!r}), "
            f"in the configs dataset=image_folder: `dataset.{name}`."
        )
    if isinstance(dataset, Mapping):
        keys = ", ".join(map(repr, dataset))
        raise TypeError(f"{name} is a {kind} of {keys}: give one of its datasets, `dataset.{name}`.")
    if isinstance(dataset, Iterator) and not isinstance(dataset, IterableDataset):  # LitData's is both
        raise TypeError(
            f"{name} is a {kind}, which can be gone through once: there would be no second epoch. Give an "
            f"IterableDataset, or another object whose __iter__ begins anew: `dataset.{name}`."
        )
    if isinstance(dataset, bytes) or not (_is_map_style(dataset) or isinstance(dataset, Iterable)):
        raise TypeError(
            f"{name} is a {kind}, not a dataset. {' '.join(CONTRACT)} Give "
            f"such an object, or a function without arguments that returns one: `dataset.{name}`."
        )
    return cast(SomeDataset, dataset)
