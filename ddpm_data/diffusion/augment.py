"""The user's own augmentation of training batches, with randomness that belongs to each example."""

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_data._keys import name_arguments, warn
from ddpm_data.rng.philox import Key, Purpose, words

Augment = Callable[..., Any]  # not -> Tensor: LightningCLI would take a class_path in YAML for a kind of Tensor
_KEYED = ("generator", "position")  # names of parameters by which a function asks for an example's own randomness


class PerExample(nn.Module):
    """An adapter for augmentations that draw from global random generators, such as torchvision's and kornia's.

    It calls them once per example, not once per batch, and seeds the generators of torch, NumPy and Python for each
    example by the seed and the example's position; afterwards they go on as if nothing had been drawn. So the same
    example gets the same augmentation in any batch and on any number of processes::

        from torchvision.transforms import v2
        augment = PerExample(v2.RandomHorizontalFlip())

    Args:
        augment: A module or function from one image to one, shape ``(1, channels, height, width)``, both uint8 (or the
            dtype of latents).

    Raises:
        TypeError: ``augment`` cannot be called.
    """

    @name_arguments
    def __init__(self, augment: Augment) -> None:
        super().__init__()
        if not callable(augment) or isinstance(augment, type):
            raise TypeError(
                f"PerExample({augment!r}): a module or function is needed to call with each image. Change "
                "`dataset.augment`."
            )
        self.augment = augment

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment one example.

        Args:
            images: Its image, shape ``(1, channels, height, width)``.
            generator: The example's own generator, whose seed the global ones get.
        """
        with _seeded(generator.initial_seed(), images.device):
            output: Tensor = self.augment(images)
        return output


class KeyedAugment:
    """The user's augmentation, called as its parameters' names say.

    - ``augment(images)``: once, with the batch.
    - ``augment(images, position)``: once, also with the positions in the training stream, from which it can compute
      what is random.
    - ``augment(images, generator)``: once per example, with a batch of one image and a ``torch.Generator`` on the CPU,
      seeded by the seed and the example's position.

    Args:
        augment: The user's module or function.
        key: The seed's key.

    Raises:
        TypeError: ``augment`` cannot be called, or needs an argument of another name.
    """

    @name_arguments
    def __init__(self, augment: Augment, key: Key) -> None:
        if not callable(augment):
            raise TypeError(
                f"ForwardDiffusion: augment is a {type(augment).__name__}, but a module or function is needed to call "
                "with each training batch. Change `dataset.augment`."
            )
        parameters = _find_parameters(augment)
        if unknown := [name for name in parameters[1:] if name not in _KEYED]:
            raise TypeError(
                f"augment needs an argument {unknown[0]!r}, and is called as augment(images), augment(images, "
                "generator) (once per example, with a torch.Generator of its own) or augment(images, position): name "
                "it `generator` or `position`, or give it a default. Change `dataset.augment`."
            )
        self.augment = augment
        self.key = key
        self.asks = [name for name in parameters[1:] if name in _KEYED]

    def __call__(self, images: Tensor, position: Tensor) -> Tensor:
        """Augment a batch.

        Args:
            images: uint8, or latents of any dtype, shape ``(batch, channels, height, width)``; not changed.
            position: Positions in the training stream, int64, shape ``(batch,)``.

        Returns:
            As many images, of the same dtype.

        Raises:
            TypeError: ``augment`` returned no batch of images of their dtype.
            ValueError: It changed the number of images, or gave them several shapes.
        """
        return _join(self._call(images, position), images)

    def warn_of_shared_randomness(self, images: Tensor) -> None:
        """Warn if ``augment`` draws from a random generator that examples share: it is called twice on some images.

        The global generators are left as they were. If it fails here (it may be made for another device), nothing is
        said: the first batch will show.

        Args:
            images: Images of the training set, on the CPU.

        Raises:
            TypeError: See :meth:`__call__`.
            ValueError: Likewise.
        """
        position = torch.arange(len(images))
        with _seeded(0, images.device):
            before = _find_states()
            try:
                calls = [self._call(images.clone(), position) for _ in range(2)]
            except Exception:  # any of the user's
                return
            is_shared = _find_states() != before
        first, second = (_join(outputs, images) for outputs in calls)
        if is_shared or not torch.equal(first, second):
            augment = self.augment
            name = type(augment).__name__ if isinstance(augment, nn.Module) else getattr(augment, "__name__", augment)
            cause = "draws from a global random generator" if is_shared else "gave another result for the same images"
            warn(
                f"augment: {name} {cause}. So it decides once per batch, and the images that the model sees depend on "
                "batch size, number of processes and restarts. Wrap it: augment=ddpm_data.PerExample(...) calls it "
                "once per example with randomness of the example's own; or write augment(images, generator) or "
                "augment(images, position). Change `dataset.augment`.",
                stacklevel=2,
            )

    def _call(self, images: Tensor, position: Tensor) -> list[Any]:
        """Return what ``augment`` returned for the batch, or for each example."""
        if "generator" not in self.asks:
            return [self.augment(images, **({"position": position} if self.asks else {}))]
        generator = torch.Generator()
        outputs = []
        for i, seed in enumerate(_draw_seeds(self.key, position)):
            arguments: dict[str, Any] = {"generator": generator.manual_seed(seed)}
            if "position" in self.asks:
                arguments["position"] = position[i : i + 1]
            outputs.append(self.augment(images[i : i + 1], **arguments))
        return outputs


def _find_parameters(augment: Augment) -> list[str]:
    """List the parameters that the function is to be called with: the first, those without a default, and ours."""
    function = augment.forward if isinstance(augment, nn.Module) else augment
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a builtin
        return []
    variadic = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [
        name
        for i, (name, parameter) in enumerate(parameters.items())
        if i == 0 or (parameter.kind not in variadic and (parameter.default is parameter.empty or name in _KEYED))
    ]


def _draw_seeds(key: Key, position: Tensor) -> list[int]:
    """Draw a seed for each example; on a device this waits for it once."""
    low, high, _, _ = words(key, Purpose.AUGMENT, "train", position)
    return [a | b << 32 for a, b in torch.stack([low[:, 0], high[:, 0] >> 1], dim=1).tolist()]  # 63 bits: no negative


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global random generators, and set them back afterwards."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    torch_states = [generator.get_state() for generator in generators]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        for generator in generators:
            generator.manual_seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        random.seed(seed)
        yield
    finally:
        for generator, state in zip(generators, torch_states, strict=True):
            generator.set_state(state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _find_states() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), np.asarray(keys).tobytes(), kind, *rest, random.getstate()


def _join(outputs: list[Any], images: Tensor) -> Tensor:
    """Check what ``augment`` returned for a batch, all at once or one example at a time, and make it a batch again."""
    if not outputs:
        return images  # there were none
    expected = len(images) // len(outputs)
    for output in outputs:
        if not isinstance(output, Tensor) or output.dtype != images.dtype or output.dim() != 4:
            shape = f" of shape {tuple(output.shape)} and {output.dtype}" if isinstance(output, Tensor) else ""
            kind = str(images.dtype).removeprefix("torch.")
            raise TypeError(
                f"augment returned a {type(output).__name__}{shape}, but {kind} images of shape (batch, channels, "
                "height, width) are noised next. Change `dataset.augment`."
            )
        if len(output) != expected:
            raise ValueError(
                f"augment returned {len(output)} images for {expected}, but each image has its own position in the "
                "stream, so their number must stay the same. Change `dataset.augment`."
            )
    if len(shapes := {tuple(output.shape[1:]) for output in outputs}) > 1:
        raise ValueError(
            f"augment returned images of shapes {' and '.join(map(str, sorted(shapes)[:2]))}, but images of a batch "
            "must share one. Change `dataset.augment`."
        )
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
