"""The transform as one Triton kernel for CUDA devices: the arithmetic of ``_kernels`` in 32-bit words.

Torch has few operations on uint32, so ``_kernels`` computes with int64, of which torch 2.11's own compiler made three
kernels. Here one kernel does everything in one pass: each of its programs draws the ``t`` and the flip of its image,
reads a block of the image, and writes that block of ``x_t`` and the target. It is compiled once for all batches and
sizes of images. ``benchmarks/device.md`` has the times of both.
"""
# Triton's functions are a language of their own, without annotations.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddpm_data.diffusion._kernels import MakeTriple, Tables, TripleInputs
from ddpm_data.rng.philox import STAGES, Key, Purpose
from ddpm_data.types import Stage

_BLOCK = 256  # numbers of a quarter per program, four per thread, so that a thread reads 4 bytes and writes 16
_WARPS = 2


def make_triple(tables: Tables, batch: TripleInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Make ``x_t``, ``t`` and the target of contiguous images on a CUDA device; computed in float32, cast last.

    Args:
        tables: The tables of the process and the objective, and the key.
        batch: Everything else that the triple is made of; at least one image, uint8 or floats, and no ``noise``.
    """
    images, given = batch.images, batch.timesteps
    x_t = torch.empty_like(images, dtype=batch.dtype)
    target = torch.empty_like(x_t)
    t = given if isinstance(given, Tensor) else torch.empty_like(batch.position)
    arguments = _list_arguments(tables, batch, x_t, t, target)
    launch = _kernel[len(images) * arguments[-1],]
    with _on_device(images):
        launch(*arguments, **_choose_constants(batch))
    return x_t, t, target


def find_kind(batch: TripleInputs) -> Hashable:
    """Return what decides which code :func:`compile_kernel` compiles."""
    images, _, timesteps, flip, stage, dtype, predicts_noise, _ = batch
    draw = None if isinstance(timesteps, Tensor) else timesteps
    return images.dtype, images.device, draw, flip, stage, dtype, predicts_noise


def compile_kernel(tables: Tables, batch: TripleInputs) -> MakeTriple:
    """Compile what :func:`make_triple` launches for such a batch, without launching it; returns that function."""
    x_t = torch.empty(1, dtype=batch.dtype, device=batch.images.device)
    arguments = _list_arguments(tables, batch, x_t, batch.position, x_t)
    with _on_device(batch.images):
        _kernel.warmup(*arguments, grid=(1,), **_choose_constants(batch))
    return make_triple


def draw_normals(key: Key, purpose: Purpose, stage: Stage, position: Tensor, numel: int) -> Tensor:
    """Draw what :func:`~ddpm_data.rng.philox.normals` draws, within 1e-5, on a CUDA device."""
    normals = torch.empty(len(position), numel, device=position.device)
    quarter = -(-numel // 4)
    blocks = -(-quarter // _BLOCK)
    use = purpose + 256 * STAGES[stage]
    launch = _normals_kernel[len(position) * blocks,]
    with _on_device(position):
        launch(position.contiguous(), key.low, key.high, normals, numel, quarter, blocks, use, _BLOCK, num_warps=_WARPS)
    return normals


def compile_normals(key: Key, position: Tensor) -> Callable[[Key, Purpose, Stage, Tensor, int], Tensor]:
    """Compile what :func:`draw_normals` launches, without launching it; returns that function."""
    pointers = position, key.low, key.high, torch.empty(1, device=position.device)
    with _on_device(position):
        _normals_kernel.warmup(*pointers, 16, 4, 1, int(Purpose.LATENT), _BLOCK, num_warps=_WARPS, grid=(1,))
    return draw_normals


def _on_device(images: Tensor) -> AbstractContextManager[object]:
    """Launch on the images' device; to switch takes time, and most processes have one device."""
    is_current = images.device.index == torch.cuda.current_device()
    return nullcontext() if is_current else torch.cuda.device(images.device)


def _list_arguments(tables: Tables, batch: TripleInputs, x_t: Tensor, t: Tensor, target: Tensor) -> tuple[Any, ...]:
    images = batch.images
    numel = images.shape[1:].numel()
    quarter = -(-numel // 4)
    sizes = numel, quarter, images.shape[-1], len(tables.signal), -(-quarter // _BLOCK)
    return images, batch.position, *tables, x_t, t, target, *sizes


def _choose_constants(batch: TripleInputs) -> dict[str, Any]:
    timesteps, stage = batch.timesteps, batch.stage
    draw = "given"
    if not isinstance(timesteps, Tensor):
        draw = "independent"
        if timesteps.low_discrepancy or stage != "train":
            draw = "strided" if timesteps.strided else "low discrepancy"
    return {
        "STAGE": 256 * STAGES[stage],
        "DRAW": draw,
        "HAS_DENSITY": not isinstance(timesteps, Tensor) and timesteps.has_density,
        "PREDICTS_NOISE": batch.predicts_noise,
        "FLIP_BELOW": round(batch.flip * 2**32),
        "IS_BYTES": batch.images.dtype == torch.uint8,
        "BLOCK": _BLOCK,
        "num_warps": _WARPS,
    }


# At every launch Triton compares each constant that a kernel finds outside itself (25 us for the 34 there were). So the
# numbers of ``philox`` stand here once more; tests/diffusion/test_triton.py compares the results.
@triton.jit(do_not_specialize=["num_timesteps", "blocks"])
def _kernel(
    images, position, signal, sigma, target_x, target_n, thresholds, key, x_t, t, target,
    numel, quarter, width, num_timesteps, blocks,
    STAGE: tl.constexpr, DRAW: tl.constexpr, HAS_DENSITY: tl.constexpr, PREDICTS_NOISE: tl.constexpr,
    FLIP_BELOW: tl.constexpr, IS_BYTES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    example = (tl.program_id(0) // blocks).to(tl.int64)
    images, x_t, target = images + example * numel, x_t + example * numel, target + example * numel
    index = tl.arange(0, BLOCK)
    # The program's numbers begin here in each quarter of the image.
    start_0 = tl.program_id(0) % blocks * BLOCK
    start_1, start_2, start_3 = start_0 + quarter, start_0 + 2 * quarter, start_0 + 3 * quarter
    is_inside = start_0 + index < quarter
    mask_0, mask_1 = is_inside & (index < numel - start_0), is_inside & (index < numel - start_1)
    mask_2, mask_3 = is_inside & (index < numel - start_2), is_inside & (index < numel - start_3)
    n = tl.load(position + example)
    low, high = n.to(tl.uint32), (n >> 32).to(tl.uint32)
    zero = low * 0
    k0, k1 = tl.load(key).to(tl.uint32), tl.load(key + 1).to(tl.uint32)

    mirrored = False
    if FLIP_BELOW:
        word, _, _, _ = _philox(zero, zero + (STAGE + 1), low, high, k0, k1, 10)  # Purpose.FLIP
        mirrored = word.to(tl.int64) < FLIP_BELOW
    # Memory takes longest to answer, so it is asked first.
    value_0 = _read(images, start_0, index, mask_0, width, mirrored, FLIP_BELOW)
    value_1 = _read(images, start_1, index, mask_1, width, mirrored, FLIP_BELOW)
    value_2 = _read(images, start_2, index, mask_2, width, mirrored, FLIP_BELOW)
    value_3 = _read(images, start_3, index, mask_3, width, mirrored, FLIP_BELOW)

    if DRAW == "given":
        step = tl.load(t + example)
    else:
        if DRAW == "independent":
            word, _, _, _ = _philox(zero, zero + (STAGE + 0), low, high, k0, k1, 10)  # Purpose.TIMESTEP
        elif DRAW == "strided":
            word, _, _, _ = _philox(zero, zero + (STAGE + 3), zero, zero, k0, k1, 10)  # Purpose.TIMESTEP_OFFSET
            word += low * 0x9D22D7FD  # timesteps.WEYL_STEP
        else:  # as timesteps.draw_word
            first, second, factor, _ = _philox(zero, zero + (STAGE + 15), high, zero, k0, k1, 10)
            word = low + first
            word ^= word * 0x3D20ADEA
            word = (word + second) * (factor | 1)
            word ^= word * 0x05526C56
            word = _reverse_bits(word ^ (word * 0x53A22864))
        if HAS_DENSITY:
            step = _count_below(thresholds, word.to(tl.int64), num_timesteps)
        else:
            step = ((word.to(tl.uint64) * num_timesteps) >> 32).to(tl.int64)
        if start_0 == 0:
            tl.store(t + example, step)
    a, b = tl.load(signal + step), tl.load(sigma + step)
    p, q = a * 0, a * 0 + 1
    if not PREDICTS_NOISE:
        p, q = tl.load(target_x + step), tl.load(target_n + step)

    # A block of four words gives a number to each quarter.
    block = (start_0 + index).to(tl.uint32)
    w_0, w_1, w_2, w_3 = _philox(block, zero + (STAGE + 2), low, high, k0, k1, 7)  # Purpose.NOISE
    z_0, z_1 = _box_muller(w_0, w_1)
    z_2, z_3 = _box_muller(w_2, w_3)
    _write(x_t, target, start_0, index, mask_0, value_0, z_0, a, b, p, q, IS_BYTES, PREDICTS_NOISE)
    _write(x_t, target, start_1, index, mask_1, value_1, z_1, a, b, p, q, IS_BYTES, PREDICTS_NOISE)
    _write(x_t, target, start_2, index, mask_2, value_2, z_2, a, b, p, q, IS_BYTES, PREDICTS_NOISE)
    _write(x_t, target, start_3, index, mask_3, value_3, z_3, a, b, p, q, IS_BYTES, PREDICTS_NOISE)


@triton.jit(do_not_specialize=["use", "blocks"])
def _normals_kernel(position, key_low, key_high, normals, numel, quarter, blocks, use, BLOCK: tl.constexpr):
    example = (tl.program_id(0) // blocks).to(tl.int64)
    normals = normals + example * numel
    index = tl.arange(0, BLOCK)
    start = tl.program_id(0) % blocks * BLOCK
    n = tl.load(position + example)
    low, high = n.to(tl.uint32), (n >> 32).to(tl.uint32)
    k0, k1 = tl.load(key_low).to(tl.uint32), tl.load(key_high).to(tl.uint32)
    place = start + index
    w_0, w_1, w_2, w_3 = _philox(place.to(tl.uint32), low * 0 + use.to(tl.uint32), low, high, k0, k1, 7)
    z_0, z_1 = _box_muller(w_0, w_1)
    z_2, z_3 = _box_muller(w_2, w_3)
    tl.store(normals + place, z_0, (place < quarter) & (place < numel))
    tl.store(normals + quarter + place, z_1, (place < quarter) & (place < numel - quarter))
    tl.store(normals + 2 * quarter + place, z_2, (place < quarter) & (place < numel - 2 * quarter))
    tl.store(normals + 3 * quarter + place, z_3, (place < quarter) & (place < numel - 3 * quarter))


@triton.jit
def _reverse_bits(word):
    word = ((word & 0xFFFF) << 16) | (word >> 16)
    word = ((word & 0xFF00FF) << 8) | ((word >> 8) & 0xFF00FF)
    word = ((word & 0xF0F0F0F) << 4) | ((word >> 4) & 0xF0F0F0F)
    word = ((word & 0x33333333) << 2) | ((word >> 2) & 0x33333333)
    return ((word & 0x55555555) << 1) | ((word >> 1) & 0x55555555)


@triton.jit
def _read(images, start, index, mask, width, mirrored, CAN_FLIP: tl.constexpr):
    """Read numbers of an image, of its mirror image if it is mirrored."""
    if CAN_FLIP:
        if mirrored:
            column = (start + index) % width
            value = tl.load(images + start + index + (width - 1 - 2 * column), mask, other=0)
        else:
            value = tl.load(images + start + index, mask, other=0)
    else:
        value = tl.load(images + start + index, mask, other=0)
    return value


@triton.jit
def _count_below(thresholds, word, count):
    """Return how many of the ascending thresholds are at most the word; the last one is not."""
    low, high = word * 0, word * 0 + count - 1
    while low < high:
        middle = (low + high) // 2
        if tl.load(thresholds + middle) <= word:
            low = middle + 1
        else:
            high = middle
    return low


@triton.jit
def _write(x_t, target, start, index, mask, value, z, a, b, p, q, IS_BYTES: tl.constexpr, PREDICTS_NOISE: tl.constexpr):
    """Write ``a x_0 + b z`` and the target: ``z``, or ``p x_0 + q z``."""
    x_0 = value.to(tl.float32)
    if IS_BYTES:
        x_0 = (2 * x_0 - 255) * (1 / 255)  # 0 and 255 become -1 and 1 exactly
    tl.store(x_t + start + index, (a * x_0 + b * z).to(x_t.dtype.element_ty), mask)
    if not PREDICTS_NOISE:
        z = p * x_0 + q * z
    tl.store(target + start + index, z.to(target.dtype.element_ty), mask)


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1, ROUNDS: tl.constexpr):
    """``philox.philox_4x32`` in uint32, whose products have 64 bits."""
    for _ in tl.static_range(ROUNDS):
        p0, p1 = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c1 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, p1.to(tl.uint32)
        c2, c3 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1, p0.to(tl.uint32)
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _box_muller(u, v):
    """Turn two words into two standard normal numbers, as in ``philox``."""
    x = (u.to(tl.float32) + 0.5) * (1 / 4294967296)
    # x = 2^exponent (1 + f), where 1 + f lies between 2/3, whose bits are 0x3F2AAAAB, and 4/3. And
    # log(1 + f) = f + f^2 q(f), with q fitted at Chebyshev points to a relative error below 3e-8.
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F2AAAAB) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1
    q = (0.14026354253292084 * f - 0.15388545393943787) * f + 0.13995808362960815
    q = ((q * f - 0.1641595959663391) * f + 0.20011168718338013) * f - 0.2500782012939453
    q = (q * f + 0.33333197236061096) * f - 0.49999937415122986
    radius = tl.sqrt(-2 * (exponent.to(tl.float32) * 0.6931471805599453 + (f * f * q + f)))
    # The first bit of v is half a turn, the others an angle between -1/4 and 1/4 of a turn, plus a quarter.
    radius = ((v & 0x80000000) ^ radius.to(tl.uint32, bitcast=True)).to(tl.float32, bitcast=True)
    angle = ((v & 0x7FFFFFFF).to(tl.int32) - 1073741824).to(tl.float32) * (1 / 4294967296)
    r = angle * angle
    sine = ((-39.76072311401367 * r + 76.58128356933594) * r - 81.60247802734375) * r + 41.34168243408203
    sine = angle * (sine * r - 6.2831854820251465)
    cosine = ((-24.981836318969727 * r + 60.143951416015625) * r - 85.45356750488281) * r + 64.93934631347656
    cosine = (cosine * r - 19.739208221435547) * r + 1.0
    return radius * sine, radius * cosine
