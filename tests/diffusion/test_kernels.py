"""The compiled transform: the same triples as the eager one, few compilations, and a way on where none is possible."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.codegen.cpp import CppKernelProxy

from ddpm_data import (
    DensityTimesteps,
    ForwardDiffusion,
    ForwardProcess,
    UniformTimesteps,
    densities,
    noises,
    schedules,
)
from ddpm_data.diffusion import _compiler
from ddpm_data.diffusion._compiler import _compile
from ddpm_data.diffusion._kernels import mirror
from ddpm_data.types import Stage
from tests.conftest import ROOT, uint8_images

PROCESS = ForwardProcess(schedules.linear(1000))


def make(compile: bool = True, **options: object) -> ForwardDiffusion:
    return ForwardDiffusion(PROCESS, seed=3, compile=compile, **(dict(flip=0.5) | options))  # type: ignore[arg-type]


def batch(*shape: int, dtype: torch.dtype = torch.uint8) -> tuple[Tensor, Tensor]:
    images = uint8_images(*shape)
    return images if dtype == torch.uint8 else (images.float() / 127.5 - 1).to(dtype), torch.arange(shape[0]) * 1001


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one with every call of the compiler."""
    _compile.cache_clear()
    calls: list[Any] = []
    real = _compiler.compile_graph

    def counted(graph: Any, examples: Any) -> Any:  # noqa: ANN401  # inductor's
        calls.append(graph)
        return real(graph, examples)

    monkeypatch.setattr(_compiler, "compile_graph", counted)
    return calls


@pytest.mark.parametrize(
    ("shape", "stage"),
    [
        pytest.param((16, 3, 16, 16), "train", marks=pytest.mark.slow),
        pytest.param((16, 3, 16, 16), "val", marks=pytest.mark.slow),
        pytest.param((9, 1, 23, 25), "train", marks=pytest.mark.slow),
        pytest.param((1, 3, 16, 16), "test", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiled_and_eager_agree(shape: tuple[int, ...], stage: Stage, compilations: list[Any]) -> None:
    images, position = batch(*shape)
    for low_discrepancy in (False, True):
        timesteps = UniformTimesteps(low_discrepancy)
        compiled = make(timesteps=timesteps)(images, position, stage)
        eager = make(False, timesteps=timesteps)(images, position, stage)
        assert torch.equal(compiled.t, eager.t)
        torch.testing.assert_close(compiled.noise, eager.noise, rtol=0, atol=1e-5)
        torch.testing.assert_close(compiled.x_t, eager.x_t, rtol=1e-5, atol=1e-5)  # flips would show as 2
    assert len(compilations) == (3 if stage == "train" else 2)  # training: mirrored, and t drawn in two ways


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(16, 3, 16, 16), (5, 1, 23, 25), (3, 4, 13, 11), (3, 12, 9, 9)], ids=str)
def test_every_objective_compiles_into_one_pass(shape: tuple[int, ...], compilations: list[Any]) -> None:
    images, position = batch(*shape)
    options: list[dict[str, Any]] = [
        {"target": "velocity", "noise": noises.offset(0.5), "timesteps": DensityTimesteps(densities.logit_normal)},
        {"target": "velocity", "noise": noises.generalised_offset(0.5)},
        {
            "target": "edm",
            "noise": noises.input_perturbation(0.5),
            "timesteps": DensityTimesteps(densities.laplace, True),
        },
    ]
    if shape[1] > 3:  # the kinds of noise find an image's channels in the same way
        options = options[:1]
    for chosen in options:
        compiled, eager = (make(compile, flip=0.0, **chosen) for compile in (True, False))
        results, expected = compiled(images, position), eager(images, position)
        assert torch.equal(results.t, expected.t)
        for result, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(result, wanted, rtol=1e-5, atol=2e-5)
        compiled(images[:2], position[:2])  # another size of batch
    assert len(compilations) == len(options)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(16, 3, 16, 16), (9, 1, 23, 25)], ids=str)
def test_x_t_is_the_forward_process_to_the_last_bit(shape: tuple[int, ...]) -> None:
    images, position = batch(*shape)
    x_t, t, noise = make(flip=0.0)(images, position)
    expected = PROCESS.q_sample(images.float() / 127.5 - 1, t, noise)
    if not torch.equal(x_t, expected):  # older inductors (torch 2.6) multiply by 1 / 127.5 instead
        assert torch.equal(x_t, PROCESS.q_sample(images.float() * torch.tensor(1 / 127.5) - 1, t, noise))
        assert torch.__version__ < "2.7"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.uint8, torch.float32])
def test_precisions_and_memory_formats_agree(dtype: torch.dtype, given: torch.dtype) -> None:
    images, position = batch(8, 3, 16, 16, dtype=given)
    images = images.to(memory_format=torch.channels_last)
    compiled = make()(images, position, "train", dtype)
    eager = make(False)(images, position, "train", dtype)
    assert compiled.x_t.dtype == compiled.noise.dtype == dtype
    assert compiled.x_t.is_contiguous(memory_format=torch.channels_last)
    for a, b in ((compiled.x_t, eager.x_t), (compiled.noise, eager.noise)):
        torch.testing.assert_close(a.double(), b.double(), rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "val"])
def test_one_compilation_serves_every_batch_and_size(stage: Stage, compilations: list[Any]) -> None:
    transform = make(flip=0.0)
    for shape in ((3, 16, 16), (3, 48, 96), (3, 96, 48), (1, 24, 24), (4, 128, 8)):
        images, position = batch(40, *shape)
        whole = transform(images, position, stage)
        eager = make(False, flip=0.0)(images, position, stage)
        torch.testing.assert_close(whole.x_t, eager.x_t, rtol=1e-5, atol=1e-5)
        for size in (16, 7, 1, 40):
            part = transform(images[:size], position[:size], stage)
            assert all(torch.equal(a, b[:size]) for a, b in zip(part, whole, strict=True))
    assert len(compilations) == 1


@pytest.mark.slow
def test_sizes_that_are_no_multiple_of_four_are_compiled_once_per_remainder(compilations: list[Any]) -> None:
    transform = make(flip=0.0)
    for shape in ((1, 23, 25), (1, 27, 29), (3, 25, 23)):  # 575, 783 and 1,725 values: remainders 3, 3 and 1
        images, position = batch(9, *shape)
        triple, eager = transform(images, position), make(False, flip=0.0)(images, position)
        assert triple.x_t.is_contiguous()
        assert triple.noise.is_contiguous()
        assert torch.equal(triple.t, eager.t)
        torch.testing.assert_close(triple.noise, eager.noise, rtol=0, atol=1e-5)
        torch.testing.assert_close(triple.x_t, eager.x_t, rtol=1e-5, atol=1e-5)
    assert len(compilations) == 2


@pytest.mark.slow
def test_another_schedule_seed_and_device_state_need_no_other_code(compilations: list[Any]) -> None:
    transform = make(flip=0.0)
    with torch.inference_mode():
        first = transform(*batch(4, 3, 16, 16))
    second = transform(*batch(4, 3, 16, 16))
    assert torch.equal(first.noise, second.noise)
    assert not second.x_t.is_inference()
    assert len(compilations) == 1


@pytest.mark.slow
def test_code_is_generated_once_and_found_on_disk_by_the_next_process(
    compilations: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor generated the code of a pass with a draw of t twice."""
    pytest.importorskip("ddpm_data.diffusion._fusion", reason="an older torch")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    generated: list[int] = []
    real = CppKernelProxy.codegen_nodes

    def counted(self: CppKernelProxy, nodes: list[Any]) -> None:
        generated.append(len(nodes))
        real(self, nodes)

    monkeypatch.setattr(CppKernelProxy, "codegen_nodes", counted)
    first = make(flip=0.0)(*batch(4, 3, 16, 16))
    assert len(generated) == 2  # the loop over the batch, and the one over its pixels
    _compile.cache_clear()
    again = make(flip=0.0)(*batch(4, 3, 16, 16))
    assert len(generated) == 2
    assert len(compilations) == 2
    assert torch.equal(first.noise, again.noise)


@pytest.mark.slow
def test_a_custom_draw_of_t_stays_outside_the_compiler() -> None:
    def timesteps(position: Tensor, num_timesteps: int, *_: object) -> Tensor:
        steps = [int(n) % num_timesteps for n in position]  # .item() would break a graph
        return torch.tensor(steps).repeat_interleave(2)[::2]  # not contiguous

    _, t, _ = make(timesteps=timesteps)(*batch(4, 3, 16, 16))
    assert t.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="t spans 0 to 5000"):
        make(timesteps=lambda position, *_: position * 5000 // 3003)(*batch(4, 3, 16, 16))


def test_small_images_are_not_worth_it(compilations: list[Any]) -> None:
    make()(*batch(64, 3, 8, 8))
    assert not compilations


@pytest.mark.parametrize("shape", [(9, 3, 7, 5), (4, 1, 1, 1)])
def test_mirroring_is_flipping_the_chosen(shape: tuple[int, ...]) -> None:
    images, chosen = uint8_images(*shape), torch.arange(shape[0]) % 3 == 1
    before = images.clone()
    expected = torch.stack([image.flip(-1) if flip else image for image, flip in zip(images, chosen, strict=True)])
    assert torch.equal(mirror(images, chosen), expected)
    assert torch.equal(mirror(images.float(), chosen), expected.float())
    assert torch.equal(images, before)


@pytest.mark.slow
def test_without_a_compiler_it_runs_eagerly_with_one_warning(tmp_path: Path) -> None:
    code = """
import torch, warnings
from ddpm_data import ForwardDiffusion, ForwardProcess, schedules
images, position = torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.arange(4)
make = lambda **options: ForwardDiffusion(ForwardProcess(schedules.linear()), **options)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    transform = make(flip=0.5)
    first, second = transform(images, position), transform(images, position)
ours = [str(warning.message) for warning in caught if "could not be compiled" in str(warning.message)]
assert len(ours) == 1, ours
print(ours[0])
eager = make(flip=0.5, compile=False)(images, position)
assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(eager, first, second))
"""
    without = {"PATH": str(tmp_path), "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run([sys.executable, "-c", code], env=without, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "`compile=false`" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("when", ["compiling", "running"])
def test_only_the_compilers_failure_ends_compiling(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may be short for one batch. The next one is compiled again, so it gets the bits that other ranks get."""

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    transform, images = make(), batch(5, 3, 24, 24)
    with monkeypatch.context() as patch:
        if when == "running":
            transform(*images)
            for key in transform._compiler._compiled:
                patch.setitem(transform._compiler._compiled, key, fail)
        else:
            _compile.cache_clear()
            patch.setattr(_compiler, "compile_graph", fail)
        with pytest.raises(torch.OutOfMemoryError, match="tried to allocate"):
            transform(*images)
    assert all(torch.equal(a, b) for a, b in zip(transform(*images), make()(*images), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux lists a process's threads")
def test_what_was_compiled_for_one_thread_runs_on_all_that_are_allowed_later() -> None:
    """In a process of its own, where no other operation has started threads."""
    code = """
import os, torch
torch.set_num_threads(1)
from ddpm_data import ForwardDiffusion, ForwardProcess, schedules
transform = ForwardDiffusion(ForwardProcess(schedules.linear()))
batch = torch.zeros(64, 3, 16, 16, dtype=torch.uint8), torch.arange(64)
noise, threads = [], []
for count in (1, 3):
    torch.set_num_threads(count)
    noise.append(transform(*batch).noise)
    threads.append(set(os.listdir("/proc/self/task")))
assert torch.equal(*noise)
print(len(threads[1] - threads[0]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip() == "2"


@pytest.mark.slow
def test_a_compiled_transform_can_be_sent_to_another_process() -> None:
    transform = make()
    first = transform(*batch(4, 3, 16, 16))
    _compile.cache_clear()
    again = pickle.loads(pickle.dumps(transform))(*batch(4, 3, 16, 16))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
