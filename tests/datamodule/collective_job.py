"""Run by test_ddp.py under torchrun: factories that want every process to join them, with and without a Trainer."""

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.utils.data import TensorDataset

from ddpm_data import DDPMDataModule, schedules
from tests.conftest import Recorder, trainer, uint8_images
from tests.groups import PATIENCE

CALLS: list[str] = []


def images() -> TensorDataset:
    return TensorDataset(uint8_images(20, 1, 4, 4))


def alone() -> TensorDataset:
    CALLS.append("alone")
    return images()


def with_barrier() -> TensorDataset:
    CALLS.append("with_barrier")
    distributed.barrier()
    return images()


def with_reduction() -> TensorDataset:
    CALLS.append("with_reduction")
    total = torch.ones(1)
    distributed.all_reduce(total)
    assert total == distributed.get_world_size()
    return images()


def with_a_group_of_its_own() -> TensorDataset:
    CALLS.append("with_a_group_of_its_own")
    distributed.barrier(distributed.new_group([0, 1]))
    return images()


def with_its_own_errors() -> TensorDataset:
    CALLS.append("with_its_own_errors")
    names: list[Any] = [None] * distributed.get_world_size()
    try:
        distributed.all_gather_object(names, "me")
    except Exception as error:
        raise OSError("cannot tell where the shards are") from error
    return images()


def that_goes_on_without() -> TensorDataset:
    CALLS.append("that_goes_on_without")
    try:
        distributed.broadcast_object_list([1])
    except RuntimeError:
        return TensorDataset(uint8_images(3, 1, 4, 4))
    return images()


def count_examples(factory: Callable[[], TensorDataset], **options: Any) -> int:  # noqa: ANN401  # the DataModule's own
    dm = DDPMDataModule(factory, val=alone, schedule=schedules.linear(10), batch_size=4, **options)
    if distributed.get_rank() == 0:
        dm.prepare_data()
    distributed.barrier()
    dm.setup("fit")
    return sum(len(batch.images) for batch in dm.train_dataloader())


def main() -> None:
    """Arguments: a folder."""
    folder = Path(sys.argv[1])
    distributed.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    rank = distributed.get_rank()
    counts = {}
    for factory in (
        alone,
        with_barrier,
        with_reduction,
        with_a_group_of_its_own,
        with_its_own_errors,
        that_goes_on_without,
    ):
        counts[factory.__name__] = count_examples(factory)
        counts[f"{factory.__name__}, cached"] = count_examples(factory, cache_dir=folder / "cache")
    model = Recorder()
    dm = DDPMDataModule(with_barrier, schedule=schedules.linear(10), batch_size=4)
    trainer(folder, devices=2, strategy="ddp").fit(model, datamodule=dm)
    counts["trainer"] = len(model.all("train").t)
    (folder / f"{rank}.json").write_text(json.dumps([counts, CALLS]))


if __name__ == "__main__":
    main()
