"""Whether loss-aware ``t`` lowers the gradient's variance: ``python -m benchmarks.loss_aware`` (two minutes).

For two loss weights it trains the U-Net of ``train_stub.py`` on the digits with ``LossAwareTimesteps``. Then it keeps
the network as it is, and computes the gradient of many batches under each draw of ``t``. All draws have the same mean
gradient, since ``loss_weight`` makes up for their density. The table shows the sum of the parameters' variances, as a
multiple of that under independent uniform ``t``, with its standard error.
"""

import argparse
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import TensorDataset

from benchmarks import harness
from ddpm_data import (
    DDPMDataModule,
    ForwardDiffusion,
    ForwardProcess,
    LossAwareTimesteps,
    UniformTimesteps,
    schedules,
    weights,
)
from ddpm_data.datamodule.loss_aware import LossAwareTables
from ddpm_data.diffusion.timesteps import Timesteps
from ddpm_data.diffusion.weights import Weight
from ddpm_data.sources import digits
from train_stub import DDPM

WEIGHTS: dict[str, Weight | None] = {"noise, unweighted": None, "variational bound": weights.vlb}
BATCH = 64


def train(images: TensorDataset, weight: Weight | None, steps: int) -> tuple[DDPM, list[int] | None]:
    """Train briefly; return the model and the last table."""
    L.seed_everything(0, verbose=False)
    timesteps = LossAwareTimesteps(every=20, sightings=20)
    datamodule = DDPMDataModule(
        images,
        schedule=schedules.linear(),
        batch_size=BATCH,
        timesteps=timesteps,
        weight=weight,
        image_key=0,
        compile=False,
    )
    model = DDPM(schedules.linear(), channels=1, width=24, learning_rate=1e-3, ema_decay=0.99)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=datamodule)
    tables = next(callback for callback in trainer.callbacks if isinstance(callback, LossAwareTables))  # type: ignore[attr-defined]  # a connector's
    return model, tables.shares


def find_spread(
    model: DDPM,
    images: torch.Tensor,
    timesteps: Timesteps,
    shares: list[int] | None,
    weight: Weight | None,
    batches: int,
) -> tuple[float, float]:
    """Return the sum of the variances of the gradient's entries over batches, and its standard error."""
    transform = ForwardDiffusion(ForwardProcess(schedules.linear()), 1, timesteps, weight=weight, compile=False)
    if isinstance(timesteps, LossAwareTimesteps):
        transform.use_shares(shares)
    parameters = list(model.net.parameters())
    gradients = []
    for number in range(batches):
        position = torch.arange(number * BATCH, (number + 1) * BATCH)
        x_t, t, target = transform(images[position * 769 % len(images)], position)
        losses = (model.predict(model.net, x_t, t) - target).square().flatten(1).mean(1)
        parts = torch.autograd.grad((transform.loss_weight(t) * losses).mean(), parameters)
        gradients.append(torch.cat([part.flatten() for part in parts]).double())
    stacked = torch.stack(gradients)
    squares = (stacked - stacked.mean(0)).square().sum(1) * (batches / (batches - 1))
    return float(squares.mean()), float(squares.std() / batches**0.5)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps and batches, to see that it runs")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps before the gradient is measured")
    parser.add_argument("--batches", type=int, default=100, help="batches under each draw")
    parser.add_argument("--output-dir", "--out", type=Path, help="folder for loss_aware.json")
    args = parser.parse_args()
    steps, batches = (60, 4) if args.quick else (args.steps, args.batches)
    images = digits()
    draws: dict[str, Timesteps] = {
        "uniform": UniformTimesteps(),
        "uniform, low discrepancy": UniformTimesteps(low_discrepancy=True),
        "loss-aware": LossAwareTimesteps(),
        "loss-aware, low discrepancy": LossAwareTimesteps(low_discrepancy=True),
    }
    rows: list[harness.Row] = []
    for name, weight in WEIGHTS.items():
        model, shares = train(images, weight, steps)
        found = {
            draw: find_spread(model, images.tensors[0], timesteps, shares, weight, batches)
            for draw, timesteps in draws.items()
        }
        uniform = found["uniform"][0]
        rows += [
            {"loss": name, "t": draw, "variance": mean / uniform, "standard error": error / uniform}
            for draw, (mean, error) in found.items()
        ]
    harness.print_report("loss_aware", rows, args.output_dir)


if __name__ == "__main__":
    main()
