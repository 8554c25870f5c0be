"""Losses by ranges of t: a partition, exact sums, a table that survives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_data import ForwardProcess, schedules
from ddpm_data.diffusion.timestep_bins import BinLoss, TimestepBins, read_losses, write_losses


@pytest.mark.parametrize("count", [1, 3, 10, 64])
@pytest.mark.parametrize("num_timesteps", [1, 2, 7, 10, 99, 1000, 4001])
def test_every_step_is_in_the_range_that_says_so_and_widths_differ_by_one(num_timesteps: int, count: int) -> None:
    buckets = TimestepBins(num_timesteps, count)
    assert buckets.count == min(num_timesteps, count)
    bounds = list(zip(buckets.first, buckets.last, strict=True))
    assert [step for first, last in bounds for step in range(first, last + 1)] == list(range(num_timesteps))
    expected = [number for number, (first, last) in enumerate(bounds) for _ in range(first, last + 1)]
    assert buckets.find_bin(torch.arange(num_timesteps)).tolist() == expected
    widths = {last - first for first, last in bounds}
    assert max(widths) - min(widths) <= 1


def test_names_sort_as_their_steps_do() -> None:
    assert TimestepBins(1000, 10).names[:2] == ["0000-0099", "0100-0199"]
    assert TimestepBins(10_000, 2).names == ["0000-4999", "5000-9999"]
    names = TimestepBins(20_000, 13).names
    assert sorted(names) == names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_exact_also_of_halves(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(0, 37, (5000,), generator=generator)
    losses = torch.rand(5000, generator=generator).to(dtype)
    sums = TimestepBins(37, 5).sum_losses(t, losses)
    wide = losses.double().numpy()
    oracle, _ = np.histogram(t.numpy(), [0, 8, 15, 23, 30, 37], weights=wide)
    torch.testing.assert_close(sums[0], torch.from_numpy(oracle), rtol=1e-13, atol=0)
    assert sums[1].tolist() == np.histogram(t.numpy(), [0, 8, 15, 23, 30, 37])[0].tolist()


def test_a_loss_that_is_no_number_spoils_its_own_range_only() -> None:
    sums = TimestepBins(10, 2).sum_losses(torch.tensor([1, 7]), torch.tensor([float("nan"), 2.0]))
    assert sums[0, 0].isnan()
    assert sums[0, 1] == 2


@pytest.mark.parametrize("betas", [schedules.jsd(5), torch.tensor([0.0, 0.5, 1.0]), schedules.cosine(1000)])
def test_the_ratio_is_a_number_also_where_there_is_no_signal_or_no_noise(betas: torch.Tensor) -> None:
    process, buckets = ForwardProcess(betas), TimestepBins(len(betas), 10)
    found = buckets.to_rows(torch.ones(2, buckets.count), process, 0, 0)
    ratios = [row.log_snr_db for row in found]
    assert np.isfinite(ratios).all()
    assert sorted(ratios, reverse=True) == ratios
    middle = process.snr(torch.tensor([(found[1].first_t + found[1].last_t) // 2]))
    assert ratios[1] == pytest.approx(10 * float(middle.log10()), abs=1e-3)


def test_the_table_gives_back_what_was_written(tmp_path: Path) -> None:
    written = [
        BinLoss(0, 10, 0, 4, -3.25, 0.1 + 0.2, 7),
        BinLoss(0, 10, 5, 9, -200.0, None, 0),
        BinLoss(1, 20, 0, 4, 3.0, 1e-30, 7),
    ]
    write_losses(written, tmp_path / "a.csv")
    assert read_losses(tmp_path / "a.csv") == written
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_another_file_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"callbacks\.timestep_loss.folder"):
        read_losses(tmp_path / "a.csv")
