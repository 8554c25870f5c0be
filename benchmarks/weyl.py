"""Which step for the Weyl sequence of low-discrepancy ``t``? ``python benchmarks/weyl.py`` (four minutes).

Whoever splits a stream so that a rank sees every W-th position makes its t walk by W times the step. For windows of n
and strides of W positions the script takes the widest gap that n points leave on the circle, in mean gaps (1 is
perfect; n independent points leave about log n), and prints the worst: for the golden ratio, for the step that
timesteps.py uses, and for the best it finds among numbers whose continued fractions begin with small terms, which is
where that one came from.
"""

import argparse
import time

import numpy as np

from ddpm_data.diffusion.timesteps import WEYL_STEP

STRIDES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80, 96, 128, 256, 512, 1024)
LOADS = (
    [(window, STRIDES) for window in (4, 8, 16, 32, 64, 128, 256, 512, 1024)]
    + [(window, (1, 2, 3, 4, 6, 8, 16, 32, 64)) for window in (4096, 16384, 65536)]
    + [(window, (1, 2, 4, 8)) for window in (2**18, 2**20)]
)


def widest_gap(step: int, count: int) -> float:
    """The widest gap that ``count`` multiples of ``step / 2**32`` leave on the unit circle, in mean gaps."""
    points = np.sort(np.arange(count, dtype=np.int64) * step & 0xFFFFFFFF)
    return float(max(np.diff(points).max(), points[0] + 2**32 - points[-1]) * count / 2**32)


def worst(step: int, enough: float = np.inf) -> float:
    """The worst over windows and strides, or the first that is worse than ``enough``."""
    result = 0.0
    for window, strides in LOADS:
        for stride in strides:
            result = max(result, widest_gap(stride * step % 2**32, window))
            if result > enough:
                return result
    return result


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=240, help="how long to search")
    until = time.monotonic() + parser.parse_args().seconds
    generator, best, best_step = np.random.default_rng(1), 9.0, 0x9E3779B9
    while time.monotonic() < until:
        fraction = 0.0
        for term in generator.choice([1, 2, 3, 4, 5], p=[0.42, 0.25, 0.15, 0.1, 0.08], size=24):
            fraction = 1 / (term + fraction)
        step = int(fraction * 2**32)
        step = (step if generator.random() < 0.5 else 2**32 - step) | 1  # odd: all 2**32 words come up
        found = worst(step, enough=best)
        if found < best:
            best, best_step = found, step
    print("| step | widest gap at any stride | at stride 1 |")
    print("|---|---|---|")
    for name, step in (("golden ratio", 0x9E3779B9), ("timesteps.py", WEYL_STEP), ("best found", best_step)):
        alone = max(widest_gap(step, window) for window, _ in LOADS)
        print(f"| {name} 0x{step:08X} | {worst(step):.2f} | {alone:.2f} |")


if __name__ == "__main__":
    main()
