"""How many images a second reach a model's step? ``python -m benchmarks.pipeline`` (ten minutes).

Through a real Trainer, to a model that does nothing with them, on the CPU; every way with the numbers of workers (0, 1
or 2) and of threads (1 or 2) that suit it best; all ways in turn, medians of whole epochs after the first.

1,200 JPEGs of 300 to 450 pixels (PIL's own quality) to 64 x 64, batches of 64: ddpm_data, decoding each time (with the
extra ``decode``, and by PIL alone) and from its cache, beside denoising-diffusion-pytorch's Dataset with its
``q_sample``, and torchvision's ImageFolder with the transforms of diffusers' training script and ``add_noise``. Then
50,000 images of 32 x 32 in memory, batches of 128: ddpm_data beside torchvision's CIFAR10 with those transforms.
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
from benchmarks.images import LocalCIFAR10, cifar, photographs
from ddpm_data import DDPMDataModule, Triple, schedules
from ddpm_data.sources import ImageFiles

STEPS, SIZE = 1000, 64
Diffuse = Callable[
    [Tensor], object
]  # clean images in [-1, 1], or as a peer wants them, to what its model would be given
Way = Callable[[int], tuple[L.LightningModule, dict[str, Any]]]  # workers to a model and what else fit() takes


class Idle(L.LightningModule):
    """Takes the triple, or makes it of clean images as a peer does, and has one weight to step."""

    def __init__(self, diffuse: Diffuse | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.diffuse = diffuse

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401  # each way's own
        """Diffuse, where the data has not been."""
        if self.diffuse is not None:
            with torch.no_grad():
                self.diffuse(batch if isinstance(batch, Tensor) else batch[0])
        else:
            assert isinstance(batch, Triple)
        return self.weight * 1.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Whatever steps."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Clock(L.Callback):
    """Seconds of every epoch but the first."""

    def __init__(self) -> None:
        self.began, self.seconds = time.perf_counter(), list[float]()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note an epoch; the next one begins."""
        now = time.perf_counter()
        if trainer.current_epoch:
            self.seconds.append(now - self.began)
        self.began = now


def main() -> None:
    """Measure files, then arrays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="fits of each way, number of workers and of threads")
    parser.add_argument("--quick", action="store_true", help="few images, one fit: does it run?")
    parser.add_argument("--out", type=Path, help="folder for pipeline.json and pipeline.png")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    files, arrays, settings = (1200, 50_000, list(itertools.product((0, 1, 2), (1, 2))))
    if args.quick:
        files, arrays, settings, args.rounds = 48, 512, [(0, 1), (1, 1)], 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        photographs(root / "images", files)
        cifar(root, arrays)
        rows = measure("files", _files(root), files, settings, args.rounds)
        rows += measure("arrays", _arrays(root), arrays, settings, args.rounds)
        costs = _costs(root)
    harness.report("pipeline", rows, args.out)
    print(f"\n{costs}")
    if args.out:
        harness.bars("Images a second to a model's step", rows, "images a second", args.out / "pipeline.png", log=True)


def measure(
    what: str, ways: dict[str, Way], count: int, settings: list[tuple[int, int]], rounds: int
) -> list[harness.Row]:
    """Every way's images a second, at the workers and threads that suit it; ours beside the fastest of the others."""
    fits = [(name, *setting) for _ in range(rounds) for setting in settings for name in ways]
    speeds: dict[str, dict[tuple[int, int], list[float]]] = {name: {} for name in ways}
    for name, workers, threads in tqdm(fits, desc=what, unit="fit"):
        torch.set_num_threads(threads)
        clock = Clock()
        model, data = ways[name](workers)
        L.Trainer(
            accelerator="cpu",
            max_epochs=10 if "cache" in name else 3,  # the first is not counted
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model, **data)
        speeds[name].setdefault((workers, threads), []).append(count / statistics.median(clock.seconds))
    best = {name: max((statistics.median(some), at) for at, some in each.items()) for name, each in speeds.items()}
    fastest = max(speed for name, (speed, _) in best.items() if not name.startswith("ddpm_data"))
    return [
        {
            "data": name,
            "images a second": speed,
            "workers, threads": f"{workers}, {threads}",
            "times the fastest other": f"{speed / fastest:.1f}" if name.startswith("ddpm_data") else "",
        }
        for name, (speed, (workers, threads)) in best.items()
    ]


def _costs(root: Path) -> str:
    """What two workers that decode take to begin and hold in memory, and what crosses to the device."""
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
    crossing = (batch.images.nbytes + batch.position.nbytes) / len(batch.images)
    return (
        f"Two decoding workers: first batch after {seconds:.2f} s, {max(private) / 1024:.0f} MB of their own each. To "
        f"the device: {crossing:,.0f} bytes an image of {SIZE} x {SIZE}; as float32 it would be {12 * SIZE**2:,}."
    )


def _ours(**options: Any) -> Way:  # noqa: ANN401  # the DataModule's
    def way(workers: int) -> tuple[L.LightningModule, dict[str, Any]]:
        return Idle(), {
            "datamodule": DDPMDataModule(schedule=schedules.linear(STEPS), num_workers=workers, flip=0.5, **options)
        }

    return way


def _theirs(dataset: Callable[[], Any], diffuse: Diffuse, batch: int) -> Way:
    def way(workers: int) -> tuple[L.LightningModule, dict[str, Any]]:
        loader = DataLoader(dataset(), batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        return Idle(diffuse), {"train_dataloaders": loader}

    return way


def _files(root: Path) -> dict[str, Way]:
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Dataset

    images = root / "images"
    usual = transforms.Compose([  # as in diffusers' examples/unconditional_image_generation
        transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.BILINEAR),
        transforms.CenterCrop(SIZE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.5], [0.5]),
    ])  # fmt: skip
    own = dict(image_size=SIZE, channels=3, batch_size=64)
    ours = own | {"train": lambda: ImageFiles(images)}
    opened = own | {"train": lambda: datasets.ImageFolder(str(images), loader=Image.open)}  # files, which PIL decodes
    return {
        "ddpm_data, decoding": _ours(**ours),
        "ddpm_data, decoding by PIL": _ours(**opened),
        "ddpm_data, from its cache": _ours(**ours, cache_dir=root / "cache"),
        "denoising-diffusion-pytorch": _theirs(
            lambda: Dataset(images, SIZE, exts=["jpg"], augment_horizontal_flip=True), _lucidrains(SIZE), 64
        ),
        "ImageFolder, diffusers": _theirs(lambda: datasets.ImageFolder(str(images), usual), _diffusers(), 64),
    }


def _arrays(root: Path) -> dict[str, Way]:
    usual = transforms.Compose(
        [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    )
    return {
        "ddpm_data, arrays": _ours(train=LocalCIFAR10(root), channels=3, batch_size=128),
        "CIFAR10, diffusers, arrays": _theirs(lambda: LocalCIFAR10(root, transform=usual), _diffusers(), 128),
    }


def _lucidrains(size: int) -> Diffuse:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    diffusion = GaussianDiffusion(
        Unet(8, dim_mults=(1,), channels=3, flash_attn=False), image_size=size, timesteps=STEPS
    )

    def diffuse(images: Tensor) -> object:
        x_0, t = diffusion.normalize(images), torch.randint(0, STEPS, (len(images),))
        noise = torch.randn_like(x_0)
        return diffusion.q_sample(x_0, t, noise), t, noise

    return diffuse


def _diffusers() -> Diffuse:
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler(num_train_timesteps=STEPS)  # type: ignore[no-untyped-call]  # diffusers' own

    def diffuse(x_0: Tensor) -> object:
        noise, t = torch.randn_like(x_0), torch.randint(0, STEPS, (len(x_0),))
        return scheduler.add_noise(x_0, noise, t), t, noise

    return diffuse


if __name__ == "__main__":
    main()
