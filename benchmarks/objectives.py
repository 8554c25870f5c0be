"""The time of the batch transform by objective: ``python -m benchmarks.objectives`` (four minutes).

The compiled transform makes every target, draws every density and some variants of the noise in the same pass. The
script times them in turn with DDPM's (uniform ``t``, target noise) and prints each one's time as a ratio to DDPM's. The
last column is in nanoseconds per number, where a batch has images times channels times pixels numbers.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.transform import make_batch
from ddpm_data import (
    DensityTimesteps,
    ForwardDiffusion,
    ForwardProcess,
    UniformTimesteps,
    densities,
    noises,
    processes,
    schedules,
)

SHAPES = [(128, 3, 32, 32), (32, 3, 256, 256), (64, 4, 64, 64)]


def make_objectives() -> dict[str, ForwardDiffusion]:
    """Make a transform of each kind, DDPM's first."""
    chain, flow, edm = ForwardProcess(schedules.linear()), processes.rectified_flow(), processes.edm()
    logit_normal = DensityTimesteps(densities.logit_normal)
    options: dict[str, tuple[Any, dict[str, Any]]] = {
        "DDPM": (chain, {}),
        "target velocity": (chain, {"target": "velocity"}),
        "logit-normal t, target flow": (flow, {"target": "flow", "timesteps": logit_normal}),
        "EDM, 65,536 rows": (edm, {"target": "edm"}),
        "Laplace density of t": (chain, {"timesteps": DensityTimesteps(densities.laplace)}),
        "uniform t, low discrepancy": (chain, {"timesteps": UniformTimesteps(low_discrepancy=True)}),
        "offset noise": (chain, {"noise": noises.offset()}),
        "generalised offset noise": (chain, {"noise": noises.generalised_offset()}),
        "target velocity, offset noise, Laplace t": (
            chain,
            {"target": "velocity", "noise": noises.offset(), "timesteps": DensityTimesteps(densities.laplace)},
        ),
        "input perturbation": (chain, {"noise": noises.input_perturbation()}),
    }
    return {name: ForwardDiffusion(process, **chosen) for name, (process, chosen) in options.items()}


def main() -> None:
    """Time every objective on every shape of batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41, help="runs of each objective at each number of threads")
    parser.add_argument("--quick", action="store_true", help="one small shape and few rounds, to see that it runs")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads; the better counts")
    parser.add_argument("--output-dir", "--out", type=Path, help="folder for objectives.json")
    args = parser.parse_args()
    shapes, rounds = ([(8, 3, 16, 16)], 3) if args.quick else (SHAPES, args.rounds)
    rows: list[harness.Row] = []
    for shape in shapes:
        images, position = make_batch(shape)
        calls = {name: partial(transform, images, position) for name, transform in make_objectives().items()}
        seconds = harness.time_in_turn(calls, rounds, tuple(args.threads))
        for name, value in seconds.items():
            ratio = value / seconds["DDPM"]
            rows.append(
                {"batch": str(shape), "objective": name, "of DDPM's": ratio, "ns": 1e9 * value / images.numel()}
            )
    harness.print_report("objectives", rows, args.output_dir)


if __name__ == "__main__":
    with torch.no_grad():
        main()
