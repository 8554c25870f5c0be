"""Losses by ranges of t: the ranges, sums of losses over examples, and the CSV table that stores them."""

import csv
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_data.diffusion.process import GaussianProcess

MAX_DECIBELS = 200.0  # without signal or without noise the ratio is infinite


class BinLoss(NamedTuple):
    """The loss of one range of t in one validation: a line of ``timestep_loss.csv``.

    Attributes:
        epoch: Training epoch, zero-based.
        step: Number of optimizer steps before the validation.
        first_t: First step of the range, zero-based.
        last_t: Last step of the range, inclusive.
        log_snr_db: Signal-to-noise ratio at the range's middle step, decibels, in ``[-200, 200]``.
        loss: Mean loss over the range's examples; ``None`` without examples.
        examples: Number of examples in the range.
    """

    epoch: int
    step: int
    first_t: int
    last_t: int
    log_snr_db: float
    loss: float | None
    examples: int


class TimestepBins:
    """The steps ``0 .. num_timesteps - 1``, cut into ranges whose widths differ by one at most.

    Args:
        num_timesteps: T, number of steps.
        count: Number of ranges; with fewer steps than that, each step has its own range.
    """

    def __init__(self, num_timesteps: int, count: int) -> None:
        self.num_timesteps = num_timesteps
        self.count = min(count, num_timesteps)
        edges = [-(-number * num_timesteps // self.count) for number in range(self.count + 1)]
        self.first = edges[:-1]
        self.last = [edge - 1 for edge in edges[1:]]

    @property
    def names(self) -> list[str]:
        """The ranges' names, such as ``0000-0099``; they sort by number."""
        digits = max(4, len(str(self.num_timesteps - 1)))
        return [f"{first:0{digits}d}-{last:0{digits}d}" for first, last in zip(self.first, self.last, strict=True)]

    def find_bin(self, t: Tensor) -> Tensor:
        """Find the number of each step's range.

        Args:
            t: Steps, int64, any shape.

        Returns:
            int64 in ``[0, count)``, shape of ``t``.
        """
        return t * self.count // self.num_timesteps

    def empty_sums(self, device: torch.device) -> Tensor:
        """Return the sums over no examples, to add to: zeros, shape ``(2, count)``.

        Args:
            device: The device of the sums. They are float64, or float32 on Apple's devices, which have no float64.
        """
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return torch.zeros(2, self.count, dtype=dtype, device=device)

    def sum_losses(self, t: Tensor, losses: Tensor) -> Tensor:
        """Sum the losses, and count the examples, in each range.

        Args:
            t: Steps, int64, shape ``(batch,)``.
            losses: Loss of each example, floating point, shape ``(batch,)``.

        Returns:
            Sums, then counts, shape ``(2, count)``, dtype of :meth:`empty_sums`.
        """
        # A table of (example, range) pairs, since scattering adds up in another order each time on a CUDA device.
        is_inside = self.find_bin(t)[:, None] == torch.arange(self.count, device=t.device)
        zeros = self.empty_sums(t.device)
        totals = torch.where(is_inside, losses.to(zeros.dtype)[:, None], 0).sum(0)
        return zeros + torch.stack([totals, is_inside.sum(0)])

    def to_rows(self, sums: Tensor, process: GaussianProcess, epoch: int, step: int) -> list[BinLoss]:
        """Turn a validation's sums into lines of the table.

        Args:
            sums: The sum of :meth:`sum_losses` over all batches, shape ``(2, count)``.
            process: The forward process, for signal-to-noise ratios.
            epoch: Training epoch, zero-based.
            step: Number of optimizer steps before the validation.
        """
        middles = [(first + last) // 2 for first, last in zip(self.first, self.last, strict=True)]
        ratio = 10 * process.snr(torch.tensor(middles, device=process.signal.device)).log10().clamp(
            -MAX_DECIBELS, MAX_DECIBELS
        )
        columns = zip(self.first, self.last, ratio.tolist(), sums[0].tolist(), sums[1].tolist(), strict=True)
        return [
            BinLoss(epoch, step, first, last, round(decibels, 3), total / count if count else None, int(count))
            for first, last, decibels, total, count in columns
        ]


def read_losses(path: Path) -> list[BinLoss]:
    """Read the table that :func:`write_losses` has written.

    Args:
        path: The CSV file.

    Raises:
        ValueError: The file is not such a table.
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    if not lines or lines[0] != list(BinLoss._fields):
        raise ValueError(
            f"{path} is not a table of losses by timestep, since its first line is not {','.join(BinLoss._fields)}. "
            "Move the file, or change `callbacks.timestep_loss.folder`."
        )
    return [
        BinLoss(int(epoch), int(step), int(first), int(last), float(ratio), float(loss) if loss else None, int(count))
        for epoch, step, first, last, ratio, loss, count in lines[1:]
    ]


def write_losses(rows: Sequence[BinLoss], path: Path) -> None:
    """Write the table in one piece: a run that is killed meanwhile leaves the previous table.

    Windows cannot replace a file that a program has open. Then the table stays beside it as ``.csv.part``, with a
    warning, until the next call.

    Args:
        rows: All lines of the table.
        path: The CSV file to write or replace.
    """
    part_file = path.with_suffix(".csv.part")
    with part_file.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(BinLoss._fields)
        writer.writerows(rows)
    try:
        os.replace(part_file, path)
    except PermissionError as error:
        warnings.warn(
            f"{path} cannot be replaced ({error.strerror}). If it is open in another program, close it there. Until "
            f"the next validation the table is in {part_file}.",
            stacklevel=2,
        )
