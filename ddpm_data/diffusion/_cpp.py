"""The transform as one pass in C++ for CPUs: ``triple.cpp``, which is compiled on first use and kept on disk.

Torch has few operations on uint32, so ``_kernels`` computes with int64, and of these a CPU's vectors take half as many.
Inductor compiled them for half a minute into code that took two to five times as long on a processor with AVX2
(``benchmarks/transform.md``). g++ and clang++ compile the file in a second, for the kind of vectors that torch finds.
Where neither is installed, the package ``ziglang`` brings a clang++ (``pip install 'ddpm-data[compiler]'``).
"""

import ctypes
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from functools import cache, partial
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor
from torch._appdirs import user_cache_dir

from ddpm_data.diffusion._kernels import MakeTriple, Tables, TripleInputs
from ddpm_data.rng.philox import STAGES, Key, Purpose
from ddpm_data.types import Stage

_SOURCE = Path(__file__).with_name("triple.cpp")
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_VECTORS = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mprefer-vector-width=512"),
}
_BATCH = struct.Struct("12P12qd")  # ``Batch`` in ``triple.cpp``. ctypes' own structures take five times as long to fill
_MIN_NUMBERS_PER_THREAD = 2**14  # fewer take less time than to wake a thread


class Library:
    """The compiled code.

    Args:
        path: The shared library.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._make_triple = library.make_triple
        self._make_triple.argtypes = [ctypes.c_char_p]
        self._make_triple.restype = None
        self._draw_normals = library.draw_normals
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._draw_normals.argtypes = [number, number, number, pointer, number, number, pointer, number, pointer]
        self._draw_normals.restype = None
        self._openmp = _find_openmp()  # kept, since the code reads it
        self._openmp_at = ctypes.addressof(self._openmp) if self._openmp else 0
        if hasattr(os, "register_at_fork"):  # a child has none of the threads, and would wait for them for ever
            os.register_at_fork(after_in_child=partial(setattr, self, "_openmp_at", 0))

    def make_triple(self, tables: Tables, batch: TripleInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Make ``x_t``, ``t`` and the target of contiguous images on the CPU; computed in float32, cast last.

        Args:
            tables: The tables of the process and the objective, and the key.
            batch: Everything else that the triple is made of; at least one image, and ``noise`` that is ``for_cpp``.
        """
        images, position, given, flip, stage, dtype, predicts_noise, noise = batch
        is_bytes = images.dtype is torch.uint8
        if not is_bytes:
            images = images.float()
        has_density = False
        if isinstance(given, Tensor):
            t, draw = given, 0
        else:
            t, has_density = torch.empty_like(position), given.has_density
            draw = 1 if not given.low_discrepancy and stage == "train" else 2 if given.strided else 3
        x_t = torch.empty(images.shape, dtype=torch.float32, device="cpu")  # a plain tensor, whatever the images are
        target = torch.empty_like(x_t)
        number, strength = (noise and noise.for_cpp(stage)) or (0, 0.0)
        count, _, height, width = images.shape
        numel = images.numel()
        arguments = _BATCH.pack(
            self._openmp_at,
            images.data_ptr(),
            position.data_ptr(),
            tables.signal.data_ptr(),
            tables.sigma.data_ptr(),
            tables.target_x.data_ptr(),
            tables.target_n.data_ptr(),
            tables.thresholds.data_ptr() if has_density else 0,
            tables.key.data_ptr(),
            x_t.data_ptr(),
            t.data_ptr(),
            target.data_ptr(),
            count,
            numel // count,
            height * width,
            width,
            len(tables.signal),
            round(flip * 2**32),
            256 * STAGES[stage],
            draw,
            number,
            is_bytes,
            predicts_noise,
            _choose_threads(numel),
            strength,
        )
        self._make_triple(arguments)
        if dtype is not torch.float32:
            x_t, target = x_t.to(dtype), target.to(dtype)
        return x_t, t, target

    def draw_normals(self, key: Key, purpose: Purpose, stage: Stage, position: Tensor, numel: int) -> Tensor:
        """Draw what :func:`~ddpm_data.rng.philox.normals` draws, within 1e-5."""
        position = position.contiguous()
        normals = torch.empty(len(position), numel, dtype=torch.float32, device="cpu")
        self._draw_normals(
            purpose + 256 * STAGES[stage],
            int(key.low),
            int(key.high),
            position.data_ptr(),
            len(position),
            numel,
            normals.data_ptr(),
            _choose_threads(normals.numel()),
            self._openmp_at,
        )
        return normals


def find_kind(batch: TripleInputs) -> Hashable:
    """Return what decides which code :func:`compile_kernel` compiles: nothing, here."""
    return None


def compile_kernel(tables: Tables, batch: TripleInputs) -> MakeTriple:
    """Return :meth:`Library.make_triple`, which serves every kind of batch."""
    return load_library().make_triple


def compile_normals(key: Key, position: Tensor) -> Callable[[Key, Purpose, Stage, Tensor, int], Tensor]:
    """Return :meth:`Library.draw_normals`."""
    return load_library().draw_normals


@cache
def load_library() -> Library:
    """Load the code, compiled now if this machine has not compiled it before.

    Raises:
        RuntimeError: There is no compiler, or it failed.
    """
    _keep_freed_memory()
    command, version = _find_compiler()
    is_zig = "zig" in Path(command[0]).name or "ziglang" in command
    vectors = torch.backends.cpu.get_cpu_capability() if platform.machine().lower() in ("x86_64", "amd64") else ""
    flags, links = [*_FLAGS, *_VECTORS.get(vectors, ())], ["-shared"]
    if "Free Software Foundation" in version:
        flags.append("-mtune=native")
    if is_zig:
        flags.append("-mcpu=baseline")  # what is on disk may serve machines with other processors than this one
        if os.name != "nt":
            links.append("-nostdlib")  # which it would compile first, for a minute; this process has loaded all of it
    if os.name != "nt":
        flags.append("-fPIC")
    kind = "\n".join([_SOURCE.read_text(encoding="utf-8"), version, *command, *flags, *links])
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or user_cache_dir("torch_extensions")  # type: ignore[no-untyped-call]
    path = Path(root) / "ddpm_data" / f"{sha256(kind.encode()).hexdigest()[:16]}.so"
    with suppress(OSError, AttributeError):  # it is not there, or damaged
        return Library(path)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps open files
        objects, built = Path(folder) / "triple.o", Path(folder) / "triple.so"
        own = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}  # else it fills folders of the user's
        _run([*command, *flags, "-c", str(_SOURCE), "-o", str(objects)], own)
        _run([*command, *links, str(objects), "-o", str(built)], own)
        _keep(built, path)
        return Library(built)


def _keep(built: Path, path: Path) -> None:
    """Copy what was compiled to where the next process looks for it."""
    with suppress(OSError):  # of a folder that cannot be written to
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{uuid4().hex}")  # containers may share the number of their process
        shutil.copy(built, part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # a file that ends too early would kill every process that loads it
        os.replace(part, path)  # whole, or not at all, where many processes compile it


def _find_compiler() -> tuple[list[str], str]:
    """Return the command and the version of the environment's CXX, which may have options, or of what is installed."""
    if chosen := os.environ.get("CXX"):
        try:
            command = shlex.split(chosen)
        except ValueError as error:
            raise RuntimeError(f"no compiler: CXX={chosen} cannot be read: {error}") from error
        if not command or not shutil.which(command[0]):
            raise RuntimeError(f"no compiler: CXX={chosen} was not found")
        return command, _run([*command, "--version"])
    names = ["clang++"] if os.name == "nt" else ["g++", "clang++"]  # g++ aligns no vectors on Windows' stack
    for name in names:
        with suppress(OSError, RuntimeError):  # the name may be there without a compiler behind it
            return [name], _run([name, "--version"])
    if sys.executable:
        with suppress(metadata.PackageNotFoundError):  # -P: not from the current folder, which may have one of its own
            return [sys.executable, "-P", "-m", "ziglang", "c++"], metadata.version("ziglang")
    raise RuntimeError(f"no compiler: there is no {' or '.join(names)}; `pip install ziglang` brings one")


def _find_openmp() -> ctypes.Array[ctypes.c_void_p] | None:
    """Return ``OpenMP`` of ``triple.cpp``, of the one that torch has loaded; ``None`` if that has not all of them.

    GNU's OpenMP has these functions, and LLVM's too. So code of any compiler can use torch's threads without a link.
    """
    with suppress(OSError, AttributeError):
        loaded = ctypes.CDLL(torch._C.__file__)
        functions = loaded.GOMP_parallel, loaded.omp_get_thread_num, loaded.omp_get_num_threads
        return (ctypes.c_void_p * 3)(*(ctypes.cast(function, ctypes.c_void_p) for function in functions))
    return None


def _run(command: list[str], variables: Mapping[str, str] | None = None) -> str:
    environment = {**(variables or {}), **os.environ}
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environment
    )
    if result.returncode:
        reason = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr.strip())
        raise RuntimeError(f"{command[0]}: {reason}")
    return result.stdout


def can_read(tables: Tables) -> bool:
    """Tell whether the code can read the tables; what moves or converts a module may have changed them."""
    a, p, key = tables.signal, tables.target_x, tables.key  # one of each module, whose buffers move together
    return a.is_cpu and p.is_cpu and key.is_cpu and a.dtype is torch.float32 and p.dtype is torch.float32


def _choose_threads(numbers: int) -> int:
    return max(1, min(torch.get_num_threads(), numbers // _MIN_NUMBERS_PER_THREAD))


def _keep_freed_memory() -> None:
    """Make glibc keep up to 64 MiB of freed memory instead of returning it to the system.

    Each batch frees the previous triple and allocates a new one. glibc returns large freed blocks to the system, which
    clears every page before it hands it out again. In a Trainer's loop that caused up to 1,800 page faults per batch,
    depending on the layout of the heap (``benchmarks/transform.md``). Freeing one block just below 32 MiB makes glibc
    raise its limit to that size for the rest of the process (mallopt(3), ``M_MMAP_THRESHOLD``). The cost is up to
    64 MiB of memory per process. Other allocators ignore this.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")
