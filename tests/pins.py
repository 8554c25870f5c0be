"""What the stream gave when it was pinned: the same seed must give the same triples in the next release.

After a change that is meant to change the stream, which the changelog then says:
``python -m tests.pins > tests/pins.json``.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.sources import ImageFiles, digits

ROOT = Path(__file__).parent.parent
CONFIGS = {
    "digits": ["dataset=digits", "schedule=linear", "loader.batch_size=16"],
    "flips": ["dataset=fake", "schedule=cosine", "timesteps=low_discrepancy", "loader.batch_size=16", "seed=7"],
    "files": [
        "dataset=image_folder",
        "dataset.image_size=[24,26]",  # crops alone: two releases of torch round a resize differently
        "dataset.crop=random",
        "dataset.val=null",
        "schedule=zero_terminal_snr",
        "loader.batch_size=8",
        "loader.drop_last=true",
        "seed=18446744073709551615",
    ],
}


def write_images(folder: Path, count: int = 20) -> None:
    """Image files whose every byte is known: no library's encoder has a say."""
    folder.mkdir()
    for number in range(count):
        height, width = 28 + number % 3, 26
        pixels = bytes((number * 40503 + place * place * 31) % 251 for place in range(height * width * 3))
        path = folder / f"{number}.ppm"
        path.write_bytes(f"P6 {width} {height} 255\n".encode() + pixels)
        os.utime(path, ns=(10**18, 10**18 + number))


def batches(name: str, compiled: bool, folder: Path) -> Iterator[tuple[Any, Any]]:
    """ImageBatch and triples of two epochs of training and one of validation, three batches each."""
    overrides = [*CONFIGS[name], f"compile={str(compiled).lower()}"]
    if name == "files":
        overrides.append(f"dataset.root={folder}")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        datamodule: DDPMDataModule = instantiate(compose("train", overrides).datamodule)
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        for examples, _ in zip(loader, range(3), strict=False):
            yield examples, datamodule.on_after_batch_transfer(examples, 0)
    if name != "files":
        for examples, _ in zip(datamodule.val_dataloader(), range(3), strict=False):
            yield examples, datamodule.on_after_batch_transfer(examples, 0)


def measured(name: str, compiled: bool, folder: Path) -> dict[str, Any]:
    """Whole numbers by their digest, floats by some of their values: these differ in the last bits between machines."""
    digest = blake2b(digest_size=16)
    corners: dict[str, list[Tensor]] = {"x_t": [], "noise": []}
    for examples, triple in batches(name, compiled, folder):
        for part in (examples.images, examples.position, triple.t):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.contiguous().numpy().tobytes())
        corners["x_t"].append(triple.x_t[:4, -1, -1, -1])
        corners["noise"].append(triple.noise[:4, -1, -1, -1])
    return {"digest": digest.hexdigest()} | {part: torch.cat(values).tolist() for part, values in corners.items()}


def fingerprints(folder: Path) -> dict[str, str]:
    """What the caches of two datasets are called."""
    found = {}
    for name, dataset in {
        "files": ImageFiles(folder),
        "tuples": list(zip(range(5), digits()[:5][0], strict=True)),
    }.items():
        cache = folder.parent / f"cache of {name}"
        options = {"image_size": 16} if name == "files" else {"image_size": 4, "channels": 3}
        module = DDPMDataModule(dataset, schedule=schedules.linear(10), cache_dir=cache, **options)  # type: ignore[arg-type]
        module.prepare_data()
        [path] = [path for path in cache.glob("*.npy")]
        found[name] = path.stem
    return found


class Model(L.LightningModule):
    """Learns nothing, and saves a checkpoint inside the second epoch, in the middle of an accumulation window."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.path = path

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401  # any batch
        return self.weight.sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401  # Lightning's
        if self.current_epoch == 1 and batch_idx == 12:
            self.trainer.save_checkpoint(self.path)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def state(folder: Path) -> dict[str, Any]:
    """What that checkpoint says of the stream, and Lightning's own count of batches beside it."""
    datamodule = DDPMDataModule(digits, schedule=schedules.cosine(100), batch_size=64, seed=3, flip=0.5)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Model(folder / "pinned.ckpt"), datamodule=datamodule)
    checkpoint = torch.load(folder / "pinned.ckpt", weights_only=True)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return {"DDPMDataModule": checkpoint["DDPMDataModule"], "batch_progress": progress}


def measure(folder: Path) -> dict[str, Any]:
    """All that is pinned."""
    write_images(folder / "images")
    return {
        "triples": {name: measured(name, False, folder / "images") for name in CONFIGS},
        "fingerprints": fingerprints(folder / "images"),
        "checkpoint": state(folder),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        print(json.dumps(measure(Path(root)), indent=1))
