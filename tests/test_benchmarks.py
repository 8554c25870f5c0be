"""What the benchmarks claim of CUDA devices: here by what the compiler reports, there by running them."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT


def printed(*command: str) -> list[list[str]]:
    """The rows of the table that a benchmark prints; in a process of its own, as inductor remembers what it found."""
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| (")]


@pytest.mark.skipif(
    torch.__version__ < "2.14" or not importlib.util.find_spec("triton"), reason="goes by the insides of torch 2.14"
)
def test_a_batch_is_one_kernel_after_a_tiny_one_for_its_steps() -> None:
    float32, flips, bfloat16, odd = printed("benchmarks.kernels")
    for row, size in ((float32, 4), (flips, 4), (bfloat16, 2)):
        _, kernels, threads, size_a_number, waits = row
        assert (kernels, threads) == ("2", "64, 196,608")  # one thread an image, then one for every four numbers
        assert float(size_a_number) == pytest.approx(1 + 2 * size, abs=0.02)  # bytes in, x_t and noise out
        assert waits == "0"
    assert odd[-1] == "0"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_transforms_benchmark_runs_on_a_cuda_device() -> None:
    pytest.importorskip("denoising_diffusion_pytorch", reason="pip install -e '.[bench]'")
    assert printed("benchmarks.transform", "--device", "cuda", "--quick")
