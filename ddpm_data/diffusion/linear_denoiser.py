"""The loss of the best linear denoiser: what a model should stay below at every step.

The denoiser subtracts the images' mean, and filters: the same weights at every pixel, over all channels, with images
that continue on the opposite side. Of all such filters, the best one weighs each frequency by itself (Wiener 1949). The
error that it leaves follows from the images' spectrum, exactly, whatever else their distribution is.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_data.diffusion.process import GaussianProcess
from ddpm_data.diffusion.targets import Target, error_ratio, nearly_exact
from ddpm_data.diffusion.timestep_bins import TimestepBins

_STEPS_PER_BIN = 64  # at most; the error is smooth in t


class LinearBaseline(NamedTuple):
    """The best linear denoiser's loss in ranges of t.

    Attributes:
        losses: Its mean squared error of the target, by the first and the last step of each range.
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
    eigenvalues: Tensor = torch.linalg.eigvalsh(covariance)
    return eigenvalues.flatten().clamp(min=0)  # rounding makes some less than 0


def linear_losses(spectrum: Tensor, snr: Tensor, ratio: Tensor) -> Tensor:
    """Compute the mean squared error that the best linear denoiser makes when it predicts the target.

    In the direction of an eigenvalue ``v``, the variance of ``x_t`` is ``signal**2 v + sigma**2``. The best linear
    estimate of ``x_0`` leaves ``v / (1 + SNR v)`` of its variance, from which the error of every target follows.

    Args:
        spectrum: Variances of the clean images, of :func:`estimate_spectrum`.
        snr: Finite signal-to-noise ratios, shape ``(steps,)``.
        ratio: By what the squared error of ``x_0`` grows to that of the target, shape of ``snr``, see
            :func:`~ddpm_data.diffusion.targets.error_ratio`. For the noise it is the signal-to-noise ratio.

    Returns:
        Mean squared errors per value, shape of ``snr``.
    """
    pairs = zip(snr, ratio, strict=True)
    return torch.stack([growth * (spectrum / (1 + step * spectrum)).mean() for step, growth in pairs])


def linear_baseline(
    x_0: Tensor, process: GaussianProcess, ranges: TimestepBins, target: Target = "noise"
) -> LinearBaseline:
    """Compute the best linear denoiser's loss in ranges of t.

    Args:
        x_0: Clean images, as for :func:`estimate_spectrum`.
        process: The forward process that noises them.
        ranges: The ranges of t.
        target: What is predicted.
    """
    spectrum, losses = estimate_spectrum(x_0).double().cpu(), {}
    signal, sigma = nearly_exact(process)
    snr, ratio = (signal / sigma).square(), error_ratio(process, target)
    for first, last in zip(ranges.first, ranges.last, strict=True):
        steps = torch.linspace(first, last, min(last - first + 1, _STEPS_PER_BIN)).round().long()
        losses[first, last] = float(linear_losses(spectrum, snr[steps], ratio[steps]).mean())
    return LinearBaseline(losses, len(x_0))
