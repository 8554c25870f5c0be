"""What travels: a batch of examples into the transform, a training triple out of it."""

from typing import Literal, NamedTuple

from torch import Tensor

Stage = Literal["train", "val", "test", "predict"]


class Examples(NamedTuple):
    """A batch as the loader delivers it and as it crosses to the device.

    Attributes:
        images: uint8 in ``[0, 255]`` (or float in ``[-1, 1]``), shape ``(batch, channels, height, width)``.
        position: Each example's place in its stage's stream, int64, shape ``(batch,)``.
        stage: The stream it belongs to.
    """

    images: Tensor
    position: Tensor
    stage: Stage


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
