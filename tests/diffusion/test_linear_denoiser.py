"""The best linear denoiser's loss, beside filters that were found without Fourier transforms."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_data import ForwardProcess, GaussianProcess, processes, schedules
from ddpm_data.diffusion.linear_denoiser import estimate_spectrum, linear_baseline, linear_losses
from ddpm_data.diffusion.targets import Target, error_ratio, make_table, nearly_exact
from ddpm_data.diffusion.timestep_bins import TimestepBins
from tests.conftest import uint8_images


def smooth_images(count: int, channels: int, height: int, width: int) -> Tensor:
    """Images whose neighbouring pixels and channels are alike, around a mean that differs from pixel to pixel."""
    values = uint8_images(count, channels, height, width).double() / 127.5 - 1
    values = values + values.roll(1, 3) + values.roll(1, 2) / 2 + values.flip(1)
    return (values / 4 + torch.linspace(-1, 1, width)).float()


def shifted(x_0: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Every image, less the mean, moved around by every distance: shape (images * height * width, values)."""
    centred = (x_0 - x_0.mean(0)).double().numpy()
    distances = itertools.product(range(x_0.shape[2]), range(x_0.shape[3]))
    return np.concatenate([np.roll(centred, distance, (2, 3)).reshape(len(x_0), -1) for distance in distances])


@pytest.mark.parametrize("shape", [(20, 1, 4, 6), (20, 3, 5, 4), (5, 2, 3, 3)])
def test_the_loss_is_that_of_the_normal_equations(shape: tuple[int, int, int, int]) -> None:
    """The filter that is best for images is the best matrix for all of their shifts."""
    x_0, snr = smooth_images(*shape), torch.tensor([1e4, 10.0, 1.0, 0.03, 1e-5])
    rows = shifted(x_0)
    covariance = rows.T @ rows / len(rows) * len(x_0) / (len(x_0) - 1)
    found = linear_losses(estimate_spectrum(x_0), snr, snr)
    for ratio, loss in zip(snr.tolist(), found.tolist(), strict=True):
        signal, noise = ratio / (1 + ratio), 1 / (1 + ratio)
        total = signal * covariance + noise * np.eye(len(covariance))
        assert loss == pytest.approx(1 - noise * np.trace(np.linalg.inv(total)) / len(total), rel=1e-4)


def test_the_loss_is_what_a_fitted_filter_leaves_of_drawn_noise() -> None:
    x_0, process, t = smooth_images(40, 1, 4, 4), ForwardProcess(schedules.linear()), 150
    rows = np.tile(shifted(x_0), (100, 1))  # each with a hundred draws of noise
    noise = np.random.default_rng(0).standard_normal(rows.shape)
    signal, sigma = float(process.sqrt_alphas_cumprod[t]), float(process.sqrt_one_minus_alphas_cumprod[t])
    x_t = signal * rows + sigma * noise
    weights, *_ = np.linalg.lstsq(x_t, noise[:, 0], rcond=None)  # the noise of one pixel: all shifts are there
    left = np.square(noise[:, 0] - x_t @ weights).mean()
    snr = process.snr(torch.tensor([t]))
    expected = linear_losses(estimate_spectrum(x_0) * 39 / 40, snr, snr)
    # 64,000 draws: the mean of squares is within 2.5% (4.5 sigma, 1e-5 false alarms).
    assert left == pytest.approx(float(expected), rel=0.025)
    assert float(expected) < 0.9 * float(linear_losses(torch.tensor([x_0.var()]), snr, snr))


def test_white_images_leave_the_share_of_the_signal() -> None:
    snr = torch.tensor([1e30, 3.0, 1.0, 0.0])
    assert linear_losses(torch.ones(8), snr, snr).tolist() == [1, 0.75, 0.5, 0]
    assert linear_losses(torch.zeros(8), snr, snr).tolist() == [0, 0, 0, 0]  # nothing but noise is seen of them


@pytest.mark.parametrize(
    ("process", "target"),
    [
        (ForwardProcess(schedules.linear(50)), "velocity"),
        (processes.rectified_flow(50), "flow"),
        (processes.edm(50), "edm"),
        (ForwardProcess(schedules.zero_terminal_snr(schedules.linear(50))), "x_0"),
    ],
)
def test_every_target_by_least_squares(process: GaussianProcess, target: Target) -> None:
    """White images of variance 0.3: what regression of the target on x_t leaves, step by step."""
    generator = np.random.default_rng(0)
    x_0, noise = generator.standard_normal((2, 200_000))
    x_0 *= 0.3**0.5
    table = make_table(process, target)
    found = linear_baseline_of_white(process, target)
    for t in (0, 20, 49):
        x_t = float(process.exact.signal[t]) * x_0 + float(process.exact.sigma[t]) * noise
        wanted = float(table.x_0[t]) * x_0 + float(table.noise[t]) * noise
        left = wanted - x_t * (wanted @ x_t) / (x_t @ x_t)
        # 200,000 draws: the mean of squares is within 2% (6 sigma)
        assert float(found[t]) == pytest.approx(np.square(left).mean(), rel=0.02, abs=1e-9)


def linear_baseline_of_white(process: GaussianProcess, target: Target) -> Tensor:
    signal, sigma = nearly_exact(process)
    spectrum = torch.full((8,), 0.3, dtype=torch.float64)
    return linear_losses(spectrum, (signal / sigma).square(), error_ratio(process, target))


@pytest.mark.parametrize(("num_timesteps", "count"), [(50, 7), (3, 10), (1, 1)])
def test_ranges_hold_the_mean_over_their_steps(num_timesteps: int, count: int) -> None:
    x_0, process = smooth_images(20, 1, 4, 4), ForwardProcess(schedules.cosine(num_timesteps))
    ranges = TimestepBins(num_timesteps, count)
    found = linear_baseline(x_0, process, ranges)
    assert found.images == 20
    snr = process.snr(torch.arange(num_timesteps))
    losses = linear_losses(estimate_spectrum(x_0), snr, snr)
    for first, last in zip(ranges.first, ranges.last, strict=True):
        assert found.losses[first, last] == pytest.approx(float(losses[first : last + 1].mean()), rel=1e-5)
