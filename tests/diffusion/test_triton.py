"""The kernel for CUDA devices, run on a CPU by Triton's interpreter and compiled for cards that are not here."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytest.importorskip("triton", reason="comes with torch for CUDA devices")

AGREEMENT = """
import contextlib
import torch
from ddpm_data import DensityTimesteps, ForwardDiffusion, ForwardProcess, UniformTimesteps, densities, schedules
from ddpm_data.diffusion import _triton
from ddpm_data.rng.philox import Key, Purpose, normals

_triton._on_device = lambda images: contextlib.nullcontext()
process = ForwardProcess(schedules.linear(1000))
key = Key(*torch.tensor([7, 9]))
draws = {
    "independent": UniformTimesteps(),
    "low discrepancy, strided": UniformTimesteps(low_discrepancy=True),
    "low discrepancy": UniformTimesteps(low_discrepancy=True),
    "density": DensityTimesteps(densities.logit_normal),
    "density, low discrepancy": DensityTimesteps(densities.laplace, low_discrepancy=True),
    "given": lambda position, num_timesteps, key, stage: position * 31 % num_timesteps,
}
cases = [  # shape, probability of a flip, stage, dtype of the results, dtype of the images
    ((3, 3, 16, 16), 0.0, "train", torch.float32, torch.uint8),
    ((9, 1, 28, 28), 0.5, "train", torch.float32, torch.uint8),
    ((9, 1, 28, 28), 1.0, "train", torch.float32, torch.uint8),
    ((4, 4, 33, 47), 0.5, "train", torch.float32, torch.uint8),  # in no way a multiple of 4, several blocks
    ((2, 3, 5, 7), 0.5, "val", torch.float32, torch.float16),
    ((3, 2, 1, 1), 0.5, "test", torch.float64, torch.bfloat16),
    ((3, 3, 16, 16), 0.5, "train", torch.float16, torch.float32),
    ((3, 3, 16, 16), 0.0, "predict", torch.bfloat16, torch.float64),
]
for shape, flip, stage, dtype, images_dtype in cases:
    for number, (name, timesteps) in enumerate(draws.items()):
        target = ("noise", "velocity")[number % 2]
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        images.view(-1)[0], images.view(-1)[-1] = 0, 255
        if images_dtype != torch.uint8:
            images = (images.double() / 127.5 - 1).to(images_dtype)
        position = torch.arange(shape[0]) * 7919 + 2**40 - 2
        transform = ForwardDiffusion(process, 2**63 + 5, timesteps, flip, compile=False, target=target)
        strided = number % 2 == 1
        expected = transform(images, position, stage, dtype, strided)
        transform._should_compile = lambda *_: True  # as on a device
        transform._compiler = lambda *_: _triton.make_triple  # the interpreter compiles nothing
        x_t, t, result = transform(images, position, stage, dtype, strided)
        assert torch.equal(t, expected.t), (shape, name)
        error = 1e-5 if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps * 8
        assert x_t.dtype == result.dtype == dtype and x_t.shape == result.shape == images.shape
        for found, wanted in ((result, expected[2]), (x_t, expected.x_t)):
            assert float((found.double() - wanted.double()).abs().max()) <= error, (shape, flip, stage, name, dtype)
for numel in (4, 1024, 1030, 5000):
    drawn = [draw(key, Purpose.LATENT, "val", position, numel) for draw in (normals, _triton.draw_normals)]
    assert float((drawn[0] - drawn[1]).abs().max()) <= 1e-5, numel
print("agrees")
"""


@pytest.mark.slow
def test_the_kernel_for_cuda_devices_agrees_with_the_cpu() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", AGREEMENT]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.stdout == "agrees\n", result.stderr
