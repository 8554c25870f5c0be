"""How far the mean loss of a batch strays because of its ``t``: ``python -m benchmarks.discrepancy`` (seconds).

The data is Gaussian, so the best expected loss at a step is its alpha bar. The schedule is DDPM's. The table has the
standard deviation of a batch's mean of that loss, for the three draws of ``t``. The noise in the loss of one example
comes on top, and no draw of ``t`` changes that.
"""

import argparse
from pathlib import Path

import torch

from benchmarks import harness
from ddpm_data import schedules
from ddpm_data.diffusion.timesteps import draw_word
from ddpm_data.rng.philox import key_from

BATCH_SIZES = (8, 48, 60, 64, 256)
DRAWS = {"independent": (False, False), "Weyl": (True, True), "Owen": (True, False)}  # low_discrepancy, strided


def measure(batch_size: int, low_discrepancy: bool, strided: bool, seeds: int, batches: int) -> float:
    """Return the deviation of the mean loss of consecutive batches from the mean over all steps."""
    loss = (1 - schedules.linear(1000)).cumprod(0)
    position = torch.arange(batches * batch_size)
    words = torch.stack(
        [draw_word(position, key_from(seed), "train", low_discrepancy, strided) for seed in range(seeds)]
    )
    means = loss[(words * len(loss)) >> 32].view(-1, batch_size).mean(1)
    return float((means - loss.mean()).square().mean().sqrt())


def main() -> None:
    """Print the deviations for each size of batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="seeds to measure")
    parser.add_argument("--batches", type=int, default=200, help="batches of each seed")
    parser.add_argument("--output-dir", "--out", type=Path, help="folder for discrepancy.json")
    parser.add_argument("--quick", action="store_true", help="few seeds and batches, to see that it runs")
    args = parser.parse_args()
    seeds, batches = (4, 8) if args.quick else (args.seeds, args.batches)
    rows: list[harness.Row] = []
    for size in BATCH_SIZES:
        deviations = {name: measure(size, *draw, seeds, batches) for name, draw in DRAWS.items()}
        row: harness.Row = {"batch": str(size)}
        row.update({name: f"{value:.1e}" for name, value in deviations.items()})
        rows.append(row | {"Weyl / Owen": deviations["Weyl"] / deviations["Owen"]})
    harness.print_report("discrepancy", rows, args.output_dir)


if __name__ == "__main__":
    main()
