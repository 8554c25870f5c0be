"""The compiled transform on CPUs: the same triples as the eager one, and a way on where nothing can be compiled."""

import _ctypes
import ctypes
import os
import pickle
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddpm_data import (
    DensityTimesteps,
    ForwardDiffusion,
    ForwardProcess,
    UniformTimesteps,
    densities,
    noises,
    schedules,
)
from ddpm_data.diffusion import _cpp
from ddpm_data.diffusion import transform as transform_module
from ddpm_data.diffusion._kernels import mirror
from ddpm_data.diffusion.objective import Objective
from ddpm_data.rng.philox import Key, Purpose, normals
from tests.conftest import ROOT, uint8_images
from tests.groups import started
from tests.warm import python

PROCESS = ForwardProcess(schedules.linear(1000))


def make(compile: bool = True, **options: object) -> ForwardDiffusion:
    return ForwardDiffusion(PROCESS, seed=3, compile=compile, **(dict(flip=0.5) | options))  # type: ignore[arg-type]


def batch(*shape: int, dtype: torch.dtype = torch.uint8) -> tuple[Tensor, Tensor]:
    images = uint8_images(*shape)
    return images if dtype == torch.uint8 else (images.float() / 127.5 - 1).to(dtype), torch.arange(shape[0]) * 1001


DRAWS: dict[str, Any] = {
    "independent": UniformTimesteps(),
    "low discrepancy": UniformTimesteps(low_discrepancy=True),
    "density": DensityTimesteps(densities.logit_normal),
    "density, low discrepancy": DensityTimesteps(densities.laplace, low_discrepancy=True),
    "given": lambda position, num_timesteps, key, stage: position * 31 % num_timesteps,
}
NOISES = [None, noises.offset(0.5), noises.generalised_offset(0.5), noises.input_perturbation(0.5)]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_compiled_and_eager_agree(data: st.DataObject) -> None:
    """For every draw of t, noise, target, stage, dtype and size: t and flips to the bit, the rest within 1e-5."""
    shape = tuple(data.draw(st.integers(1, most), name) for name, most in zip("bchw", (5, 5, 40, 40), strict=True))
    stage = data.draw(st.sampled_from(["train", "train", "val", "predict"]), "stage")
    dtype = data.draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    kind = data.draw(
        st.sampled_from([torch.uint8, torch.uint8, torch.float32, torch.bfloat16, torch.float64]), "images"
    )
    strided, low = data.draw(st.booleans(), "strided"), data.draw(st.integers(-(2**62), 2**62), "position")
    options = {
        "seed": data.draw(st.sampled_from([0, 3, 2**64 - 1]), "seed"),
        "flip": data.draw(st.sampled_from([0.0, 0.5, 1.0]), "flip"),
        "timesteps": DRAWS[data.draw(st.sampled_from(sorted(DRAWS)), "draw")],
        "noise": data.draw(st.sampled_from(NOISES), "noise"),
        "target": data.draw(st.sampled_from(["noise", "x_0", "velocity", "edm"]), "target"),
    }
    images, position = batch(*shape, dtype=kind)[0], low + torch.arange(shape[0]) * 2**31 % 2**62
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transform_module, "_MIN_COMPILED_VALUES", 0)
        compiled, eager = (
            ForwardDiffusion(PROCESS, compile=compile, **options)(images, position, stage, dtype, strided)  # type: ignore[arg-type]
            for compile in (True, False)
        )
    assert torch.equal(compiled.t, eager.t)
    tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 8 * torch.finfo(dtype).eps
    for result, wanted in zip(compiled, eager, strict=True):
        assert result.dtype == wanted.dtype
        assert result.is_contiguous()
        torch.testing.assert_close(result.double(), wanted.double(), rtol=tolerance, atol=tolerance)


def test_a_density_is_drawn_alike_at_its_thresholds() -> None:
    """A word equal to a threshold belongs to the step above it, also among steps that are never drawn."""
    share = torch.zeros(1000, dtype=torch.float64)
    share[[0, 3, 999]] = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    images, position = torch.zeros(4096, 1, 32, 16, dtype=torch.uint8), torch.arange(4096)
    t = [make(compile, timesteps=DensityTimesteps(share, True))(images, position).t for compile in (True, False)]
    assert torch.equal(*t)
    assert torch.bincount(t[0], minlength=1000)[[0, 3, 999]].tolist() == [1024, 2048, 1024]


@pytest.mark.parametrize("shape", [(16, 3, 16, 16), (9, 1, 23, 25)], ids=str)
def test_x_t_is_the_forward_process_to_the_last_bit(shape: tuple[int, ...]) -> None:
    images, position = batch(*shape)
    x_t, t, noise = make(flip=0.0)(images, position)
    assert torch.equal(x_t, PROCESS.q_sample(images.float() / 127.5 - 1, t, noise))


@pytest.mark.parametrize("numel", [1, 5, 2048, 2052, 9999])
def test_normals_are_those_of_philox(numel: int) -> None:
    key, position = Key(2**32 - 1, 7), torch.arange(9) * 2**33 + 5
    drawn = _cpp.load_library().draw_normals(key, Purpose.LATENT, "val", position, numel)
    torch.testing.assert_close(drawn, normals(key, Purpose.LATENT, "val", position, numel), rtol=0, atol=1e-6)


def test_images_in_another_memory_format_come_back_in_it() -> None:
    images, position = batch(8, 3, 16, 16)
    x_t, _, noise = make()(images.to(memory_format=torch.channels_last), position)
    expected = make()(images, position)
    assert x_t.is_contiguous(memory_format=torch.channels_last)
    assert noise.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x_t, expected.x_t)
    assert torch.equal(noise, expected.noise)


def test_an_examples_bits_depend_on_no_batch_and_no_number_of_threads() -> None:
    threads = torch.get_num_threads()
    try:
        for shape in ((3, 16, 16), (3, 96, 48), (1, 25, 23), (4, 128, 9)):
            images, position = batch(40, *shape)
            torch.set_num_threads(3)
            whole = make()(images, position)
            for size, count in ((16, 1), (7, 2), (1, 3)):
                torch.set_num_threads(count)
                part = make()(images[:size], position[:size])
                assert all(torch.equal(a, b[:size]) for a, b in zip(part, whole, strict=True))
    finally:
        torch.set_num_threads(threads)


COMPILERS = {"g++": "g++", "clang++": "clang++", "ziglang": f"{sys.executable} -m ziglang c++"}


def compile_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transforms use code that is compiled as the test has set it."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
    library = _cpp.load_library.__wrapped__()
    monkeypatch.setattr(_cpp, "load_library", lambda: library)


@pytest.mark.parametrize("vectors", [(), _cpp._VECTORS["AVX2"]], ids=["none", "AVX2"])
def test_processors_with_shorter_vectors_give_the_same_bits(
    vectors: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = make()(*batch(5, 3, 25, 23))
    monkeypatch.setattr(_cpp, "_VECTORS", dict.fromkeys(["AVX512", "AVX2"][: 1 + (not vectors)], vectors))
    compile_anew(tmp_path, monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(make()(*batch(5, 3, 25, 23)), expected, strict=True))


@pytest.mark.parametrize("has_openmp", [True, False])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_compiler_gives_the_same_bits_on_as_many_threads_as_torch(
    compiler: str, has_openmp: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not (find_spec("ziglang") if compiler == "ziglang" else shutil.which(compiler)):
        pytest.skip(f"{compiler} is not installed")
    images, threads = batch(40, 3, 25, 23), torch.get_num_threads()
    options: dict[str, Any] = {"noise": noises.input_perturbation(0.5), "target": "velocity"}
    expected = make(**options)(*images)
    monkeypatch.setenv("CXX", COMPILERS[compiler])
    asked = []
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    openmp = _cpp._find_openmp()
    assert openmp or sys.platform != "linux"

    @ctypes.CFUNCTYPE(None, function, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def parallel(work: Any, data: int, count: int, flags: int) -> None:  # noqa: ANN401  # ctypes' own
        asked.append(count)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(original)(
            ctypes.cast(work, ctypes.c_void_p), data, count, flags
        )

    if openmp:
        original, openmp[0] = openmp[0], ctypes.cast(parallel, ctypes.c_void_p).value
    monkeypatch.setattr(_cpp, "_find_openmp", lambda: openmp if has_openmp else None)
    compile_anew(tmp_path, monkeypatch)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(make(**options)(*images), expected, strict=True))
        assert asked == ([3] if has_openmp and openmp else [])
    finally:
        torch.set_num_threads(threads)


def test_tables_of_another_kind_are_not_read_as_floats() -> None:
    images, position = batch(4, 3, 16, 16)
    expected = make()(images, position)
    for transform in (make().double(), make()):
        if transform.objective.target_x.dtype == torch.float32:
            transform.process.double()
        x_t, _, noise = transform(images, position)
        torch.testing.assert_close(noise, expected.noise, rtol=0, atol=1e-5)
        torch.testing.assert_close(x_t, expected.x_t, rtol=1e-5, atol=1e-5)


def test_triples_of_inference_mode_are_not_kept() -> None:
    transform = make(flip=0.0)
    with torch.inference_mode():
        first = transform(*batch(4, 3, 16, 16))
    second = transform(*batch(4, 3, 16, 16))
    assert torch.equal(first.noise, second.noise)
    assert not second.x_t.is_inference()


@pytest.mark.slow
def test_the_next_process_finds_the_code_on_disk(tmp_path: Path) -> None:
    """Where it is damaged, it is compiled again; where it cannot be kept, each process compiles its own."""
    code = """
import subprocess, torch
calls, real = [], subprocess.run
subprocess.run = lambda command, **options: calls.append(command) or real(command, **options)
from ddpm_data import ForwardDiffusion, ForwardProcess, schedules
transform = ForwardDiffusion(ForwardProcess(schedules.linear()))
x_t, _, _ = transform(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.arange(4))
print(float(x_t.double().sum()), sum("--version" not in call for call in calls))
"""

    def run(folder: Path) -> list[str]:
        environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(folder)}
        command = [python(), "-c", code]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=True)
        return result.stdout.split()

    folder = tmp_path / "extensions"
    total, compiled = run(folder)
    [library] = (folder / "ddpm_data").iterdir()
    assert (library.suffix, compiled) == (".so", "2")
    assert run(folder) == [total, "0"]
    for damaged in (b"damaged", Path(_ctypes.__file__).read_bytes()):  # the latter is a library without our functions
        library.unlink()
        library.write_bytes(damaged)
        assert run(folder) == [total, "2"]
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file") == [total, "2"]


def test_a_custom_draw_of_t_stays_outside_the_compiler() -> None:
    def timesteps(position: Tensor, num_timesteps: int, *_: object) -> Tensor:
        steps = [int(n) % num_timesteps for n in position]
        return torch.tensor(steps).repeat_interleave(2)[::2]  # not contiguous

    _, t, _ = make(timesteps=timesteps)(*batch(4, 3, 16, 16))
    assert t.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="t spans 0 to 5000"):
        make(timesteps=lambda position, *_: position * 5000 // 3003)(*batch(4, 3, 16, 16))


@pytest.mark.parametrize("compiled", [True, False])
def test_the_users_code_runs_without_autograd_and_an_objective_may_be_replaced(compiled: bool) -> None:
    weight = torch.nn.Parameter(torch.ones(()))

    def timesteps(position: Tensor, *_: object) -> Tensor:
        return (weight * position).long() + int((weight * 0).numpy())

    def augment(images: Tensor) -> Tensor:
        return images * weight.numpy().item() + 0 * weight

    transform = make(timesteps=timesteps, augment=augment, compile=compiled, flip=0.0)
    images, position = torch.rand(4, 3, 16, 16, requires_grad=True), torch.arange(4)
    for expected in ("noise", "x_0"):
        transform.objective = Objective(transform.process, expected)  # type: ignore[arg-type]  # one of the targets
        x_t, t, target = transform(images, position)
        assert t.tolist() == [0, 1, 2, 3]
        assert not x_t.requires_grad
        assert not target.requires_grad
        assert torch.equal(target, images) == (expected == "x_0")


def test_tables_elsewhere_and_other_kinds_of_tensors_are_left_to_torch() -> None:
    """The C++ would have read the memory of what has none."""

    class Marked(Tensor):
        pass

    process = ForwardProcess(schedules.linear())
    with torch.device("meta"):
        transform = ForwardDiffusion(process)
    with pytest.raises(RuntimeError):
        transform(torch.rand(2, 3, 16, 16), torch.arange(2))
    triple = ForwardDiffusion(process)(torch.rand(2, 3, 16, 16).as_subclass(Marked), torch.arange(2))
    assert [type(part) for part in triple] == [Tensor] * 3


def test_small_images_are_not_worth_it() -> None:
    transform = make()
    transform(*batch(64, 3, 8, 8))
    transform(*batch(4, 7, 73, 1))  # of 511 values
    assert not transform._compiler._compiled
    transform(*batch(4, 2, 16, 16))  # of 512
    assert transform._compiler._compiled


@pytest.mark.parametrize("shape", [(9, 3, 7, 5), (4, 1, 1, 1)])
def test_mirroring_is_flipping_the_chosen(shape: tuple[int, ...]) -> None:
    images, chosen = uint8_images(*shape), torch.arange(shape[0]) % 3 == 1
    before = images.clone()
    expected = torch.stack([image.flip(-1) if flip else image for image, flip in zip(images, chosen, strict=True)])
    assert torch.equal(mirror(images, chosen), expected)
    assert torch.equal(mirror(images.float(), chosen), expected.float())
    assert torch.equal(images, before)


@pytest.mark.slow
@pytest.mark.parametrize("has_ziglang", [True, False])
def test_without_a_compiler_it_uses_ziglangs_or_runs_eagerly_with_one_warning(
    has_ziglang: bool, tmp_path: Path
) -> None:
    if has_ziglang and not find_spec("ziglang"):
        pytest.skip("ziglang is not installed")
    code = f"""
import sys, torch, warnings
if not {has_ziglang}:
    from importlib import metadata
    def version(name, real=metadata.version):
        if name == "ziglang":
            raise metadata.PackageNotFoundError(name)
        return real(name)
    metadata.version = version
from ddpm_data import ForwardDiffusion, ForwardProcess, schedules
images, position = torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.arange(4)
make = lambda **options: ForwardDiffusion(ForwardProcess(schedules.linear()), **options)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    transform = make(flip=0.5)
    first, second = transform(images, position), transform(images, position)
ours = [str(warning.message) for warning in caught if "could not be compiled" in str(warning.message)]
assert len(ours) == 1 - {has_ziglang}, ours
print(*ours)
eager = make(flip=0.5, compile=False)(images, position)
assert all(torch.equal(a, b) for a, b in zip(first, second))
assert torch.equal(eager.t, first.t)
assert torch.equal(eager.noise, first.noise) != {has_ziglang}
"""
    home = tmp_path / "home"  # that cannot hold what zig would keep there
    home.write_text("")
    stub = tmp_path / "g++"  # without a compiler behind it
    stub.write_text("#!/bin/sh\necho 'no developer tools were found' >&2\nexit 1\n")
    stub.chmod(0o755)
    other = tmp_path / "ziglang"  # of the current folder, which is not the package
    other.mkdir()
    (other / "__init__.py").touch()
    (other / "__main__.py").write_text("raise SystemExit('the wrong one')")
    without = {"PATH": str(tmp_path), "HOME": str(home), "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
    without["PYTHONPATH"] = str(ROOT)
    result = subprocess.run([sys.executable, "-c", code], env=without, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    if not has_ziglang:
        assert "there is no g++ or clang++; `pip install ziglang` brings one" in result.stdout
        assert "`compile=false`" in result.stdout


@pytest.mark.parametrize("chosen", ["no-such-compiler --fast", "  ", "g++ -DNAME='a"])
def test_a_compiler_that_was_chosen_and_is_not_there_is_named(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", chosen)
    with pytest.raises(RuntimeError, match=f"no compiler: CXX={re.escape(chosen)} (was not found|cannot be read)"):
        _cpp.load_library.__wrapped__()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
def test_a_fork_after_use_does_not_wait_for_threads_that_it_has_not(tmp_path: Path) -> None:
    """Such as of a notebook whose parent has looked at a batch."""
    code = """
import os, torch
torch.set_num_threads(2)
from ddpm_data import ForwardDiffusion, ForwardProcess, schedules
transform = ForwardDiffusion(ForwardProcess(schedules.linear()))
batch = torch.zeros(64, 3, 32, 32, dtype=torch.uint8), torch.arange(64)
noise = transform(*batch).noise
if child := os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0 if bytes(noise.numpy()) == bytes(transform(*batch).noise.numpy()) else 3)
"""
    with started([sys.executable, "-c", code], ROOT) as running:
        status, printed = running.finished(120)
    assert status == 0, printed


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
            patch.setattr(_cpp, "load_library", fail)
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


def test_a_compiled_transform_can_be_sent_to_another_process() -> None:
    transform = make()
    first = transform(*batch(4, 3, 16, 16))
    again = pickle.loads(pickle.dumps(transform))(*batch(4, 3, 16, 16))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
