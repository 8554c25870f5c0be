"""What map-style, iterable and prebatched data have in common: the images of one stage."""

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
    """Some of a dataset's items.

    Attributes:
        images: uint8, shape ``(batch, channels, height, width)``, contiguous; latents are floats.
        condition: Their conditions, batched; ``None`` where none is asked for.
        bad_items: Those that were replaced.
    """

    images: Tensor
    condition: Any = None
    bad_items: tuple[BadItem, ...] = ()


class StageBatches(Dataset[WorkerBatch]):
    """A stage's batches, as workers make them; what a :class:`~ddpm_data.loading.loader.StreamLoader` loads from.

    Attributes:
        stage: The stream that they are served to.
    """

    stage: Stage

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, before workers begin it."""


class StageImages(Protocol):
    """The images of one stage, whichever kind of dataset they come from.

    Attributes:
        name: What errors call the dataset.
        length: Examples per epoch over all ranks; ``None`` where only the source knows.
        brings_workers: Whether the data come with workers of their own, so that ours would only be in the way.
    """

    name: str
    brings_workers: bool

    @property
    def length(self) -> int | None:
        """See the attributes."""
        ...

    def inspect(self, options: LoaderOptions | None = None, warns: bool = True) -> object:
        """Look at some items and raise now what a batch would raise later; in a worker, if the options have any."""
        ...

    def first_items(self, count: int, options: LoaderOptions | None = None) -> ItemBatch | None:
        """Return the set's first items, read as :meth:`inspect` does; ``None`` where that would use up the source."""
        ...

    def train_order(self, options: LoaderOptions, world: World, key: Key, epoch: Callable[[], int]) -> Order:
        """Return the order of the training stream on one rank.

        Args:
            options: Batch size, and what becomes of an incomplete batch.
            world: The ranks, and which one it is.
            key: The seed's.
            epoch: Asked for the epoch, where nobody calls ``set_epoch``.
        """
        ...

    def eval_order(self, options: LoaderOptions, world: World) -> Order:
        """Return the order of a validation, test or prediction set on one rank, the same in every epoch."""
        ...

    def stream_identity(self, options: LoaderOptions, world: World) -> dict[str, int]:
        """Return what the training stream depends on beside the seed: a checkpoint must agree with it."""
        ...

    def batches(self, stage: Stage, options: LoaderOptions, world: World, key: Key) -> StageBatches:
        """Return the batches that one rank serves to a stage.

        Raises:
            ValueError: They would not fit into shared memory, or every process would get the same ones.
        """
        ...
