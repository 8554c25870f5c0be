"""Run by test_sharding.py under torchrun: fits on streams of several libraries, and leaves what each rank saw."""

import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.sources import TarShards
from tests.conftest import Recorder, trainer


def hugging_face(folder: Path) -> Any:  # noqa: ANN401  # a library that may be missing
    from datasets import Dataset

    data = Dataset.load_from_disk(str(folder / "hugging_face"))
    return data.to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=5)


def litdata(folder: Path) -> Any:  # noqa: ANN401  # a library that may be missing
    from litdata import StreamingDataset

    return StreamingDataset(str(folder / "litdata"), shuffle=True)


def tar_shards(folder: Path) -> TarShards:
    return TarShards([str(path) for path in sorted(folder.glob("*.tar"))])


def mosaic(folder: Path) -> Any:  # noqa: ANN401  # a library that may be missing
    from streaming import StreamingDataset

    return StreamingDataset(local=str(folder / "mosaic"), batch_size=3, shuffle=True, num_canonical_nodes=1)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "hugging_face": hugging_face,
    "litdata": litdata,
    "tar_shards": tar_shards,
}
if find_spec("streaming"):
    SOURCES["mosaic"] = mosaic


def fit(folder: Path, source: Callable[[Path], Any], workers: int) -> list[tuple[Tensor, Tensor]]:
    """The images and the noise of each of two epochs; at t=0 with a constant tiny beta, x_t shows its image."""
    dm = DDPMDataModule(
        lambda: source(folder), schedule=schedules.constant(1, 1e-12), batch_size=3, num_workers=workers
    )
    model = Recorder()
    trainer(folder, devices=2, strategy="ddp", max_epochs=2).fit(model, datamodule=dm)
    seen, half = model.all("train"), len(model.seen["train"]) // 2
    count = sum(len(batch.t) for batch in model.seen["train"][:half])
    images = ((seen.x_t + 1) * 127.5).round().byte()
    return [(images[:count], seen.noise[:count]), (images[count:], seen.noise[count:])]


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    distributed.init_process_group("gloo")
    seen = {
        f"{name}, {workers}": fit(folder, source, workers) for name, source in SOURCES.items() for workers in (0, 2)
    }
    torch.save(seen, folder / f"rank{distributed.get_rank()}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
