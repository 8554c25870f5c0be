"""Latents in place of images: as they are, scaled, or drawn from mean and standard deviation by keyed noise."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ddpm_data import DDPMDataModule, ForwardDiffusion, ForwardProcess, schedules
from ddpm_data.images.conditions import Conditions
from ddpm_data.images.latent_processor import LatentProcessor
from ddpm_data.latents import Latents
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.rng.philox import key_from
from ddpm_data.sources import TensorFile
from tests.conftest import Recorder, trainer

COUNT, CHANNELS, SIDE = 30, 8, 6
GENERATOR = torch.Generator().manual_seed(0)
MEAN = torch.randn(COUNT, CHANNELS, SIDE, SIDE, generator=GENERATOR) * 5
STD = torch.rand(COUNT, CHANNELS, SIDE, SIDE, generator=GENERATOR)
PROCESS = ForwardProcess(schedules.linear(100))


class Items(list[Any]):
    """A dataset without an array behind it."""


def fit(tmp_path: Path, train: Any, latents: Latents, epochs: int = 1, **options: Any) -> Recorder:  # noqa: ANN401
    model = Recorder()
    options = dict(schedule=schedules.linear(100), batch_size=7, val=train) | options
    module = DDPMDataModule(train, latents=latents, **options)
    trainer(tmp_path, max_epochs=epochs).fit(model, datamodule=module)
    return model


def recovered(model: Recorder, stage: str) -> Tensor:
    """The latents inside the triples, in the order of the set for validation."""
    x_t, t, noise = model.all(stage)
    return PROCESS.predict_x_0(x_t, t, noise)


FORMS: dict[str, Any] = {
    "tensor": MEAN,
    "array": MEAN.numpy(),
    "items": Items(MEAN),
    "dict": Items({"latents": latent, "label": 3} for latent in MEAN.numpy()),
    "tensors": TensorDataset(MEAN, torch.arange(COUNT)),
    "doubles": MEAN.double(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("latents", "expected"),
    [
        (Latents(), MEAN),
        (Latents(0.25, 1.0), (MEAN - 1) * 0.25),
        (
            Latents([0.5 + i for i in range(CHANNELS)], range(CHANNELS)),
            (MEAN - torch.arange(CHANNELS).view(-1, 1, 1)) * (0.5 + torch.arange(CHANNELS)).view(-1, 1, 1),
        ),
    ],
    ids=["as they are", "scaled", "by channel"],
)
def test_latents_reach_the_model_shifted_and_scaled(
    form: str, latents: Latents, expected: Tensor, tmp_path: Path
) -> None:
    model = fit(tmp_path, FORMS[form], latents)
    torch.testing.assert_close(recovered(model, "val"), expected.float(), atol=2e-3, rtol=1e-3)
    assert model.all("train").x_t.dtype == torch.float32
    assert len(model.all("train").x_t) == COUNT


@pytest.mark.parametrize(
    ("train", "latents", "options"),
    [
        pytest.param(
            Items(zip(MEAN, STD, strict=True)), Latents(0.5, std_key=1), dict(image_key=0), marks=pytest.mark.slow
        ),
        pytest.param(
            Items({"mean": m, "std": s} for m, s in zip(MEAN, STD, strict=True)),
            Latents(0.5, std_key="std"),
            dict(image_key="mean"),
            marks=pytest.mark.slow,
        ),
        pytest.param(torch.cat([MEAN, STD], dim=1), Latents(0.5, stacked=True), {}, marks=pytest.mark.slow),
        (torch.cat([MEAN, STD], dim=1), Latents(0.5, stacked=True), dict(compile=False)),
        pytest.param(
            torch.cat([MEAN, STD], dim=1).half(),
            Latents(0.5, stacked=True),
            dict(num_workers=1),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["pair", "dict", "stacked", "stacked, eager", "halves, a worker"],
)
def test_mean_and_deviation_are_drawn_by_keyed_noise(
    train: Any,  # noqa: ANN401  # any dataset
    latents: Latents,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Anew each epoch, the same in validation, whatever the form; standard normal."""
    model = fit(tmp_path, train, latents, epochs=2, **options)
    first, second = recovered(model, "val").chunk(2)
    assert torch.equal(first, second)
    drawn = (first / 0.5 - MEAN) / STD
    clear = drawn[STD > 0.3].double().numpy()  # elsewhere the recovery's own rounding shows
    assert stats.kstest(clear, "norm").pvalue > 1e-4  # false alarm: 1e-4
    pair = Items(zip(MEAN, STD, strict=True))
    again = fit(tmp_path, pair, Latents(0.5, std_key=1), image_key=0, compile=options.get("compile", True))
    exact = train.dtype == torch.float32 if isinstance(train, Tensor) else True
    torch.testing.assert_close(first, recovered(again, "val"), atol=2e-3 if exact else 2e-2, rtol=1e-3)
    x_t, t, noise = model.all("train")
    epochs = PROCESS.predict_x_0(x_t, t, noise)
    assert not torch.allclose(epochs[:COUNT].sort(0).values, epochs[COUNT:].sort(0).values, atol=0.01)


@pytest.mark.slow
def test_a_draw_depends_on_the_example_alone() -> None:
    values, position = torch.cat([MEAN, STD], dim=1), torch.arange(COUNT)
    for compiled in (True, False):
        transform = ForwardDiffusion(PROCESS, seed=4, compile=compiled, latents=Latents(stacked=True))
        whole = transform(values, position)
        part = transform(values[5:9], position[5:9])
        assert torch.equal(part.x_t, whole.x_t[5:9])
        assert whole.x_t.shape == MEAN.shape
    other = ForwardDiffusion(PROCESS, seed=5, latents=Latents(stacked=True))(values, position)
    assert not torch.equal(other.x_t, whole.x_t)
    eager = ForwardDiffusion(PROCESS, seed=4, compile=False, latents=Latents(stacked=True))(values, position)
    compiled_ = ForwardDiffusion(PROCESS, seed=4, latents=Latents(stacked=True))(values, position)
    torch.testing.assert_close(eager.x_t, compiled_.x_t, rtol=1e-5, atol=2e-5)


def test_the_drawn_noise_is_not_the_noise_of_the_forward_process() -> None:
    """Else x_t would hold one noise twice."""
    values = torch.cat([torch.zeros_like(MEAN), torch.ones_like(MEAN)], dim=1)
    x_t, t, noise = ForwardDiffusion(PROCESS, compile=False, latents=Latents(stacked=True))(values, torch.arange(COUNT))
    drawn = PROCESS.predict_x_0(x_t, t, noise)
    correlation = np.corrcoef(drawn.flatten().numpy(), noise.flatten().numpy())[0, 1]
    assert abs(correlation) < 5 / drawn.numel() ** 0.5  # 5 sigma: 6e-7 false alarms


WITH_STD = [{"mean": mean, "std": std} for mean, std in zip(MEAN, STD, strict=True)]


@pytest.mark.parametrize(
    ("items", "latents"),
    [
        (WITH_STD, Latents(std_key="std")),
        (WITH_STD, Latents(std_key="std", shift=[0.5] * CHANNELS)),
        ([{"mean": torch.cat([item["mean"], item["std"]])} for item in WITH_STD], Latents(stacked=True)),
    ],
    ids=["two values", "by channel", "stacked"],
)
def test_a_dataloader_of_the_users_own_serves_what_its_dataset_serves(items: list[Any], latents: Latents) -> None:
    """The deviation was not read, and the mean cut in two."""
    found = []
    for train in (items, DataLoader(Items(items), batch_size=5)):
        dm = DDPMDataModule(train, schedule=schedules.linear(10), batch_size=5, latents=latents, image_key="mean")
        dm.setup("fit")
        if isinstance(train, DataLoader):
            values = torch.cat([batch.images for batch in dm.train_dataloader()])
        else:
            values = dm.splits.images("train").batch(range(COUNT)).images
        found.append(latents.sample(key_from(0), values, torch.arange(COUNT), "train"))
    assert found[0].shape == MEAN.shape
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("items", "latents", "says"),
    [
        (WITH_STD, Latents(std_key="sigma"), "no image at 'sigma'"),
        (WITH_STD, Latents(scale=[1.0] * 6), "the latent has 8 channels, and 6 numbers"),
        ([{"mean": MEAN[0][:7]}] * 5, Latents(stacked=True), "7 channels, which cannot be halved"),
        ([{"mean": MEAN[0]}] * 5, Latents(stacked=True), "a standard deviation is negative"),
        (
            [{"mean": torch.full((4, 2, 2), 1e300, dtype=torch.float64)}] * 5,
            Latents(),
            "80 of 80 values are NaN or inf",
        ),
    ],
)
def test_a_dataloaders_latents_are_checked_as_items_are(items: list[Any], latents: Latents, says: str) -> None:
    options: dict[str, Any] = dict(schedule=schedules.linear(10), latents=latents, image_key="mean")
    dm = DDPMDataModule(DataLoader(Items(items), batch_size=5), **options)
    dm.setup("fit")
    with pytest.raises(ValueError, match=rf"train, batch 0: .*{says}"):
        next(iter(dm.train_dataloader()))


def test_a_file_of_tensors(tmp_path: Path) -> None:
    labels = torch.arange(COUNT)
    save_file({"latents": MEAN, "std": STD, "label": labels}, tmp_path / "a.safetensors")
    file = TensorFile(tmp_path / "a.safetensors")
    images = MapStyleImages(file, LatentProcessor(Latents(), "latents"), "train", conditions=Conditions("label"))
    images.inspect()
    assert images._arrays is not None
    batch = images.batch([4, 2])
    assert torch.equal(batch.images, MEAN[[4, 2]])
    assert batch.condition.tolist() == [4, 2]
    options: dict[str, Any] = dict(image_key="latents", num_workers=1)
    torch.testing.assert_close(recovered(fit(tmp_path, file, Latents(), **options), "val"), MEAN, atol=2e-3, rtol=1e-3)
    (tmp_path / "b.safetensors").write_bytes(b"no such thing")
    save_file({"a": MEAN, "b": MEAN[:3].clone()}, tmp_path / "c.safetensors")
    for name, error, says in (
        ("b", ValueError, "is no safetensors file"),
        ("c", ValueError, r"\(30, 8, 6, 6\), 'b': \(3, 8, 6, 6\)\}.*`path`"),
        ("d", FileNotFoundError, "there is no file"),
    ):
        with pytest.raises(error, match=says):
            TensorFile(tmp_path / f"{name}.safetensors")


class Negated(TensorFile):
    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: -column for name, column in super().__getitem__(index).items()}


def test_a_file_of_tensors_that_was_changed_travels_as_it_is(tmp_path: Path) -> None:
    """Workers that are not forked were sent the path alone."""
    save_file({"latents": MEAN, "label": torch.arange(COUNT)}, tmp_path / "a.safetensors")
    file = Negated(tmp_path / "a.safetensors")
    file.columns["label"], file.columns["more"] = torch.full((COUNT,), 7), torch.ones(COUNT)
    assert len(pickle.dumps(file)) < MEAN.nbytes / 10
    again = pickle.loads(pickle.dumps(file))
    assert type(again) is Negated
    assert list(again.columns) == list(file.columns)
    for name, values in file[3].items():
        assert torch.equal(again[3][name], values)


@pytest.mark.slow
def test_latents_are_cached_as_they_are(tmp_path: Path) -> None:
    items = Items(zip(MEAN.half(), STD.half(), strict=True))
    seen = [
        recovered(fit(tmp_path, items, Latents(std_key=1), image_key=0, compile=False, **options), "val")
        for options in ({}, dict(cache_dir=tmp_path / "cache"), dict(cache_dir=tmp_path / "cache"))
    ]
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    [path] = (tmp_path / "cache").glob("*.npy")
    assert np.load(path, allow_pickle=False).dtype == np.float16


@pytest.mark.parametrize(
    ("item", "latents", "options", "error", "says"),
    [
        (
            torch.zeros(4, 8, 8, dtype=torch.uint8),
            Latents(),
            {},
            TypeError,
            r"torch\.uint8 of shape.*`latents`",
        ),
        (torch.zeros(8, 8), Latents(), {}, TypeError, r"\(channels, height, width\)"),
        (torch.full((4, 8, 8), torch.nan), Latents(), {}, ValueError, "256 of 256 values are NaN"),
        (torch.zeros(3, 8, 8), Latents(stacked=True), {}, ValueError, r"3 channels.*`latents\.stacked`"),
        (torch.zeros(4, 8, 8) - 1, Latents(stacked=True), {}, ValueError, r"negative.*exp\(logvar / 2\)"),
        (torch.zeros(4, 8, 8), Latents([1.0, 2.0]), {}, ValueError, r"4 channels, and 2 numbers"),
        (
            (torch.zeros(4, 8, 8), torch.zeros(4, 8, 4)),
            Latents(std_key=1),
            dict(image_key=0),
            ValueError,
            "share a shape",
        ),
    ],
)
def test_what_is_no_latent_is_refused(
    item: Any,  # noqa: ANN401  # any item
    latents: Latents,
    options: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=rf"train\[0\]: .*{says}"):
        DDPMDataModule(Items([item] * 3), schedule=schedules.linear(10), latents=latents, **options).setup("fit")


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Latents(0.0), ValueError, r"`latents\.scale`"),
        (lambda: Latents([1.0, 0.0]), ValueError, r"`latents\.scale`"),
        (lambda: Latents("1"), TypeError, r"`latents\.scale`"),  # type: ignore[arg-type]  # the point
        (lambda: Latents(shift=torch.nan), ValueError, r"`latents\.shift`"),
        (lambda: Latents(std_key="std", stacked=True), ValueError, r"`latents`"),
        (lambda: ForwardDiffusion(PROCESS, latents=0.5), TypeError, r"`latents`"),  # type: ignore[arg-type]  # the point
        (
            lambda: DDPMDataModule(MEAN, schedule=schedules.linear(10), latents=Latents(), image_size=4, channels=3),
            ValueError,
            r"channels, image_size would change nothing.*`channels`, `image_size`",
        ),
        (
            lambda: ForwardDiffusion(PROCESS, latents=Latents())(
                torch.zeros(1, 4, 8, 8, dtype=torch.uint8), torch.arange(1)
            ),
            TypeError,
            r"latents must be floats.*`dataset\.latents`",
        ),
    ],
)
def test_impossible_options_are_refused(make: Any, error: type[Exception], says: str) -> None:  # noqa: ANN401
    with pytest.raises(error, match=says):
        make()
