"""The train, val, test and predict splits: datasets or factories from the user, built on first use."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard, cast

from torch.utils.data import DataLoader, Dataset, IterableDataset

from ddpm_data._checks import check_float, check_path, explain_call
from ddpm_data._distributed import is_rank_zero, refuse_collectives
from ddpm_data.cache.store import Cache, decoding_options, open_or_build
from ddpm_data.images.conditions import Conditions
from ddpm_data.images.processor import ItemProcessor
from ddpm_data.loading.iterable import IterableImages
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.loading.prebatched import PrebatchedImages
from ddpm_data.loading.stage_images import StageImages
from ddpm_data.rng.permutation import RandomSubset
from ddpm_data.rng.philox import Key
from ddpm_data.sources._arrays import IterDataset, MapDataset
from ddpm_data.sources._epochs import EpochTeller, changes_with_epoch
from ddpm_data.types import Stage

# LightningCLI (jsonargparse) makes arguments of a YAML file's values by these, and tries a union's members in turn.
AnyDataset = Dataset | MapDataset | IterDataset  # type: ignore[type-arg]  # jsonargparse 4.50 breaks on Dataset[Any]
Source = Callable[[], Any] | AnyDataset
SourceOrFraction = float | Source  # the number first: jsonargparse would save it as the path of a function that is none
_HELD_OUT: tuple[Stage, ...] = ("val", "test")  # may be fractions of train, cut from its shuffled items in this order
CONTRACT = (  # the README's lines
    "A dataset has `__len__` and `__getitem__(index)`, and returns the same item for the same index in every process.",
    "An iterable one has `__iter__`: each call starts a new pass and yields only the items of its process and worker.",
    "An item is a PIL image, a tensor or array (CHW, HWC, or HW), or a tuple, list or dict that holds one.",
)


class Splits:
    """The splits of all stages. Each dataset is built once per process.

    Args:
        sources: A dataset or factory for each stage; for ``val`` and ``test`` also the fraction of ``train`` to hold
            out. The parts share no item.
        processor: Makes an image of an item.
        conditions: Where an item holds its conditions, and which of them are images.
        key: The seed's, which picks the held-out images.
        cache_dir: Folder for decoded images; ``None`` keeps none.
        options: The loader's options, for building the cache and for bad items.

    Raises:
        TypeError: A source is neither a dataset nor a factory, or ``cache_dir`` no path.
        ValueError: ``cache_dir`` is empty; a fraction is not in ``(0, 1)``, or together they leave nothing to train on.
    """

    def __init__(
        self,
        sources: Mapping[Stage, SourceOrFraction | None],
        processor: ItemProcessor,
        conditions: Conditions,
        key: Key,
        cache_dir: str | Path | None,
        options: LoaderOptions,
    ) -> None:
        self.processor = processor
        self.conditions = conditions
        self.cache_dir = None if cache_dir is None else check_path("DDPMDataModule", "loader.cache_dir", cache_dir)
        self.options = options
        self.fractions = _check_fractions(sources)
        self._key = key
        self._sources = {
            stage: _check_source(stage, given)
            for stage, given in sources.items()
            if given is not None and stage not in self.fractions
        }
        self._datasets: dict[Stage, AnyDataset] = {}
        self._caches: dict[Stage, Cache] = {}
        self._images: dict[Stage, StageImages] = {}
        self._epochs = EpochTeller()

    def has(self, stage: Stage) -> bool:
        """Return whether this stage has a split."""
        return stage in self._sources or stage in self.fractions

    def prepare(self, stages: Iterable[Stage]) -> None:
        """Call every factory, so that it downloads its data, and build the caches that the stages need.

        The datasets are kept for :meth:`open`. One process runs alone here, and others wait for it. So a factory that
        wants them to join it in a collective is left to :meth:`open`, which all processes call.
        """
        joint = {stage for stage in self._sources if not self._build_alone(stage)}
        if self.cache_dir is not None:
            for stage in stages:
                if self.has(stage) and self._owner(stage) not in joint:
                    self._cache(self._owner(stage))

    def open(self, stage: Stage) -> StageImages:
        """Build one stage's images and check some of them, except those of an iterable source.

        Raises:
            TypeError: A factory returned no dataset, or an item holds no image.
            ValueError: The set is empty, or images cannot be converted or differ in shape.
        """
        cache = self._cache(self._owner(stage))
        images = self.unchecked(stage, cache)
        if cache is None:
            warns = is_rank_zero() and stage == self._owner(stage)  # a held-out part needs no second check
            images.inspect(self.options, warns)
        self._images[stage] = images
        return images

    def unchecked(self, stage: Stage, cache: Cache | None = None) -> StageImages:
        """Build one stage's images without checking any.

        Args:
            stage: The stage.
            cache: Its dataset's images, if they have been decoded before.

        Raises:
            TypeError: A factory returned no dataset.
            ValueError: The set leaves nothing to train or validate on, or none can be held out of it.
        """
        owner = self._owner(stage)  # an error's index belongs to the dataset that the user passed, so its name does too
        dataset, subset = self.dataset(owner), None
        if self._shares_train(stage):
            if not _is_map_style(dataset):
                raise ValueError(
                    f"{self._say_fractions()}: a {type(dataset).__name__} gives its items in an order of its own, so "
                    f"none can be held out of train. Give a set of its own, {_keys(self.fractions)}."
                )
            subset = self._pick_subset(stage, len(dataset))
        replaces, epochs = self.options.replaces, self._epochs
        return build_split(dataset, owner, self.processor, self.conditions, replaces, subset, cache, epochs)

    def images(self, stage: Stage) -> StageImages:
        """Return what :meth:`open` has built.

        Raises:
            RuntimeError: :meth:`open` has not been called.
        """
        if stage not in self._images:
            raise RuntimeError(f"the {stage} set is not open: call setup() before asking for its loader.")
        return self._images[stage]

    def is_strided(self, stage: Stage) -> bool:
        """Return whether a stage's batches have every k-th position of the stream; false for one that is not open."""
        return stage in self._images and self._images[stage].is_strided

    def _cache(self, stage: Stage) -> Cache | None:
        """Return a dataset's cache, and build it if it is missing; ``None`` without a folder or a need for one."""
        if self.cache_dir is None or stage in self._caches:
            return self._caches.get(stage)
        dataset = self.dataset(stage)
        if not _is_map_style(dataset):
            raise ValueError(
                f"cache_dir={str(self.cache_dir)!r}: {stage} is a {type(dataset).__name__}, which gives its items in "
                "its own order, so it cannot be cached. Set `loader.cache_dir` to null."
            )
        if changes_with_epoch(dataset):
            raise ValueError(
                f"cache_dir={str(self.cache_dir)!r}: {stage} is a {type(dataset).__name__}, whose set_epoch says that "
                "its items change with the epoch, and a cache would keep the first ones for ever. Leave "
                "`loader.cache_dir` null."
            )
        if self.processor.crop == "random":
            raise ValueError(
                f"cache_dir={str(self.cache_dir)!r}: a cache holds one crop of each image, but crop='random' "
                "needs a different one each epoch. Change `dataset.crop`, or set `loader.cache_dir` to null."
            )
        images = MapStyleImages(dataset, self.processor, stage, None, self.conditions, self.options.replaces)
        options = decoding_options(self.options, len(images))
        if not images.inspect(options, warns=is_rank_zero()).is_stored:
            self._caches[stage] = open_or_build(images, self.cache_dir, options)
        return self._caches.get(stage)

    def dataset(self, stage: Stage) -> AnyDataset:
        """Return a stage's own dataset, built on first use."""
        if stage not in self._datasets:
            source = self._sources[stage]
            self._datasets[stage] = _check_dataset(stage, source() if _is_factory(source) else source)
        return self._datasets[stage]

    def _build_alone(self, stage: Stage) -> bool:
        """Build a dataset while other processes wait; return whether that worked without them."""
        with refuse_collectives() as guard:
            try:
                self.dataset(stage)
            except Exception:  # a factory may raise anything, and from a refused collective too
                if not guard.refused:
                    raise
        if guard.refused:
            self._datasets.pop(stage, None)
        return not guard.refused

    def _owner(self, stage: Stage) -> Stage:
        """Return the stage whose dataset this one reads: itself, or ``train`` if it is held out of that."""
        return "train" if self._shares_train(stage) else stage

    def _shares_train(self, stage: Stage) -> bool:
        return stage in self.fractions or (stage == "train" and bool(self.fractions))

    def _pick_subset(self, stage: Stage, length: int) -> RandomSubset:
        """Pick the items that are held out for a stage, or those that are left for training."""
        parts: dict[Stage, tuple[int, int]] = {}
        start = 0
        for held_out, fraction in self.fractions.items():
            parts[held_out] = start, (start := start + round(length * fraction))
        parts["train"] = start, length
        if length and not all(first < last for first, last in parts.values()):
            others = [f"{last - first} for {name}" for name, (first, last) in parts.items() if name != "train"]
            counts = " and ".join([f"{length - start} to train", *others])
            raise ValueError(
                f"{self._say_fractions()} of {length} training images leaves {counts}, but each needs one at least. "
                f"Change {_keys(self.fractions)}, or give a set of its own."
            )
        return RandomSubset(self._key, length, *parts[stage])

    def _say_fractions(self) -> str:
        return ", ".join(f"{stage}={fraction}" for stage, fraction in self.fractions.items())


def build_split(
    dataset: AnyDataset,
    name: str,
    processor: ItemProcessor,
    conditions: Conditions,
    replaces: bool,
    subset: RandomSubset | None = None,
    cache: Cache | None = None,
    epochs: EpochTeller | None = None,
) -> StageImages:
    """Build one stage's images from a dataset of any kind.

    Args:
        dataset: Map-style, iterable, or a DataLoader.
        name: What errors call it.
        processor: Makes an image of an item.
        conditions: Where an item holds its conditions, and which of them are images.
        replaces: Whether bad items are replaced.
        subset: Which items of a map-style dataset belong to the stage; ``None`` is all.
        cache: The images of a map-style dataset, if they have been decoded before.
        epochs: Tells a map-style dataset its epoch.

    Raises:
        ValueError: Images are to be cropped by their position, which an iterable dataset does not allow.
    """
    if _is_map_style(dataset):
        return MapStyleImages(dataset, processor, name, subset, conditions, replaces, cache, epochs)
    if processor.crop == "random":
        raise ValueError(
            f"crop='random': a {type(dataset).__name__} gives its items in an order of its own, and a crop is picked "
            "by the position in the stream. Crop in the dataset, or change `dataset.crop`."
        )
    if isinstance(dataset, DataLoader):
        return PrebatchedImages(dataset, processor, name, conditions)
    return IterableImages(cast(Iterable[object], dataset), processor, name, conditions, replaces)


def _check_fractions(sources: Mapping[Stage, object]) -> dict[Stage, float]:
    """Return the fractions of ``train`` to hold out, by stage; refuse those that leave nothing of it."""
    fractions: dict[Stage, float] = {}
    for stage in _HELD_OUT:
        if isinstance(given := sources[stage], Real):
            fractions[stage] = fraction = check_float("DDPMDataModule", f"dataset.{stage}", given)
            if not 0 < fraction < 1:
                raise ValueError(
                    f"DDPMDataModule({stage}={given}): a number is the fraction of train to hold out, in (0, 1). "
                    f"Change `dataset.{stage}`."
                )
    said = ", ".join(f"{stage}={fraction}" for stage, fraction in fractions.items())
    if fractions and sources["train"] is None:
        raise ValueError(
            f"DDPMDataModule(train=None, {said}): a fraction is held out of train. Give `dataset.train`, or a set of "
            f"its own, {_keys(fractions)}."
        )
    if sum(fractions.values()) >= 1:
        raise ValueError(f"DDPMDataModule({said}): that leaves nothing of train. Lower {_keys(fractions)}.")
    return fractions


def _keys(stages: Iterable[Stage]) -> str:
    return " or ".join(f"`dataset.{stage}`" for stage in stages)


def _check_source(name: str, source: object) -> Source:
    if not _is_factory(source):
        return _check_dataset(name, source)
    if problem := explain_call(source):
        raise TypeError(
            f"{name} is {getattr(source, '__qualname__', source)}, which is called without arguments to make the "
            f"dataset: {problem}. Give a dataset, or functools.partial with the arguments: `dataset.{name}`."
        )
    return source


def _is_factory(source: object) -> TypeGuard[Callable[[], AnyDataset]]:
    return callable(source) and (isinstance(source, type) or not hasattr(source, "__getitem__"))


def _is_map_style(dataset: object) -> TypeGuard[MapDataset]:
    sized = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return sized and not isinstance(dataset, IterableDataset)


def _check_dataset(name: str, dataset: object) -> AnyDataset:
    kind = type(dataset).__name__
    if isinstance(dataset, str | Path):
        raise TypeError(
            f"{name} is a {kind}; for the image files in a folder give "
            f"ddpm_data.sources.ImageFiles({str(dataset)!r}). Change `dataset.{name}`."
        )
    if isinstance(dataset, Mapping):
        keys = ", ".join(map(repr, dataset))
        raise TypeError(f"{name} is a {kind} of {keys}: give one of its datasets, `dataset.{name}`.")
    if isinstance(dataset, Iterator) and not isinstance(dataset, IterableDataset):  # LitData's is both
        raise TypeError(
            f"{name} is a {kind}, which can be iterated over only once, so there would be no second epoch. Give an "
            f"IterableDataset, or another object whose __iter__ starts from the beginning: `dataset.{name}`."
        )
    if isinstance(dataset, bytes) or not (_is_map_style(dataset) or isinstance(dataset, Iterable)):
        raise TypeError(
            f"{name} is a {kind}, not a dataset. {' '.join(CONTRACT)} Give "
            f"such an object, or a function without arguments that returns one: `dataset.{name}`."
        )
    return cast(AnyDataset, dataset)
