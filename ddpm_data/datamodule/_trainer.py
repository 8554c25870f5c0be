"""Which examples come when on this process, in each stage; in training, from where a checkpoint left off."""

import os
import warnings

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import distributed

from ddpm_data._distributed import processes
from ddpm_data.datamodule.resume import StreamCheckpoint
from ddpm_data.loading.iterable import IterableOrder
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.loading.options import AnyImages, LoaderOptions
from ddpm_data.loading.samplers import EvalSampler, StreamSampler
from ddpm_data.rng.philox import key_from

Order = StreamSampler | EvalSampler | IterableOrder


def train_sampler(
    images: AnyImages, loading: LoaderOptions, about: dict[str, int], trainer: L.Trainer | None
) -> tuple[Order, StreamCheckpoint]:
    """The training stream's order, and what keeps its place in checkpoints.

    Args:
        images: The training set.
        loading: Batch size and what becomes of an incomplete batch.
        about: What makes the stream another one, for checkpoints: its ``seed``, the number of steps.
        trainer: What counts epochs and batches, if anything does.
    """
    (world_size, rank), size = world_of(trainer), loading.batch_size
    order: StreamSampler | IterableOrder
    if isinstance(images, MapStyleImages):
        key = key_from(about["seed"])
        order = StreamSampler(len(images), size, world_size, rank, key, loading.drop_last, images.part)
        about = about | {"length": len(images)}
    else:
        order = IterableOrder(lambda: trainer.current_epoch if trainer else 0)
        about = about | {"world_size": world_size, "batch_size": size, "num_workers": loading.num_workers}
    resume = StreamCheckpoint(order.epochs, about)
    if trainer:
        resume.attach(trainer)
    return order, resume


def eval_sampler(images: AnyImages, loading: LoaderOptions, trainer: L.Trainer | None) -> Order:
    """The order of a validation, test or prediction set, the same each time."""
    world_size, rank = world_of(trainer)
    if isinstance(images, MapStyleImages):
        return EvalSampler(len(images), loading.batch_size, world_size, rank, images.part)
    return IterableOrder(lambda: 0)


_DTYPES = {
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "64-true": torch.float64,
    "transformer-engine": torch.bfloat16,
    "transformer-engine-float16": torch.float16,
}


def batch_dtype(trainer: L.Trainer | None) -> torch.dtype | None:
    """The dtype its precision wants batches in, where that is not float32."""
    return _DTYPES.get(trainer.precision) if trainer else None


def world_of(trainer: L.Trainer | None) -> tuple[int, int]:
    """How many processes there are, and which this is: those of the Trainer, else of torch's process group."""
    if trainer:
        return trainer.world_size, trainer.global_rank
    found, count = processes(), int(os.environ.get("WORLD_SIZE", "1"))
    if found == (1, 0) and count > 1 and distributed.is_available() and distributed.is_torchelastic_launched():
        warnings.warn(
            f"torchrun started {count} processes, and they are not yet connected: each will be served all images. Call "
            "torch.distributed.init_process_group (or Fabric's launch) before DDPMDataModule.setup.",
            stacklevel=3,
        )
    return found


def refuse_clashes(trainer: L.Trainer | None) -> None:
    """Refuse what would silently take the DataModule's place.

    Raises:
        ValueError: ``overfit_batches`` is set, or the model has an ``on_after_batch_transfer`` of its own.
    """
    if getattr(trainer, "overfit_batches", 0):
        raise ValueError(
            "overfit_batches would replace the sampler, and with it the stream. To train on a few images, leave it "
            "out and give a small set: train=torch.utils.data.Subset(dataset, range(k)), `dataset.train`."
        )
    model = trainer.lightning_module if trainer else None
    if model is not None and is_overridden("on_after_batch_transfer", model):
        raise ValueError(
            f"{type(model).__name__} defines on_after_batch_transfer, and so does DDPMDataModule: Lightning would "
            "run the DataModule's and drop the model's. Remove it from the model; to change images on the device "
            "before they are noised, give DDPMDataModule(augment=...), in the configs `dataset.augment`."
        )
