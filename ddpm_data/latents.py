"""Latents of an autoencoder in place of images: floats, stored as mean and standard deviation or as samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_data._checks import check_float, check_key
from ddpm_data._keys import name_arguments
from ddpm_data.rng.philox import Key, Purpose, normals
from ddpm_data.types import ItemKey, Stage

PerChannel = float | tuple[float, ...]


@dataclass(frozen=True)
class Latents:
    """The settings of stored latents, which are noised as ``(latent - shift) * scale``.

    Choose ``shift`` and ``scale`` so that the result has mean 0 and variance 1.

    If your dataset stores an autoencoder's mean and standard deviation, each latent is sampled anew every epoch. The
    sample is drawn on the device and depends only on the seed and the example's position in the stream. (Karras et al.
    2024, "Analyzing and improving the training dynamics of diffusion models", sample with a generator instead.)

    Args:
        scale: ``scaling_factor`` in diffusers' configs, 0.18215 for Stable Diffusion 1; one number, or one per channel.
        shift: ``shift_factor`` in diffusers' configs; one number, or one per channel.
        std_key: Index into a tuple, or key of a dict, at which an item holds the standard deviation; the mean is at
            ``image_key``.
        stacked: Whether the first half of an item's channels is the mean and the second half the standard deviation.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: ``scale`` is 0, or both ``std_key`` and ``stacked`` are set.
    """

    scale: float | Sequence[float] = 1.0
    shift: float | Sequence[float] = 0.0
    std_key: ItemKey | None = None
    stacked: bool = False

    @name_arguments
    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _check_per_channel("scale", self.scale))
        object.__setattr__(self, "shift", _check_per_channel("shift", self.shift))
        if 0 in (self.scale if isinstance(self.scale, tuple) else (self.scale,)):
            raise ValueError("Latents(scale=0): every latent would become 0. Change `dataset.latents.scale`.")
        object.__setattr__(self, "std_key", check_key("dataset.latents.std_key", self.std_key))
        if self.std_key is not None and self.stacked:
            raise ValueError(
                f"Latents(std_key={self.std_key!r}, stacked=True): the standard deviation is either a separate value "
                "in an item (std_key) or half of its channels (stacked), not both. Change `dataset.latents`."
            )

    @property
    def has_std(self) -> bool:
        """Whether items store a mean and a standard deviation."""
        return self.stacked or self.std_key is not None

    def sample(
        self, key: Key, values: Tensor, position: Tensor, stage: Stage, draw: Callable[..., Tensor] = normals
    ) -> Tensor:
        """Sample the latents if they are stored as mean and standard deviation, then shift and scale them.

        Args:
            key: The seed's key, from :func:`~ddpm_data.rng.philox.key_from`.
            values: Stored latents, floats, shape ``(batch, channels, ...)``. With mean and standard deviation there are
                twice as many channels: first the mean's, then the standard deviation's.
            position: Positions in the stage's stream, int64, shape ``(batch,)``.
            stage: The stage whose stream the positions belong to.
            draw: What draws as :func:`~ddpm_data.rng.philox.normals` does.

        Returns:
            The latents to noise, float32, shape ``(batch, channels, ...)``.
        """
        latents = values.float()
        if self.has_std:
            mean, std = latents.chunk(2, dim=1)
            noise = draw(key, Purpose.LATENT, stage, position, mean.shape[1:].numel()).view(mean.shape)
            latents = mean + std * noise
        if isinstance(self.shift, float) and isinstance(self.scale, float):
            return (latents - self.shift) * self.scale
        # One channel at a time, with Python numbers, because a tensor of them would have to be copied to the device.
        channels = range(latents.shape[1])
        pairs = [(_pick_channel(self.shift, channel), _pick_channel(self.scale, channel)) for channel in channels]
        return torch.stack([(latents[:, i] - shift) * scale for i, (shift, scale) in enumerate(pairs)], dim=1)


def _check_per_channel(name: str, value: float | Sequence[float]) -> PerChannel:
    key = f"dataset.latents.{name}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(check_float("Latents", key, number) for number in value)
    return check_float("Latents", key, value)


def _pick_channel(value: float | Sequence[float], channel: int) -> float:
    return value[channel] if isinstance(value, Sequence) else value
