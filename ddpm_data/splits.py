"""The sets a DataModule was given: datasets or factories, or a fraction of the training set, and what they need."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import TypeGuard, cast

from torch.utils.data import DataLoader, IterableDataset

from ddpm_data import checks
from ddpm_data.arrays import MapDataset
from ddpm_data.images import Images
from ddpm_data.iterables import IterableImages
from ddpm_data.permutation import Part
from ddpm_data.philox import Key
from ddpm_data.policy import ImagePolicy
from ddpm_data.types import Stage

SomeDataset = MapDataset | Iterable[object]
Source = SomeDataset | Callable[[], SomeDataset]


class Splits:
    """Datasets by stage, each built once in this process.

    Args:
        sources: A dataset or factory for each stage; for ``val`` also the fraction of ``train`` to hold out.
        policy: How items become images.
        key: The seed's, which picks the held-out images.

    Raises:
        TypeError: A source is neither a dataset nor a factory.
        ValueError: The fraction is not in ``(0, 1)``.
    """

    def __init__(self, sources: Mapping[Stage, Source | float | None], policy: ImagePolicy, key: Key) -> None:
        self.policy = policy
        self.fraction = _fraction(sources["val"])
        self._key = key
        if self.fraction and sources["train"] is None:
            raise ValueError(
                f"DDPMDataModule(train=None, val={self.fraction}): a fraction is held out of train. Give "
                "`dataset.train`, or a validation set."
            )
        self._sources = {stage: _source(stage, given) for stage, given in sources.items() if _is_given(stage, given)}
        self._built: dict[Stage, SomeDataset] = {}
        self._images: dict[Stage, Images | IterableImages] = {}

    def build_all(self) -> None:
        """Call every factory, for what it downloads; the datasets are kept for :meth:`open`."""
        for stage in self._sources:
            self._dataset(stage)

    def has(self, stage: Stage) -> bool:
        """Whether there is a set for this stage."""
        return stage in self._sources or (stage == "val" and self.fraction is not None)

    def open(self, stage: Stage) -> Images | IterableImages:
        """Build one stage's images and look at some of them, which an iterable source does not allow.

        Raises:
            TypeError: A factory returned no dataset, or an item holds no image.
            ValueError: The set is empty, or images cannot be converted or share no shape.
        """
        dataset = self._dataset("train" if self._is_part(stage) else stage)
        images: Images | IterableImages
        if not _is_map_style(dataset):
            images = self._iterable(stage, dataset)
        else:
            images = self._part(stage, dataset) if self._is_part(stage) else Images(dataset, self.policy, stage)
            images.check()
        self._images[stage] = images
        return images

    def images(self, stage: Stage) -> Images | IterableImages:
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

    def _is_part(self, stage: Stage) -> bool:
        return self.fraction is not None and stage in ("train", "val")

    def _iterable(self, stage: Stage, dataset: SomeDataset) -> IterableImages:
        if self._is_part(stage):
            raise ValueError(
                f"val={self.fraction}: a {type(dataset).__name__} gives its items in an order of its own, so none can "
                "be held out of train. Give a validation set, `dataset.val`."
            )
        return IterableImages(cast(Iterable[object], dataset), self.policy, stage)

    def _part(self, stage: Stage, dataset: MapDataset) -> Images:
        length = len(dataset)
        held_out = round(length * (self.fraction or 0.0))
        if length and not 0 < held_out < length:
            raise ValueError(
                f"val={self.fraction} of {length} training images leaves {length - held_out} to train and {held_out} "
                "to validate on. Change `dataset.val`, or give a validation set."
            )
        start, stop = (held_out, length) if stage == "train" else (0, held_out)
        # Both are named train: an index in an error is one of the dataset that was given as train.
        return Images(dataset, self.policy, "train", Part(self._key, length, start, stop))


def _fraction(val: object) -> float | None:
    if not isinstance(val, Real):
        return None
    fraction = checks.number("DDPMDataModule", "dataset.val", val)
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
    if isinstance(dataset, DataLoader):
        raise TypeError(f"{name} is a {kind}, but DDPMDataModule makes its own: give its dataset, `dataset.{name}`.")
    if isinstance(dataset, Iterator):
        raise TypeError(
            f"{name} is a {kind}, which can be gone through once: there would be no second epoch. Give an "
            f"IterableDataset, or another object whose __iter__ begins anew: `dataset.{name}`."
        )
    if isinstance(dataset, bytes) or not (_is_map_style(dataset) or isinstance(dataset, Iterable)):
        raise TypeError(
            f"{name} is a {kind}, not a dataset: __getitem__ and __len__ are needed, or at least __iter__. Give "
            f"such an object, or a function without arguments that returns one: `dataset.{name}`."
        )
    return cast(SomeDataset, dataset)
