"""Compile functions of a batch once per kind of batch. A short last batch needs no second compilation.

``torch.compile`` checks at every call whether anything has changed since it traced a function. In training these checks
took longer than making the triples of a small batch, because the model's step leaves the CPU's caches cold
(``benchmarks/transform.md``). Here everything that can change is part of a dictionary key. So a function is traced once
(``make_fx``), compiled once by inductor, and then called directly.
"""

import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache, lru_cache
from typing import Any, Protocol

import torch
import torch._inductor
import torch._inductor.config
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from tqdm import tqdm

from ddpm_data._distributed import is_rank_zero

# Make kernels write the quarters of an image directly into the result. For bfloat16 on CUDA, inductor would otherwise
# write them elsewhere and join them in a second kernel. By its own count, that moves 29 bytes per number instead of 5
# (benchmarks.kernels).
OPTIONS: dict[str, int | bool] = {
    name: 0
    for name in ("max_pointwise_cat_inputs", "max_complex_pointwise_cat_inputs")
    if hasattr(torch._inductor.config, name)
}
# Otherwise code compiled while torch has one thread would always use one, whatever torch.set_num_threads() says later.
OPTIONS["cpp.dynamic_threads"] = True

Compiled = Callable[..., tuple[Tensor, ...]]
Signature = tuple[tuple[torch.Size, torch.dtype, torch.device], ...]


class Kernel(Protocol):
    """A function that takes only tensors: first the tables, then the tensors of a batch.

    Two kernels are equal if they compute the same. Row ``i`` of each returned tensor belongs to row ``i`` of the batch.
    """

    def __hash__(self) -> int:
        """Return the same hash for equal kernels."""
        ...

    @property
    def __call__(self) -> Compiled:
        """Take tensors by name, and return a tuple of tensors."""
        ...


class Compiler:
    """Compiles each kernel on first use, and calls it. If compiling fails, it warns once and compiles nothing more.

    A batch of a new size is padded, or cut into pieces, to fit a compiled size. Only for a batch at least twice as
    large as every compiled size, the kernel is compiled again. Examples do not affect each other, so padding and
    cutting change no result.
    """

    def __init__(self) -> None:
        # For each kernel, length of the tables and kind of rows: the compiled function by batch size.
        self._compiled: dict[tuple[object, ...], dict[int, Compiled]] = {}
        self._done: set[Hashable] = set()
        self._failed = False

    def __call__(self, kernel: Kernel, tables: Sequence[Tensor], batch: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """Call a kernel.

        Args:
            kernel: The kernel.
            tables: Its first arguments, which do not depend on the batch. In every call they have the same dtypes and,
                except for their length, the same shapes.
            batch: Its other arguments, contiguous, with one row per example.

        Returns:
            What the kernel returns; ``None`` if compiling failed, now or before.
        """
        rows = tuple((tensor.shape[1:], tensor.dtype, tensor.device) for tensor in batch)
        by_size = self._compiled.setdefault((kernel, len(tables[0]), rows), {})
        count = len(batch[0])
        if compiled := by_size.get(count):
            return compiled(*tables, *batch)
        size = _choose_size(count, by_size)
        if size not in by_size:
            signature = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tables)
            key = (kernel, signature, rows, size)
            if not self.attempt(key, lambda: by_size.update({size: _compile(*key)})):
                return None
        compiled = by_size[size]
        if size == count:
            return compiled(*tables, *batch)
        pieces = [[_pad_batch(tensor[i : i + size], size) for tensor in batch] for i in range(0, count, size)]
        results = [compiled(*tables, *piece) for piece in pieces]
        return tuple(torch.cat(parts)[:count] for parts in zip(*results, strict=True))

    def attempt(self, key: Hashable, compile: Callable[[], object]) -> bool:
        """Compile something, unless that was done or compiling has failed; returns whether it is compiled.

        To run out of memory is not the compiler's failure, so that is raised.
        """
        if key in self._done or self._failed:
            return not self._failed
        try:
            compile()
            self._done.add(key)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the compilers' own errors have no common type
            self._failed = True
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            warnings.warn(
                f"the batch transform could not be compiled ({reason}), so it runs uncompiled: the same triples (noise "
                "within 1e-5), several times slower. Install a C++ compiler (g++, clang or MSVC), or silence this: "
                "`compile=false`.",
                stacklevel=3,
            )
        return not self._failed

    def __getstate__(self) -> dict[str, object]:
        """Leave out compiled code: another process compiles its own."""
        return {"_compiled": {}, "_done": set(), "_failed": self._failed}


def _choose_size(count: int, sizes: Iterable[int]) -> int:
    """Choose the compiled size for ``count`` examples: the smallest that fits, else the largest, else ``count``."""
    if fitting_sizes := [size for size in sizes if size >= count]:
        return min(fitting_sizes)
    largest = max(sizes, default=0)
    return largest if count < 2 * largest else count


def _pad_batch(tensor: Tensor, size: int) -> Tensor:
    missing = size - len(tensor)
    return tensor if not missing else torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))])


@lru_cache(maxsize=256)
def _compile(kernel: Kernel, tables: Signature, rows: Signature, size: int) -> Compiled:
    """Compile a kernel for one batch size; cached, so that all transforms of a process share the code."""
    _keep_freed_memory()
    batch = [(torch.Size((size, *shape)), dtype, device) for shape, dtype, device in rows]
    bar = tqdm(
        desc="Compiling the batch transform, once per stage",
        total=1,
        bar_format="{desc} ...",
        leave=False,
        disable=not is_rank_zero(),
    )
    with bar, torch.inference_mode(False), torch.no_grad():  # code traced in inference mode would run in no other mode
        examples: list[Any] = [torch.zeros(s, dtype=dtype, device=d) for s, dtype, d in (*tables, *batch)]
        # A lambda, because make_fx would treat a method's self as one of the tensors.
        graph = make_fx(lambda *tensors: kernel(*tensors))(*examples)
        compiled: Compiled = torch._inductor.compile(graph, examples, OPTIONS)
    return compiled


@cache
def _keep_freed_memory() -> None:
    """Make glibc keep up to 64 MiB of freed memory instead of returning it to the system.

    Each batch frees the previous triple and allocates a new one. glibc returns large freed blocks to the system, which
    clears every page before it hands it out again. In a Trainer's loop that caused up to 1,800 page faults per batch,
    depending on the layout of the heap (``benchmarks/transform.md``). Freeing one block just below 32 MiB makes glibc
    raise its limit to that size for the rest of the process (mallopt(3), ``M_MMAP_THRESHOLD``). The cost is up to
    64 MiB of memory per process. Other allocators ignore this.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
