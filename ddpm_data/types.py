"""What travels: a batch of examples into the transform, a training triple out of it."""

from typing import Any, Literal, NamedTuple

from torch import Tensor

Stage = Literal["train", "val", "test", "predict"]


class BatchMeta(NamedTuple):
    """What a batch's images come with.

    Attributes:
        position: Each example's place in its stage's stream, int64, shape ``(batch,)``.
        stage: The stream.
        condition: The examples' conditions, as ``torch.utils.data.default_collate`` batches them: a tensor of numbers
            or embeddings, a list of strings, a dict or list of these; ``None`` where none was asked for.
    """

    position: Tensor
    stage: Stage
    condition: Any = None


class ImageBatch(NamedTuple):
    """A batch as the loader delivers it and as it crosses to the device: not yet a training triple.

    Two fields, so that ``x_t, t, noise = batch`` fails at once where the DataModule's hook was not run.

    Attributes:
        images: uint8 in ``[0, 255]``, shape ``(batch, channels, height, width)``; latents are floats.
        meta: Where they stand in the stream, and their conditions.
    """

    images: Tensor
    meta: BatchMeta

    @property
    def position(self) -> Tensor:
        """Their positions."""
        return self.meta.position


class Triple(NamedTuple):
    """A batch as the model sees it: ``x_t, t, noise = batch``.

    Attributes:
        x_t: Noised images, float, shape ``(batch, channels, height, width)``.
        t: Zero-based steps in ``[0, num_timesteps)``, int64, shape ``(batch,)``; ``t = 0`` is noised once.
        noise: The standard normal noise inside ``x_t``, shape and dtype of ``x_t``.
    """

    x_t: Tensor
    t: Tensor
    noise: Tensor


class ConditionedTriple(NamedTuple):
    """A batch as the model sees it with ``condition=``: ``x_t, t, noise, condition = batch``.

    Attributes:
        x_t: As in :class:`Triple`, as the next two.
        t: Steps.
        noise: Noise.
        condition: Labels, embeddings, strings, or dicts of these, on the same device: see :class:`BatchMeta`.
    """

    x_t: Tensor
    t: Tensor
    noise: Tensor
    condition: Any


ItemKey = int | str  # a place in a tuple, or a key in a dict


Examples = ImageBatch  # its name before 0.1, kept for 0.1
