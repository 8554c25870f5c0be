"""Latents of an autoencoder in place of images: floats, kept as mean and standard deviation or drawn already."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_data import checks
from ddpm_data.items import ItemKey, find_image
from ddpm_data.philox import Key, Purpose, normals
from ddpm_data.policy import ImagePolicy
from ddpm_data.types import Stage

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
    def are_drawn(self) -> bool:
        """Whether they come as mean and standard deviation."""
        return self.stacked or self.std_key is not None

    def drawn(self, key: Key, values: Tensor, position: Tensor, stage: Stage) -> Tensor:
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
        if self.are_drawn:
            mean, std = latents.chunk(2, dim=1)
            noise = normals(key, Purpose.LATENT, stage, position, mean.shape[1:].numel()).view(mean.shape)
            latents = mean + std * noise
        if isinstance(self.shift, float) and isinstance(self.scale, float):
            return (latents - self.shift) * self.scale
        channels = range(latents.shape[1])  # by numbers rather than a tensor of them, which would have to be uploaded
        pairs = [(_of(self.shift, channel), _of(self.scale, channel)) for channel in channels]
        return torch.stack([(latents[:, i] - shift) * scale for i, (shift, scale) in enumerate(pairs)], dim=1)


class LatentPolicy:
    """How items become latents: as they are, channels first; see :class:`~ddpm_data.policy.Policy`.

    Args:
        latents: What will be made of them.
        image_key: Place in a tuple, or key in a dict, where an item holds its latent, or the latent's mean.
    """

    channels_first = True

    def __init__(self, latents: Latents, image_key: ItemKey | None = None) -> None:
        self.std_key = latents.std_key
        self.channels_of = [len(value) for value in (latents.scale, latents.shift) if isinstance(value, tuple)]
        self.stacked = latents.stacked
        self.image_key = image_key

    @classmethod
    def instead_of(cls, policy: ImagePolicy, latents: Latents) -> "LatentPolicy":
        """The policy for latents, where nothing is asked for that only images have.

        Raises:
            ValueError: Something is.
        """
        given = {name: value for name, value in vars(policy).items() if value != getattr(ImagePolicy(), name)}
        if wrong := sorted(given.keys() - {"image_key"}):
            raise ValueError(
                f"latents are noised as they are, so {', '.join(wrong)} would change nothing. Leave out "
                f"{', '.join(f'`dataset.{name}`' for name in wrong)}."
            )
        return cls(latents, policy.image_key)

    def pixels(self, item: object) -> Tensor:
        """The item's values, shape ``(channels, height, width)``: the mean's, then the standard deviation's.

        Raises:
            TypeError: They are no floats.
            ValueError: Some are NaN or infinite, a standard deviation is negative, or shapes do not go together.
        """
        values = _values(item, self.image_key)
        if self.std_key is not None:
            std = _values(item, self.std_key)
            if std.shape != values.shape:
                raise ValueError(
                    f"the mean is {tuple(values.shape)} and the standard deviation {tuple(std.shape)}: they must share "
                    "a shape. Change `dataset.latents.std_key`."
                )
            values = torch.cat([values, std])
        halves = 2 if self.stacked or self.std_key is not None else 1
        if len(values) % halves:
            raise ValueError(
                f"{len(values)} channels are no mean and standard deviation of as many channels. Change "
                "`dataset.latents.stacked`."
            )
        for count in self.channels_of:
            if count * halves != len(values):
                raise ValueError(
                    f"the latent has {len(values) // halves} channels, and {count} numbers are given to scale or shift "
                    "them. Change `dataset.latents`."
                )
        if halves == 2 and values[len(values) // 2 :].min() < 0:
            raise ValueError(
                "a standard deviation is negative (is it a logarithm? take exp(logvar / 2)). Change `dataset.latents`."
            )
        return values

    def fit(self, image: Tensor, spots: Tensor | None = None) -> Tensor:
        """The same values; float64 becomes float32.

        Raises:
            ValueError: Some are NaN or infinite.
        """
        if not image.isfinite().all():
            raise ValueError(f"{int((~image.isfinite()).sum())} of {image.numel()} values are NaN or infinite.")
        return image.float() if image.dtype == torch.float64 else image

    def check(self, name: str, raw: Sequence[Tensor]) -> None:
        """Every item has been checked by :meth:`pixels`."""


def _values(item: object, key: ItemKey | None) -> Tensor:
    value = find_image(item, key)
    if isinstance(value, Image.Image):
        raise TypeError("the item holds a PIL image, and latents are arrays. Change `dataset.latents`.")
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ["W", "C"]))
    if not value.is_floating_point() or value.dim() != 3:
        raise TypeError(
            f"a latent is floats of shape (channels, height, width), and this is {value.dtype} of shape "
            f"{tuple(value.shape)}. Change `dataset.latents`, or `dataset.image_key`."
        )
    return value.detach()


def _numbers(name: str, value: float | Sequence[float]) -> PerChannel:
    key = f"dataset.latents.{name}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(checks.number("Latents", key, one) for one in value)
    return checks.number("Latents", key, value)


def _of(value: float | Sequence[float], channel: int) -> float:
    return value[channel] if isinstance(value, Sequence) else value
