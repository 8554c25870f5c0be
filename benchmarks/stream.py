"""The cost of shuffling, by the length of the dataset: ``python benchmarks/stream.py`` (five minutes).

Each sampler runs in its own process with at most 16 GB: it builds a loader of a synthetic dataset, takes the first
batch, and goes on for a while. For N = 10^3 .. 10^9 the script prints the seconds to the first batch, the growth of
resident memory until then, and the microseconds per image afterwards, with collating. Our stream is also resumed at 70%
of the epoch. torch's samplers resume by replaying what was seen before, or not at all, so they have no such column.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import islice

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler

from ddpm_data import DDPMDataModule, schedules

BATCH = 128
SAMPLERS = ("ddpm_data", "ddpm_data, resumed", "RandomSampler", "DistributedSampler")


class Synthetic(Dataset[torch.Tensor]):
    """A dataset of any length, whose images are all the same."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.image = torch.zeros(1, 4, 4, dtype=torch.uint8)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.image


def main() -> None:
    """Measure each sampler at each length, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-power", "--most", type=int, default=9, help="N goes up to 10 to this power")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
        try:
            print(json.dumps(_measure(args.measure[0], int(args.measure[1]))))
        except (MemoryError, RuntimeError) as error:  # torch's own allocator raises the latter
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            print("null")
        return
    print("| N | " + " | ".join(SAMPLERS) + " |")
    print("|---|" + "---|" * len(SAMPLERS))
    for power in range(3, args.max_power + 1):
        cells = []
        for sampler in SAMPLERS:
            command = [sys.executable, __file__, "--measure", sampler, str(10**power)]
            figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            cells.append("{:.3f} s, {:,.0f} MB, {:.1f} us".format(*figures) if figures else "out of memory")
        print(f"| 10^{power} | " + " | ".join(cells) + " |", flush=True)


def _measure(name: str, length: int) -> tuple[float, float, float]:
    """Measure the seconds to the first batch, the MB that resident memory grew by, and the microseconds per image."""
    dataset = Synthetic(length)
    next(iter(_make_loader(name, Synthetic(1000))))  # imports and the first call cost the same at any N
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    batches = iter(_make_loader(name, dataset))
    next(batches)
    first = time.perf_counter() - began
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    began = time.perf_counter()
    count = sum(1 for _ in islice(batches, 1000))
    return first, growth, (time.perf_counter() - began) * 1e6 / max(1, count * BATCH)


def _make_loader(name: str, dataset: Synthetic) -> DataLoader[torch.Tensor]:
    if name == "RandomSampler":
        return DataLoader(dataset, BATCH, sampler=RandomSampler(dataset))
    if name == "DistributedSampler":
        return DataLoader(dataset, BATCH, sampler=DistributedSampler(dataset, num_replicas=2, rank=0))
    datamodule = DDPMDataModule(dataset, schedule=schedules.linear(), batch_size=BATCH)
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    if name == "ddpm_data, resumed":
        loader.set_epoch(0, len(dataset) * 7 // 10)
    return loader  # type: ignore[return-value]  # either kind of batches will do


if __name__ == "__main__":
    main()
