"""The arithmetic of the batch transform: draw ``t`` and noise, compute ``x_t`` (DDPM, Eq. 4) and the target.

These are plain functions of tensors, for any device. ``_triton`` and ``_cpp`` do the same in one pass over the images,
on CUDA devices and CPUs. All process the four quarters of an image side by side, because a block of four Philox words
gives one number to each quarter.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_data.diffusion.noises import Noise, Steps
from ddpm_data.diffusion.timesteps import draw_word, find_steps
from ddpm_data.rng.philox import Key, Purpose, normal_quarters, words
from ddpm_data.types import Stage

# Numbers drawn at once without a compiler. Intermediates of a few MB stay in a CPU's caches. On a GPU each of some 300
# operations is a launch, so few large ones take less time.
_EAGER_NUMBERS_ON_CPU = 2**19
_EAGER_NUMBERS = 2**24


class Draw(NamedTuple):
    """How ``t`` is drawn.

    Attributes:
        has_density: Whether by the thresholds of a density; otherwise uniformly.
        low_discrepancy: Whether training draws with low discrepancy, as the other stages do.
        strided: Whether a batch has every k-th position, see :func:`~ddpm_data.diffusion.timesteps.draw_word`.
    """

    has_density: bool
    low_discrepancy: bool
    strided: bool


class TripleInputs(NamedTuple):
    """The inputs for a batch of triples, besides the tables.

    Attributes:
        images: Clean images, uint8 or float, shape ``(batch, channels, height, width)``.
        position: Positions of the examples in the stage's stream, int64, shape ``(batch,)``.
        timesteps: ``t``, int64, shape ``(batch,)``, or how it is drawn.
        flip: Probability of mirroring an image; 0 draws nothing.
        stage: The stage whose stream the positions belong to.
        dtype: The dtype of ``x_t`` and the target.
        predicts_noise: Whether the target is the noise, so that no other is computed.
        noise: A variant of the noise; ``None`` is standard normal noise.
    """

    images: Tensor
    position: Tensor
    timesteps: Draw | Tensor
    flip: float
    stage: Stage
    dtype: torch.dtype
    predicts_noise: bool = True
    noise: Noise | None = None


class Tables(NamedTuple):
    """The tensors that stay on the device from batch to batch.

    Attributes:
        signal: The factor of ``x_0`` in ``x_t`` at each step, float32, shape ``(num_timesteps,)``.
        sigma: The factor of the noise in ``x_t`` at each step, float32, shape ``(num_timesteps,)``.
        target_x: The factor of ``x_0`` in the target, likewise.
        target_n: The factor of the noise in the target, likewise.
        thresholds: The thresholds of the density of ``t``, int64, shape ``(num_timesteps,)``; shape ``(0,)`` if ``t``
            is uniform or given.
        key: The two words of the seed's key, int64, shape ``(2,)``.
    """

    signal: Tensor
    sigma: Tensor
    target_x: Tensor
    target_n: Tensor
    thresholds: Tensor
    key: Tensor

    def key_words(self) -> Key:
        """Return the key's words as tensors on the device, which nothing has to wait for."""
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


def make_triple(tables: Tables, batch: TripleInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Make ``x_t``, ``t`` and the target: contiguous tensors, computed in float32 and cast last."""
    images, position, _, flip, stage, dtype, predicts_noise, _ = batch
    if flip:
        images = mirror(images, flip_mask(tables, position, flip))
    t = draw_timesteps(tables, batch)
    flat = images.flatten(1)
    quarter = -(-flat.shape[1] // 4)
    flat = F.pad(flat, (0, 4 * quarter - flat.shape[1]))
    quarters = flat.view(-1, 4, quarter)
    x_0 = [scale_images(quarters[:, i]) for i in range(4)]
    noise = normal_quarters(tables.key_words(), Purpose.NOISE, stage, position, quarter)
    added: Sequence[Tensor] = noise
    learned: Sequence[Tensor] = noise
    if batch.noise is not None:
        steps = Steps(t, tables.signal, tables.sigma)
        added, learned = batch.noise(noise, x_0, tables.key_words(), stage, position, images.shape, steps)
    signal, sigma = tables.signal[t][:, None], tables.sigma[t][:, None]
    x_t = [signal * x + sigma * n for x, n in zip(x_0, added, strict=True)]
    target = list(learned)
    if not predicts_noise:
        of_x, of_n = tables.target_x[t][:, None], tables.target_n[t][:, None]
        target = [of_x * x + of_n * n for x, n in zip(x_0, learned, strict=True)]
    return _join_quarters(x_t, images.shape, dtype), t, _join_quarters(target, images.shape, dtype)


def make_triple_in_blocks(tables: Tables, batch: TripleInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Make the triple without a compiler, a few images at a time, as :func:`make_triple` does."""
    images, position, dtype = batch.images, batch.position, batch.dtype
    t = draw_timesteps(tables, batch)
    x_t = torch.empty(images.shape, dtype=dtype, device=images.device)
    target = torch.empty_like(x_t)
    numbers = _EAGER_NUMBERS_ON_CPU if images.device.type == "cpu" else _EAGER_NUMBERS
    rows = max(1, numbers // max(1, images.shape[1:].numel()))
    for i in range(0, len(images), rows):
        block = slice(i, i + rows)
        part = batch._replace(images=images[block], position=position[block], timesteps=t[block])
        x_t[block], _, target[block] = make_triple(tables, part)
    return x_t, t, target


def scale_images(images: Tensor) -> Tensor:
    """Scale uint8 images to float32 in ``[-1, 1]``, with 0 at exactly -1 and 255 at exactly 1; keep floats unscaled."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()


def _join_quarters(quarters: list[Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    flat = torch.stack([quarter.to(dtype) for quarter in quarters], dim=1).view(shape[0], -1)
    return flat[:, : math.prod(shape[1:])].contiguous().view(shape)


def draw_timesteps(tables: Tables, batch: TripleInputs) -> Tensor:
    """Draw ``t``, unless it is given."""
    if isinstance(batch.timesteps, Tensor):
        return batch.timesteps
    has_density, low_discrepancy, strided = batch.timesteps
    word = draw_word(batch.position, tables.key_words(), batch.stage, low_discrepancy, strided)
    if has_density:
        return find_steps(tables.thresholds, word)
    # The high half of an integer product is exact. floor(u * T) in float32 can round up to T.
    return (word * len(tables.signal)) >> 32
