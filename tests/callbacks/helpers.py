"""Data that the tests of callbacks fit on, and what they read back."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset

from ddpm_data import DDPMDataModule, schedules
from tests.conftest import uint8_images

IMAGES = uint8_images(40, 1, 4, 4)


class Ordered(IterableDataset[Tensor]):
    """The images but the first ten, in an order of its own."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(IMAGES[10:])


def data(num_timesteps: int = 50, **options: Any) -> DDPMDataModule:  # noqa: ANN401  # the DataModule's
    given = dict(train=TensorDataset(IMAGES), val=TensorDataset(IMAGES[:30]), batch_size=8, seed=1) | options
    return DDPMDataModule(schedule=schedules.linear(num_timesteps), **given)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))
