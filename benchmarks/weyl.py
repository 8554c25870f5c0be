"""A search for the step of the Weyl sequence of low-discrepancy ``t``: ``python benchmarks/weyl.py`` (four minutes).

If a stream is split so that a rank sees every W-th position, that rank's t moves by W times the step. For windows of n
positions and strides of W, the script measures the widest gap that n points leave on the circle, in mean gaps: 1 is
perfect, and n independent points leave about log n. It prints the worst such gap for the golden ratio, for the step in
timesteps.py, and for the best step that it finds. It searches among numbers whose continued fractions begin with small
terms; the step in timesteps.py comes from such a search.
"""

import argparse
import time

import numpy as np

from ddpm_data.diffusion.timesteps import WEYL_STEP

STRIDES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80, 96, 128, 256, 512, 1024)
WINDOWS = (  # sizes of windows, each with the strides to try
    [(window, STRIDES) for window in (4, 8, 16, 32, 64, 128, 256, 512, 1024)]
    + [(window, (1, 2, 3, 4, 6, 8, 16, 32, 64)) for window in (4096, 16384, 65536)]
    + [(window, (1, 2, 4, 8)) for window in (2**18, 2**20)]
)


def widest_gap(step: int, count: int) -> float:
    """Compute the widest gap that ``count`` multiples of ``step / 2**32`` leave on the unit circle, in mean gaps."""
    points = np.sort(np.arange(count, dtype=np.int64) * step & 0xFFFFFFFF)
    return float(max(np.diff(points).max(), points[0] + 2**32 - points[-1]) * count / 2**32)


def worst_gap(step: int, limit: float = np.inf) -> float:
    """Find the widest gap over all windows and strides, or the first one that is wider than ``limit``."""
    result = 0.0
    for window, strides in WINDOWS:
        for stride in strides:
            result = max(result, widest_gap(stride * step % 2**32, window))
            if result > limit:
                return result
    return result


def main() -> None:
    """Search until the time is up, then print a Markdown table."""
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
        gap = worst_gap(step, limit=best)
        if gap < best:
            best, best_step = gap, step
    print("| step | widest gap at any stride | at stride 1 |")
    print("|---|---|---|")
    for name, step in (("golden ratio", 0x9E3779B9), ("timesteps.py", WEYL_STEP), ("best found", best_step)):
        unsplit = max(widest_gap(step, window) for window, _ in WINDOWS)
        print(f"| {name} 0x{step:08X} | {worst_gap(step):.2f} | {unsplit:.2f} |")


if __name__ == "__main__":
    main()
