"""The arithmetic of the batch transform: draw ``t`` and noise, and compute ``x_t`` (DDPM, Eq. 4).

These are plain functions of tensors, written to be compiled into one pass over the images. They process the four
quarters of an image side by side, because a block of four Philox words gives one number to each quarter. So a compiled
kernel reads and writes contiguous memory and keeps words, noise and ``x_t`` in registers.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_data.diffusion.timesteps import Timesteps, UniformTimesteps
from ddpm_data.latents import Latents
from ddpm_data.rng.philox import Key, Purpose, normal_quarters, words
from ddpm_data.types import Stage, Triple

# Numbers drawn at once without a compiler. Intermediates of a few MB stay in a CPU's caches. On a GPU each of some 300
# operations is a launch, so few large ones take less time.
_EAGER_NUMBERS_ON_CPU = 2**19
_EAGER_NUMBERS = 2**24


class TripleInputs(NamedTuple):
    """The inputs for a batch of triples, besides the tables.

    Attributes:
        images: Clean images, uint8 or float, shape ``(batch, channels, height, width)``.
        position: Positions of the examples in the stage's stream, int64, shape ``(batch,)``.
        timesteps: ``t``, int64, shape ``(batch,)``, or the function that draws it.
        flip: Probability of mirroring an image; 0 draws nothing.
        stage: The stage whose stream the positions belong to.
        dtype: The dtype of ``x_t`` and the noise.
    """

    images: Tensor
    position: Tensor
    timesteps: Timesteps | Tensor
    flip: float
    stage: Stage
    dtype: torch.dtype


class Tables(NamedTuple):
    """The tensors that stay on the device from batch to batch.

    Attributes:
        signal: The factor of ``x_0`` in ``x_t`` at each step, float32, shape ``(num_timesteps,)``.
        sigma: The factor of the noise in ``x_t`` at each step, float32, shape ``(num_timesteps,)``.
        key: The two words of the seed's key, int64, shape ``(2,)``.
    """

    signal: Tensor
    sigma: Tensor
    key: Tensor

    def key_words(self) -> Key:
        """Return the key's words as tensors, so that one compiled graph serves any seed."""
        return Key(self.key[0], self.key[1])


def flip_mask(tables: Tables, position: Tensor, probability: float) -> Tensor:
    """Draw which training images to mirror; returns bool, shape ``(batch,)``."""
    word = words(tables.key_words(), Purpose.FLIP, "train", position)[0][:, 0]
    return word < round(probability * 2**32)


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the images left to right for which ``mirrored`` is true."""
    mask = mirrored.view(-1, *[1] * (images.dim() - 1))
    if images.dtype != torch.uint8 or images.device.type != "cpu":
        return torch.where(mask, images.flip(-1), images)
    # On a CPU, torch.where on bytes takes six times as long, because it is not vectorised.
    return images.flip(-1).bitwise_xor_(images).bitwise_and_(mask.to(torch.uint8) * 255).bitwise_xor_(images)


def make_triple(tables: Tables, batch: TripleInputs) -> Triple:
    """Make the triple: contiguous tensors, computed in float32 and cast last."""
    images, position, _, flip, stage, dtype = batch
    if flip:
        images = mirror(images, flip_mask(tables, position, flip))
    t = _draw_timesteps(tables, batch)
    flat = images.flatten(1)
    numel = flat.shape[1]  # a symbol while the code is compiled, which Size.numel() would turn into a number
    missing = int(-numel % 4)  # a number, for which the code is compiled
    quarter = (numel + missing) // 4
    if missing:  # by cat, because F.pad cannot be traced with symbols
        flat = torch.cat([flat, flat.new_zeros((flat.shape[0], missing))], dim=1)
    quarters = flat.view(-1, 4, quarter)
    signal, sigma = tables.signal[t][:, None], tables.sigma[t][:, None]
    noise = normal_quarters(tables.key_words(), Purpose.NOISE, stage, position, quarter)
    x_t = [signal * scale_images(quarters[:, i]) + sigma * noise[i] for i in range(4)]
    return Triple(_join_quarters(x_t, images.shape, dtype), t, _join_quarters(noise, images.shape, dtype))


def make_triple_in_blocks(tables: Tables, batch: TripleInputs) -> Triple:
    """Make the triple without a compiler, a few images at a time, as :func:`make_triple` does."""
    images, position, _, _, _, dtype = batch
    t = _draw_timesteps(tables, batch)
    x_t = torch.empty(images.shape, dtype=dtype, device=images.device)
    noise = torch.empty_like(x_t)
    numbers = _EAGER_NUMBERS_ON_CPU if images.device.type == "cpu" else _EAGER_NUMBERS
    rows = max(1, numbers // max(1, images.shape[1:].numel()))
    for i in range(0, len(images), rows):
        block = slice(i, i + rows)
        part = batch._replace(images=images[block], position=position[block], timesteps=t[block])
        x_t[block], _, noise[block] = make_triple(tables, part)
    return Triple(x_t, t, noise)


class FlipMaskKernel(NamedTuple):
    """A kernel that calls :func:`flip_mask`."""

    probability: float

    def __call__(self, signal: Tensor, sigma: Tensor, key: Tensor, position: Tensor) -> tuple[Tensor]:
        """Return the mask."""
        return (flip_mask(Tables(signal, sigma, key), position, self.probability),)


class TripleKernel(NamedTuple):
    """A kernel that calls :func:`make_triple`; ``low_discrepancy`` is ``None`` if ``t`` is one of its arguments."""

    low_discrepancy: bool | None
    stage: Stage
    dtype: torch.dtype

    def __call__(
        self, signal: Tensor, sigma: Tensor, key: Tensor, images: Tensor, position: Tensor, *given_t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``x_t``, ``t`` and the noise."""
        timesteps = given_t[0] if self.low_discrepancy is None else UniformTimesteps(self.low_discrepancy)
        batch = TripleInputs(images, position, timesteps, 0.0, self.stage, self.dtype)
        x_t, t, noise = make_triple(Tables(signal, sigma, key), batch)
        return x_t, t, noise


class LatentKernel(NamedTuple):
    """A kernel that calls :meth:`~ddpm_data.latents.Latents.sample`."""

    latents: Latents
    stage: Stage

    def __call__(self, signal: Tensor, sigma: Tensor, key: Tensor, values: Tensor, position: Tensor) -> tuple[Tensor]:
        """Return the latents."""
        key_words = Tables(signal, sigma, key).key_words()
        return (self.latents.sample(key_words, values, position, self.stage),)


def scale_images(images: Tensor) -> Tensor:
    """Scale uint8 images to float32 in ``[-1, 1]``, with 0 at exactly -1 and 255 at exactly 1; keep floats unscaled."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()


def _join_quarters(quarters: list[Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    flat = torch.stack([quarter.to(dtype) for quarter in quarters], dim=1).view(shape[0], -1)
    return flat[:, : math.prod(shape[1:])].contiguous().view(shape)


def _draw_timesteps(tables: Tables, batch: TripleInputs) -> Tensor:
    if isinstance(batch.timesteps, Tensor):
        return batch.timesteps
    t: Tensor = batch.timesteps(batch.position, len(tables.signal), tables.key_words(), batch.stage)
    return t
