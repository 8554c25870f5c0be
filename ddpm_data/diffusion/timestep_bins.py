"""Losses by ranges of t: which range a step is in, sums over examples, and the table they are kept in."""

import csv
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_data.diffusion.process import ForwardProcess

_LIMIT = 200.0  # decibels: where no signal is left, or no noise yet, the ratio is no finite number


class BinLoss(NamedTuple):
    """One range of t in one validation: a line of ``timestep_loss.csv``.

    Attributes:
        epoch: Of the training, zero-based.
        step: Optimizer steps until then.
        first_t: First step of the range, zero-based.
        last_t: Its last step, inclusive.
        log_snr_db: Signal-to-noise ratio in the range's middle, decibels, in ``[-200, 200]``.
        loss: Mean over the range's examples; ``None`` where there are none.
        examples: How many fall into the range.
    """

    epoch: int
    step: int
    first_t: int
    last_t: int
    log_snr_db: float
    loss: float | None
    examples: int


class TimestepBins:
    """The steps ``0 .. num_timesteps - 1`` cut into ranges whose widths differ by one at most.

    Args:
        num_timesteps: T.
        count: Ranges; where there are fewer steps, each has its own.
    """

    def __init__(self, num_timesteps: int, count: int) -> None:
        self.num_timesteps = num_timesteps
        self.count = min(count, num_timesteps)
        edges = [-(-number * num_timesteps // self.count) for number in range(self.count + 1)]
        self.first = edges[:-1]
        self.last = [edge - 1 for edge in edges[1:]]

    @property
    def names(self) -> list[str]:
        """Such as ``0000-0099``, which sort as numbers do."""
        digits = max(4, len(str(self.num_timesteps - 1)))
        return [f"{first:0{digits}d}-{last:0{digits}d}" for first, last in zip(self.first, self.last, strict=True)]

    def find_bin(self, t: Tensor) -> Tensor:
        """The number of each step's range, int64, shape of ``t``."""
        return t * self.count // self.num_timesteps

    def empty_sums(self, device: torch.device) -> Tensor:
        """The sums over no examples; Apple's devices have no float64."""
        precise = torch.float32 if device.type == "mps" else torch.float64
        return torch.zeros(2, self.count, dtype=precise, device=device)

    def sum_losses(self, t: Tensor, losses: Tensor) -> Tensor:
        """Sum of the losses, and number of the examples, in each range.

        Args:
            t: Steps, int64, shape ``(batch,)``.
            losses: Of each example, floating point, shape ``(batch,)``.

        Returns:
            float64, shape ``(2, count)``.
        """
        # By a table rather than by scattering, which on a CUDA device adds up in another order each time.
        inside = self.find_bin(t)[:, None] == torch.arange(self.count, device=t.device)
        nothing = self.empty_sums(t.device)
        summed = torch.where(inside, losses.to(nothing.dtype)[:, None], 0).sum(0)
        return nothing + torch.stack([summed, inside.sum(0)])

    def to_rows(self, sums: Tensor, process: ForwardProcess, epoch: int, step: int) -> list[BinLoss]:
        """A validation's lines of the table, from :meth:`sum_losses` over all examples."""
        middles = [(first + last) // 2 for first, last in zip(self.first, self.last, strict=True)]
        ratio = 10 * process.snr(torch.tensor(middles, device=process.betas.device)).log10().clamp(-_LIMIT, _LIMIT)
        columns = zip(self.first, self.last, ratio.tolist(), sums[0].tolist(), sums[1].tolist(), strict=True)
        return [
            BinLoss(epoch, step, first, last, round(decibels, 3), total / count if count else None, int(count))
            for first, last, decibels, total, count in columns
        ]


def read_losses(path: Path) -> list[BinLoss]:
    """What :func:`write_losses` has written.

    Raises:
        ValueError: The file is another.
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    if not lines or lines[0] != list(BinLoss._fields):
        raise ValueError(
            f"{path} is no table of losses by timestep: its first line is not {','.join(BinLoss._fields)}. Move "
            "the file, or change `callbacks.timestep_loss.folder`."
        )
    return [
        BinLoss(int(epoch), int(step), int(first), int(last), float(ratio), float(loss) if loss else None, int(count))
        for epoch, step, first, last, ratio, loss, count in lines[1:]
    ]


def write_losses(rows: Sequence[BinLoss], path: Path) -> None:
    """Write the table, whole: a run that is killed meanwhile leaves the one before.

    Windows replaces no file that a program has open. The table is then beside it, ``.csv.part``, until the next call.
    """
    unfinished = path.with_suffix(".csv.part")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(BinLoss._fields)
        writer.writerows(rows)
    try:
        os.replace(unfinished, path)
    except PermissionError as error:
        warnings.warn(
            f"{path} cannot be replaced ({error.strerror}): is it open in another program? Close it there; until the "
            f"next validation the table is in {unfinished}.",
            stacklevel=2,
        )
