"""The batch transform: images and their positions in, the training triple out, on whatever device they are on."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddpm_data._checks import check_float
from ddpm_data.diffusion import _kernels
from ddpm_data.diffusion._compiler import Compiler
from ddpm_data.diffusion.process import ForwardProcess
from ddpm_data.diffusion.timesteps import Timesteps, UniformTimesteps
from ddpm_data.latents import Latents
from ddpm_data.rng.philox import STAGES, key_from
from ddpm_data.types import Stage, Triple

Augment = Callable[[Tensor], Tensor]
# Values an image has at least for compiling to pay: below, a batch takes less than a millisecond either way. By the
# image alone, since the same example must not be drawn by two kinds of code in batches of two sizes.
_WORTH_COMPILING = 512
_COMPILERS = ("cpu", "cuda")  # inductor's own; measured on CPUs, not yet run on a CUDA device


class ForwardDiffusion(nn.Module):
    """Scale, flip, draw ``t`` and noise, apply q(x_t | x_0): DDPM's training triple (Ho et al. 2020, Algorithm 1).

    What an example becomes depends on the seed, its position, its stage and its pixels alone: not on the batch it came
    in, the batch's size or memory format, nor on any generator. Usable without Lightning::

        transform = ForwardDiffusion(ForwardProcess(schedules.linear()), seed=0)
        x_t, t, noise = transform(images, position)

    Args:
        process: The forward process, which becomes a submodule.
        seed: In ``[0, 2**64)``.
        timesteps: Draws ``t``: a callable ``(position, num_timesteps, key, stage) -> t``. Default
            :class:`~ddpm_data.diffusion.timesteps.UniformTimesteps`, independent draws.
        flip: Probability of mirroring a training image left to right, in ``[0, 1]``; other stages never flip.
        augment: Your own augmentation of training batches, before all else: a module (which becomes a submodule) or
            function from uint8 to uint8 (latents: to their own dtype), both of shape ``(batch, channels, height,
            width)``. What it draws from torch's global generator is beyond the promise above.
        latents: What to make of latents, see :class:`~ddpm_data.latents.Latents`; ``None`` of images.
        compile: Compile the work into one pass over the images, on CPUs and CUDA devices, for images of at least 512
            values; where the compiler fails, it runs uncompiled with one warning. Noise differs by up to 1e-5 from the
            uncompiled, ``t`` and flips do not.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: ``seed`` or ``flip`` is out of range.
    """

    _key_words: Tensor

    def __init__(
        self,
        process: ForwardProcess,
        seed: int = 0,
        timesteps: Timesteps | None = None,
        flip: float = 0.0,
        augment: Augment | None = None,
        compile: bool = True,
        latents: Latents | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(process, ForwardProcess):
            raise TypeError(
                f"ForwardDiffusion: process is a {type(process).__name__}; wrap the betas: ForwardProcess(betas)."
            )
        if isinstance(timesteps, type) or (timesteps is not None and not callable(timesteps)):
            raise TypeError(
                f"ForwardDiffusion: timesteps is a {type(timesteps).__name__}; a callable such as UniformTimesteps() "
                "draws t. Change `timesteps`."
            )
        if augment is not None and not callable(augment):
            raise TypeError(
                f"ForwardDiffusion: augment is a {type(augment).__name__}; a module or function is called with each "
                "training batch. Change `dataset.augment`."
            )
        flip = check_float("ForwardDiffusion", "dataset.flip", flip)
        if not isinstance(compile, bool):
            raise TypeError(f"ForwardDiffusion(compile={compile!r}): true or false. Change `compile`.")
        if latents is not None and not isinstance(latents, Latents):
            raise TypeError(
                f"ForwardDiffusion: latents is a {type(latents).__name__}; ddpm_data.latents.Latents(...) or null is "
                "needed. Change `dataset.latents`."
            )
        if not 0 <= flip <= 1:
            raise ValueError(f"ForwardDiffusion(flip={flip}): a probability lies in [0, 1]. Change `dataset.flip`.")
        self.process = process
        self.seed = seed
        self.timesteps = UniformTimesteps() if timesteps is None else timesteps
        self.flip = flip
        self.augment = augment
        self.latents = latents
        self._compiles = compile
        self.register_buffer("_key_words", torch.tensor(key_from(seed)), persistent=False)
        self._compiler = Compiler()

    def forward(
        self, images: Tensor, position: Tensor, stage: Stage = "train", dtype: torch.dtype | None = None
    ) -> Triple:
        """Turn clean images into a training triple.

        Args:
            images: uint8 in ``[0, 255]``, scaled here to ``[-1, 1]``, or floats taken as they are (images in
                ``[-1, 1]``, latents); shape ``(batch, channels, height, width)``, any number of channels. Not changed.
            position: Each image's place in its stage's stream, int64, shape ``(batch,)``, on the images' device.
            stage: Which stream the positions belong to.
            dtype: Of ``x_t`` and ``noise``. Default: float32, or the images' own dtype where it is bfloat16 or float16
                and they are no ``latents``.

        Returns:
            ``Triple(x_t, t, noise)``, contiguous in the images' memory format; computed in float32, cast last.

        Raises:
            TypeError: ``images`` or ``position`` is of another dtype, or ``augment`` returned another.
            ValueError: Their shapes do not go together, ``augment`` changed the number of images, or there is no such
                stage.
        """
        _check_batch(images, position, stage)
        layout = _layout(images)
        if dtype is None:
            is_half = images.dtype in (torch.bfloat16, torch.float16) and self.latents is None
            dtype = images.dtype if is_half else torch.float32
        process = self.process
        tables = _kernels.Tables(process.sqrt_alphas_cumprod, process.sqrt_one_minus_alphas_cumprod, self._key_words)
        with torch.no_grad():
            if self.augment is not None and stage == "train":
                images = _augmented(self.augment, images)
            compiles = self._is_worth_compiling(images)
            if self.latents is not None:
                images = self._drawn(tables, images, position, stage, compiles)
            flip = self.flip if stage == "train" else 0.0
            batch = _kernels.TripleInputs(images, position, self._steps(position, stage), flip, stage, dtype)
            made = self._compiled(tables, batch) if compiles else _kernels.make_triple_in_blocks(tables, batch)
        if layout is torch.contiguous_format:
            return made
        return Triple(made.x_t.contiguous(memory_format=layout), made.t, made.noise.contiguous(memory_format=layout))

    def _is_worth_compiling(self, images: Tensor) -> bool:
        enough = len(images) > 0 and images.shape[1:].numel() >= _WORTH_COMPILING
        return self._compiles and enough and images.device.type in _COMPILERS

    def _drawn(self, tables: _kernels.Tables, values: Tensor, position: Tensor, stage: Stage, compiles: bool) -> Tensor:
        assert self.latents is not None
        if not values.is_floating_point():
            raise TypeError(f"images are {values.dtype}, and latents floats. Change `dataset.latents`.")
        drawing = _kernels.LatentKernel(self.latents, stage)
        found = self._compiler(drawing, tables, [values.contiguous(), position.contiguous()]) if compiles else None
        return found[0] if found is not None else drawing(*tables, values, position)[0]

    def _compiled(self, tables: _kernels.Tables, batch: _kernels.TripleInputs) -> Triple:
        images, position, steps, flip, stage, dtype = batch
        position = position.contiguous()
        if flip and images.device.type == "cpu":
            # Within the pass, reading backwards would cost the CPU's vector units more than a pass of bytes does.
            found = self._compiler(_kernels.FlipMaskKernel(flip), tables, [position])
            if found is None:
                return _kernels.make_triple_in_blocks(tables, batch)
            images, flip = _kernels.mirror(images, found[0]), 0.0
        tensors = [images.contiguous(), position]
        if isinstance(steps, UniformTimesteps):
            making = _kernels.TripleKernel(steps.low_discrepancy, flip, stage, dtype)
        else:
            assert isinstance(steps, Tensor)
            making, tensors = _kernels.TripleKernel(None, flip, stage, dtype), [*tensors, steps.contiguous()]
        made = self._compiler(making, tables, tensors)
        return _kernels.make_triple_in_blocks(tables, batch) if made is None else Triple(*made)

    def _steps(self, position: Tensor, stage: Stage) -> Timesteps | Tensor:
        if isinstance(self.timesteps, UniformTimesteps):
            return self.timesteps
        t = self.timesteps(position, self.process.num_timesteps, key_from(self.seed), stage)  # may not compile
        self.process.check_steps(t)
        return t


def _check_batch(images: Tensor, position: Tensor, stage: str) -> None:
    if stage not in STAGES:
        raise ValueError(f"stage={stage!r}: the streams are {', '.join(STAGES)}.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images are {images.dtype}: uint8 in [0, 255] or floating point in [-1, 1] is needed.")
    if position.dtype != torch.int64:
        raise TypeError(f"position is {position.dtype}: places in the stream are whole numbers, int64.")
    if images.dim() != 4 or position.shape != images.shape[:1]:
        raise ValueError(
            f"images have shape {tuple(images.shape)} and position {tuple(position.shape)}; "
            "(batch, channels, height, width) and (batch,) are needed."
        )


def _layout(images: Tensor) -> torch.memory_format:
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def _augmented(augment: Augment, images: Tensor) -> Tensor:
    changed = augment(images)
    if not isinstance(changed, Tensor) or changed.dtype != images.dtype or changed.dim() != 4:
        shape = f" of shape {tuple(changed.shape)} and {changed.dtype}" if isinstance(changed, Tensor) else ""
        kind = str(images.dtype).removeprefix("torch.")
        raise TypeError(
            f"augment returned a {type(changed).__name__}{shape}, but {kind} images of shape (batch, channels, height, "
            "width) are noised next. Change `dataset.augment`."
        )
    if len(changed) != len(images):
        raise ValueError(
            f"augment returned {len(changed)} images for {len(images)}; each has its own place in the stream. "
            "Change `dataset.augment`."
        )
    return changed
