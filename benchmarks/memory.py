"""The start over many files, and the memory of worker processes, epoch by epoch: ``python -m benchmarks.memory``.

A forked worker shares its parent's memory until one of them writes to a page. Reading a Python object writes its
reference count. So a list with one object per file is copied, page by page, into every worker. The table shows the
memory that is each worker's own (Linux), beyond that after eight batches. The line after it has what the start took,
with the names in the system's cache: listing the files, and the names, sizes and times of all of them, by which a cache
of decoded images is known.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.datasets import ImageFolder

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.cache._fingerprint import fingerprint
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.loader import StreamLoader
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources import ImageFiles

KINDS: dict[str, Callable[[str], Any]] = {"ImageFiles": ImageFiles, "ImageFolder": ImageFolder}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_001)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS, default="ImageFiles", help="one a process: the next finds a used heap")
    args = parser.parse_args()
    print(f"| {args.files:,} files | {' | '.join(f'epoch {epoch}' for epoch in range(args.epochs))} |")
    print(f"|---|{'---|' * args.epochs}")
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), args.files)
        before, began = _peak_megabytes(), time.perf_counter()
        dataset = KINDS[args.kind](folder)
        listing, peak = time.perf_counter() - began, _peak_megabytes() - before
        growth = measure_growth(dataset, args.epochs)
        began = time.perf_counter()
        fingerprint(MapStyleImages(dataset, ImageProcessor(), "train"), 1)
        known = time.perf_counter() - began
        print(f"| {args.kind} | {' | '.join(f'{megabytes:.1f} MB' for megabytes in growth)} |")
    print(f"\nlisted in {listing:.1f} s, with {peak:.0f} MB at most; known to a cache in {known:.1f} s")


def write_files(folder: Path, count: int) -> None:
    """Write the same small PNG file again and again, in a hundred folders."""
    content = BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 30)).save(content, "PNG")
    for number in range(count):
        path = folder / str(number % 100) / f"a_picture_with_a_name_{number:07}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.getvalue())


def measure_growth(dataset: Any, epochs: int) -> list[float]:  # noqa: ANN401  # any dataset
    """Return how much more memory of its own the larger of two workers has after each epoch, in MB."""
    datamodule = DDPMDataModule(
        dataset, schedule=schedules.linear(10), batch_size=64, num_workers=2, image_size=8, channels=3
    )
    datamodule.setup("fit")
    loader, growth, before = datamodule.train_dataloader(), [], 0.0
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for number, _ in enumerate(loader):
            if (epoch, number) == (0, 8):
                before = _own_megabytes(loader)
        growth.append(_own_megabytes(loader) - before)
    return growth


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _own_megabytes(loader: StreamLoader) -> float:
    workers = loader._iterator._workers  # type: ignore[union-attr]  # torch's
    return max(
        sum(int(line.split()[1]) for line in Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()[1:]
            if line.startswith("Private"))
        for worker in workers
    ) / 1024  # fmt: skip


if __name__ == "__main__":
    main()
