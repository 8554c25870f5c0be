"""Presets: every number against FIELD's golden values or the peer, what wins over them, and other people's apps."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.utils.data import TensorDataset

from ddpm_data import DDPMDataModule, ForwardProcess, TargetTriple, Triple, processes
from ddpm_data.diffusion.objective import view_on_log_snr
from ddpm_data.diffusion.timesteps import find_probabilities
from ddpm_data.diffusion.transform import ForwardDiffusion
from tests.conftest import uint8_images
from tests.test_configs import composed, names

PRESETS = (
    "adm_256 adm_64 ddim ddpm denoising_diffusion_pytorch dit edm edm2_512 edm2_64 edm_ve edm_vp flux "
    "flux_kohya imagen improved_ddpm k_diffusion ldm ldm_churches lightning_dit lumina2 p2 pi0 pixart repa sd1 "
    "sd2_v sd3 sd3_diffusers sdxl simple_diffusion sit trig_flow u_vit vdm"
)


@cache
def build(*overrides: str) -> ForwardDiffusion:
    datamodule: DDPMDataModule = instantiate(composed(*overrides, "compile=false").datamodule)
    return datamodule.transform


def probabilities(transform: ForwardDiffusion) -> torch.Tensor:
    return find_probabilities(transform.timesteps, transform.process)


def effective_weight(transform: ForwardDiffusion, at: list[float]) -> list[float]:
    """The weight on x_0's error per unit of log SNR, 1 at 0."""
    view = view_on_log_snr(transform.process, transform.objective, probabilities(transform))
    curve = np.interp([*at, 0.0], view.log_snr.flip(0).numpy(), view.weight.log().flip(0).numpy())
    assert curve[-1] == pytest.approx(0, abs=1e-3)
    return [float(value) for value in np.exp(curve[:-1])]


def test_the_list_is_complete() -> None:
    assert names("preset") == PRESETS.split()


@pytest.mark.slow
@pytest.mark.parametrize("name", names("preset"))
def test_every_preset_makes_batches(name: str) -> None:
    transform = build(f"preset={name}")
    batch = transform(uint8_images(16, 1, 8, 8), torch.arange(16))
    assert type(batch) is (Triple if transform.objective.target == "noise" else TargetTriple)
    assert all(bool(part.isfinite().all()) for part in batch)
    weight = transform.loss_weight(batch.t)
    assert bool((weight.isfinite() & (weight >= 0)).all())
    assert float(weight.max()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "middle", "last"),
    [  # FIELD, section F: abar at 0, T / 2 - 1, T - 1
        ("ddpm", 0.9999, 0.0785872429, 4.03583e-5),
        ("adm_256", 0.9999, 0.0785872429, 4.03583e-5),
        ("p2", 0.9999, 0.0785872429, 4.03583e-5),
        ("dit", 0.9999, 0.0785872429, 4.03583e-5),
        ("adm_64", 0.999958716, 0.49384359, 2.42877e-9),
        ("improved_ddpm", 0.999990134, 0.49384359, 1.51798e-10),
        ("ldm", 0.9985, 0.115844491, 1.42304e-4),
        ("ldm_churches", 0.9985, 0.151077423, 6.68665e-4),
        ("sd1", 0.99915, 0.27766965, 0.0046601),
        ("sd2_v", 0.99915, 0.27766965, 0.0046601),
        ("sdxl", 0.99915, 0.27766965, 0.0046601),
        ("denoising_diffusion_pytorch", 0.999699721, 0.5, 3.00279e-7),
    ],
)
def test_chains(name: str, first: float, middle: float, last: float) -> None:
    process = build(f"preset={name}").process
    assert isinstance(process, ForwardProcess)
    signal, steps = process.exact.signal.square(), process.num_timesteps
    assert signal[[0, steps // 2 - 1, steps - 1]].tolist() == pytest.approx([first, middle, last], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "quantiles"),
    [  # sigma / signal at 5%, 50%, 95% of the draws
        ("edm", [0.0418, 0.30119, 2.168]),
        ("edm2_512", [math.exp(-0.4 - 1.644854), 0.67032, math.exp(-0.4 + 1.644854)]),
        ("edm2_64", [math.exp(-0.8 - 1.6 * 1.644854), 0.44933, math.exp(-0.8 + 1.6 * 1.644854)]),
        ("edm_ve", [0.02 * 5000**0.05, math.sqrt(2), 0.02 * 5000**0.95]),
        ("edm_vp", [None, 3.41292, None]),
        ("trig_flow", [2 * math.exp(0.2 - 1.6 * 1.644854), 2 * math.exp(0.2), 2 * math.exp(0.2 + 1.6 * 1.644854)]),
        ("sd3", [None, 3.0, None]),
        ("flux_kohya", [None, 3.1582, None]),
        ("flux", [1 / 19, 1.0, 19.0]),
        ("sit", [1 / 19, 1.0, 19.0]),
        ("repa", [1 / 19, 1.0, 19.0]),
        ("lumina2", [3.15819 / 19, 3.15819, 3.15819 * 19]),
        ("lightning_dit", [math.exp(-1.644854), 1.0, math.exp(1.644854)]),
        ("pi0", [None, 1.7087, None]),  # s = 0.999 * 0.5^(2/3) + 0.001
        ("simple_diffusion", [None, math.exp(2.772589 / 2), None]),
        ("k_diffusion", [0.0447, 1.4126, 43.78]),  # rand_cosine_interpolated of k-diffusion, 32 to 256, sigma_data 0.5
        ("vdm", [None, 63.434**-0.5, None]),
    ],
)
def test_noise_levels(name: str, quantiles: list[float | None]) -> None:
    transform = build(f"preset={name}")
    signal, sigma = transform.process.exact
    drawn = probabilities(transform).cumsum(0)
    for share, wanted in zip((0.05, 0.5, 0.95), quantiles, strict=True):
        if wanted is not None:
            step = int((drawn >= share - 1e-9).nonzero()[0])
            assert float(sigma[step] / signal[step]) == pytest.approx(
                wanted, rel=0.05 if name == "k_diffusion" else 0.03
            ), share


def told(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a preset's network is told, the steps, and ``sigma / signal``, which is ``s / (1 - s)``, in float64."""
    process = build(f"preset={name}").process
    assert process.condition.dtype == torch.float32
    steps = torch.arange(process.num_timesteps, dtype=torch.float64)
    return process.condition.double(), steps, process.exact.sigma / process.exact.signal


@pytest.mark.slow
def test_what_the_network_is_told() -> None:
    """FIELD, sections D and F; simple_diffusion's from its peer's code."""
    expected = {
        **dict.fromkeys(["ddpm", "dit", "sd1", "sdxl", "adm_64"], lambda t, _: t),
        "u_vit": lambda t, _: t + 1,
        "improved_ddpm": lambda t, _: t / 4,
        **dict.fromkeys(["sit", "lightning_dit", "lumina2"], lambda _, sigma: 1 / (1 + sigma)),
        **dict.fromkeys(["repa", "pi0"], lambda _, sigma: 1 - 1 / (1 + sigma)),
        **dict.fromkeys(["sd3", "sd3_diffusers", "flux", "flux_kohya"], lambda _, sigma: 1000 - 1000 / (1 + sigma)),
        **dict.fromkeys(["edm", "edm2_512", "edm2_64", "k_diffusion"], lambda _, sigma: sigma.log() / 4),
        "edm_ve": lambda _, sigma: (sigma / 2).log(),
        "edm_vp": lambda t, _: 999 * (1e-5 + (1 - 1e-5) * (t + 0.5) / len(t)),
        "vdm": lambda _, sigma: 2 * sigma.log(),  # gamma
        "simple_diffusion": lambda _, sigma: -2 * sigma.log(),
        "trig_flow": lambda _, sigma: sigma.atan(),
    }
    for name, value in expected.items():
        condition, steps, sigma = told(name)
        torch.testing.assert_close(
            condition, value(steps, sigma), rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    ("name", "golden"),
    [  # FIELD, section B: at log SNR -4, -2, 2, 4
        ("sd3_diffusers", [1.218, 1.820, 0.202, 0.015]),
        ("flux", [0.135, 0.368, 2.72, 7.39]),
        ("edm", [0.038, 0.254, 3.70, 15.5]),
        ("ddpm", [0.015, 0.136, 4.12, 12.1]),
        ("vdm", [0.018, 0.135, 7.39, 54.6]),
    ],
)
def test_effective_weights(name: str, golden: list[float]) -> None:
    assert effective_weight(build(f"preset={name}"), [-4, -2, 2, 4]) == pytest.approx(golden, rel=0.03)


def test_the_papers_sd3_without_the_shift() -> None:
    transform = build("preset=sd3", "timesteps.density.shift=1")
    assert effective_weight(transform, [-4, -2, 2, 4]) == pytest.approx([0.044, 0.284, 2.10, 2.38], rel=0.03)


@pytest.mark.slow
def test_the_peers_own_objects() -> None:
    diffusers = pytest.importorskip("diffusers")
    ends = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler = diffusers.DDPMScheduler(**ends)
    torch.testing.assert_close(build("preset=sd1").process.alphas_cumprod, scheduler.alphas_cumprod)  # type: ignore[arg-type]
    table = processes.from_diffusers(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    torch.testing.assert_close(build("preset=sd3_diffusers").process.sigma, table.sigma, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(build("preset=sd3_diffusers").process.condition, table.condition, rtol=1e-5, atol=1e-3)
    ddp = pytest.importorskip("denoising_diffusion_pytorch")
    unet = ddp.Unet(dim=8, dim_mults=(1,), channels=3, flash_attn=False)
    theirs = ddp.GaussianDiffusion(unet, image_size=8)
    ours = build("preset=denoising_diffusion_pytorch")
    torch.testing.assert_close(ours.loss_weight(torch.arange(1000)), theirs.loss_weight, rtol=1e-4, atol=1e-6)
    assert ours.objective.target == {"pred_v": "velocity"}[theirs.objective]


def test_what_is_chosen_beside_a_preset_wins() -> None:
    transform = build("preset=sd2_v", "weight=min_snr", "schedule.num_timesteps=500", "target=x_0")
    assert transform.process.num_timesteps == 500
    assert transform.objective.target == "x_0"
    snr = transform.process.exact.log_snr.exp()
    torch.testing.assert_close(transform.objective.weight, snr.clamp(max=5).float())
    assert build("preset=sd2_v", "schedule=cosine").process.exact.signal[0] > 0.9999
    assert isinstance(build("experiment=cifar10", "dataset=digits").process, ForwardProcess)


@pytest.mark.slow
def test_the_shift_follows_the_images_size() -> None:
    """A number, or one of the functions of the size, in a preset and on the command line."""
    shift = "timesteps.density.shift={_target_:ddpm_data.densities.%s}"
    for name, changes, expected in [
        ("flux_kohya", [], math.exp(1.15)),
        ("flux_kohya", ["timesteps.density.shift.sequence=1024"], 1.87761),
        ("flux_kohya", ["timesteps.density.shift=2"], 2.0),
        (
            "flux_kohya",
            [
                "dataset.image_size=[512,512]",
                "timesteps.density.shift.sequence={_target_:ddpm_data.densities.count_patches,size:${dataset.image_size}}",
            ],
            1.87761,
        ),
        ("sd3", ["dataset.image_size=512", shift % "sd3_shift,size:${dataset.image_size}"], 2.0),
    ]:
        assert build(f"preset={name}", *changes).timesteps.density.keywords["shift"] == pytest.approx(expected)  # type: ignore[union-attr]
    by_size = "timesteps.shift_by_size={_target_:ddpm_data.densities.flux_shift_by_size,_partial_:true,patch:2}"
    timesteps = build("preset=sd3", "timesteps.density.shift=1", by_size).timesteps
    assert timesteps.shift_by_size((64, 64)) == pytest.approx(1.87761)  # type: ignore[union-attr,misc]
    sigma = build("preset=lumina2", "schedule.shift.sequence=256").process.exact.sigma
    torch.testing.assert_close(sigma, processes.rectified_flow(1000, math.exp(0.5)).exact.sigma)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sd3_diffusers", "denoising_diffusion_pytorch", "improved_ddpm", "ldm", "sd3", "k_diffusion"]
)
def test_nothing_of_a_preset_stays_in_a_group_that_is_chosen_beside_it(name: str) -> None:
    others = ["schedule=cosine", "timesteps=mode", "weight=min_snr", "target=velocity"]
    chosen, plain = composed(f"preset={name}", *others), composed(*others)
    for group in ("schedule", "timesteps", "weight", "noise", "target"):
        assert chosen[group] == plain[group], group


LATENTS = ["dataset=latents", "dataset.path=none.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scale", "shift"),
    [
        ("ddpm", 0.18215, 0.0),
        ("sd1", 0.18215, 0.0),
        ("sdxl", 0.13025, 0.0),
        ("sd3", 1.5305, 0.0609),
        ("flux", 0.3611, 0.1159),
    ],
)
def test_a_preset_scales_latents(name: str, scale: float, shift: float) -> None:
    latents = build(f"preset={name}", *LATENTS).latents
    assert latents is not None
    assert (latents.scale, latents.shift) == (scale, shift)
    chosen = build(f"preset={name}", *LATENTS, "dataset.latents.scale=2").latents
    assert chosen is not None
    assert (chosen.scale, chosen.shift) == (2.0, shift)
    assert build(f"preset={name}").latents is None


@pytest.mark.slow
def test_edm2s_latents_have_its_standard_deviation() -> None:
    latents = build("preset=edm2_512", *LATENTS).latents
    assert latents is not None
    mean, std = torch.tensor([5.81, 3.25, 0.12, -2.15]), torch.tensor([4.17, 4.62, 3.71, 3.28])
    torch.testing.assert_close(torch.tensor(latents.shift), mean)
    torch.testing.assert_close(torch.tensor(latents.scale) * std, torch.full((4,), 0.5), rtol=1e-5, atol=0)


@pytest.mark.parametrize("key", ["target", "datamodule.target"])
def test_the_uniform_weight_follows_the_target(key: str) -> None:
    transform = build("preset=ddpm", f"{key}=velocity")
    assert transform.objective.target == "velocity"
    assert bool((transform.objective.weight == 1).all())
    of_noise = build("preset=ddpm", f"{key}=velocity", "weight.of=noise").objective.weight
    assert not bool((of_noise == 1).all())


def in_an_app(tmp_path: Path, *overrides: str, defaults: str = "") -> Any:  # noqa: ANN401  # a DictConfig
    (tmp_path / "config.yaml").write_text(
        "defaults: [ddpm_data/dataset: digits, ddpm_data/preset: sd3, ddpm_data/loader: default, "
        f"ddpm_data/datamodule: default, {defaults}_self_]\nseed: 0\n"
    )
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def test_a_preset_in_somebodys_app(tmp_path: Path) -> None:
    cfg = in_an_app(tmp_path)
    assert set(cfg) == {"ddpm_data", "seed"}
    cfg.ddpm_data.datamodule.dataset = {"train": None}
    datamodule = instantiate(cfg.ddpm_data.datamodule, dataset=None, train=TensorDataset(uint8_images(4, 1, 8, 8)))
    assert datamodule.transform.objective.target == "flow"
    assert datamodule.transform.timesteps.density.keywords["shift"] == 3.0
    chosen = in_an_app(tmp_path, "ddpm_data/preset=sd2_v", "ddpm_data/weight=min_snr", "ddpm_data.weight.gamma=2")
    assert chosen.ddpm_data.target == "velocity"
    assert chosen.ddpm_data.weight.gamma == 2
    latents = in_an_app(tmp_path, "ddpm_data/dataset=latents", "ddpm_data.dataset.path=x").ddpm_data
    assert (latents.dataset.latents.scale, latents.datamodule.dataset.latents.shift) == (1.5305, 0.0609)
    own = in_an_app(tmp_path, defaults="override ddpm_data/schedule: cosine, ")
    assert own.ddpm_data.schedule._target_ == "ddpm_data.schedules.cosine"
