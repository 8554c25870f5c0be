"""What test_cache.py runs in processes of their own: a cache made of numbered images."""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from ddpm_data import DDPMDataModule, schedules

COUNT = 1000


class Slow:
    """Images whose values are their number; every item asked for is noted in a file."""

    def __init__(self, asked: Path, seconds: float = 0.0) -> None:
        self.asked = asked
        self.seconds = seconds

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Tensor:
        with self.asked.open("a") as file:
            file.write(f"{index}\n")
        time.sleep(self.seconds)
        return torch.full((3, 16, 16), index % 256, dtype=torch.uint8)


def main() -> None:
    """Arguments: the cache's folder, a file for what is asked for, seconds an item, bytes a file may have (0: any)."""
    folder, asked, seconds, limit = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    if limit:  # what a full disk is like to whoever writes
        import resource  # Windows has none

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    train = Slow(asked, seconds)
    datamodule = DDPMDataModule(
        train, schedule=schedules.linear(10), image_size=16, channels=3, num_workers=2, cache_dir=folder
    )
    datamodule.prepare_data()
    datamodule.setup("fit")
    images = datamodule.splits.images("train").batch(torch.arange(COUNT)).images  # type: ignore[union-attr]  # map-style
    print("mean", images.double().mean().item())


if __name__ == "__main__":
    main()
