"""Objectives where the user stands: what reaches the model's step in a real Trainer, and the main job's sampler."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ddpm_data import (
    ConditionedTargetTriple,
    DDPMDataModule,
    DensityTimesteps,
    ForwardDiffusion,
    ForwardProcess,
    TargetTriple,
    densities,
    noises,
    processes,
    schedules,
    weights,
)
from ddpm_data.diffusion.targets import Target, make_table
from tests.conftest import trainer, uint8_images
from train_stub import DDPM

DATASET = TensorDataset(uint8_images(20, 3, 8, 8), torch.arange(20))


class Recorder(L.LightningModule):
    """Keeps what reaches its steps, with the weights that it looks up there."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))
        self.seen: list[Any] = []
        self.weights: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401  # any kind of batch
        self.seen.append(batch)
        self.weights.append(self.trainer.datamodule.loss_weight(batch.t))  # type: ignore[attr-defined]
        return self.factor.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path: Path, precision: Any = 32, **options: Any) -> tuple[Recorder, DDPMDataModule]:  # noqa: ANN401
    model, datamodule = Recorder(), DDPMDataModule(DATASET, image_key=0, batch_size=8, **options)
    trainer(tmp_path, precision=precision).fit(model, datamodule=datamodule)
    return model, datamodule


def test_a_flow_in_a_trainer(tmp_path: Path) -> None:
    timesteps = DensityTimesteps(densities.logit_normal, importance=True)
    process, options = processes.rectified_flow(50, shift=2.0), dict(target="flow", noise=noises.offset(0.2))
    weight = weights.min_snr
    model, _ = fit(tmp_path, schedule=process, timesteps=timesteps, weight=weight, condition=1, **options)
    batch = model.seen[0]
    assert type(batch) is ConditionedTargetTriple
    x_t, t, target, condition = batch
    s = process.sigma[t].view(-1, 1, 1, 1)
    x_0 = x_t - s * target  # x_t = (1 - s) x_0 + s n = x_0 + s (n - x_0)
    images = DATASET.tensors[0][condition].float() / 127.5 - 1
    torch.testing.assert_close(x_0, images, rtol=0, atol=1e-5)
    expected = weights.min_snr(process, "flow") / (50 * densities.logit_normal(process))
    torch.testing.assert_close(model.weights[0], expected.float()[t], rtol=1e-4, atol=0)


def test_what_float16_cannot_hold_is_refused_before_training(tmp_path: Path) -> None:
    """The largest number of each table's side: below 65504 / 6.8, and above."""
    fits, overflows = (processes.variance_exploding(torch.tensor([least, 1.0]).double()) for least in (2e-4, 5e-5))
    model, _ = fit(tmp_path, precision="16-true", schedule=fits, target="score")
    assert bool(model.seen[0][2].isfinite().all())
    with pytest.raises(
        ValueError, match=r"target='score' reaches 1\.36e\+05 at t=0, but float16 .*`trainer.precision`"
    ):
        fit(tmp_path, precision="16-true", schedule=overflows, target="score")
    fit(tmp_path, precision="bf16-true", schedule=overflows, target="score")
    loud = processes.variance_exploding(torch.tensor([1.0, 1e4]).double())
    with pytest.raises(ValueError, match=r"x_t reaches .* at t=1, but float16"):
        fit(tmp_path, precision="16-true", schedule=loud)


def test_bfloat16_batches_hold_the_exact_target(tmp_path: Path) -> None:
    betas = schedules.zero_terminal_snr(schedules.linear(50))
    exact, _ = fit(tmp_path, schedule=betas, target="velocity")
    half, _ = fit(tmp_path, precision="bf16-true", schedule=betas, target="velocity")
    for a, b in zip(exact.seen, half.seen, strict=True):
        assert type(a) is type(b) is TargetTriple
        assert torch.equal(a.t, b.t)
        assert torch.equal(a.target.bfloat16(), b.target)
        assert torch.equal(a.x_t.bfloat16(), b.x_t)


@pytest.mark.parametrize("schedule", [schedules.linear, lambda: processes.rectified_flow(7), processes.edm(5)])
def test_schedules_may_be_betas_processes_or_functions(schedule: Any) -> None:  # noqa: ANN401
    datamodule = DDPMDataModule(DATASET, schedule=schedule)
    process = datamodule.transform.process
    assert isinstance(process, ForwardProcess) == (schedule is schedules.linear)
    assert process.num_timesteps in (1000, 7, 5)


def perfect_model(schedule: Any, target: Target, image: Tensor, deviation: float = 0.0) -> DDPM:  # noqa: ANN401
    """A model whose prediction is the best there is, for data that are normal around an image."""
    model = DDPM(schedule, channels=1, width=8, learning_rate=1e-3, ema_decay=0.9, target=target)
    process = model.process
    p, q = (values.float() for values in make_table(process, target))

    def predict(net: object, x_t: Tensor, t: Tensor) -> Tensor:
        a, b, of_x, of_n = (table[t].view(-1, 1, 1, 1) for table in (process.signal, process.sigma, p, q))
        gain = a * deviation**2 / (a**2 * deviation**2 + b**2)
        x_0 = image + gain * (x_t - a * image)
        return of_x * x_0 + of_n * (x_t - a * x_0) / b

    model.predict = predict  # type: ignore[assignment,method-assign]
    return model


@pytest.mark.parametrize(
    ("schedule", "target"),
    [
        (schedules.linear(50), "noise"),
        (schedules.zero_terminal_snr(schedules.cosine(50)), "velocity"),
        (schedules.zero_terminal_snr(schedules.cosine(50)), "noise"),
        (schedules.linear(50), "x_0"),
        (processes.rectified_flow(50), "flow"),
        (processes.rectified_flow(50), "flow_to_data"),
        (processes.rectified_flow(1000), "noise"),
        (processes.edm(4096), "edm"),
        (processes.variance_exploding(torch.linspace(0.01, 20, 60)), "score"),
        (processes.trig_flow(4096), "velocity"),
    ],
)
def test_the_sampler_finds_the_only_image(schedule: Any, target: Target) -> None:  # noqa: ANN401  # betas or a process
    """With the perfect prediction for a dataset of one image, every sample is that image, for every objective."""
    image = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    samples = perfect_model(schedule, target, image).sample((3, 1, 4, 4), seed=0)
    torch.testing.assert_close(samples, image.expand(3, -1, -1, -1), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("schedule", "target"),
    [
        (schedules.linear(), "noise"),
        (schedules.scaled_linear(), "velocity"),
        (processes.rectified_flow(), "flow_to_data"),
        (processes.edm(), "edm"),
    ],
    ids=["ddpm", "sd2_v", "sit", "edm"],
)
def test_samples_have_the_datas_mean_and_deviation(schedule: Any, target: Target) -> None:  # noqa: ANN401
    image = torch.linspace(-0.3, 0.3, 16).view(1, 1, 4, 4)
    away = perfect_model(schedule, target, image, deviation=0.2).sample((512, 1, 4, 4), seed=0) - image
    assert float(away.mean()) == pytest.approx(0, abs=0.01)  # of 8,192 numbers, whose mean deviates by 0.0022
    assert float(away.std()) == pytest.approx(0.2, rel=0.05)  # by 0.8%, and by what the steps leave out


def test_a_run_of_each_objective_sees_the_same_images_and_noise(tmp_path: Path) -> None:
    """The objective changes what is learned, never the stream: two runs can be compared example by example."""
    first, _ = fit(tmp_path, schedule=processes.rectified_flow(50), target="flow")
    second, _ = fit(tmp_path, schedule=processes.rectified_flow(50), target="x_0")
    process = processes.rectified_flow(50)
    for a, b in zip(first.seen, second.seen, strict=True):
        assert torch.equal(a.x_t, b.x_t)
        s = process.sigma[a.t].view(-1, 1, 1, 1)
        torch.testing.assert_close(a.x_t - s * a.target, b.target, rtol=0, atol=1e-5)


def test_a_transform_alone_is_the_datamodules(tmp_path: Path) -> None:
    model, datamodule = fit(tmp_path, schedule=processes.edm(100), target="edm", seed=4)
    transform = ForwardDiffusion(processes.edm(100), seed=4, target="edm")
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    loader.set_epoch(0)
    for examples, batch in zip(loader, model.seen, strict=True):
        found = transform(examples.images, examples.position)
        assert all(torch.equal(a, b) for a, b in zip(found, batch, strict=True))
