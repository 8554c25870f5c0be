"""The sets a DataModule was given: datasets or factories, or a fraction of the training set, and what they need."""

from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import TypeGuard, cast

from torch.utils.data import IterableDataset

from ddpm_data import checks
from ddpm_data.images import ImagePolicy, Images, MapDataset
from ddpm_data.philox import Key
from ddpm_data.stream import split
from ddpm_data.types import Stage

Source = MapDataset | Callable[[], MapDataset]


class Splits:
    """Datasets by stage, each built once in this process.

    Args:
        sources: A dataset or factory for each stage; for ``val`` also the fraction of ``train`` to hold out.
        policy: How items become images.
        key: The seed's, which picks the held-out images.

    Raises:
        TypeError: A source is neither a map-style dataset nor a factory.
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
        self._built: dict[Stage, MapDataset] = {}
        self._images: dict[Stage, Images] = {}

    def build_all(self) -> None:
        """Call every factory, for what it downloads; the datasets are kept for :meth:`open`."""
        for stage in self._sources:
            self._dataset(stage)

    def has(self, stage: Stage) -> bool:
        """Whether there is a set for this stage."""
        return stage in self._sources or (stage == "val" and self.fraction is not None)

    def open(self, stage: Stage) -> Images:
        """Build one stage's images and look at some of them.

        Raises:
            TypeError: A factory returned no map-style dataset, or an item holds no image.
            ValueError: The set is empty, or images cannot be converted or share no shape.
        """
        if self.fraction is None or stage not in ("train", "val"):
            images = Images(self._dataset(stage), self.policy, stage)
        else:
            images = self._part(stage, self.fraction)
        images.check()
        self._images[stage] = images
        return images

    def images(self, stage: Stage) -> Images:
        """What :meth:`open` has built.

        Raises:
            RuntimeError: It has not.
        """
        if stage not in self._images:
            raise RuntimeError(f"the {stage} set is not open: call setup() before asking for its loader.")
        return self._images[stage]

    def _dataset(self, stage: Stage) -> MapDataset:
        if stage not in self._built:
            source = self._sources[stage]
            self._built[stage] = _map_style(stage, source() if _is_factory(source) else source)
        return self._built[stage]

    def _part(self, stage: Stage, fraction: float) -> Images:
        dataset = self._dataset("train")
        train, val = split(self._key, len(dataset), fraction)
        if len(dataset) and not (len(train) and len(val)):
            raise ValueError(
                f"val={fraction} of {len(dataset)} training images leaves {len(train)} to train and {len(val)} to "
                "validate on. Change `dataset.val`, or give a validation set."
            )
        # Both are named train: an index in an error is one of the dataset that was given as train.
        return Images(dataset, self.policy, "train", indices=train if stage == "train" else val)


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
    return cast(Source, source) if _is_factory(source) else _map_style(name, source)


def _is_factory(source: object) -> TypeGuard[Callable[[], MapDataset]]:
    return callable(source) and (isinstance(source, type) or not hasattr(source, "__getitem__"))


def _map_style(name: str, dataset: object) -> MapDataset:
    sized = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, str | Path):
        raise TypeError(
            f"{name} is a {type(dataset).__name__}; for the image files in a folder give "
            f"ddpm_data.sources.ImageFiles({str(dataset)!r}), in the configs dataset=image_folder: `dataset.{name}`."
        )
    if isinstance(dataset, Mapping):
        keys = ", ".join(map(repr, dataset))
        raise TypeError(f"{name} is a {type(dataset).__name__} of {keys}: give one of its datasets, `dataset.{name}`.")
    if not sized or isinstance(dataset, IterableDataset | bytes):
        raise TypeError(
            f"{name} is a {type(dataset).__name__}, not a map-style dataset: the stream asks for items by "
            "number, so __getitem__ and __len__ are needed. Give such a dataset, or a function without arguments "
            f"that returns one: `dataset.{name}`."
        )
    return cast(MapDataset, dataset)
