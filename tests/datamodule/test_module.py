"""The DataModule through a real Trainer: what reaches the model, stage by stage, and what is refused in setup()."""

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split
from torchvision.datasets import FakeData, ImageFolder
from torchvision.transforms import v2

from ddpm_data import (
    DDPMDataModule,
    ForwardDiffusion,
    ForwardProcess,
    ImageBatch,
    Triple,
    UniformTimesteps,
    schedules,
    triples,
)
from ddpm_data.sources import ImageFiles, digits
from tests.conftest import Recorder, trainer, uint8_images

BETAS = schedules.linear(100)


def module(train: Any, val: Any = None, **options: Any) -> DDPMDataModule:  # noqa: ANN401  # any dataset is the point
    return DDPMDataModule(train, val, **(dict(schedule=BETAS, batch_size=8) | options))


def recovered(process: ForwardProcess, triple: Triple) -> Tensor:
    """The uint8 images inside a triple."""
    x_0 = process.predict_x_0(triple.x_t.double(), triple.t, triple.noise.double())
    return ((x_0 + 1) * 127.5).round().to(torch.uint8)


def sorted_rows(images: Tensor) -> Tensor:
    rows = images.flatten(1)
    return rows[np.lexsort(rows.numpy().T)]


def test_the_contract_in_one_line(dataset: TensorDataset, tmp_path: Path) -> None:
    model = Recorder()
    dm = DDPMDataModule(train=dataset, val=None, schedule=BETAS, batch_size=8, num_workers=0, seed=0)
    trainer(tmp_path).fit(model, datamodule=dm)
    x_t, t, noise = model.all("train")
    assert [len(batch.t) for batch in model.seen["train"]] == [8, 8, 4]
    assert x_t.dtype == noise.dtype == torch.float32
    assert t.dtype == torch.int64
    assert torch.equal(
        sorted_rows(recovered(dm.transform.process, Triple(x_t, t, noise))), sorted_rows(dataset.tensors[0])
    )


def test_the_stream_is_what_the_transform_makes_of_its_positions(dataset: TensorDataset, tmp_path: Path) -> None:
    model, dm = Recorder(), module(dataset, seed=5, flip=0.5)
    trainer(tmp_path, max_epochs=3).fit(model, datamodule=dm)
    transform = ForwardDiffusion(ForwardProcess(BETAS), seed=5, flip=0.5)
    dm.setup("fit")
    loader = dm.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for step, batch in enumerate(loader):
            assert isinstance(batch, ImageBatch)
            assert batch.position.tolist() == list(
                range(epoch * 20 + 8 * step, min(epoch * 20 + 8 * step + 8, epoch * 20 + 20))
            )
            seen = model.seen["train"][3 * epoch + step]
            for a, b in zip(seen, transform(batch.images, batch.position), strict=True):
                assert torch.equal(a, b)


GEOMETRIES: list[dict[str, Any]] = [
    dict(batch_size=5),
    dict(batch_size=20),
    dict(num_workers=1),
    dict(num_workers=2, prefetch_factor=1),
    dict(num_workers=2, prefetch_factor=4, persistent_workers=False),
    dict(num_workers=2, multiprocessing_context="fork"),
    dict(num_workers=1, multiprocessing_context="spawn", batch_size=3),
    dict(num_workers=1, multiprocessing_context="forkserver", persistent_workers=False),
]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, marks=pytest.mark.slow)
        if options.get("multiprocessing_context", "fork") != "fork"
        else options
        for options in GEOMETRIES
    ],
    ids=str,
)
def test_workers_and_batch_size_change_nothing(dataset: TensorDataset, tmp_path: Path, options: dict[str, Any]) -> None:
    if options.get("multiprocessing_context") not in (None, *multiprocessing.get_all_start_methods()):
        pytest.skip("Windows only spawns")
    plain, other = Recorder(), Recorder()
    trainer(tmp_path, max_epochs=2).fit(plain, datamodule=module(dataset))
    trainer(tmp_path, max_epochs=2).fit(other, datamodule=module(dataset, **options))
    for a, b in zip(plain.all("train"), other.all("train"), strict=True):
        assert torch.equal(a, b)


def test_epochs_and_seeds_give_other_triples(dataset: TensorDataset, tmp_path: Path) -> None:
    streams = []
    for seed in (0, 1):
        model = Recorder()
        trainer(tmp_path, max_epochs=2).fit(model, datamodule=module(dataset, seed=seed, batch_size=20))
        streams += [batch.noise for batch in model.seen["train"]]
    for i, a in enumerate(streams):
        for b in streams[:i]:
            # 3,840 numbers: 5 sigma, 6 pairs, 3e-6 false alarms
            assert abs(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]) < 5 / a.numel() ** 0.5


def test_evaluation_is_the_same_every_time_and_training_does_not_notice(dataset: TensorDataset, tmp_path: Path) -> None:
    val = TensorDataset(uint8_images(11, 3, 8, 8))
    model, other = Recorder(), Recorder()
    dm = module(dataset, val, test=val, predict=val)
    fit = trainer(tmp_path, max_epochs=3, num_sanity_val_steps=-1)
    fit.fit(model, datamodule=dm)
    passes = [Triple(*(torch.cat(x) for x in zip(*model.seen["val"][i : i + 2], strict=True))) for i in range(0, 8, 2)]
    assert len(model.seen["val"]) == 8
    assert [len(batch.t) for batch in model.seen["val"][:2]] == [5, 6]
    for again in passes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(passes[0], again, strict=True))
    trainer(tmp_path).validate(other, datamodule=module(dataset, val))
    assert all(torch.equal(a, b) for a, b in zip(passes[0], other.all("val"), strict=True))
    assert len(passes[0].t.unique()) == 11  # spread evenly over the steps
    fit.test(model, datamodule=dm)
    fit.predict(model, datamodule=dm)
    for stage in ("test", "predict"):
        assert torch.equal(recovered(dm.transform.process, model.all(stage)), val.tensors[0])
        assert not torch.equal(model.all(stage).noise, passes[0].noise)
    without = Recorder()
    trainer(tmp_path, max_epochs=3).fit(without, datamodule=module(dataset))
    assert all(torch.equal(a, b) for a, b in zip(model.all("train"), without.all("train"), strict=True))


def test_validate_then_fit_leaves_no_inference_tensors(dataset: TensorDataset, tmp_path: Path) -> None:
    dm, model = module(dataset, 0.2), Recorder()
    run = trainer(tmp_path)
    run.validate(model, datamodule=dm, verbose=False)
    run.fit(model, datamodule=dm)
    assert not any(buffer.is_inference() for buffer in dm.transform.buffers())


def test_no_validation_set_is_no_validation_loop(dataset: TensorDataset, tmp_path: Path) -> None:
    class Trainable(L.LightningModule):
        """Has no validation_step, so that Lightning would warn of a loader for it."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Triple, batch_idx: int) -> Tensor:
            return (self.weight * batch.x_t.mean()) ** 2

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    dm = pickle.loads(pickle.dumps(module(dataset)))
    run = trainer(tmp_path)
    run.fit(Trainable(), datamodule=dm)
    assert run.global_step == 3
    assert sum(run.num_val_batches) == 0


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-true", torch.bfloat16), ("16-true", torch.float16), ("64-true", torch.float64)]
)
def test_triples_come_in_the_models_precision(
    dataset: TensorDataset, tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    exact, model = Recorder(), Recorder()
    trainer(tmp_path).fit(exact, datamodule=module(dataset))
    trainer(tmp_path, precision=precision).fit(model, datamodule=module(dataset))
    for seen, full in zip(model.seen["train"], exact.seen["train"], strict=True):
        assert seen.x_t.dtype == seen.noise.dtype == dtype
        assert torch.equal(seen.t, full.t)
        assert torch.equal(seen.x_t, full.x_t.to(dtype))  # computed in float32, cast last


def test_mixed_precision_keeps_float32_triples(dataset: TensorDataset, tmp_path: Path) -> None:
    model = Recorder()
    trainer(tmp_path, precision="bf16-mixed").fit(model, datamodule=module(dataset))
    assert model.all("train").x_t.dtype == torch.float32


COLOURS = uint8_images(12, 3, 8, 8)


class Items(Dataset[Any]):
    """Items of any kind."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401  # any item
        return self.items[index]


def pictures() -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in COLOURS]


@pytest.mark.parametrize(
    ("train", "options"),
    [
        (lambda: TensorDataset(COLOURS), {}),
        (lambda: list(COLOURS), {}),
        (lambda: COLOURS, {}),
        (lambda: COLOURS.permute(0, 2, 3, 1).numpy(), {}),
        (lambda: Items(pictures()), {}),
        (lambda: Items([(picture, 1) for picture in pictures()]), {}),
        (lambda: Items([{"image": picture, "mask": picture} for picture in pictures()]), dict(image_key="image")),
        (lambda: TensorDataset(COLOURS.float() / 255), dict(value_range=(0, 1))),
        (lambda: Items([v2.functional.normalize(x / 255, [0.5], [0.5]) for x in COLOURS]), dict(value_range=[-1, 1])),
        (lambda: ConcatDataset([TensorDataset(COLOURS[:5]), TensorDataset(COLOURS[5:])]), {}),
        (lambda: Subset(TensorDataset(COLOURS), list(range(12))), {}),
        (lambda: random_split(TensorDataset(COLOURS.repeat(2, 1, 1, 1)), [24, 0])[0], {}),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_any_dataset_reaches_the_model_pixel_for_pixel(
    train: Callable[[], Any], options: dict[str, Any], workers: int, tmp_path: Path
) -> None:
    model, dm = Recorder(), module(train(), num_workers=workers, **options)
    trainer(tmp_path).fit(model, datamodule=dm)
    images = recovered(dm.transform.process, model.all("train"))
    assert torch.equal(sorted_rows(images).unique(dim=0), sorted_rows(COLOURS).unique(dim=0))


@pytest.mark.filterwarnings("ignore:.* images looked at are smaller:UserWarning")
def test_torchvision_datasets_and_folders(tmp_path: Path, folder: Path) -> None:
    for train, options in (
        (FakeData(size=9, image_size=(3, 16, 16)), {}),
        (FakeData(size=9, image_size=(3, 16, 16), transform=v2.ToImage()), {}),
        (ImageFolder(folder, allow_empty=True), dict(image_size=16)),
        (ImageFiles(folder), dict(image_size=16)),
        (lambda: ImageFiles(folder), dict(image_size=16)),
        (digits, dict(image_size=16, channels=3)),
    ):
        model = Recorder()
        trainer(tmp_path, limit_train_batches=1).fit(model, datamodule=module(train, compile=False, **options))
        assert model.all("train").x_t.shape[1:] == (3, 16, 16)


def test_images_cross_to_the_device_as_uint8_with_their_positions(tmp_path: Path) -> None:
    crossed: list[ImageBatch] = []

    class Watched(DDPMDataModule):
        def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ANN401  # Lightning's
            crossed.append(batch)
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

    dm = Watched(TensorDataset(COLOURS.float() / 255), schedule=BETAS, batch_size=8, value_range=(0, 1))
    trainer(tmp_path).fit(Recorder(), datamodule=dm)
    assert [batch.images.dtype for batch in crossed] == [torch.uint8] * 2
    assert torch.cat([batch.position for batch in crossed]).tolist() == list(range(12))


def test_factories_are_called_once_in_a_process(tmp_path: Path) -> None:
    calls: list[str] = []

    def factory() -> TensorDataset:
        calls.append("train")
        return TensorDataset(COLOURS)

    dm = module(factory, 0.25)
    assert not calls
    dm.prepare_data()
    assert calls == ["train"]
    model = Recorder()
    trainer(tmp_path).fit(model, datamodule=dm)
    assert calls == ["train"]
    assert len(model.all("train").t) == 9
    assert len(model.all("val").t) == 3


def test_a_held_out_fraction_shares_no_image_with_training(tmp_path: Path) -> None:
    model, dm = Recorder(), module(TensorDataset(COLOURS), val=0.25)
    trainer(tmp_path).fit(model, datamodule=dm)
    train, val = (recovered(dm.transform.process, model.all(stage)) for stage in ("train", "val"))
    assert torch.equal(sorted_rows(torch.cat([train, val])), sorted_rows(COLOURS))


@pytest.mark.parametrize("entry", ["fit", "validate", "test", "predict"])
def test_a_trainer_of_pytorch_lightning_is_told_what_to_import(entry: str, tmp_path: Path) -> None:
    """It would otherwise raise "Expected a parent"."""
    from pytorch_lightning import LightningModule, Trainer  # a dependency of lightning

    class Model(LightningModule):
        def training_step(self, batch: Triple, batch_idx: int) -> None:
            raise AssertionError

        validation_step = test_step = predict_step = training_step

        def configure_optimizers(self) -> None: ...

    dm = module(COLOURS, COLOURS, test=COLOURS, predict=COLOURS)
    other = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    with pytest.raises(
        TypeError, match="replace `import pytorch_lightning as pl` by `from lightning import pytorch as"
    ):
        getattr(other, entry)(Model(), datamodule=dm)
    trainer(tmp_path).fit(Recorder(), datamodule=dm)  # it is as it was


def test_augment_changes_training_images_on_the_device_before_noising(tmp_path: Path) -> None:
    class Invert(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert images.dtype == torch.uint8
            return 255 - images

    for augment in (Invert(), lambda images: 255 - images):
        model, dm = Recorder(), module(TensorDataset(COLOURS), TensorDataset(COLOURS), augment=augment)
        trainer(tmp_path).fit(model, datamodule=dm)
        train, val = (recovered(dm.transform.process, model.all(stage)) for stage in ("train", "val"))
        assert torch.equal(sorted_rows(255 - train), sorted_rows(COLOURS))
        assert torch.equal(val, COLOURS)


@pytest.mark.parametrize(
    ("augment", "error", "says"),
    [
        (lambda images: images.float() / 255, TypeError, "torch.float32"),
        (lambda images: images[0], TypeError, "shape"),
        (lambda images: images[:3], ValueError, "3 images for 8"),
        (lambda images: None, TypeError, "NoneType"),
    ],
)
def test_an_augment_that_is_none_is_refused(
    augment: Callable[[Tensor], Tensor], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=rf"{says}.*`augment`"):
        trainer(tmp_path).fit(Recorder(), datamodule=module(TensorDataset(COLOURS), augment=augment))


def test_a_model_with_the_same_hook_is_refused(tmp_path: Path) -> None:
    class Clashing(Recorder):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ANN401  # Lightning's
            return batch

    with pytest.raises(ValueError, match=r"Clashing defines on_after_batch_transfer.*augment"):
        trainer(tmp_path).fit(Clashing(), datamodule=module(TensorDataset(COLOURS)))


def test_foreign_batches_are_refused(tmp_path: Path) -> None:
    dm = module(TensorDataset(COLOURS))
    with pytest.raises(TypeError, match="batch of list"):
        dm.on_after_batch_transfer([COLOURS], 0)  # type: ignore[arg-type]


def test_usable_without_a_trainer() -> None:
    dm = module(TensorDataset(COLOURS), val=0.25)
    with pytest.raises(RuntimeError, match=r"call setup\(\)"):
        dm.train_dataloader()
    dm.setup()
    batch = next(iter(dm.train_dataloader()))
    x_t, t, noise = dm.on_after_batch_transfer(batch, 0)
    assert torch.equal(x_t, dm.transform.process.q_sample(batch.images.float() / 127.5 - 1, t, noise))


def test_a_loaders_batch_is_not_taken_for_a_triple() -> None:
    dm = module(TensorDataset(COLOURS))
    dm.setup()
    with pytest.raises(ValueError, match="unpack"):
        _x_t, _t, _noise = next(iter(dm.train_dataloader()))  # type: ignore[misc]


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generator_alone(workers: int) -> None:
    dm = module(TensorDataset(COLOURS), num_workers=workers)
    dm.setup()
    state = torch.get_rng_state()
    for batch in dm.train_dataloader():
        dm.on_after_batch_transfer(batch, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="fit, validate, test, predict"):
        module(TensorDataset(COLOURS)).setup("train")


class Greyish(Items):
    """A thousand photographs, every twentieth grey, as folders of JPEGs are."""

    def __init__(self) -> None:
        super().__init__([Image.new("L" if index % 20 == 7 else "RGB", (12, 9)) for index in range(1000)])


SETUP = [
    (dict(train=Greyish(), image_size=8), ValueError, r"`channels`"),
    (dict(train=[COLOURS[0], COLOURS[1, :, :4]] * 63 + [COLOURS[0]]), ValueError, "image_size"),
    (dict(train={"train": COLOURS}), TypeError, r"train is a dict of 'train': give one.*`train`"),
    (dict(train=None, val=0.2), ValueError, r"held out of train.*`train`"),
    (dict(train=[]), ValueError, r"train is empty.*`train`"),
    (dict(train=TensorDataset(COLOURS), val=[]), ValueError, r"val is empty"),
    (
        dict(train=TensorDataset(COLOURS), batch_size=13, drop_last=True),
        ValueError,
        r"12 images.*need 13.*`batch_size`",
    ),
    (dict(train=["a.png"]), TypeError, r"train\[0\]: an item is a str 'a.png'.*`dataset`"),
    (dict(train=[(1, 2)]), TypeError, r"train\[0\].*holds no image, but 0: int 1, 1: int 2"),
    (dict(train=[{"a": COLOURS[0], "b": COLOURS[1]}]), ValueError, r"train\[0\].*several images.*`image_key`"),
    (dict(train=COLOURS.float() / 255), ValueError, r"span 0 to 1\..*`value_range`.*\[0, 1\]"),
    (dict(train=COLOURS.float() * 2 / 255 - 1), ValueError, r"span -1 to 1\..*\[-1, 1\]"),
    (
        dict(train=COLOURS.float(), value_range=(0, 1)),
        ValueError,
        r"train\[0\]: values span .* outside value_range=\(0, 1\)",
    ),
    (dict(train=[COLOURS[0], COLOURS[1, :, :4]]), ValueError, r"\(3, 8, 8\) and train\[1\] is \(3, 4, 8\).*image_size"),
    (dict(train=[COLOURS[0], COLOURS[1, :1]]), ValueError, r"\(3, 8, 8\) and train\[1\] is \(1, 8, 8\).*channels"),
    (dict(train=COLOURS[:2], val=0.1), ValueError, r"val=0\.1 of 2 training images leaves 2 to train and 0"),
    (dict(train=lambda: 7), TypeError, r"train is a int, not a dataset.*`train`"),
    (dict(train=None), ValueError, r"no train set was given.*`train`"),
]


@pytest.mark.parametrize(("arguments", "error", "says"), SETUP)
def test_setup_refuses_what_would_fail_in_mid_epoch(
    arguments: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    model = Recorder()
    with pytest.raises(error, match=says):
        trainer(tmp_path).fit(model, datamodule=module(**arguments))
    assert not model.seen["train"]


def test_a_stage_without_a_set_says_so(tmp_path: Path) -> None:
    dm = module(TensorDataset(COLOURS))
    for run in (trainer(tmp_path).test, trainer(tmp_path).predict):
        with pytest.raises(ValueError, match=rf"no {run.__name__} set was given"):
            run(Recorder(), datamodule=dm)


CONSTRUCTION = [
    (dict(batch_size=0), ValueError, r"`batch_size`"),
    (dict(batch_size="8"), TypeError, r"`batch_size`"),
    (dict(batch_size=8.0), TypeError, r"`batch_size`"),
    (dict(num_workers=-1), ValueError, r"`num_workers`"),
    (dict(drop_last="no"), TypeError, r"`drop_last`"),
    (dict(persistent_workers=1), TypeError, r"`persistent_workers`"),
    (dict(prefetch_factor=0, num_workers=1), ValueError, r"`prefetch_factor`"),
    (dict(prefetch_factor=2), ValueError, r"no workers.*`prefetch_factor`"),
    (dict(multiprocessing_context="fork"), ValueError, r"no workers.*`multiprocessing_context`"),
    (dict(multiprocessing_context="thread", num_workers=1), ValueError, r"fork, .*`multiprocessing_context`"),
    (dict(seed=-1), ValueError, "seed"),
    (dict(flip=2), ValueError, r"`flip`"),
    (dict(val=1.0), ValueError, r"`val`"),
    (dict(val=0), ValueError, r"`val`"),
    (dict(val=True), TypeError, r"`val`"),
    (dict(val="data/val"), TypeError, r"val is a str.*`val`"),
    (dict(train=7), TypeError, r"train is a int.*`train`"),
    (dict(schedule=[0.1]), TypeError, "schedule"),
    (dict(schedule=None), TypeError, "schedule"),
    (dict(image_size=-1), ValueError, r"`image_size`"),
    (dict(channels=2), ValueError, r"`channels`"),
    (dict(value_range=(1, 1)), ValueError, r"`value_range`"),
    (dict(timesteps="uniform"), TypeError, "timesteps"),
    (dict(timesteps=UniformTimesteps), TypeError, "timesteps"),
    (dict(val=np.float32(1.5)), ValueError, r"`val`"),
    (dict(train="images"), TypeError, r"ImageFiles\('images'\)"),
    (dict(augment="flip"), TypeError, r"`augment`"),
    (dict(compile="yes"), TypeError, r"`compile`"),
]


@pytest.mark.parametrize(("arguments", "error", "says"), CONSTRUCTION)
def test_construction_refuses_impossible_values(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        module(**(dict(train=TensorDataset(COLOURS)) | arguments))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triples_are_made_on_the_gpu(dataset: TensorDataset, tmp_path: Path) -> None:
    model, reference, dm = Recorder(), Recorder(), module(dataset, 0.2)
    trainer(tmp_path, accelerator="gpu").fit(model, datamodule=dm)
    trainer(tmp_path).fit(reference, datamodule=module(dataset, 0.2))
    assert model.seen["train"][0].x_t.is_cuda
    assert {buffer.device.type for buffer in dm.transform.buffers()} == {"cuda"}
    for a, b in zip(model.all("train"), reference.all("train"), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-5)


PICTURES = [(Image.fromarray(pixels.permute(1, 2, 0).numpy()), 1) for pixels in uint8_images(20, 3, 20, 24)]
DEVICE_CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "pictures": (PICTURES, dict(image_size=16, channels=3, crop="random", val=0.3)),
    "labels": (PICTURES, dict(image_size=16, channels=3, condition=1, condition_dropout=0.3, null_condition=3)),
    "an array": (uint8_images(20, 3, 8, 8), dict(flip=0.5)),
    "floats": ([torch.rand(3, 8, 8) for _ in range(20)], dict(value_range=(0, 1))),
}


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", DEVICE_CASES)
def test_a_default_device_moves_nothing_of_what_the_host_does(case: str, workers: int) -> None:
    """As with torch.set_default_device("cuda") at the top of a script. Meta tensors show whatever is made there."""
    data, options = DEVICE_CASES[case]
    batches = []
    for device in ("cpu", "meta"):
        dm = module(data, num_workers=workers, **options)
        with torch.device(device):
            dm.setup("fit")
            batches.append(next(iter(triples(dm, dm.train_dataloader(), "cpu"))))
    for here, there in zip(*batches, strict=True):
        assert torch.equal(here, there)
