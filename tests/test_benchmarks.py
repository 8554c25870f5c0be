"""What the benchmarks claim of CUDA devices, here by the compiler's report, there by running them; and the fuzzer."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.damage import make_mutant
from benchmarks.watched import Verdict, Worker, collect_verdicts
from tests.conftest import ROOT
from tests.groups import PATIENCE
from tests.unwell import unwell
from tests.warm import python


def printed(*command: str) -> list[list[str]]:
    """The rows of the table that a benchmark prints; in a process of its own, as users run it."""
    result = subprocess.run([python(), "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    return [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| (")]


@pytest.mark.slow
@pytest.mark.skipif(
    torch.__version__ < "2.7" or not importlib.util.find_spec("triton"),
    reason="needs Triton 3.3",
)
def test_the_kernel_for_cuda_devices_fits_its_registers_and_waits_for_memory() -> None:
    rows = printed("benchmarks.kernels")
    assert len(rows) == 18
    for _, registers, spilled, instructions in rows:
        assert int(registers) <= 80  # 25 warps at once on each multiprocessor
        assert spilled == "0"
        assert float(instructions) < 90  # more would take an H100 longer than its memory takes


@pytest.mark.slow
def test_what_is_asked_of_a_device_holds_on_a_cpu() -> None:
    answers = printed("benchmarks.device", "--device", "cpu", "--quick")
    assert len(answers) == 2
    assert {answer[-1] for answer in answers} == {"yes"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_transforms_benchmark_runs_on_a_cuda_device() -> None:
    pytest.importorskip("denoising_diffusion_pytorch", reason="pip install -e '.[bench]'")
    assert printed("benchmarks.transform", "--device", "cuda", "--quick")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a signal ends its process")
def test_the_fuzzer_knows_which_file_a_process_died_or_hung_at(tmp_path: Path) -> None:
    pool = [Worker(tmp_path, unwell)]
    found = dict(collect_verdicts(pool, range(8), lambda: Worker(tmp_path, unwell), limit=0.5))
    pool[0].process.kill()
    assert found.pop(3) == Verdict("crashes", "the process ended with status -11")
    assert found.pop(5).column == "hangs"
    assert found == dict.fromkeys((0, 1, 2, 4, 6, 7), Verdict("images"))


def test_the_same_number_is_the_same_damage_and_most_numbers_do_some() -> None:
    files = [make_mutant(number) for number in range(200)]
    assert files == [make_mutant(number) for number in range(200)]
    assert len({content for _, content in files}) > 190
