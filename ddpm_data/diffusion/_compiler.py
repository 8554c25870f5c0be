"""Compile functions of a batch, once for batches of every size and images of every height and width.

``torch.compile`` checks at every call whether anything has changed since it traced a function. In training these checks
took longer than making the triples of a small batch, because the model's step leaves the CPU's caches cold
(``benchmarks/transform.md``). Here everything that can change is part of a dictionary key. So a function is traced once
(``make_fx``), compiled once by inductor, and then called directly.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from tqdm import tqdm

from ddpm_data._distributed import is_rank_zero

_EXAMPLE_BATCH = 64  # images in the batch for which code is compiled,
_EXAMPLE_SIZE = 12288  # and values in each of them: as large as usual, or inductor would leave out threads and vectors

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

    One compiled kernel serves batches of every size, and images of every height and width.
    """

    def __init__(self) -> None:
        self._compiled: dict[Hashable, Compiled] = {}
        self._failed = False

    def __call__(self, kernel: Kernel, tables: Sequence[Tensor], batch: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """Call a kernel.

        Args:
            kernel: The kernel.
            tables: Its first arguments, which do not depend on the batch. In every call they have the same dtypes and,
                except for their length, the same shapes.
            batch: Its other arguments, contiguous, with one row per example: at least one row.

        Returns:
            What the kernel returns; ``None`` if compiling failed, now or before.
        """
        kinds = tuple(_find_kind(tensor) for tensor in batch)
        key = (kernel, len(tables[0]), kinds)

        def compile_kernel() -> Compiled:
            return _compile(kernel, tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tables), kinds)

        compiled = self.compile_once(key, compile_kernel)
        return None if compiled is None else compiled(*tables, *batch)

    def compile_once(self, key: Hashable, compile: Callable[[], Compiled]) -> Compiled | None:
        """Return what was compiled for a key, compiled now if it is new; ``None`` if compiling failed, now or before.

        To run out of memory is not the compiler's failure, so that is raised.
        """
        if self._failed:
            return None
        if compiled := self._compiled.get(key):
            return compiled
        try:
            compiled = self._compiled[key] = compile()
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
            return None
        return compiled

    def __getstate__(self) -> dict[str, object]:
        """Leave out compiled code: another process compiles its own."""
        return {"_compiled": {}, "_failed": self._failed}


class _Kind(NamedTuple):
    """The properties of a batch's tensor for which code is compiled.

    Attributes:
        dtype: The dtype.
        device: The device.
        middle: The sizes of all dimensions but the first and the last.
        remainder: The last dimension's size modulo 4, because a block of random words gives four numbers; ``None`` if
            there is only one dimension.
    """

    dtype: torch.dtype
    device: torch.device
    middle: tuple[int, ...]
    remainder: int | None


def _find_kind(tensor: Tensor) -> _Kind:
    shape = tensor.shape
    return _Kind(tensor.dtype, tensor.device, tuple(shape[1:-1]), shape[-1] % 4 if len(shape) > 1 else None)


@lru_cache(maxsize=256)
def _compile(kernel: Kernel, tables: Signature, kinds: tuple[_Kind, ...]) -> Compiled:
    """Compile a kernel; cached, so that all transforms of a process share the code.

    It is compiled for symbols in place of sizes, whose example is always the same. So the code does not depend on the
    sizes that a process happens to see first, and every process computes the same bits.
    """
    _keep_freed_memory()
    bar = tqdm(
        desc="Compiling the batch transform, once per stage",
        total=1,
        bar_format="{desc} ...",
        leave=False,
        disable=not is_rank_zero(),
    )
    # What is traced in inference mode would run in no other.
    # Imported here, because processes that compile nothing start a second or two earlier without them.
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with bar, torch.inference_mode(False), torch.no_grad():
        mode = FakeTensorMode(shape_env=ShapeEnv())
        fixed = [mode.from_tensor(torch.empty(shape, dtype=dtype, device=device)) for shape, dtype, device in tables]
        examples: list[Any] = [*fixed, *(_make_symbolic(mode, kind) for kind in kinds)]

        def trace(*tensors: Tensor) -> tuple[Tensor, ...]:
            for tensor in tensors[len(tables) :]:  # the batch has one size
                torch._check(tensor.shape[0] == tensors[-1].shape[0])
            return kernel(*tensors)

        with mode:
            graph = make_fx(trace)(*examples)
        with tracing(TracingContext(mode)):
            compiled = compile_graph(graph, examples)
    return compiled


def compile_graph(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Compiled:
    """Compile a graph by inductor.

    Args:
        graph: The traced function.
        examples: Tensors without content, one for each of its arguments.
    """
    import torch._inductor.config as config
    from torch._inductor.compile_fx import compile_fx

    # Make kernels write the quarters of an image directly into the result, instead of joining them in a second kernel.
    joins = ("max_pointwise_cat_inputs", "max_complex_pointwise_cat_inputs")
    options: dict[str, Any] = {name: 0 for name in joins if hasattr(config, name)}
    # Otherwise code compiled while torch has one thread would always use one, whatever torch.set_num_threads() says.
    options["cpp.dynamic_threads"] = True
    with suppress(ImportError):  # of an older torch
        from ddpm_data.diffusion._fusion import KeepLoopsApart

        if hasattr(config, "_post_fusion_custom_pass"):  # it saves time only, so a torch without it compiles as well
            options["_post_fusion_custom_pass"] = KeepLoopsApart()
    with config.patch(options):
        compiled: Any = compile_fx(graph, list(examples))
    return compiled  # type: ignore[no-any-return]  # compile_fx has other results, for other options


def _make_symbolic(mode: FakeTensorMode, kind: _Kind) -> Tensor:
    """Make a tensor without content, of a kind; its first and last sizes are symbols."""
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    shape: tuple[int, ...] = (_EXAMPLE_BATCH,)
    sizes = [DimDynamic.DYNAMIC]
    if kind.remainder is not None:
        shape = *shape, *kind.middle, _EXAMPLE_SIZE + kind.remainder
        sizes = [DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * len(kind.middle), DimDynamic.DYNAMIC]
    example = torch.empty(shape, dtype=kind.dtype, device=kind.device)
    return mode.from_tensor(example, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))


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
