"""Run by test_bad_items.py and test_several.py: a fit on real processes where the data of one rank fails.

When it does, the time is noted in the file ``failed``.
"""

import os
import signal
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_data import DDPMDataModule, schedules
from tests.conftest import Recorder, trainer


class Failing(Dataset[Tensor]):
    """Good items, until rank 1 has been asked for three hundred, of which 130 in setup(); or not even so many."""

    def __init__(self, way: str, folder: Path) -> None:
        self.way = way
        self.folder = folder
        self.rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
        self.asked = 0
        if way == "prepare" and self.rank == 0:
            self.note()
            raise KeyError("no connection")

    def note(self) -> None:
        (self.folder / "failed").write_text(str(time.time()))

    def __len__(self) -> int:
        return 4000

    def __getitem__(self, index: int) -> Tensor:
        self.asked += 1
        if self.rank == 1 and self.asked > (50 if self.way == "setup" else 300):
            self.note()
            if self.way in ("error", "setup"):
                raise KeyError(f"no row {index}")
            if self.way == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3600)
        return torch.full((3, 8, 8), index % 256, dtype=torch.uint8)


def main(way: str, folder: Path, devices: int, nodes: int) -> None:
    warnings.simplefilter("ignore")
    workers = 1 if way in ("killed", "stuck") else 0
    source = partial(Failing, way, folder)
    # A worker that was killed is to be noticed, not waited for. Those that are well start and answer within 10 s.
    timeout = 10 if way == "stuck" else 600
    module = DDPMDataModule(source, schedule=schedules.linear(10), batch_size=8, num_workers=workers, timeout=timeout)
    trainer(folder, devices=devices, num_nodes=nodes, strategy="ddp").fit(Recorder(), datamodule=module)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
