"""Functions of a batch, compiled for the batch sizes that come: no graph is ever traced twice for a short last batch.

``torch.compile`` looks, at every call, for what may have changed since it traced a function; beside a training step,
which leaves no cache warm, that took longer than making the triples of a small batch (``benchmarks/transform.md``).
Here all that can change is in the key: so a function is traced once (``make_fx``), compiled by inductor, and called.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch._inductor
import torch._inductor.config
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from tqdm import tqdm

from ddpm_data._distributed import is_rank_zero

# Quarters are to be written to their places in the result at once. For CUDA inductor would sooner write bfloat16
# ones elsewhere and join them by another kernel: 29 bytes a number instead of 5, by its count (benchmarks.kernels).
OPTIONS: dict[str, int | bool] = {
    name: 0
    for name in ("max_pointwise_cat_inputs", "max_complex_pointwise_cat_inputs")
    if hasattr(torch._inductor.config, name)
}
# Else what is compiled while torch has one thread would keep to one, whatever torch.set_num_threads() says later.
OPTIONS["cpp.dynamic_threads"] = True

Compiled = Callable[..., tuple[Tensor, ...]]
Signature = tuple[tuple[torch.Size, torch.dtype, torch.device], ...]


class Kernel(Protocol):
    """A function of tensors alone, equal to another where all else that it depends on is equal."""

    def __hash__(self) -> int:
        """As equality."""
        ...

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors whose rows belong to those of the batch."""
        ...


class Compiler:
    """Calls functions compiled; once that has failed, as they are, with one warning.

    Batches of a size that was not compiled for are filled up, or cut into pieces, to fit one that was, unless they are
    at least twice as large as any: every example's result is its own.
    """

    def __init__(self) -> None:
        self._ready: dict[tuple[object, ...], Compiled] = {}  # for batches of exactly these shapes
        self._sizes: dict[tuple[object, ...], list[int]] = {}
        self._failed = False
        # Batch after batch is freed and allocated anew. glibc hands what is freed back to the system, which gives it
        # again page by page, unless a block this large (32 MiB is its limit) has once been freed: then it keeps 64 MiB.
        torch.empty(31 * 2**20, dtype=torch.uint8)

    def __call__(self, work: Kernel, shared: Sequence[Tensor], batch: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """Call a function.

        Args:
            work: The function.
            shared: Its first tensors, which do not depend on the batch; of one dtype and, but for the first's length,
                shape from call to call.
            batch: Its other tensors, with a row for each example, contiguous.

        Returns:
            What the function returns; ``None`` if the compiler failed, now or before.
        """
        if self._failed:
            return None
        key = (work, *[(tensor.shape, tensor.dtype, tensor.device) for tensor in batch], len(shared[0]))
        try:
            if ready := self._ready.get(key):
                return ready(*shared, *batch)
            count, rows = len(batch[0]), tuple((tensor.shape[1:], tensor.dtype, tensor.device) for tensor in batch)
            sizes = self._sizes.setdefault((work, rows, len(shared[0])), [])
            size = _choose_size(count, sizes)
            compiled = _compile(
                work, tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in shared), rows, size
            )
            if size not in sizes:
                sizes.append(size)
            if size == count:
                self._ready[key] = compiled
                return compiled(*shared, *batch)
            pieces = [[tensor[i : i + size] for tensor in batch] for i in range(0, count, size)]
            results = [compiled(*shared, *(_pad_batch(tensor, size) for tensor in piece)) for piece in pieces]
        except Exception as error:  # the compiler's own errors have no common type
            self._failed = True
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            warnings.warn(
                f"the batch transform could not be compiled ({reason}), so it runs uncompiled: the same triples (noise "
                "within 1e-5), several times slower. Install a C++ compiler (g++, clang or MSVC), or silence this: "
                "`compile=false`.",
                stacklevel=2,
            )
            return None
        return tuple(torch.cat(parts)[:count] for parts in zip(*results, strict=True))

    def __getstate__(self) -> dict[str, object]:
        """Compiled code cannot be sent to another process, which compiles its own."""
        return {"_ready": {}, "_sizes": {}, "_failed": self._failed}


def _choose_size(count: int, sizes: list[int]) -> int:
    if larger := [size for size in sizes if size >= count]:
        return min(larger)
    return max(sizes) if sizes and count < 2 * max(sizes) else count


def _pad_batch(tensor: Tensor, size: int) -> Tensor:
    missing = size - len(tensor)
    return tensor if not missing else torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))])


@lru_cache(maxsize=256)
def _compile(work: Kernel, shared: Signature, rows: Signature, size: int) -> Compiled:
    """One process needs the code once, however many transforms there are."""
    batch = [(torch.Size((size, *shape)), dtype, device) for shape, dtype, device in rows]
    bar = tqdm(
        desc="Compiling the batch transform, once a stage",
        total=1,
        bar_format="{desc} ...",
        leave=False,
        disable=not is_rank_zero(),
    )
    with bar, torch.inference_mode(False), torch.no_grad():  # what is traced in inference mode would run in no other
        examples: list[Any] = [torch.zeros(s, dtype=dtype, device=d) for s, dtype, d in (*shared, *batch)]
        compiled: Compiled = torch._inductor.compile(make_fx(work.__call__)(*examples), examples, OPTIONS)
    return compiled
