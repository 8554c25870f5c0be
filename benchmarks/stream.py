"""What does shuffling cost at any length? ``python benchmarks/stream.py`` (some five minutes).

Each sampler runs in a process of its own, of 16 GB at most: build a loader of a synthetic dataset, take its first
batch, then go on for a while. Printed for N = 10^3 .. 10^9: seconds to the first batch, the growth of resident memory
until then, and microseconds an image while going on, collating included; our stream also resumed at 70% of the epoch.
torch's samplers resume by replaying what was seen before, or not at all, so they have no such column.
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
    """As many images as one likes, all the same."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.image = torch.zeros(1, 4, 4, dtype=torch.uint8)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.image


def main() -> None:
    """Measure each sampler at each length, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=9, help="N goes up to 10 to this power")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
        try:
            print(json.dumps(_measure(args.one[0], int(args.one[1]))))
        except (MemoryError, RuntimeError) as error:  # torch's own allocator raises the latter
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            print("null")
        return
    print("| N | " + " | ".join(SAMPLERS) + " |")
    print("|---|" + "---|" * len(SAMPLERS))
    for power in range(3, args.most + 1):
        cells = []
        for sampler in SAMPLERS:
            command = [sys.executable, __file__, "--one", sampler, str(10**power)]
            seen = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            cells.append("{:.3f} s, {:,.0f} MB, {:.1f} us".format(*seen) if seen else "out of memory")
        print(f"| 10^{power} | " + " | ".join(cells) + " |", flush=True)


def _measure(name: str, length: int) -> tuple[float, float, float]:
    """Seconds to the first batch, MB that resident memory grew by, microseconds an image."""
    dataset = Synthetic(length)
    next(iter(_loader(name, Synthetic(1000))))  # what importing and the first call cost is none of N's business
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    batches = iter(_loader(name, dataset))
    next(batches)
    first = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    began = time.perf_counter()
    count = sum(1 for _ in islice(batches, 1000))
    return first, grown, (time.perf_counter() - began) * 1e6 / max(1, count * BATCH)


def _loader(name: str, dataset: Synthetic) -> DataLoader[torch.Tensor]:
    if name == "RandomSampler":
        return DataLoader(dataset, BATCH, sampler=RandomSampler(dataset))
    if name == "DistributedSampler":
        return DataLoader(dataset, BATCH, sampler=DistributedSampler(dataset, num_replicas=2, rank=0))
    datamodule = DDPMDataModule(dataset, schedule=schedules.linear(), batch_size=BATCH)
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    if name == "ddpm_data, resumed":
        loader.set_epoch(0, len(dataset) * 7 // 10)
    return loader  # type: ignore[return-value]  # batches of either kind will do here


if __name__ == "__main__":
    main()
