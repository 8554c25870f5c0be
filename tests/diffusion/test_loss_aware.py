"""The table of a loss-aware density: its shares, its thresholds, and draws from it that are unbiased."""

from typing import Any

import pytest
import torch

from ddpm_data import ForwardDiffusion, ForwardProcess, LossAwareTimesteps, UniformTimesteps, schedules, weights
from ddpm_data.diffusion.loss_aware import BINS, spread_shares
from ddpm_data.diffusion.timestep_bins import TimestepBins
from tests.conftest import uint8_images


def table(num_timesteps: int, roots: torch.Tensor, floor: float = 0.1, scale: float = 1.0) -> list[int] | None:
    """The shares for losses whose roots of second moments are these."""
    bins = TimestepBins(num_timesteps, BINS)
    counts = 7 + torch.arange(len(roots), dtype=torch.float64) % 5  # some ranges are seen more often
    return LossAwareTimesteps(sightings=7, floor=floor).find_shares(
        bins, torch.stack([roots.square() * counts * scale, counts])
    )


@pytest.mark.parametrize("num_timesteps", [1, 3, 64, 65, 1000, 65536])
def test_probabilities_are_proportional_to_the_root_of_the_second_moment(num_timesteps: int) -> None:
    bins = TimestepBins(num_timesteps, BINS)
    roots = torch.linspace(1, 50, bins.count, dtype=torch.float64)
    shares = table(num_timesteps, roots)
    assert shares is not None
    assert sum(shares) == 2**32
    thresholds = spread_shares(ForwardProcess(schedules.constant(num_timesteps)), shares)
    assert int(thresholds[-1]) == 2**32
    probabilities = thresholds.diff(prepend=thresholds.new_zeros(1)).double() / 2**32
    of_step = roots[bins.find_bin(torch.arange(num_timesteps))]
    expected = 0.1 / num_timesteps + 0.9 * of_step / of_step.sum()
    torch.testing.assert_close(probabilities, expected, rtol=0.02, atol=0)  # roots are rounded to a 64th of an octave


def test_a_table_does_not_see_the_last_digits_of_sums() -> None:
    """So another order of adding, with other processes, gives the same table."""
    roots = torch.linspace(1, 50, BINS, dtype=torch.float64)
    assert table(1000, roots) == table(1000, roots, scale=1 + 1e-14)
    assert table(1000, roots) != table(1000, roots.flip(0))


def test_uniform_until_each_range_was_seen_and_where_all_losses_are_0() -> None:
    bins, timesteps = TimestepBins(1000, BINS), LossAwareTimesteps(sightings=5)
    sums = torch.ones(2, BINS, dtype=torch.float64) * 5
    assert timesteps.find_shares(bins, sums) is not None
    sums[1, 17] = 4
    assert timesteps.find_shares(bins, sums) is None
    shares = table(64, torch.zeros(BINS, dtype=torch.float64))
    assert shares == [2**26] * BINS


def test_draws_follow_the_table_and_weights_make_up_for_it() -> None:
    process = ForwardProcess(schedules.linear(256))
    transform = ForwardDiffusion(process, timesteps=LossAwareTimesteps(), weight=weights.min_snr, compile=False)
    storage = [tensor.data_ptr() for tensor in (transform._thresholds, transform.objective.weight)]
    base = weights.min_snr(process, "noise")
    torch.testing.assert_close(transform.objective.weight, base.float())  # uniform at first
    shares = table(256, torch.linspace(1, 9, BINS, dtype=torch.float64))
    transform.use_shares(shares)
    assert storage == [tensor.data_ptr() for tensor in (transform._thresholds, transform.objective.weight)]
    count = 2**16
    t = transform(uint8_images(1, 1, 1, 1).expand(count, 1, 1, 1), torch.arange(count)).t
    assert shares is not None
    expected = torch.tensor(shares).double() / 2**32
    drawn = torch.bincount(t // 4, minlength=BINS).double() / count
    assert bool(((drawn - expected).abs() < 5.5 * (expected / count).sqrt()).all())  # false alarm 64 x 4e-8
    torch.testing.assert_close(transform.loss_weight(t).double().mean(), base.mean(), rtol=0.02, atol=0)
    images, position = uint8_images(64, 1, 2, 2), torch.arange(64)
    plain = ForwardDiffusion(process, timesteps=UniformTimesteps(), compile=False)
    for stage in ("val", "test", "predict"):
        assert torch.equal(transform(images, position, stage).t, plain(images, position, stage).t)  # type: ignore[arg-type]
    transform.use_shares(None)
    torch.testing.assert_close(transform.objective.weight, base.float())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(every=0), "every"),
        (dict(sightings=0), "sightings"),
        (dict(floor=0.0), "finite"),
        (dict(floor=1.5), "finite"),
        (dict(decay=1.0), "decay"),
        (dict(low_discrepancy=1), "low_discrepancy"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        LossAwareTimesteps(**options)


def test_it_draws_independently_by_default() -> None:
    assert not LossAwareTimesteps().low_discrepancy
