"""What travels: a batch of examples into the transform, a training triple out of it."""

from typing import Literal, NamedTuple

from torch import Tensor

Stage = Literal["train", "val", "test", "predict"]


class Place(NamedTuple):
    """Where a batch's examples stand.

    Attributes:
        position: Each example's place in its stage's stream, int64, shape ``(batch,)``.
        stage: The stream.
    """

    position: Tensor
    stage: Stage


class Examples(NamedTuple):
    """A batch as the loader delivers it and as it crosses to the device: not yet a training triple.

    Two fields, so that ``x_t, t, noise = batch`` fails at once where the DataModule's hook was not run.

    Attributes:
        images: uint8 in ``[0, 255]``, shape ``(batch, channels, height, width)``.
        place: Where they stand in the stream.
    """

    images: Tensor
    place: Place

    @property
    def position(self) -> Tensor:
        """The places' positions."""
        return self.place.position


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
