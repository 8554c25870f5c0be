"""The main job: train a small diffusion model on the triples that ddpm_data delivers, then draw samples from it.

Run ``python train_stub.py``. Every value in ``conf/`` can be overridden on the command line.
"""

import itertools
import logging
import math
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any, cast

import hydra
import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.fabric.utilities.warnings import PossibleUserWarning
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics import MeanMetric
from tqdm import tqdm

from ddpm_data import DDPMDataModule, ForwardProcess, GaussianProcess, TargetTriple, Triple, plots
from ddpm_data._checks import check_float, check_int
from ddpm_data._interruption import check_checkpoint, is_first_process
from ddpm_data.diffusion.objective import Objective
from ddpm_data.diffusion.process import make_process
from ddpm_data.diffusion.targets import Target
from ddpm_data.hydra import short_errors


class Block(nn.Module):
    """Two convolutions with a residual path, between which the embedding of t shifts the channels.

    Args:
        inputs: Channels of the input, a multiple of 8.
        outputs: Channels of the output, a multiple of 8.
        embedding: Length of the embedding.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.shift = nn.Linear(embedding, outputs)
        self.second = nn.Sequential(nn.GroupNorm(8, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` and embeddings ``(batch, embedding)`` to ``(batch, outputs, h, w)``."""
        hidden = self.first(x) + self.shift(embedding)[:, :, None, None]
        return cast(Tensor, self.skip(x) + self.second(hidden))


class UNet(nn.Module):
    """A small U-Net that halves images twice, so height and width must be multiples of 4.

    It follows DDPM, Appendix B, without attention.

    Args:
        channels: Channels of the images.
        width: Channels at full size, a multiple of 8.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        wide, embedding = 2 * width, 4 * width
        self.width = width
        self.embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList([Block(width, width, embedding), Block(width, wide, embedding)])
        self.middle = Block(wide, wide, embedding)
        self.up = nn.ModuleList([Block(2 * wide, width, embedding), Block(2 * width, width, embedding)])
        self.leave = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Predict the target for noised images.

        Args:
            x: Noised images, float, shape ``(batch, channels, height, width)``.
            condition: What it is told about their steps, float, shape ``(batch,)``.

        Returns:
            The target, dtype and shape of ``x``.

        Raises:
            ValueError: Height or width is not a multiple of 4, or ``x`` has another number of channels.
        """
        if x.shape[2] % 4 or x.shape[3] % 4:
            raise ValueError(
                f"images are {x.shape[2]} x {x.shape[3]} pixels; this U-Net halves them twice and wants sides that are "
                "multiples of 4. Change `dataset.image_size`."
            )
        if x.shape[1] != self.enter.in_channels:
            raise ValueError(
                f"images have {x.shape[1]} channels, and the network takes {self.enter.in_channels}. Change "
                "`model.channels` or `dataset.channels`."
            )
        frequency = torch.exp(torch.arange(self.width // 2, device=x.device) * (-2 * math.log(10_000) / self.width))
        angle = condition[:, None] * frequency
        embedding = self.embed(torch.cat([angle.sin(), angle.cos()], dim=1).to(x.dtype))
        x = self.enter(x)
        skips = []
        for block in self.down:
            x = block(x, embedding)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.middle(x, embedding)
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], dim=1), embedding)
        return cast(Tensor, self.leave(x))


class DDPM(L.LightningModule):
    """A model that predicts the noise or another target, trained with the simple loss (Ho et al. 2020, Eq. 14).

    The DataModule's weight of each step multiplies its loss. It is validated and sampled with an exponential moving
    average of its own weights.

    Args:
        schedule: The DataModule's betas, float, shape ``(num_timesteps,)``, or its process.
        channels: Channels of the images.
        width: Channels at full size, a multiple of 8.
        learning_rate: Learning rate of Adam, above 0.
        ema_decay: Share of the average that each optimizer step keeps, in ``[0, 1)``.
        target: What it predicts, see :class:`~ddpm_data.diffusion.transform.ForwardDiffusion`.

    Raises:
        TypeError: ``channels`` or ``width`` is not a whole number, or another argument is not a number.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        schedule: Tensor | GaussianProcess,
        channels: int,
        width: int,
        learning_rate: float,
        ema_decay: float,
        target: Target = "noise",
    ) -> None:
        super().__init__()
        check_int("DDPM", "model.channels", channels, 1)
        if check_int("DDPM", "model.width", width, 8) % 8:
            raise ValueError(f"DDPM(width={width}): GroupNorm wants a multiple of 8. Change `model.width`.")
        if check_float("DDPM", "model.learning_rate", learning_rate) <= 0:
            raise ValueError(f"DDPM(learning_rate={learning_rate}): it is above 0. Change `model.learning_rate`.")
        if not 0 <= check_float("DDPM", "model.ema_decay", ema_decay) < 1:
            raise ValueError(f"DDPM(ema_decay={ema_decay}): it lies in [0, 1). Change `model.ema_decay`.")
        self.process = make_process(schedule)
        self.objective = Objective(self.process, target)
        self.net = UNet(channels, width).to(memory_format=torch.channels_last)  # a tenth faster on CPUs
        average = get_ema_multi_avg_fn(ema_decay)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.ema = AveragedModel(self.net, multi_avg_fn=average).requires_grad_(False)
        self.learning_rate = learning_rate
        # Lightning's own mean over processes rounds their mean number of examples down to a whole number.
        self.val_loss = MeanMetric()

    def predict(self, net: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
        """Predict the target. The network sees images of about variance 1, which ``x_t`` has with most processes."""
        signal, sigma = (table[t].view(-1, 1, 1, 1) for table in (self.process.signal, self.process.sigma))
        scale = (signal.square() + sigma.square()).rsqrt()
        return cast(Tensor, net((x_t * scale).to(x_t.dtype), self.process.condition[t]))

    def training_step(self, batch: Triple | TargetTriple, batch_idx: int) -> dict[str, Tensor]:
        """Return the weighted mean squared error of the prediction, and each example's without the weight."""
        x_t, t, target = batch
        losses = F.mse_loss(self.predict(self.net, x_t, t), target, reduction="none").flatten(1).mean(1)
        datamodule: DDPMDataModule = self.trainer.datamodule  # type: ignore[attr-defined]  # fit() was given one
        loss = (datamodule.loss_weight(t) * losses).mean()
        self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss, "losses": losses.detach()}  # the latter are for timesteps=loss_aware

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # Lightning's
        """Update the averaged weights once per optimizer step, however many batches the step takes."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update_parameters(self.net)

    def validation_step(self, batch: Triple | TargetTriple, batch_idx: int) -> Tensor:
        """Return the loss of each example, shape ``(batch,)``. An example's triple is the same every epoch."""
        x_t, t, target = batch
        losses = F.mse_loss(self.predict(self.ema, x_t, t), target, reduction="none").flatten(1).mean(1)
        self.val_loss.update(losses.mean(), len(t))
        self.log("val_loss", self.val_loss, prog_bar=True)
        return losses

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with a constant learning rate."""
        return torch.optim.Adam(self.net.parameters(), lr=self.learning_rate)

    @torch.inference_mode()
    def sample(self, shape: tuple[int, ...], seed: int) -> Tensor:
        """Draw new images, with ``x_0`` kept in ``[-1, 1]``.

        DDPM's chain is sampled step by step (Ho et al. 2020, Algorithm 2), every other process without new noise in 250
        steps (Song et al. 2021, DDIM, Eq. 12, which is Euler's method in ``sigma / signal``).

        Args:
            shape: The images' shape, ``(batch, channels, height, width)``.
            seed: Seed of the sampler's noise.

        Returns:
            Images in ``[-1, 1]``, float32, on the module's device.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        count = self.process.num_timesteps
        if not isinstance(self.process, ForwardProcess):
            count = min(count, 250)
        steps = [round(i * (self.process.num_timesteps - 1) / max(1, count - 1)) for i in reversed(range(count))]
        # At a step without any signal (zero terminal SNR) the noise says nothing about x_0, so begin after it.
        steps = [step for step in steps if self.objective.x_0_from_target[step].isfinite()]
        signal, sigma = self.process.signal, self.process.sigma
        x = sigma[steps[0]] * torch.randn(shape, generator=generator, device=self.device)
        bar = tqdm(steps, desc="Sampling", unit="step", disable=None)  # None: only in a terminal
        for step, after in zip(bar, [*steps[1:], None], strict=True):
            t = torch.full(shape[:1], step, device=self.device)
            prediction = self.predict(self.ema, x.to(self.dtype), t).float()
            x_0 = self.objective.to_x_0(x, t, prediction).clamp(-1, 1)
            if after is None:
                return x_0
            if isinstance(self.process, ForwardProcess):
                mean, variance = self.process.q_posterior(x_0, x, t)
                x = mean + variance.sqrt() * torch.randn(shape, generator=generator, device=self.device)
            else:
                x = signal[after] * x_0 + sigma[after] * (x - signal[step] * x_0) / sigma[step]
        raise AssertionError("a process has at least one step")


def draw(model: DDPM, datamodule: DDPMDataModule, folder: Path, samples: int, seed: int) -> None:
    """Draw the schedule, and samples beside real images. Latents cannot be shown as images, so they get no samples.

    Args:
        model: The trained model.
        datamodule: The data it was trained on.
        folder: Folder for ``schedule.png`` and ``samples.png``.
        samples: Number of samples.
        seed: Seed of the sampler's noise.
    """
    plots.schedule_curves(datamodule.transform.process, folder / "schedule.png")
    if datamodule.transform.latents is not None:
        return
    batches = itertools.islice(datamodule.train_dataloader(), -(-samples // datamodule.batch_size))
    real = torch.cat([batch.images for batch in batches])[:samples]
    generated = model.sample((samples, *real.shape[1:]), seed)
    plots.samples_beside(generated, real, folder / "samples.png")


def check(cfg: DictConfig) -> None:
    """Check the configuration before anything is built, for mistakes that would fail late or name no config key.

    Raises:
        FileNotFoundError: ``ckpt_path`` is not a file.
        MissingMandatoryValue: A value that the configs leave to the user is missing.
        TypeError: A count is not a whole number.
        ValueError: A count is too small, or ``ckpt_path`` no checkpoint.
    """
    OmegaConf.to_container(cfg, throw_on_missing=True)
    if cfg.ckpt_path is not None:
        check_checkpoint(Path(cfg.ckpt_path))
    check_int("train_stub.py", "samples", cfg.samples, 1)
    check_int("Trainer", "trainer.max_epochs", cfg.trainer.max_epochs, -1)
    for key in ("check_val_every_n_epoch", "accumulate_grad_batches", "log_every_n_steps"):
        if cfg.trainer.get(key) is not None:
            check_int("Trainer", f"trainer.{key}", cfg.trainer[key], 1)


def build(group: DictConfig | None) -> list[Any]:
    """Build the callbacks or loggers of a config group; a null leaves one out, or all of them."""
    return [built for built in instantiate(group or {}).values() if built is not None]


def silence() -> None:
    """Leave out what Lightning tells a user who writes the Trainer's arguments: here they are in ``conf/trainer``."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices found, advice
    warnings.filterwarnings("ignore", category=PossibleUserWarning)  # advice: more workers, a folder that is not empty
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty", UserWarning)  # resumed there
    warnings.filterwarnings("ignore", "The dirpath has changed", UserWarning)  # a resumed run may have its own folder
    warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")  # lightning 2.6 on torch 2.14


@short_errors
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Train and draw.

    Returns:
        The last validation loss, or the training loss if there is no validation split; ``None`` if the checkpoint was
        written at the end of training, so that only the pictures are drawn.
    """
    silence()
    began, folder = time.monotonic(), Path(HydraConfig.get().runtime.output_dir)
    if is_first_process():
        print(f"The run's folder is {folder}", flush=True)
    check(cfg)
    datamodule: DDPMDataModule = instantiate(cfg.datamodule)
    L.seed_everything(cfg.seed % 2**32, workers=True, verbose=False)  # NumPy's limit; for the first weights only
    model: DDPM = instantiate(cfg.model)
    if cfg.model._target_ == "train_stub.DDPM" and datamodule.splits.conditions:
        raise ValueError("this U-Net takes no condition. Leave `dataset.condition` null, or give a `model` that does.")
    trainer: L.Trainer = instantiate(
        cfg.trainer,
        callbacks=build(cfg.get("callbacks")),
        logger=build(cfg.get("logger")),
    )
    if is_first_process():
        count = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        print(f"The model has {count:,} weights to train", flush=True)
    trainer.fit(model, datamodule=datamodule, ckpt_path=cfg.ckpt_path)
    metrics = trainer.callback_metrics
    if "train_loss" not in metrics:
        explain_nothing_trained(trainer)
    weights = trainer.strategy.lightning_module_state_dict()  # under fsdp each process holds only a part of the model
    if trainer.is_global_zero:
        model = instantiate(cfg.model)
        model.load_state_dict(weights)
        model.to(trainer.strategy.root_device)
        draw(model, datamodule, folder, cfg.samples, cfg.seed)
        print(f"\nThe run took {time.monotonic() - began:.0f} s; it is in {folder}")
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            print(f"  {path.relative_to(folder)}")
    value = metrics.get("val_loss", metrics.get("train_loss"))
    return None if value is None else float(value)


def explain_nothing_trained(trainer: L.Trainer) -> None:
    """Say that a checkpoint left nothing to train.

    Raises:
        ValueError: There was no checkpoint, or it has no steps.
    """
    state = f"the run is at epoch {trainer.current_epoch} and trainer.max_epochs={trainer.max_epochs}"
    if not trainer.global_step:
        raise ValueError(
            f"nothing was trained: {state}. Raise `trainer.max_epochs` (or `trainer.limit_train_batches`)."
        )
    if trainer.is_global_zero:
        print(f"Nothing was left to train: {state}. To train longer, raise `trainer.max_epochs`.")


if __name__ == "__main__":
    if int(
        os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    ):  # set by torchrun and srun: only rank 0 has a run folder
        sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null"]
    main()
