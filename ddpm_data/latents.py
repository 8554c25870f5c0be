"""Latents of an autoencoder in place of images: floats, kept as mean and standard deviation or drawn already."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_data._checks import check_float
from ddpm_data.rng.philox import Key, Purpose, normals
from ddpm_data.types import ItemKey, Stage

PerChannel = float | tuple[float, ...]


@dataclass(frozen=True)
class Latents:
    """What to make of latents before they are noised: ``(latent - shift) * scale``, of unit variance if chosen well.

    Where an autoencoder's mean and standard deviation are kept, the latent is drawn anew each epoch, on the device and
    from the seed and the example's place in the stream (as Karras et al. 2024, "Analyzing and improving the training
    dynamics of diffusion models", do by a generator).

    Args:
        scale: ``scaling_factor`` in diffusers' configs, 0.18215 for Stable Diffusion 1; one number, or one a channel.
        shift: ``shift_factor`` there; one number, or one a channel.
        std_key: Place in a tuple, or key in a dict, where an item holds the standard deviation; the mean is at
            ``image_key``.
        stacked: Whether an item's first channels are the mean, and the other half the standard deviation.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: ``scale`` is 0, or both ``std_key`` and ``stacked`` are given.
    """

    scale: float | Sequence[float] = 1.0
    shift: float | Sequence[float] = 0.0
    std_key: ItemKey | None = None
    stacked: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _numbers("scale", self.scale))
        object.__setattr__(self, "shift", _numbers("shift", self.shift))
        if 0 in (self.scale if isinstance(self.scale, tuple) else (self.scale,)):
            raise ValueError("Latents(scale=0): nothing would be left. Change `dataset.latents.scale`.")
        if self.std_key is not None and self.stacked:
            raise ValueError(
                "Latents: std_key says that the standard deviation is a part of its own, stacked that it is among the "
                "channels. Change `dataset.latents`."
            )

    @property
    def has_std(self) -> bool:
        """Whether they come as mean and standard deviation."""
        return self.stacked or self.std_key is not None

    def sample(self, key: Key, values: Tensor, position: Tensor, stage: Stage) -> Tensor:
        """The latents to noise.

        Args:
            key: The seed's.
            values: Floats, shape ``(batch, channels, height, width)``, twice the channels where mean and standard
                deviation are kept.
            position: Places in the stage's stream, int64, shape ``(batch,)``.
            stage: The stream.

        Returns:
            float32, shape ``(batch, channels, height, width)``.
        """
        latents = values.float()
        if self.has_std:
            mean, std = latents.chunk(2, dim=1)
            noise = normals(key, Purpose.LATENT, stage, position, mean.shape[1:].numel()).view(mean.shape)
            latents = mean + std * noise
        if isinstance(self.shift, float) and isinstance(self.scale, float):
            return (latents - self.shift) * self.scale
        channels = range(latents.shape[1])  # by numbers rather than a tensor of them, which would have to be uploaded
        pairs = [(_of(self.shift, channel), _of(self.scale, channel)) for channel in channels]
        return torch.stack([(latents[:, i] - shift) * scale for i, (shift, scale) in enumerate(pairs)], dim=1)


def _numbers(name: str, value: float | Sequence[float]) -> PerChannel:
    key = f"dataset.latents.{name}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(check_float("Latents", key, one) for one in value)
    return check_float("Latents", key, value)


def _of(value: float | Sequence[float], channel: int) -> float:
    return value[channel] if isinstance(value, Sequence) else value
