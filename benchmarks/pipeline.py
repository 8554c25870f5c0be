"""Images per second that reach a model's step: ``python -m benchmarks.pipeline`` (ten minutes).

The images go through a real Trainer to a model that does nothing with them, on the CPU. Each pipeline gets the number
of workers (0, 1 or 2) and of threads (1 or 2) that suits it best. All pipelines take turns. The figures are medians of
full epochs after the first.

The first part reads 1,200 JPEGs of 300 to 450 pixels (in PIL's default quality) as 64 x 64, in batches of 64. It
compares

- ddpm_data, which decodes each time (with the extra ``decode``, and by PIL alone) or reads its cache,
- denoising-diffusion-pytorch's Dataset with its ``q_sample``,
- torchvision's ImageFolder with the transforms of diffusers' training script and ``add_noise``.

The second part reads 50,000 images of 32 x 32 from memory, in batches of 128: ddpm_data beside torchvision's CIFAR10
with the same transforms and ``add_noise``.

In each part, one row has batches that were made in advance, so that it is Lightning's loop alone: no data side could be
faster.
"""

import argparse
import itertools
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from tqdm import tqdm

from benchmarks import harness
from benchmarks.images import LocalCIFAR10, write_cifar, write_photographs
from ddpm_data import DDPMDataModule, Triple, schedules
from ddpm_data.sources import ImageFiles

STEPS, SIZE = 1000, 64
LIMIT = "Lightning's loop alone"
# From clean images, in [-1, 1] or as another library wants them, to what its model would be given.
Diffuse = Callable[[Tensor], object]
# From a number of workers to a model and the other arguments of fit().
Pipeline = Callable[[int], tuple[L.LightningModule, dict[str, Any]]]


class Idle(L.LightningModule):
    """A model with one weight, which takes triples, or makes them of clean images as another library does."""

    def __init__(self, diffuse: Diffuse | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.diffuse = diffuse

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401  # each pipeline's own
        """Make the triple if the batch holds clean images."""
        if self.diffuse is not None:
            with torch.no_grad():
                self.diffuse(batch if isinstance(batch, Tensor) else batch[0])
        else:
            assert isinstance(batch, Triple)
        return self.weight * 1.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer for the one weight."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Clock(L.Callback):
    """A callback that notes the seconds of every epoch but the first."""

    def __init__(self) -> None:
        self.began, self.seconds = time.perf_counter(), list[float]()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the epoch's time, and begin the next one."""
        now = time.perf_counter()
        if trainer.current_epoch:
            self.seconds.append(now - self.began)
        self.began = now


def main() -> None:
    """Measure pipelines that read files, then pipelines that read arrays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=3, help="fits of each pipeline, per number of workers and threads"
    )
    parser.add_argument("--quick", action="store_true", help="few images and one fit, to see that it runs")
    parser.add_argument("--output-dir", "--out", type=Path, help="folder for pipeline.json and pipeline.png")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    files, arrays, settings = (1200, 50_000, list(itertools.product((0, 1, 2), (1, 2))))
    if args.quick:
        files, arrays, settings, args.rounds = 48, 512, [(0, 1), (1, 1)], 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photographs(root / "images", files)
        write_cifar(root, arrays)
        file_pipelines = _file_pipelines(root) | {LIMIT: _limit_pipeline(files, 64, 3, SIZE, SIZE)}
        array_pipelines = _array_pipelines(root) | {f"{LIMIT}, arrays": _limit_pipeline(arrays, 128, 3, 32, 32)}
        rows = measure("files", file_pipelines, files, settings, args.rounds)
        rows += measure("arrays", array_pipelines, arrays, settings, args.rounds)
        costs = _measure_costs(root)
    harness.print_report("pipeline", rows, args.output_dir)
    print(f"\n{costs}")
    if args.output_dir:
        path = args.output_dir / "pipeline.png"
        harness.draw_dots("Images per second that reach a model's step", _group(rows), "images per second", path)


def _group(rows: list[harness.Row]) -> dict[str, list[harness.Row]]:
    """Group the rows by what is read, for the picture."""
    every_time, once, arrays = "JPEG files, decoded each time", "JPEG files, decoded once", "Arrays in memory"
    groups: dict[str, list[harness.Row]] = {every_time: [], once: [], arrays: []}
    for row in rows:
        name = str(row["data"])
        groups[arrays if "arrays" in name else once if "cache" in name or name == LIMIT else every_time].append(row)
    return groups


def measure(
    title: str, pipelines: dict[str, Pipeline], count: int, settings: list[tuple[int, int]], rounds: int
) -> list[harness.Row]:
    """Measure images per second of every pipeline, and compare ours with the fastest of the others.

    Args:
        title: Name of the measurement, for the progress bar.
        pipelines: The pipelines by name.
        count: Images per epoch.
        settings: Numbers of workers and threads to try.
        rounds: Fits of each pipeline with each setting.

    Returns:
        One row per pipeline, with the workers and threads that suit it best.
    """
    fits = [(name, *setting) for _ in range(rounds) for setting in settings for name in pipelines]
    speeds: dict[str, dict[tuple[int, int], list[float]]] = {name: {} for name in pipelines}
    for name, workers, threads in tqdm(fits, desc=title, unit="fit"):
        torch.set_num_threads(threads)
        clock = Clock()
        model, data = pipelines[name](workers)
        L.Trainer(
            accelerator="cpu",
            max_epochs=10 if "cache" in name or name.startswith(LIMIT) else 3,  # the first is not counted
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model, **data)
        speeds[name].setdefault((workers, threads), []).append(count / statistics.median(clock.seconds))
    best = {
        name: max((statistics.median(readings), setting) for setting, readings in by_setting.items())
        for name, by_setting in speeds.items()
    }
    others = [name for name in best if not name.startswith(("ddpm_data", LIMIT))]
    fastest = max(best[name][0] for name in others)
    return [
        {
            "data": name,
            "images per second": speed,
            "workers, threads": "" if name.startswith(LIMIT) else f"{workers}, {threads}",
            "times the fastest other": "" if name in others else f"{speed / fastest:.1f}",
        }
        for name, (speed, (workers, threads)) in best.items()
    ]


def _measure_costs(root: Path) -> str:
    """Measure the start and the memory of two workers that decode, and the bytes sent to the device."""
    datamodule = DDPMDataModule(
        train=ImageFiles(root / "images"), image_size=SIZE, channels=3, num_workers=2, schedule=schedules.linear(STEPS)
    )
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    began = time.perf_counter()
    batch = next(batches := iter(loader))
    seconds = time.perf_counter() - began
    workers = loader._iterator._workers  # type: ignore[union-attr]  # torch has no public name for them
    private = [
        sum(int(line.split()[1]) for line in Path(f"/proc/{worker.pid}/smaps_rollup").open() if line.startswith("Priv"))
        for worker in workers
    ]
    del batches
    image_bytes = (batch.images.nbytes + batch.position.nbytes) / len(batch.images)
    return (
        f"Two decoding workers: first batch after {seconds:.2f} s, {max(private) / 1024:.0f} MB of private memory per "
        f"worker. Sent to the device: {image_bytes:,.0f} bytes per image of {SIZE} x {SIZE}; as float32 it would be "
        f"{12 * SIZE**2:,}."
    )


def _our_pipeline(**options: Any) -> Pipeline:  # noqa: ANN401  # the DataModule's
    def prepare(workers: int) -> tuple[L.LightningModule, dict[str, Any]]:
        return Idle(), {
            "datamodule": DDPMDataModule(schedule=schedules.linear(STEPS), num_workers=workers, flip=0.5, **options)
        }

    return prepare


def _loader_pipeline(make_dataset: Callable[[], Any], diffuse: Diffuse, batch_size: int) -> Pipeline:
    def prepare(workers: int) -> tuple[L.LightningModule, dict[str, Any]]:
        loader = DataLoader(
            make_dataset(), batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        return Idle(diffuse), {"train_dataloaders": loader}

    return prepare


def _limit_pipeline(count: int, *shape: int) -> Pipeline:
    """Return the pipeline whose batches are made already: one again and again, and a smaller one at an epoch's end."""

    def prepare(workers: int) -> tuple[L.LightningModule, dict[str, Any]]:
        size = shape[0]
        batch = Triple(torch.zeros(shape), torch.zeros(size, dtype=torch.int64), torch.zeros(shape))
        rest = Triple(*(part[: count % size] for part in batch))
        # A DataLoader without workers or batches of its own, since Lightning takes a list for several loaders.
        batches: Any = [batch] * (count // size) + [rest] * (count % size > 0)
        return Idle(), {"train_dataloaders": DataLoader(batches, batch_size=None, collate_fn=_keep)}

    return prepare


def _keep(batch: Any) -> Any:  # noqa: ANN401  # a DataLoader's
    return batch


def _file_pipelines(root: Path) -> dict[str, Pipeline]:
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Dataset

    images = root / "images"
    transform = transforms.Compose([  # as in diffusers' examples/unconditional_image_generation
        transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.BILINEAR),
        transforms.CenterCrop(SIZE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.5], [0.5]),
    ])  # fmt: skip
    options = dict(image_size=SIZE, channels=3, batch_size=64)
    by_us = options | {"train": lambda: ImageFiles(images)}
    by_pil = options | {"train": lambda: datasets.ImageFolder(str(images), loader=Image.open)}
    return {
        "ddpm_data, decoding": _our_pipeline(**by_us),
        "ddpm_data, decoding by PIL": _our_pipeline(**by_pil),
        "ddpm_data, from its cache": _our_pipeline(**by_us, cache_dir=root / "cache"),
        "denoising-diffusion-pytorch": _loader_pipeline(
            lambda: Dataset(images, SIZE, exts=["jpg"], augment_horizontal_flip=True), _ddpm_pytorch_noising(SIZE), 64
        ),
        "ImageFolder, diffusers": _loader_pipeline(
            lambda: datasets.ImageFolder(str(images), transform), _diffusers_noising(), 64
        ),
    }


def _array_pipelines(root: Path) -> dict[str, Pipeline]:
    transform = transforms.Compose(
        [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    )
    return {
        "ddpm_data, arrays": _our_pipeline(train=LocalCIFAR10(root), channels=3, batch_size=128),
        "CIFAR10, diffusers, arrays": _loader_pipeline(
            lambda: LocalCIFAR10(root, transform=transform), _diffusers_noising(), 128
        ),
    }


def _ddpm_pytorch_noising(size: int) -> Diffuse:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    diffusion = GaussianDiffusion(
        Unet(8, dim_mults=(1,), channels=3, flash_attn=False), image_size=size, timesteps=STEPS
    )

    def diffuse(images: Tensor) -> object:
        x_0, t = diffusion.normalize(images), torch.randint(0, STEPS, (len(images),))
        noise = torch.randn_like(x_0)
        return diffusion.q_sample(x_0, t, noise), t, noise

    return diffuse


def _diffusers_noising() -> Diffuse:
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler(num_train_timesteps=STEPS)  # type: ignore[no-untyped-call]  # diffusers' own

    def diffuse(x_0: Tensor) -> object:
        noise, t = torch.randn_like(x_0), torch.randint(0, STEPS, (len(x_0),))
        return scheduler.add_noise(x_0, noise, t), t, noise

    return diffuse


if __name__ == "__main__":
    main()
