"""The common interface of map-style, iterable and prebatched data: the images of one stage."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from ddpm_data._distributed import World
from ddpm_data.loading.bad_items import BadItem, WorkerBatch
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.loading.samplers import Order
from ddpm_data.rng.philox import Key
from ddpm_data.types import Stage


class ItemBatch(NamedTuple):
    """Several items of a dataset as one batch.

    Attributes:
        images: uint8, shape ``(batch, channels, height, width)``, contiguous; latents are floats.
        condition: Their conditions, batched; ``None`` without conditions.
        bad_items: The bad items that were replaced.
    """

    images: Tensor
    condition: Any = None
    bad_items: tuple[BadItem, ...] = ()


class StageBatches(Dataset[WorkerBatch]):
    """A stage's batches, made in workers: the dataset of a :class:`~ddpm_data.loading.loader.StreamLoader`.

    Attributes:
        stage: The stage that gets the batches.
    """

    stage: Stage

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch, before workers begin it."""


class StageImages(Protocol):
    """The images of one stage, from any kind of dataset.

    Attributes:
        name: The dataset's name in errors.
        length: Examples per epoch over all ranks; ``None`` if only the source knows.
        brings_workers: Whether the source has its own workers, so that we start none.
        is_strided: Whether a batch has every k-th position of the stream, because workers and processes take turns.
    """

    name: str
    brings_workers: bool
    is_strided: bool

    @property
    def length(self) -> int | None:
        """See the attributes."""
        ...

    def inspect(self, options: LoaderOptions | None = None, warns: bool = True) -> object:
        """Check some items, and raise now what a batch would raise later; in a worker, if the options have workers."""
        ...

    def first_items(self, count: int, options: LoaderOptions | None = None) -> ItemBatch | None:
        """Return the first items, read as in :meth:`inspect`; ``None`` if reading would use up the source."""
        ...

    def train_order(self, options: LoaderOptions, world: World, key: Key, epoch: Callable[[], int]) -> Order:
        """Return the order of the training stream on one rank.

        Args:
            options: Options with the batch size and ``drop_last``.
            world: The number of processes, and this process's rank.
            key: The seed's key.
            epoch: A function that returns the epoch, for loops that do not call ``set_epoch``.
        """
        ...

    def eval_order(self, options: LoaderOptions, world: World) -> Order:
        """Return the order of a validation, test or prediction set on one rank, the same in every epoch."""
        ...

    def stream_identity(self, options: LoaderOptions, world: World) -> dict[str, int]:
        """Return what the training stream depends on beside the seed. A checkpoint must have the same values."""
        ...

    def name_items(self) -> dict[str, str]:
        """Return what tells some items from others, by their names in errors; nothing if only reading would tell."""
        ...

    def batches(self, stage: Stage, options: LoaderOptions, world: World, key: Key) -> StageBatches:
        """Return the batches that one rank serves to a stage.

        Raises:
            ValueError: The batches would not fit into shared memory, or every process would get the same batches.
        """
        ...
