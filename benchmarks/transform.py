"""The speed of the batch transform beside that of other libraries: ``python -m benchmarks.transform`` (three minutes).

All turn uint8 images into ``x_t``, ``t`` and noise on the CPU. The script compares our transform, compiled and not,
with the code of tutorials (gather from tables), diffusers' ``add_noise`` and denoising-diffusion-pytorch's ``q_sample``
(``pip install -e '.[bench]'``), each with its scaling, ``randint`` and ``randn``. All take turns, and each gets the
better of 1 and 2 threads. The figures are medians in nanoseconds per number, where a batch has images times channels
times pixels numbers. The last column is how many times faster ours is than the fastest other.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from ddpm_data import ForwardDiffusion, ForwardProcess, schedules

SHAPES = [(128, 3, 32, 32), (64, 3, 64, 64), (32, 3, 256, 256), (256, 1, 28, 28), (63, 3, 64, 64)]
STEPS = 1000


def main() -> None:
    """Time every shape of batch, then the first batch of a process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41, help="runs of each function at each number of threads")
    parser.add_argument("--quick", action="store_true", help="one small shape and few rounds, to see that it runs")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output-dir", "--out", type=Path, help="folder for transform.json and transform.png")
    args = parser.parse_args()
    if args.first:
        print(_time_first_batch())
        return
    shapes, rounds = ([(8, 3, 16, 16)], 3) if args.quick else (SHAPES, args.rounds)
    rows = [_measure_shape(shape, rounds, torch.device(args.device)) for shape in shapes]
    harness.print_report("transform", rows, args.output_dir)
    if args.output_dir:
        times = [{name: value for name, value in row.items() if "faster" not in name} for row in rows]
        path = args.output_dir / "transform.png"
        harness.draw_bars(f"Batch transform ({args.device})", times, "nanoseconds per number", path)
    if not args.quick:
        with tempfile.TemporaryDirectory() as cache:
            for state in ("cold", "warm"):
                command = [sys.executable, "-m", "benchmarks.transform", "--first"]
                env = os.environ | {"TORCH_EXTENSIONS_DIR": cache}
                seconds = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
                print(f"first batch of a process, {state} on-disk cache: {seconds} s")


def _measure_shape(shape: tuple[int, ...], rounds: int, device: torch.device) -> harness.Row:
    images, position = (tensor.to(device) for tensor in make_batch(shape))
    process = ForwardProcess(schedules.linear(STEPS))
    plain, flipping, eager = (
        ForwardDiffusion(process, flip=flip, compile=compiled).to(device)
        for flip, compiled in ((0, True), (0.5, True), (0, False))
    )
    peers = {
        name: _make_synchronous(partial(peer, images), device) for name, peer in _other_libraries(shape, device).items()
    }
    ours = {
        "ddpm_data": _make_synchronous(lambda: plain(images, position), device),
        "ddpm_data, flips": _make_synchronous(lambda: flipping(images, position), device),
    }
    seconds = harness.time_in_turn(ours | peers, rounds, (1, 2))
    uncompiled = {"ddpm_data, eager": _make_synchronous(lambda: eager(images, position), device)}
    seconds |= harness.time_in_turn(uncompiled, max(3, rounds // 4), (1, 2))
    times: harness.Row = {name: 1e9 * value / images.numel() for name, value in seconds.items()}
    fastest = min(float(times[name]) for name in peers)
    return {"batch": str(shape)} | times | {"times faster": fastest / float(times["ddpm_data"])}


def _make_synchronous(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Make a call wait until the device has finished it."""

    def call_and_wait() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return call_and_wait


def make_batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Make a batch of images and their positions."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), torch.arange(shape[0])


def make_tutorial(device: torch.device) -> Callable[[Tensor], object]:
    """Make the code of tutorials: uint8 images to ``(x_t, t, noise)``, by tables on the device."""
    process = ForwardProcess(schedules.linear(STEPS)).to(device)
    signal_scale, noise_scale = process.sqrt_alphas_cumprod, process.sqrt_one_minus_alphas_cumprod

    def tutorial(images: Tensor) -> object:
        x_0 = images.float() / 127.5 - 1
        t = torch.randint(0, STEPS, (len(x_0),), device=device)
        noise = torch.randn_like(x_0)
        a, b = (table.gather(0, t).view(-1, 1, 1, 1) for table in (signal_scale, noise_scale))
        return a * x_0 + b * noise, t, noise

    return tutorial


def _other_libraries(shape: tuple[int, ...], device: torch.device) -> dict[str, Callable[[Tensor], object]]:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from diffusers import DDPMScheduler as Scheduler

    scheduler: Any = Scheduler(num_train_timesteps=STEPS)  # type: ignore[no-untyped-call]  # diffusers' own

    def diffusers(images: Tensor) -> object:
        x_0 = images.float() / 127.5 - 1
        t = torch.randint(0, STEPS, (len(x_0),), device=device)
        noise = torch.randn_like(x_0)
        return scheduler.add_noise(x_0, noise, t), t, noise

    network = Unet(8, dim_mults=(1,), channels=shape[1], flash_attn=False)
    diffusion = GaussianDiffusion(network, image_size=shape[2], timesteps=STEPS).to(device)

    def denoising_diffusion(images: Tensor) -> object:
        x_0 = diffusion.normalize(images.float() / 255)
        t = torch.randint(0, STEPS, (len(x_0),), device=device)
        noise = torch.randn_like(x_0)
        return diffusion.q_sample(x_0, t, noise), t, noise

    return {
        "tutorial": make_tutorial(device),
        "diffusers": diffusers,
        "denoising-diffusion-pytorch": denoising_diffusion,
    }


def _time_first_batch() -> str:
    images, position = make_batch((64, 3, 64, 64))
    transform = ForwardDiffusion(ForwardProcess(schedules.linear(STEPS)), flip=0.5)
    began = time.perf_counter()
    transform(images, position)
    return f"{time.perf_counter() - began:.1f}"


if __name__ == "__main__":
    with torch.no_grad():
        main()
