"""The main job: train a small diffusion model on the triples that ddpm_data delivers, then draw what it learnt.

Run ``python train_stub.py``; every value of ``conf/`` can be overridden on the command line.
"""

import math
from pathlib import Path
from typing import Any, cast

import hydra
import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ddpm_data import DDPMDataModule, ForwardProcess, Triple, plots


class Block(nn.Module):
    """Two convolutions with a residual path; the step's embedding shifts the channels in between."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.shift = nn.Linear(embedding, outputs)
        self.second = nn.Sequential(nn.GroupNorm(8, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Images ``(batch, inputs, h, w)`` and embeddings ``(batch, embedding)`` to ``(batch, outputs, h, w)``."""
        hidden = self.first(x) + self.shift(embedding)[:, :, None, None]
        return cast(Tensor, self.skip(x) + self.second(hidden))


class UNet(nn.Module):
    """A small U-Net of two halvings (DDPM, Appendix B, without attention): height and width are multiples of 4."""

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

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise, shape of ``x``, in images ``(batch, channels, h, w)`` at steps ``t``, ``(batch,)``."""
        frequency = torch.exp(torch.arange(self.width // 2, device=x.device) * (-2 * math.log(10_000) / self.width))
        angle = t[:, None] * frequency
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
    """Noise prediction with the simple loss (Ho et al. 2020, Eq. 14); validated and sampled with averaged weights.

    Args:
        schedule: Betas, those of the DataModule, shape ``(num_timesteps,)``.
        channels: Of the images.
        width: Channels at full size, a multiple of 8.
        learning_rate: Of Adam.
        ema_decay: Of the averaged weights, a step.
    """

    def __init__(self, schedule: Tensor, channels: int, width: int, learning_rate: float, ema_decay: float) -> None:
        super().__init__()
        self.process = ForwardProcess(schedule)
        self.net = UNet(channels, width)
        average = get_ema_multi_avg_fn(ema_decay)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.ema = AveragedModel(self.net, multi_avg_fn=average)
        self.learning_rate = learning_rate

    def training_step(self, batch: Triple, batch_idx: int) -> Tensor:
        """The loss of a training triple."""
        x_t, t, noise = batch
        loss = F.mse_loss(self.net(x_t, t), noise)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Triple, batch_idx: int) -> None:  # noqa: ANN401  # Lightning's
        """Follow the weights with their average."""
        self.ema.update_parameters(self.net)

    def validation_step(self, batch: Triple, batch_idx: int) -> None:
        """The loss of a validation triple, which is the same triple every epoch."""
        x_t, t, noise = batch
        self.log("val_loss", F.mse_loss(self.ema(x_t, t), noise), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, at one rate."""
        return torch.optim.Adam(self.net.parameters(), lr=self.learning_rate)

    @torch.inference_mode()
    def sample(self, shape: tuple[int, ...], seed: int) -> Tensor:
        """Ancestral sampling (DDPM, Algorithm 2), ``x_0`` kept in the images' range.

        Args:
            shape: ``(batch, channels, height, width)``.
            seed: Of the sampler's noise.

        Returns:
            Images in ``[-1, 1]``, float32, on the module's device.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        x = torch.randn(shape, generator=generator, device=self.device)
        # A step without any signal (zero terminal SNR) tells noise prediction nothing of x_0: begin after it.
        steps = self.process.alphas_cumprod.nonzero().flatten().flip(0)
        for step in tqdm(steps.tolist(), desc="Sampling", unit="step"):
            t = torch.full(shape[:1], step, device=self.device)
            x_0 = self.process.predict_x_0(x, t, self.ema(x.to(self.dtype), t).float()).clamp(-1, 1)
            mean, variance = self.process.q_posterior(x_0, x, t)
            x = mean + variance.sqrt() * torch.randn(shape, generator=generator, device=self.device)
        return x.clamp(-1, 1)


def draw(model: DDPM, datamodule: DDPMDataModule, folder: Path, samples: int, seed: int) -> None:
    """Write the three pictures into the run's folder."""
    real = next(iter(datamodule.train_dataloader())).images[:samples]
    plots.noising_strip(datamodule.transform.process, real[:8], folder / "noising.png")
    plots.schedule_curves(datamodule.transform.process, folder / "schedule.png")
    drawn = model.sample((samples, *real.shape[1:]), seed)
    plots.samples_beside(drawn, real, folder / "samples.png")


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """Compose, instantiate, fit, draw; returns the last validation loss, for sweepers."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.ckpt_path is not None and not Path(cfg.ckpt_path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {Path(cfg.ckpt_path).absolute()}. Change `ckpt_path`.")
    L.seed_everything(cfg.seed, workers=True)
    datamodule: DDPMDataModule = instantiate(cfg.datamodule)
    model: DDPM = instantiate(cfg.model)
    trainer: L.Trainer = instantiate(
        cfg.trainer,
        callbacks=list(instantiate(cfg.callbacks).values()),
        logger=list(instantiate(cfg.logger).values()),
    )
    trainer.fit(model, datamodule=datamodule, ckpt_path=cfg.ckpt_path)
    if trainer.is_global_zero:
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        draw(model, datamodule, folder, cfg.samples, cfg.seed)
        print(f"\nThe run is in {folder}")
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".csv", ".ckpt", ".yaml")):
            if ".hydra" not in path.parts:
                print(f"  {path.relative_to(folder)}")
    return float(trainer.callback_metrics["val_loss"])


if __name__ == "__main__":
    main()
