"""The arithmetic of the batch transform: draw ``t`` and noise, compute ``x_t`` (DDPM, Eq. 4) and the target.

These are plain functions of tensors, for any device. ``_triton`` and ``_cpp`` do the same in one pass over the images,
on CUDA devices and CPUs. All process the four quarters of an image side by side, because a block of four Philox words
gives one number to each quarter.
"""

from collections.abc import Callable, Sequence
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
_NUMBERS_ON_CPU = 2**20
_NUMBERS = 2**24


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


MakeTriple = Callable[[Tables, TripleInputs], tuple[Tensor, Tensor, Tensor]]


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


@torch.no_grad()
def make_triple(tables: Tables, batch: TripleInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Make ``x_t``, ``t`` and the target a few images at a time: contiguous, computed in float32 and cast last."""
    images, position, t = batch.images, batch.position, draw_timesteps(tables, batch)
    x_t = torch.empty(images.shape, dtype=batch.dtype, device=images.device)
    target = torch.empty_like(x_t)
    numbers = _NUMBERS_ON_CPU if images.is_cpu else _NUMBERS
    rows = max(1, numbers // max(1, images.shape[1:].numel()))
    for i in range(0, len(images), rows):
        block = slice(i, i + rows)
        part = batch._replace(images=images[block], position=position[block])
        _noise_images(tables, part, t[block], x_t[block].flatten(1), target[block].flatten(1))
    return x_t, t, target


def _noise_images(tables: Tables, batch: TripleInputs, t: Tensor, x_t: Tensor, target: Tensor) -> None:
    """Write ``x_t`` and the target, shape ``(batch, numel)``."""
    images, position, _, flip, stage, _, predicts_noise, variant = batch
    if flip:
        images = mirror(images, flip_mask(tables, position, flip))
    flat = images.flatten(1)
    numel = flat.shape[1]
    quarter = -(-numel // 4)
    if numel % 4:
        flat = F.pad(flat, (0, 4 * quarter - numel))
    x_0 = [scale_images(part) for part in flat.view(len(flat), 4, quarter).unbind(1)]
    noise = normal_quarters(tables.key_words(), Purpose.NOISE, stage, position, quarter)
    added: Sequence[Tensor] = noise
    learned: Sequence[Tensor] = noise
    if variant is not None:
        steps = Steps(t, tables.signal, tables.sigma)
        added, learned = variant(noise, x_0, tables.key_words(), stage, position, images.shape, steps)
    columns = (tables.signal, tables.sigma) if predicts_noise else tables[:4]
    a, b, *of_target = (column[t][:, None] for column in columns)
    for i in range(4):
        start, stop = (min(end * quarter, numel) for end in (i, i + 1))  # the padding is left out
        x_t[:, start:stop] = (a * x_0[i]).add_(b * added[i])[:, : stop - start]
        goal = learned[i]
        if not predicts_noise:
            p, q = of_target
            goal = (p * x_0[i]).add_(q * goal)
        target[:, start:stop] = goal[:, : stop - start]


def scale_images(images: Tensor) -> Tensor:
    """Scale uint8 images to float32 in ``[-1, 1]``, with 0 at exactly -1 and 255 at exactly 1; keep floats unscaled."""
    return images.float().div_(127.5).sub_(1) if images.dtype == torch.uint8 else images.float()


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
