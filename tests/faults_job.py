"""Run by test_faults.py: a fit on real processes in which one rank's data fails, in one of several ways."""

import os
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_data import DDPMDataModule, schedules
from tests.conftest import Recorder, trainer


class Failing(Dataset[Tensor]):
    """Good items, until rank 1 has been asked for three hundred, of which 130 in setup()."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.asked = 0

    def __len__(self) -> int:
        return 4000

    def __getitem__(self, index: int) -> Tensor:
        self.asked += 1
        if self.rank == 1 and self.asked > 300:
            if self.way == "error":
                raise KeyError(f"no row {index}")
            if self.way == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return torch.full((3, 8, 8), index % 256, dtype=torch.uint8)


def main(way: str, folder: Path, devices: int) -> None:
    warnings.simplefilter("ignore")
    module = DDPMDataModule(
        Failing(way), schedule=schedules.linear(10), batch_size=8, num_workers=0 if way == "error" else 1, timeout=3
    )
    strategy = "ddp" if devices > 1 else "auto"
    trainer(folder, devices=devices, strategy=strategy).fit(Recorder(), datamodule=module)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
