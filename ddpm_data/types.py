"""The named tuples for batches: images before the transform, training triples after it."""

from typing import Any, Literal, NamedTuple

from torch import Tensor

Stage = Literal["train", "val", "test", "predict"]


class BatchMeta(NamedTuple):
    """Everything that accompanies a batch's images: positions, stage and conditions.

    Attributes:
        position: Each example's position in its stage's stream, int64, shape ``(batch,)``.
        stage: The stage whose stream the positions belong to.
        condition: The examples' conditions, as ``torch.utils.data.default_collate`` batches them: a tensor of numbers
            or embeddings, a list of strings, or a dict or list of these. Those that ``condition_images=`` names are
            uint8 images, shape ``(batch, channels, height, width)``. ``None`` without a ``condition=``.
    """

    position: Tensor
    stage: Stage
    condition: Any = None


class ImageBatch(NamedTuple):
    """A batch as the loader delivers it, before it becomes a training triple.

    It has two fields only, so ``x_t, t, noise = batch`` fails at once if the DataModule's hook did not run.

    Attributes:
        images: uint8 in ``[0, 255]``, shape ``(batch, channels, height, width)``; latents are floats.
        meta: The examples' positions and conditions.
    """

    images: Tensor
    meta: BatchMeta

    @property
    def position(self) -> Tensor:
        """Each example's position in its stage's stream, int64, shape ``(batch,)``."""
        return self.meta.position


class Triple(NamedTuple):
    """A batch as the model receives it: ``x_t, t, noise = batch``.

    Attributes:
        x_t: Noised images, float, shape ``(batch, channels, height, width)``.
        t: Zero-based steps in ``[0, num_timesteps)``, int64, shape ``(batch,)``; at ``t = 0`` an image has been noised
            once.
        noise: The standard normal noise inside ``x_t``, shape and dtype of ``x_t``.
    """

    x_t: Tensor
    t: Tensor
    noise: Tensor


class ConditionedTriple(NamedTuple):
    """A batch as the model receives it with ``condition=``: ``x_t, t, noise, condition = batch``.

    Attributes:
        x_t: Noised images, as in :class:`Triple`.
        t: Steps, as in :class:`Triple`.
        noise: Noise, as in :class:`Triple`.
        condition: Labels, embeddings, strings, or dicts of these; tensors are on the device of ``x_t``. Those that
            ``condition_images=`` names have moved with their images: label maps are int64, pictures are in ``[-1, 1]``
            in the dtype of ``x_t``, both of shape ``(batch, channels, height, width)``. See :class:`BatchMeta`.
    """

    x_t: Tensor
    t: Tensor
    noise: Tensor
    condition: Any


class TargetTriple(NamedTuple):
    """A batch as the model receives it if it predicts anything but the noise: ``x_t, t, target = batch``.

    Attributes:
        x_t: Noised images, as in :class:`Triple`.
        t: Steps, as in :class:`Triple`.
        target: What the network is to predict, shape and dtype of ``x_t``; made of ``x_0`` and the noise in float32.
    """

    x_t: Tensor
    t: Tensor
    target: Tensor


class ConditionedTargetTriple(NamedTuple):
    """A batch with another target and with ``condition=``: ``x_t, t, target, condition = batch``.

    Attributes:
        x_t: Noised images, as in :class:`Triple`.
        t: Steps, as in :class:`Triple`.
        target: As in :class:`TargetTriple`.
        condition: As in :class:`ConditionedTriple`.
    """

    x_t: Tensor
    t: Tensor
    target: Tensor
    condition: Any


Batch = Triple | ConditionedTriple | TargetTriple | ConditionedTargetTriple  # as the model receives it
ItemKey = int | str  # an index into a tuple, or a key of a dict


Examples = ImageBatch  # its name before 0.1, kept for 0.1
