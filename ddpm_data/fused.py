"""The transform's arithmetic as plain functions of tensors, and their compilation into one pass over the images.

An image's four quarters are walked side by side: a block of four Philox words becomes one number in each of them, so
that a kernel reads and writes contiguous runs, and words, noise and ``x_t`` never leave its registers in between.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_data.philox import Key, Purpose, normal_quarters, words
from ddpm_data.types import Stage

# Values an image has at least for compiling to pay: below, a batch takes less than a millisecond either way. By the
# image alone, since the same example must not be drawn by two kinds of code in batches of two sizes.
WORTH_COMPILING = 512
_EAGER_NUMBERS = 2**18  # drawn at once without a compiler: intermediates of a few MB, which stay in the caches

T = TypeVar("T")
Timesteps = Callable[[Tensor, int, Key, Stage], Tensor]


class Tables(NamedTuple):
    """What stays on the device: the process's two roots, float32 ``(num_timesteps,)``, and the key, int64 ``(2,)``."""

    signal: Tensor
    spread: Tensor
    key: Tensor


def draw(
    tables: Tables, position: Tensor, timesteps: Timesteps, flip: float, stage: Stage
) -> tuple[Tensor, Tensor | None]:
    """Which step, and whether mirrored: ``t``, int64, and bool or ``None``, both of shape ``(batch,)``."""
    key = Key(tables.key[0], tables.key[1])
    t = timesteps(position, len(tables.signal), key, stage)
    if not flip or stage != "train":
        return t, None
    return t, words(key, Purpose.FLIP, stage, position)[0][:, 0] < round(flip * 2**32)


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """The images, some of them mirrored left to right."""
    chosen = mirrored.view(-1, *[1] * (images.dim() - 1))
    if images.dtype != torch.uint8 or torch.compiler.is_compiling():
        return torch.where(chosen, images.flip(-1), images)
    # torch.where takes six times as long on bytes: it does not vectorise.
    return images.flip(-1).bitwise_xor_(images).bitwise_and_(chosen.to(torch.uint8) * 255).bitwise_xor_(images)


def noised(
    tables: Tables,
    images: Tensor,
    position: Tensor,
    t: Tensor,
    mirrored: Tensor | None,
    stage: Stage,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """``x_t`` and the noise in it, contiguous, of the images' shape; computed in float32, cast last."""
    if mirrored is not None:
        images = mirror(images, mirrored)
    numel = images.shape[1:].numel()
    quarter = -(-numel // 4)
    flat = images.reshape(len(images), numel)
    quarters = (flat if numel % 4 == 0 else F.pad(flat, (0, 4 * quarter - numel))).view(-1, 4, quarter)
    signal, spread = tables.signal[t][:, None], tables.spread[t][:, None]
    noise = normal_quarters(Key(tables.key[0], tables.key[1]), Purpose.NOISE, stage, position, quarter)
    x_t = [signal * scale(quarters[:, i]) + spread * noise[i] for i in range(4)]
    return _joined(x_t, images.shape, dtype), _joined(noise, images.shape, dtype)


def noised_in_blocks(
    tables: Tables,
    images: Tensor,
    position: Tensor,
    t: Tensor,
    mirrored: Tensor | None,
    stage: Stage,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """As :func:`noised`, a few images at a time, for where nothing is compiled."""
    x_t = torch.empty(images.shape, dtype=dtype, device=images.device)
    noise = torch.empty_like(x_t)
    rows = max(1, _EAGER_NUMBERS // max(1, images.shape[1:].numel()))
    for i in range(0, len(images), rows):
        some = slice(i, i + rows)
        chosen = None if mirrored is None else mirrored[some]
        x_t[some], noise[some] = noised(tables, images[some], position[some], t[some], chosen, stage, dtype)
    return x_t, noise


def scale(images: Tensor) -> Tensor:
    """Float32 images; uint8 is mapped to [-1, 1], 0 and 255 exactly to the ends."""
    return (images.float() - 127.5) * (1 / 127.5) if images.dtype == torch.uint8 else images.float()


def _joined(quarters: list[Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    flat = torch.stack([quarter.to(dtype) for quarter in quarters], dim=1).view(shape[0], -1)
    return flat[:, : shape[1:].numel()].reshape(shape)


class Compiler:
    """Runs functions compiled; once that has failed, as they are, with one warning."""

    def __init__(self) -> None:
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._failed = False

    def __call__(
        self,
        compiles: bool,
        function: Callable[..., T],
        instead: Callable[..., T],
        *args: Any,  # noqa: ANN401  # the functions' own
    ) -> T:
        """Call the function, compiled at its first call, or what is to run where nothing is compiled."""
        if self._failed or not compiles:
            return instead(*args)
        if function not in self._compiled:
            self._compiled[function] = torch.compile(function, fullgraph=True)
        try:
            return cast(T, self._compiled[function](*args))
        except Exception as error:  # the compiler's own errors have no common type
            result = instead(*args)  # an error of the arguments' is raised again here, as itself
            self._failed = True
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            warnings.warn(
                f"torch.compile failed ({reason}), so the batch transform runs uncompiled: the same triples (noise "
                "within 1e-5), several times slower. Install a C++ compiler (g++), or silence this: `compile=false`.",
                stacklevel=2,
            )
            return result

    def __getstate__(self) -> dict[str, Any]:
        """Compiled code cannot be sent to another process, which compiles its own."""
        return self.__dict__ | {"_compiled": {}}
