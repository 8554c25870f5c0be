"""The loss of the best linear denoiser: what a model should stay below at every step.

The denoiser subtracts the images' mean, and filters: the same weights at every pixel, over all channels, with images
that continue on the opposite side. Of all such filters, the best one weighs each frequency by itself (Wiener 1949). The
error that it leaves follows from the images' spectrum, exactly, whatever else their distribution is.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_data.diffusion.process import ForwardProcess
from ddpm_data.diffusion.timestep_bins import TimestepBins

_STEPS_PER_BIN = 64  # at most; the error is smooth in t


class LinearBaseline(NamedTuple):
    """The best linear denoiser's loss in ranges of t.

    Attributes:
        losses: Its mean squared error of the noise, by the first and the last step of each range.
        images: Number of images that the spectrum was estimated from.
    """

    losses: dict[tuple[int, int], float]
    images: int


def estimate_spectrum(x_0: Tensor) -> Tensor:
    """Estimate the variance of images at each frequency.

    Args:
        x_0: Clean images, float, shape ``(images, channels, height, width)``, at least two.

    Returns:
        The eigenvalues of the covariance of the channels at each frequency, float32, shape
        ``(height * width * channels,)``. Their mean is the mean variance of a pixel.
    """
    waves = torch.fft.fft2((x_0 - x_0.mean(0)).float(), norm="ortho").flatten(2)
    covariance = torch.einsum("ncf,ndf->fcd", waves, waves.conj()) / (len(x_0) - 1)
    return torch.linalg.eigvalsh(covariance).flatten().clamp(min=0)  # rounding makes some less than 0


def linear_noise_losses(spectrum: Tensor, snr: Tensor) -> Tensor:
    """Compute the mean squared error that the best linear denoiser makes when it predicts the noise.

    In the direction of an eigenvalue ``v``, the variance of ``x_t`` is ``abar v + 1 - abar`` (DDPM, Eq. 4). The best
    linear estimate of the noise leaves ``abar v / (abar v + 1 - abar)`` of the noise's variance.

    Args:
        spectrum: Variances of the clean images, of :func:`estimate_spectrum`.
        snr: Signal-to-noise ratios ``abar / (1 - abar)``, shape ``(steps,)``; may be infinite.

    Returns:
        Mean squared errors per value, in ``[0, 1]``, shape of ``snr``.
    """
    losses = torch.stack([(spectrum / (spectrum + 1 / ratio)).mean() for ratio in snr])
    return torch.where(snr.isinf(), 1.0, losses)  # x_t without noise says nothing about it


def linear_baseline(x_0: Tensor, process: ForwardProcess, ranges: TimestepBins) -> LinearBaseline:
    """Compute the best linear denoiser's loss in ranges of t.

    Args:
        x_0: Clean images, as for :func:`estimate_spectrum`.
        process: The forward process that noises them.
        ranges: The ranges of t.
    """
    spectrum, losses = estimate_spectrum(x_0), {}
    for first, last in zip(ranges.first, ranges.last, strict=True):
        steps = torch.linspace(first, last, min(last - first + 1, _STEPS_PER_BIN)).round().long()
        snr = process.snr(steps.to(process.betas.device)).to(spectrum.device)
        losses[first, last] = float(linear_noise_losses(spectrum, snr).mean())
    return LinearBaseline(losses, len(x_0))
