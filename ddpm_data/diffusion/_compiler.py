"""Compile the code of a device once, and find a way on where that fails."""

import warnings
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

Compiled = TypeVar("Compiled")


class Compiler(Generic[Compiled]):
    """Keeps what was compiled. If compiling fails, it warns once and compiles nothing more."""

    def __init__(self) -> None:
        self._compiled: dict[Hashable, Compiled] = {}
        self._failed = False

    def __call__(self, key: Hashable, compile: Callable[[], Compiled]) -> Compiled | None:
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
                "within 1e-5), several times slower. Install a C++ compiler (g++ or clang++), or silence this: "
                "`compile=false`.",
                stacklevel=3,
            )
            return None
        return compiled

    def __getstate__(self) -> dict[str, object]:
        """Leave out compiled code: another process compiles its own, or finds it on disk."""
        return {"_compiled": {}, "_failed": self._failed}
