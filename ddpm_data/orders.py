"""Which examples come when on this process, in each stage; in training, from where a checkpoint left off."""

import lightning as L

from ddpm_data.images import Images
from ddpm_data.iterables import Arrivals
from ddpm_data.loading import AnyImages, Loading
from ddpm_data.philox import key_from
from ddpm_data.resume import Resume
from ddpm_data.stream import EvalSampler, StreamSampler
from ddpm_data.trainers import world_of

Order = StreamSampler | EvalSampler | Arrivals


def train_order(
    images: AnyImages, loading: Loading, about: dict[str, int], trainer: L.Trainer | None
) -> tuple[Order, Resume]:
    """The training stream's order, and what keeps its place in checkpoints.

    Args:
        images: The training set.
        loading: Batch size and what becomes of an incomplete batch.
        about: What makes the stream another one, for checkpoints: its ``seed``, the number of steps.
        trainer: What counts epochs and batches, if anything does.
    """
    (world_size, rank), size = world_of(trainer), loading.batch_size
    order: StreamSampler | Arrivals
    if isinstance(images, Images):
        key = key_from(about["seed"])
        order = StreamSampler(len(images), size, world_size, rank, key, loading.drop_last, images.part)
        about = about | {"length": len(images)}
    else:
        order = Arrivals(lambda: trainer.current_epoch if trainer else 0)
        about = about | {"world_size": world_size, "batch_size": size, "num_workers": loading.num_workers}
    resume = Resume(order.epochs, about)
    if trainer:
        resume.join(trainer)
    return order, resume


def eval_order(images: AnyImages, loading: Loading, trainer: L.Trainer | None) -> Order:
    """The order of a validation, test or prediction set, the same each time."""
    world_size, rank = world_of(trainer)
    if isinstance(images, Images):
        return EvalSampler(len(images), loading.batch_size, world_size, rank, images.part)
    return Arrivals(lambda: 0)
