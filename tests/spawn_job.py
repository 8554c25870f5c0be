"""What test_platforms.py runs in a process of its own, from which everything is taken that macOS or Windows lacks."""

import multiprocessing
import os
import sys
from hashlib import blake2b
from pathlib import Path

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.cli.check import main as check
from ddpm_data.loading import map_style, options, worker
from ddpm_data.sources import ImageFiles
from tests.conftest import Recorder, trainer

MISSING = ("fork", "forkpty", "posix_fallocate", "sched_getaffinity")


def digest(images: str, out: str, workers: int, cache: str | None) -> str:
    """The triples of an epoch and its validation, which every way to load the images gives."""
    datamodule = DDPMDataModule(
        ImageFiles(images),
        val=0.25,
        schedule=schedules.linear(10),
        image_size=8,
        batch_size=3,
        num_workers=workers,
        cache_dir=cache,
    )
    model = Recorder()
    trainer(Path(out)).fit(model, datamodule=datamodule)
    triples = (*model.all("train"), *model.all("val"))
    return blake2b(b"".join(part.numpy().tobytes() for part in triples)).hexdigest()


def main() -> None:
    """Arguments: a folder of images, a folder for what is written."""
    images, out = sys.argv[1:]
    for name in MISSING:
        if hasattr(os, name):
            delattr(os, name)
    multiprocessing.set_start_method("spawn")
    multiprocessing.get_all_start_methods = lambda: ["spawn"]
    map_style.SHARED_MEMORY = worker.SHARED_MEMORY = Path("no such folder")
    print("cores", options.cpu_count())
    for cache in (None, f"{out}/cache"):
        print("triples", digest(images, out, 1, cache))
    print("status", check(["dataset=image_folder", f"dataset.root={images}", f"--out={out}", "--workers=1"]))


if __name__ == "__main__":
    main()
