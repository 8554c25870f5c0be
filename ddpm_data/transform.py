"""The batch transform: images and their positions in, the training triple out, on whatever device they are on."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddpm_data import checks
from ddpm_data.philox import STAGES, Key, Purpose, key_from, normals, words
from ddpm_data.process import ForwardProcess
from ddpm_data.timesteps import UniformTimesteps
from ddpm_data.types import Stage, Triple

Timesteps = Callable[[Tensor, int, Key, Stage], Tensor]
Augment = Callable[[Tensor], Tensor]


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
            :class:`~ddpm_data.timesteps.UniformTimesteps`, independent draws.
        flip: Probability of mirroring a training image left to right, in ``[0, 1]``; other stages never flip.
        augment: Your own augmentation of training batches, before all else: a module (which becomes a submodule) or
            function from uint8 to uint8, both of shape ``(batch, channels, height, width)``. What it draws from torch's
            global generator is beyond the promise above.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: ``seed`` or ``flip`` is out of range.
    """

    def __init__(
        self,
        process: ForwardProcess,
        seed: int = 0,
        timesteps: Timesteps | None = None,
        flip: float = 0.0,
        augment: Augment | None = None,
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
        flip = checks.number("ForwardDiffusion", "dataset.flip", flip)
        if not 0 <= flip <= 1:
            raise ValueError(f"ForwardDiffusion(flip={flip}): a probability lies in [0, 1]. Change `dataset.flip`.")
        self.process = process
        self.seed = seed
        self.timesteps = UniformTimesteps() if timesteps is None else timesteps
        self.flip = flip
        self.augment = augment
        self._key = key_from(seed)

    def forward(
        self, images: Tensor, position: Tensor, stage: Stage = "train", dtype: torch.dtype | None = None
    ) -> Triple:
        """Turn clean images into a training triple.

        Args:
            images: uint8 in ``[0, 255]``, scaled here to ``[-1, 1]``, or floats taken as they are (images in
                ``[-1, 1]``, latents); shape ``(batch, channels, height, width)``, any number of channels. Not changed.
            position: Each image's place in its stage's stream, int64, shape ``(batch,)``, on the images' device.
            stage: Which stream the positions belong to.
            dtype: Of ``x_t`` and ``noise``. Default: float32, or the images' own dtype where it is bfloat16 or float16.

        Returns:
            ``Triple(x_t, t, noise)``, contiguous in the images' memory format; computed in float32, cast last.

        Raises:
            TypeError: ``images`` or ``position`` is of another dtype, or ``augment`` returned no uint8 images.
            ValueError: Their shapes do not go together, ``augment`` changed the number of images, or there is no such
                stage.
        """
        _check_batch(images, position, stage)
        t = self.timesteps(position, self.process.num_timesteps, self._key, stage)
        if self.augment is not None and stage == "train":
            images = _augmented(self.augment, images)
        if self.flip and stage == "train":
            images = self._mirror(images, position)
        layout = _layout(images)
        x_0 = _scale(images).contiguous(memory_format=layout)
        noise = normals(self._key, Purpose.NOISE, stage, position, images.shape[1:].numel()).view(images.shape)
        noise = noise.contiguous(memory_format=layout)
        dtype = dtype or (images.dtype if images.dtype in (torch.bfloat16, torch.float16) else torch.float32)
        return Triple(self.process.q_sample(x_0, t, noise).to(dtype), t, noise.to(dtype))

    def _mirror(self, images: Tensor, position: Tensor) -> Tensor:
        word = words(self._key, Purpose.FLIP, "train", position)[0]
        flipped = (word < round(self.flip * 2**32)).view(-1, *[1] * (images.dim() - 1))
        return torch.where(flipped, images.flip(-1), images)


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


def _scale(images: Tensor) -> Tensor:
    """Float32 images; uint8 is mapped to [-1, 1], 0 and 255 exactly to the ends."""
    return images.float().div_(127.5).sub_(1) if images.dtype == torch.uint8 else images.float()


def _augmented(augment: Augment, images: Tensor) -> Tensor:
    changed = augment(images)
    if not isinstance(changed, Tensor) or changed.dtype != torch.uint8 or changed.dim() != 4:
        shape = f" of shape {tuple(changed.shape)} and {changed.dtype}" if isinstance(changed, Tensor) else ""
        raise TypeError(
            f"augment returned a {type(changed).__name__}{shape}, but uint8 images of shape (batch, channels, height, "
            "width) are noised next. Change `dataset.augment`."
        )
    if len(changed) != len(images):
        raise ValueError(
            f"augment returned {len(changed)} images for {len(images)}; each has its own place in the stream. "
            "Change `dataset.augment`."
        )
    return changed
