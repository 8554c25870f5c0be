"""The transform's arithmetic as plain functions of tensors, written to be compiled into one pass over the images.

The four quarters of an image are worked on side by side: a block of four Philox words becomes one number in each of
them. So a compiled kernel reads and writes contiguous runs, and words, noise and ``x_t`` stay in its registers.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_data.diffusion.timesteps import Timesteps, UniformTimesteps
from ddpm_data.latents import Latents
from ddpm_data.rng.philox import Key, Purpose, normal_quarters, words
from ddpm_data.types import Stage, Triple

_EAGER_NUMBERS = 2**19  # drawn at once without a compiler: intermediates of a few MB, which stay in the caches


class TripleInputs(NamedTuple):
    """What a triple is made of, besides the tables.

    Attributes:
        images: uint8 or floats, shape ``(batch, channels, height, width)``.
        position: Of the examples in the stream, int64, shape ``(batch,)``.
        timesteps: ``t``, or what draws it.
        flip: Probability of mirroring; 0 draws nothing.
        stage: The stream.
        dtype: Of ``x_t`` and the noise.
    """

    images: Tensor
    position: Tensor
    timesteps: Timesteps | Tensor
    flip: float
    stage: Stage
    dtype: torch.dtype


class Tables(NamedTuple):
    """What stays on the device.

    Attributes:
        signal: Of ``x_0`` in ``x_t``, float32, shape ``(num_timesteps,)``.
        sigma: Of the noise in ``x_t``, likewise.
        key: The seed's two words, int64, shape ``(2,)``.
    """

    signal: Tensor
    sigma: Tensor
    key: Tensor

    def key_words(self) -> Key:
        """Return the key's words as tensors, so that one compiled graph serves any seed."""
        return Key(self.key[0], self.key[1])


def flip_mask(tables: Tables, position: Tensor, probability: float) -> Tensor:
    """Draw which training images are mirrored: bool, shape ``(batch,)``."""
    word = words(tables.key_words(), Purpose.FLIP, "train", position)[0][:, 0]
    return word < round(probability * 2**32)


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror some of the images left to right."""
    mask = mirrored.view(-1, *[1] * (images.dim() - 1))
    if images.dtype != torch.uint8 or images.device.type != "cpu":
        return torch.where(mask, images.flip(-1), images)  # on a GPU it becomes part of the one kernel
    # On a CPU torch.where takes six times as long on bytes: it does not vectorise.
    return images.flip(-1).bitwise_xor_(images).bitwise_and_(mask.to(torch.uint8) * 255).bitwise_xor_(images)


def make_triple(tables: Tables, batch: TripleInputs) -> Triple:
    """Make the triple, contiguous; computed in float32, cast last."""
    images, position, _, flip, stage, dtype = batch
    if flip:
        images = mirror(images, flip_mask(tables, position, flip))
    t = _draw_timesteps(tables, batch)
    numel = images.shape[1:].numel()
    quarter = -(-numel // 4)
    flat = images.reshape(len(images), numel)
    quarters = (flat if numel % 4 == 0 else F.pad(flat, (0, 4 * quarter - numel))).view(-1, 4, quarter)
    signal, sigma = tables.signal[t][:, None], tables.sigma[t][:, None]
    noise = normal_quarters(tables.key_words(), Purpose.NOISE, stage, position, quarter)
    x_t = [signal * scale_images(quarters[:, i]) + sigma * noise[i] for i in range(4)]
    return Triple(_join_quarters(x_t, images.shape, dtype), t, _join_quarters(noise, images.shape, dtype))


def make_triple_in_blocks(tables: Tables, batch: TripleInputs) -> Triple:
    """Do what :func:`make_triple` does, a few images at a time, for where nothing is compiled."""
    images, position, _, _, _, dtype = batch
    t = _draw_timesteps(tables, batch)
    x_t = torch.empty(images.shape, dtype=dtype, device=images.device)
    noise = torch.empty_like(x_t)
    rows = max(1, _EAGER_NUMBERS // max(1, images.shape[1:].numel()))
    for i in range(0, len(images), rows):
        block = slice(i, i + rows)
        part = batch._replace(images=images[block], position=position[block], timesteps=t[block])
        x_t[block], _, noise[block] = make_triple(tables, part)
    return Triple(x_t, t, noise)


class FlipMaskKernel(NamedTuple):
    """:func:`flip_mask` as a function of tensors alone."""

    probability: float

    def __call__(self, signal: Tensor, sigma: Tensor, key: Tensor, position: Tensor) -> tuple[Tensor]:
        """Return the mask."""
        return (flip_mask(Tables(signal, sigma, key), position, self.probability),)


class TripleKernel(NamedTuple):
    """:func:`make_triple` as a function of tensors alone; ``low_discrepancy`` is ``None`` where ``t`` is given."""

    low_discrepancy: bool | None
    flip: float
    stage: Stage
    dtype: torch.dtype

    def __call__(
        self, signal: Tensor, sigma: Tensor, key: Tensor, images: Tensor, position: Tensor, *given_t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``x_t``, ``t`` and the noise."""
        timesteps = given_t[0] if self.low_discrepancy is None else UniformTimesteps(self.low_discrepancy)
        batch = TripleInputs(images, position, timesteps, self.flip, self.stage, self.dtype)
        x_t, t, noise = make_triple(Tables(signal, sigma, key), batch)
        return x_t, t, noise


class LatentKernel(NamedTuple):
    """:meth:`~ddpm_data.latents.Latents.sample` as a function of tensors alone."""

    latents: Latents
    stage: Stage

    def __call__(self, signal: Tensor, sigma: Tensor, key: Tensor, values: Tensor, position: Tensor) -> tuple[Tensor]:
        """Return the latents."""
        key_words = Tables(signal, sigma, key).key_words()
        return (self.latents.sample(key_words, values, position, self.stage),)


def scale_images(images: Tensor) -> Tensor:
    """Scale uint8 images to float32 in ``[-1, 1]``, 0 and 255 to the ends exactly; floats are taken as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()


def _join_quarters(quarters: list[Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    flat = torch.stack([quarter.to(dtype) for quarter in quarters], dim=1).view(shape[0], -1)
    return flat[:, : shape[1:].numel()].reshape(shape)


def _draw_timesteps(tables: Tables, batch: TripleInputs) -> Tensor:
    if isinstance(batch.timesteps, Tensor):
        return batch.timesteps
    t: Tensor = batch.timesteps(batch.position, len(tables.signal), tables.key_words(), batch.stage)
    return t
