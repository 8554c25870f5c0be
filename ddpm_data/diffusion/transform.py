"""The batch transform: images and their positions in, the training triple out, on the images' device."""

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_data._checks import check_float, check_int, explain_call
from ddpm_data._keys import name_arguments
from ddpm_data.diffusion import _cpp, _kernels
from ddpm_data.diffusion._compiler import Compiler
from ddpm_data.diffusion.augment import Augment, KeyedAugment
from ddpm_data.diffusion.loss_aware import LossAwareTimesteps, spread_shares
from ddpm_data.diffusion.noises import Noise, check_noise
from ddpm_data.diffusion.objective import Objective
from ddpm_data.diffusion.process import GaussianProcess
from ddpm_data.diffusion.targets import Target
from ddpm_data.diffusion.timesteps import DensityTimesteps, Timesteps, UniformTimesteps
from ddpm_data.diffusion.weights import Weight
from ddpm_data.latents import Latents
from ddpm_data.rng.philox import STAGES, key_from, normals
from ddpm_data.types import Stage, TargetTriple, Triple

# On a CPU, images of fewer values run uncompiled, since a batch takes less than a millisecond either way. The size of
# the image alone decides: in batches of two sizes, the same example must not be drawn by two kinds of code.
_MIN_COMPILED_VALUES = 512
_CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # the kernel for CUDA devices knows these


class ForwardDiffusion(nn.Module):
    """A module that turns clean images into training triples (Ho et al. 2020, Algorithm 1).

    It scales and flips images, draws ``t`` and noise, applies ``q(x_t | x_0)`` and makes the target. It needs no
    Lightning::

        process = ForwardProcess(schedules.linear())
        transform = ForwardDiffusion(process, seed=0)
        x_t, t, noise = transform(images, position)

    An example's triple depends only on the seed and on the example's position, stage and pixels. It does not depend on
    the batch that the example is in, on the batch's size or memory format, or on any random generator.

    Args:
        process: The forward process, such as ``ForwardProcess(betas)``, see :mod:`ddpm_data.processes`; it becomes a
            submodule.
        seed: The seed, in ``[0, 2**64)``.
        timesteps: The draw of ``t``: a callable ``(position, num_timesteps, key, stage) -> t``. Default:
            :class:`~ddpm_data.diffusion.timesteps.UniformTimesteps` with independent draws. For another density see
            :class:`~ddpm_data.diffusion.timesteps.DensityTimesteps`.
        flip: Probability of mirroring a training image left to right, in ``[0, 1]``; other stages never flip.
        augment: Your own augmentation of training batches, applied first: a module (it becomes a submodule) or function
            from uint8 to uint8 (for latents: from and to their own dtype), shape ``(batch, channels, height, width)``.
            What is random in it should belong to the example: name a second parameter ``generator`` or ``position``,
            or wrap it in :class:`~ddpm_data.diffusion.augment.PerExample`. If it draws from a global generator, triples
            depend on that generator too.
        latents: The settings of latents, see :class:`~ddpm_data.latents.Latents`; ``None`` for images.
        compile: Whether to compile the transform into one pass over the images. This applies to CPUs and CUDA devices
            and to images of at least 512 values. If the compiler fails, the transform warns once and runs uncompiled.
            Compiled noise differs by up to 1e-5 from uncompiled noise; ``t`` and flips are the same.
        target: What the network predicts: ``"noise"``, ``"x_0"``, ``"velocity"``, ``"flow"``, ``"flow_to_data"``,
            ``"score"`` or ``"edm"``, see :func:`ddpm_data.diffusion.targets.make_table`.
        weight: The loss weight by step, see :mod:`ddpm_data.weights`. It is for :meth:`loss_weight`; batches do not
            hold it. ``None`` weighs the target's squared error the same at every step.
        noise: A variant of the noise, see :mod:`ddpm_data.noises`; ``None`` is standard normal noise.

    Attributes:
        objective: The target and weight as tables, with the way back to ``x_0``, see
            :class:`~ddpm_data.diffusion.objective.Objective`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: ``seed`` or ``flip`` is out of range, or the process has no such target, weight, density or noise.
    """

    _key_words: Tensor
    _thresholds: Tensor

    @name_arguments
    def __init__(
        self,
        process: GaussianProcess,
        seed: int = 0,
        timesteps: Timesteps | None = None,
        flip: float = 0.0,
        augment: Augment | None = None,
        compile: bool = True,
        latents: Latents | None = None,
        target: Target = "noise",
        weight: Weight | None = None,
        noise: Noise | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(process, GaussianProcess):
            raise TypeError(
                f"ForwardDiffusion: process is a {type(process).__name__}, not a GaussianProcess. Pass "
                "ForwardProcess(betas), or one of ddpm_data.processes."
            )
        if noise is not None and (isinstance(noise, type) or not callable(noise) or not hasattr(noise, "for_cpp")):
            raise TypeError(
                f"ForwardDiffusion: noise is a {type(noise).__name__}, but one of ddpm_data.noises is needed, such as "
                "noises.offset(0.1), or null. Change `noise`."
            )
        check_noise(process, noise)
        is_draw = timesteps is None or isinstance(timesteps, DensityTimesteps) or callable(timesteps)
        if isinstance(timesteps, type) or not is_draw:
            raise TypeError(
                f"ForwardDiffusion: timesteps is a {type(timesteps).__name__}, but a callable such as "
                "UniformTimesteps() is needed to draw t. Change `timesteps`."
            )
        if not isinstance(timesteps, DensityTimesteps | UniformTimesteps | None):
            if problem := explain_call(timesteps, *range(4)):
                raise TypeError(
                    "ForwardDiffusion: timesteps is called as timesteps(position, num_timesteps, key, stage): "
                    f"{problem}. Change `timesteps`."
                )
        flip = check_float("ForwardDiffusion", "dataset.flip", flip)
        if not isinstance(compile, bool):
            raise TypeError(f"ForwardDiffusion(compile={compile!r}): expected true or false. Change `compile`.")
        if latents is not None and not isinstance(latents, Latents):
            raise TypeError(
                f"ForwardDiffusion: latents is a {type(latents).__name__}, but ddpm_data.latents.Latents(...) or null "
                "is needed. Change `dataset.latents`."
            )
        if not 0 <= flip <= 1:
            raise ValueError(f"ForwardDiffusion(flip={flip}): flip is a probability, in [0, 1]. Change `dataset.flip`.")
        self.process = process
        self.seed = check_int("ForwardDiffusion", "seed", seed, 0)
        self.timesteps = UniformTimesteps() if timesteps is None else timesteps
        self.flip = flip
        self.augment = augment
        self._keyed_augment: KeyedAugment | None = None
        self.find_augment()
        self.latents = latents
        self.noise = noise
        self._compiles = compile
        probabilities, thresholds = None, torch.empty(0, dtype=torch.int64)
        if isinstance(self.timesteps, DensityTimesteps):
            thresholds = self.timesteps.thresholds(process)
            if self.timesteps.importance:
                probabilities = _drawn_probabilities(thresholds)
        self.objective = Objective(process, target, weight, probabilities)
        self.register_buffer("_thresholds", thresholds, persistent=False)
        self._thresholds_by_size: dict[tuple[int, int, torch.device], Tensor] = {}
        self.register_buffer("_key_words", torch.tensor(key_from(seed)), persistent=False)
        self._compiler: Compiler[Callable[..., Any]] = Compiler()

    def forward(
        self,
        images: Tensor,
        position: Tensor,
        stage: Stage = "train",
        dtype: torch.dtype | None = None,
        strided: bool = False,
    ) -> Triple | TargetTriple:
        """Turn clean images into a training triple.

        Args:
            images: Shape ``(batch, channels, height, width)``, any number of channels; not changed. uint8 in
                ``[0, 255]`` is scaled here to ``[-1, 1]``. Floats (images in ``[-1, 1]``, or latents) are not scaled.
            position: Each example's position in its stage's stream, int64, shape ``(batch,)``, on the images' device.
            stage: The stage whose stream the positions belong to.
            dtype: The dtype of ``x_t`` and the target. Default: float32, or the images' own dtype if that is bfloat16
                or float16 and there are no ``latents``.
            strided: Whether a batch has every k-th position of the stream, as those of an iterable dataset have. It
                decides how ``t`` is drawn with low discrepancy, see :func:`~ddpm_data.diffusion.timesteps.draw_word`.

        Returns:
            ``Triple(x_t, t, noise)``, or ``TargetTriple(x_t, t, target)`` with another ``target``; contiguous in the
            images' memory format, computed in float32, cast last.

        Raises:
            TypeError: ``images`` or ``position`` has the wrong dtype, or ``augment`` returned another dtype or shape.
            ValueError: The shapes do not match, ``augment`` changed the number of images, or ``stage`` does not exist.
        """
        _check_batch(images, position, stage)
        is_channels_last = not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
        if dtype is None:
            is_half = images.dtype in (torch.bfloat16, torch.float16) and self.latents is None
            dtype = images.dtype if is_half else torch.float32
        is_train = stage == "train"
        objective: Any = self._modules["objective"]
        tables = self._find_tables()
        # To switch autograd off takes time in itself, and compiled code is nothing that it sees.
        if is_train and (augment := self.find_augment()) is not None:
            with torch.no_grad():
                images = augment(images, position)
        compiles = self._should_compile(tables, images, position, stage, dtype)
        if self.latents is not None:
            with torch.no_grad():
                images = self._sample_latents(tables, images, position, stage, compiles)
        if isinstance(self.timesteps, DensityTimesteps) and self.timesteps.shift_by_size is not None:
            tables = tables._replace(thresholds=self._find_thresholds(images))
        batch = _kernels.TripleInputs(
            images.contiguous(),
            position.contiguous(),
            self._choose_timesteps(position, stage, strided),
            self.flip if is_train else 0.0,
            stage,
            dtype,
            objective.target == "noise",
            self.noise,
        )
        make_triple = (compiles and self._compile(tables, batch)) or _kernels.make_triple
        x_t, t, target = make_triple(tables, batch)
        if is_channels_last:
            x_t, target = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x_t, target))
        return Triple(x_t, t, target) if batch.predicts_noise else TargetTriple(x_t, t, target)

    def loss_weight(self, t: Tensor) -> Tensor:
        """Look up the weight of the target's squared error, times ``1 / (T p_t)`` if a density's ``importance`` is set.

        Args:
            t: Steps, int64, any shape, on the device of the tables.

        Returns:
            float32, shape of ``t``.
        """
        return self.objective.loss_weight(t)

    def find_augment(self) -> KeyedAugment | None:
        """Return ``augment`` as training batches are passed to it; ``None`` if there is none.

        It is called as ``augment(images)``, ``augment(images, generator)`` or ``augment(images, position)``.

        Raises:
            TypeError: ``augment`` cannot be called, or needs another argument.
        """
        if self.augment is None:
            return None
        if self._keyed_augment is None or self._keyed_augment.augment is not self.augment:  # it may be replaced
            self._keyed_augment = KeyedAugment(self.augment, key_from(self.seed))
        return self._keyed_augment

    def flip_mask(self, position: Tensor, stage: Stage = "train") -> Tensor | None:
        """Draw which images :meth:`forward` mirrors, for what is to be mirrored with them, such as masks.

        Args:
            position: Each example's position in its stage's stream, int64, shape ``(batch,)``.
            stage: The stage whose stream the positions belong to.

        Returns:
            bool, shape ``(batch,)``, on the device of ``position``; ``None`` where nothing is mirrored.
        """
        if not self.flip or stage != "train":
            return None
        return _kernels.flip_mask(self._find_tables(), position, self.flip)

    def mirror(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """Mirror some images left to right; the others, and ``images`` itself, stay as they are.

        Args:
            images: Any dtype, shape ``(batch, ..., width)``.
            mask: From :meth:`flip_mask`; ``None`` mirrors nothing.
        """
        return images if mask is None else _kernels.mirror(images, mask)

    def use_shares(self, shares: Sequence[int] | None) -> None:
        """Draw ``t`` by another table of :class:`~ddpm_data.diffusion.loss_aware.LossAwareTimesteps` from now on.

        The tables are overwritten in place, so what is compiled stays.

        Args:
            shares: Of its ranges, see :func:`~ddpm_data.diffusion.loss_aware.spread_shares`; ``None`` is uniform.
        """
        assert isinstance(self.timesteps, LossAwareTimesteps)
        thresholds = self.timesteps.thresholds(self.process) if shares is None else spread_shares(self.process, shares)
        weight = self.objective.divide_by_density(_drawn_probabilities(thresholds))
        with torch.inference_mode(False), torch.no_grad():
            self._thresholds.copy_(thresholds)
            self.objective.weight.copy_(weight)

    def _find_tables(self) -> _kernels.Tables:
        # By way of attributes this would be a tenth of the host's time for a batch: nn.Module finds them last.
        process: Any = self._modules["process"]._buffers  # type: ignore[union-attr]
        objective: Any = self._modules["objective"]._buffers  # type: ignore[union-attr]
        own: Any = self._buffers
        return _kernels.Tables(
            process["signal"],
            process["sigma"],
            objective["target_x"],
            objective["target_n"],
            own["_thresholds"],
            own["_key_words"],
        )

    def _find_thresholds(self, images: Tensor) -> Tensor:
        """Return the thresholds for images of their size; each size's are made once."""
        assert isinstance(self.timesteps, DensityTimesteps)
        height, width = images.shape[2:]
        key = height, width, images.device
        if key not in self._thresholds_by_size:
            with torch.inference_mode(False):
                thresholds = self.timesteps.thresholds(self.process, (height, width))
                self._thresholds_by_size[key] = thresholds.to(images.device)
        return self._thresholds_by_size[key]

    def _should_compile(
        self, tables: _kernels.Tables, images: Tensor, position: Tensor, stage: Stage, dtype: torch.dtype
    ) -> bool:
        if not self._compiles or (self.noise is not None and self.noise.for_cpp(stage) is None):
            return False
        if images.is_cpu:
            is_large = images.numel() >= max(1, len(images)) * _MIN_COMPILED_VALUES
            return is_large and position.is_cpu and _cpp.can_read(tables)
        # The kernel for CUDA devices knows no variants of the noise.
        is_known = images.is_cuda and images.dtype in (torch.uint8, *_CUDA_DTYPES) and dtype in _CUDA_DTYPES
        return is_known and self.noise is None and images.numel() > 0

    def _sample_latents(
        self, tables: _kernels.Tables, values: Tensor, position: Tensor, stage: Stage, compiles: bool
    ) -> Tensor:
        assert self.latents is not None
        if not values.is_floating_point():
            raise TypeError(f"images are {values.dtype}, but latents must be floats. Change `dataset.latents`.")
        draw = None
        if compiles:
            code = _import_code(values.is_cuda)
            draw = self._compiler(
                ("normals", values.device), lambda: code.compile_normals(tables.key_words(), position)
            )
        return self.latents.sample(tables.key_words(), values, position, stage, draw or normals)

    def _compile(self, tables: _kernels.Tables, batch: _kernels.TripleInputs) -> _kernels.MakeTriple | None:
        code = _import_code(batch.images.is_cuda)
        return self._compiler(code.find_kind(batch), lambda: code.compile_kernel(tables, batch))

    def _choose_timesteps(self, position: Tensor, stage: Stage, strided: bool) -> _kernels.Draw | Tensor:
        """Return how the kernel draws ``t``, or ``t`` itself from a draw that may not compile."""
        timesteps = self.timesteps
        if isinstance(timesteps, LossAwareTimesteps) and stage != "train":
            return _kernels.Draw(has_density=False, low_discrepancy=True, strided=strided)
        if isinstance(timesteps, DensityTimesteps) or type(timesteps) is UniformTimesteps:  # a subclass may draw others
            strided = strided and (timesteps.low_discrepancy or stage != "train")  # else it makes no difference
            return _kernels.Draw(isinstance(timesteps, DensityTimesteps), timesteps.low_discrepancy, strided)
        with torch.no_grad():
            t: Any = timesteps(position, self.process.num_timesteps, key_from(self.seed), stage)
        if not isinstance(t, Tensor) or t.shape != position.shape:
            kind = f"shape {tuple(t.shape)}" if isinstance(t, Tensor) else f"a {type(t).__name__}"
            raise TypeError(
                f"timesteps returned {kind} for {len(position)} examples, but one step per example is needed: int64, "
                f"shape ({len(position)},). Change `timesteps`; a density stands in DensityTimesteps(...)."
            )
        self.process.check_steps(t)
        return t.to(position.device).contiguous()  # compiled code reads its memory


@cache
def _import_code(is_cuda: bool) -> ModuleType:
    """Import what compiles for a device; torch's packages for CUDA bring Triton."""
    return import_module("ddpm_data.diffusion._triton") if is_cuda else _cpp


def _drawn_probabilities(thresholds: Tensor) -> Tensor:
    """Return the probabilities of what is drawn; a step of less than ``2**-33`` is not."""
    return thresholds.diff(prepend=thresholds.new_zeros(1)).double() / 2**32


def _check_batch(images: Tensor, position: Tensor, stage: str) -> None:
    if stage not in STAGES:
        raise ValueError(f"stage={stage!r}: the stage must be one of {', '.join(STAGES)}.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images are {images.dtype}, but uint8 in [0, 255] or floating point in [-1, 1] is needed.")
    if position.dtype != torch.int64:
        raise TypeError(f"position is {position.dtype}, but positions in the stream are whole numbers, int64.")
    if images.dim() != 4 or position.shape != images.shape[:1]:
        raise ValueError(
            f"images have shape {tuple(images.shape)} and position {tuple(position.shape)}, but "
            "(batch, channels, height, width) and (batch,) are needed."
        )
