"""Read precision and processes from the Trainer, or without a Trainer from torch's process group."""

import os
import warnings
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import distributed

from ddpm_data._distributed import World, get_world

_DTYPES = {
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "64-true": torch.float64,
    "transformer-engine": torch.bfloat16,
    "transformer-engine-float16": torch.float16,
}


class NoLoaders(CombinedLoader):
    """No loaders, where Lightning would take an empty list for one."""

    def __init__(self) -> None:
        super().__init__([], "sequential")

    @property
    def flattened(self) -> list[Any]:
        """None."""
        return []

    @flattened.setter
    def flattened(self, loaders: list[Any]) -> None:
        """Stay empty."""


class AbsentLoader(partial[CombinedLoader]):
    """A method that returns no loaders, and that Lightning takes for its own, since it looks at a partial's function.

    Lightning's own raises; its search for a batch size calls it without asking whether there is one.
    """

    def __call__(self, *_: object, **__: object) -> CombinedLoader:
        """Return no loaders."""
        return NoLoaders()


def get_batch_dtype(trainer: L.Trainer | None) -> torch.dtype | None:
    """Return the dtype of batches under the Trainer's precision; ``None`` means float32."""
    return _DTYPES.get(trainer.precision) if trainer else None


def get_trainer_world(trainer: L.Trainer | None) -> World:
    """Return the processes that share the data: the Trainer's; without a Trainer, those of torch's process group.

    Under model parallelism, a group of processes counts as one, because they all work on the same batch.
    """
    if trainer:
        sharing = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
        return World(sharing.get("num_replicas", trainer.world_size), sharing.get("rank", trainer.global_rank))
    world, launched = get_world(), int(os.environ.get("WORLD_SIZE", "1"))
    if world.size == 1 and launched > 1 and distributed.is_available() and distributed.is_torchelastic_launched():
        warnings.warn(
            f"torchrun started {launched} processes, and they are not connected yet: each will be served all images. "
            "Call torch.distributed.init_process_group (or Fabric's launch) before DDPMDataModule.setup.",
            stacklevel=3,
        )
    return world


def refuse_clashes(trainer: L.Trainer | None) -> None:
    """Refuse settings that would silently replace the DataModule's sampler or hook.

    Raises:
        ValueError: The model has an ``on_after_batch_transfer`` of its own.
    """
    model = trainer.lightning_module if trainer else None
    if model is not None and is_overridden("on_after_batch_transfer", model):
        raise ValueError(
            f"{type(model).__name__} defines on_after_batch_transfer, and so does DDPMDataModule: Lightning would "
            "run the DataModule's and drop the model's. Remove it from the model. To change images on the device "
            "before they are noised, set `dataset.augment` of the DataModule."
        )


def refuse_other_lightning(trainer: object) -> None:
    """Refuse a Trainer of the package pytorch_lightning, which would only say "Expected a parent".

    Raises:
        TypeError: It is one.
    """
    if any(cls.__module__.partition(".")[0] == "pytorch_lightning" for cls in type(trainer).__mro__):
        raise TypeError(
            "this Trainer comes from pytorch_lightning, and DDPMDataModule from lightning. To Python these are two "
            "packages, and neither takes the other's classes. In your code replace `import pytorch_lightning as pl` "
            "by `from lightning import pytorch as pl`, also where the model is defined; all names stay the same."
        )
