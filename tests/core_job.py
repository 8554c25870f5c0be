"""What test_core.py runs in a process of its own, in which no package of an extra can be imported."""

import pkgutil
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

EXTRAS = {  # what pyproject.toml's extras bring
    *("matplotlib", "tensorboard", "gdown", "datasets", "webdataset", "litdata", "simplejpeg", "safetensors", "optuna"),
    *("ray", "joblib", "submitit", "sklearn", "scipy", "diffusers", "hypothesis", "pandas", "pyarrow"),
}


def imported() -> tuple[list[str], dict[str, str]]:
    """Our modules that can be imported, and why others cannot."""
    import ddpm_data

    names, errors = [], {}

    def failed(name: str) -> None:
        errors[name] = str(sys.exc_info()[1])

    for module in pkgutil.walk_packages(ddpm_data.__path__, "ddpm_data.", failed):
        try:
            import_module(module.name)
            names.append(module.name)
        except ImportError as error:
            errors[module.name] = str(error)
    return names, errors


def main() -> NoReturn:
    """Argument: a folder to write to."""
    out = Path(sys.argv[1])
    # Lightning and torchmetrics look for installed distributions, of which nothing can be hidden: they come first.
    import lightning  # noqa: F401

    loaded = {name for name in sys.modules if name.partition(".")[0] in EXTRAS}
    sys.modules.update(dict.fromkeys(loaded | EXTRAS))  # type: ignore[arg-type]  # None is what Python takes for absent
    names, errors = imported()
    print("imported", len(names))
    for name, error in errors.items():
        print("error", name, error)

    import torch
    from PIL import Image

    from ddpm_data import DDPMDataModule, schedules, triples
    from ddpm_data.callbacks import Throughput
    from ddpm_data.cli.check import main as check
    from ddpm_data.sources import ImageFiles
    from tests.conftest import Recorder, trainer, uint8_images

    (out / "images").mkdir()
    for number, pixels in enumerate(uint8_images(12, 12, 12, 3)):
        Image.fromarray(pixels.numpy()).save(out / "images" / f"{number}.jpg")
    datamodule = DDPMDataModule(
        ImageFiles(out / "images"),
        val=0.25,
        schedule=schedules.cosine(50),
        image_size=8,
        batch_size=3,
        cache_dir=out / "cache",
        compile=False,
    )
    model = Recorder()
    run = trainer(out, max_epochs=2, callbacks=[Throughput()], enable_checkpointing=True)
    run.fit(model, datamodule=datamodule)
    print("trained on", len(model.all("train").t), "validated on", len(model.all("val").t))
    loader = datamodule.train_dataloader()
    loader.set_epoch(1)
    again = torch.cat([triple.noise for triple in triples(datamodule, loader, torch.device("cpu"))])
    print("the same noise", torch.equal(again, model.all("train").noise[-len(again) :]))
    sys.exit(check(["dataset=image_folder", f"dataset.root={out / 'images'}", "dataset.image_size=8", f"--out={out}"]))


if __name__ == "__main__":
    main()
