"""Functions of a batch, compiled once per kind of batch; a short last batch compiles nothing new.

``torch.compile`` looks, at every call, for what may have changed since it traced a function. Beside a training step,
which leaves no cache warm, that took longer than making the triples of a small batch (``benchmarks/transform.md``).
Here everything that can change is in a dictionary's key. So a function is traced once (``make_fx``), compiled by
inductor, and called.
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

# Quarters are to be written to their places in the result at once. For CUDA inductor would sooner write bfloat16
# ones elsewhere and join them by another kernel: 29 bytes per number instead of 5, by its count (benchmarks.kernels).
OPTIONS: dict[str, int | bool] = {
    name: 0
    for name in ("max_pointwise_cat_inputs", "max_complex_pointwise_cat_inputs")
    if hasattr(torch._inductor.config, name)
}
# Otherwise what is compiled while torch has one thread would keep to one, whatever torch.set_num_threads() says later.
OPTIONS["cpp.dynamic_threads"] = True

Compiled = Callable[..., tuple[Tensor, ...]]
Signature = tuple[tuple[torch.Size, torch.dtype, torch.device], ...]


class Kernel(Protocol):
    """A function of tensors alone: the tables, then the batch's.

    It equals another where all else that it depends on is equal, and returns tensors whose rows belong to the batch's.
    """

    def __hash__(self) -> int:
        """Hash as equality demands."""
        ...

    @property
    def __call__(self) -> Compiled:
        """Take named tensors, return some."""
        ...


class Compiler:
    """Calls kernels compiled. Once compiling has failed, it says so once and does nothing more.

    Batches of a size that was not compiled for are padded, or cut into pieces, to fit a size that was, unless they are
    at least twice as large as any: every example's result is its own.
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
            tables: Its first arguments, which do not depend on the batch; of one dtype and, except for their length, of
                one shape from call to call.
            batch: Its other arguments, with one row per example, contiguous.

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
    """Choose which batch size a batch is served by: the smallest it fits in, else the largest, else its own."""
    if larger := [size for size in sizes if size >= count]:
        return min(larger)
    largest = max(sizes, default=0)
    return largest if count < 2 * largest else count


def _pad_batch(tensor: Tensor, size: int) -> Tensor:
    missing = size - len(tensor)
    return tensor if not missing else torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))])


@lru_cache(maxsize=256)
def _compile(kernel: Kernel, tables: Signature, rows: Signature, size: int) -> Compiled:
    """Compile a kernel for one batch size; cached, since one process needs the code once for all its transforms."""
    _keep_freed_memory()
    batch = [(torch.Size((size, *shape)), dtype, device) for shape, dtype, device in rows]
    bar = tqdm(
        desc="Compiling the batch transform, once per stage",
        total=1,
        bar_format="{desc} ...",
        leave=False,
        disable=not is_rank_zero(),
    )
    with bar, torch.inference_mode(False), torch.no_grad():  # what is traced in inference mode would run in no other
        examples: list[Any] = [torch.zeros(s, dtype=dtype, device=d) for s, dtype, d in (*tables, *batch)]
        # A function of its own: make_fx would count a method's self among the tensors.
        graph = make_fx(lambda *tensors: kernel(*tensors))(*examples)
        compiled: Compiled = torch._inductor.compile(graph, examples, OPTIONS)
    return compiled


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep freed memory, up to 64 MiB, instead of handing it back to the system.

    Each batch frees the triple of the one before and allocates another. glibc hands freed blocks of some size back to
    the system, which clears every page before it gives it again: up to 1,800 page faults per batch in a Trainer's loop,
    or none, depending on how the heap happens to lie (``benchmarks/transform.md``). Freeing one block just below 32 MiB
    makes glibc raise the limit to that size for the rest of the process (mallopt(3), ``M_MMAP_THRESHOLD``). The cost is
    that up to 64 MiB stay with the process. Other allocators do not react.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
