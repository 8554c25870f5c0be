"""The user's augmentation: what is random in it belongs to the example, and who shares it is warned."""

import random
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.utils.data import IterableDataset, TensorDataset
from torchvision.transforms import v2

from ddpm_data import DDPMDataModule, ForwardDiffusion, ForwardProcess, PerExample, UniformTimesteps, schedules, triples
from ddpm_data.diffusion.augment import Augment
from ddpm_data.rng.philox import key_from
from tests.conftest import Recorder, trainer, uint8_images

IMAGES = uint8_images(20, 3, 8, 8)
STILL = ForwardProcess(torch.zeros(4))  # adds no noise: x_t is the augmented image


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image sideways, as users write it: by torch's generators."""
    return images.roll(int(torch.randint(1, 8, (), generator=generator)), -1)


def darken(images: Tensor, position: Tensor) -> Tensor:
    """Darken each image, by a number that follows from its position."""
    words = UniformTimesteps()(position, 256, key_from(7), "train")
    return (images.int() * words[:, None, None, None] // 256).to(torch.uint8)


def both(images: Tensor, *, generator: torch.Generator, position: Tensor) -> Tensor:
    return darken(shift(images, generator), position)


def of_numpy_and_python(images: Tensor) -> Tensor:
    shifted = np.roll(images.numpy(), int(np.random.randint(8)), -1)
    return torch.from_numpy(np.roll(shifted, random.randrange(8), -2).copy())


class Own(nn.Module):
    """A user's module; its buffer has to follow the device."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones(1, dtype=torch.uint8))

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return shift(images, generator) // 2 + self.one


def of_kornia() -> PerExample:
    kornia = pytest.importorskip("kornia.augmentation")
    flips = nn.Sequential(kornia.RandomHorizontalFlip(p=0.5), kornia.RandomAffine(degrees=30.0, p=1.0))
    return PerExample(lambda images: (flips(images.float() / 255) * 255).round().to(torch.uint8))


V2 = v2.Compose(
    [v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip(), v2.ColorJitter(brightness=0.5), v2.RandAugment()]
)
KEYED: dict[str, Callable[[], Augment]] = {
    "generator": lambda: shift,
    "position": lambda: darken,
    "both": lambda: both,
    "module": Own,
    "partial": lambda: partial(shift),
    "torchvision": lambda: PerExample(V2),
    "numpy and random": lambda: PerExample(of_numpy_and_python),
    "kornia": of_kornia,
}
SHARED: dict[str, Callable[[], Augment]] = {
    "torchvision": lambda: v2.RandomHorizontalFlip(),
    "torch": lambda: lambda images: images.roll(int(torch.randint(8, ())), -1),
    "numpy": lambda: lambda images: images.roll(int(np.random.randint(8)), -1),
    "random": lambda: lambda images: images.roll(random.randrange(8), -1),
    "a generator of its own": lambda: Counting(),
    "in spite of its own": lambda: lambda images, generator: images.roll(int(torch.randint(8, ())), -1),
}


class Counting(nn.Module):
    """Gives other images at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.roll(self.calls, -1)


def augmented(augment: Augment, images: Tensor, position: Tensor, seed: int = 0) -> Tensor:
    x_t = ForwardDiffusion(STILL, seed=seed, augment=augment, compile=False)(images, position).x_t
    return ((x_t + 1) * 127.5).round().to(torch.uint8)


@pytest.mark.parametrize("kind", KEYED)
def test_an_example_is_augmented_alike_in_any_batch_and_any_order(kind: str) -> None:
    augment, position = KEYED[kind](), torch.arange(100, 120)
    whole = augmented(augment, IMAGES, position)
    assert not torch.equal(whole, IMAGES)
    for size in (1, 3, 7):
        parts = [augmented(augment, IMAGES[i : i + size], position[i : i + size]) for i in range(0, len(IMAGES), size)]
        assert torch.equal(torch.cat(parts), whole)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augmented(augment, IMAGES[order], position[order]), whole[order])
    if kind == "position":  # it has a seed of its own
        return
    assert not torch.equal(augmented(augment, IMAGES, position, seed=1), whole)
    assert not torch.equal(augmented(augment, IMAGES, position + 20), whole)  # another epoch


@pytest.mark.parametrize("kind", KEYED)
def test_examples_do_not_share_their_randomness(kind: str) -> None:
    same = IMAGES[:1].expand(20, -1, -1, -1)
    results = augmented(KEYED[kind](), same, torch.arange(20))
    assert len(results.unique(dim=0)) > 4


@pytest.mark.parametrize("kind", KEYED)
def test_global_generators_neither_change_nor_matter(kind: str) -> None:
    augment, position = KEYED[kind](), torch.arange(20)
    torch.manual_seed(1)
    first = augmented(augment, IMAGES, position)
    random.seed(2)
    np.random.seed(2)
    torch.manual_seed(2)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    assert torch.equal(augmented(augment, IMAGES, position), first)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]  # type: ignore[index,union-attr]


def test_the_seeds_of_examples_are_part_of_the_stream() -> None:
    """These numbers never change: Philox4x32 of (seed, purpose 10, position), 63 bits."""
    seen: list[int] = []

    def keep(images: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(generator.initial_seed())
        return images

    augmented(keep, IMAGES[:3], torch.tensor([0, 1, 2**40]), seed=5)
    assert seen == SEEDS


SEEDS = [5707192367377711878, 3673050457394452656, 4003327428472682512]


def test_other_stages_are_not_augmented_and_an_empty_batch_stays_empty() -> None:
    transform = ForwardDiffusion(STILL, augment=shift)
    assert torch.equal(transform(IMAGES, torch.arange(20), "val").x_t, IMAGES / 127.5 - 1)
    assert transform(IMAGES[:0], torch.arange(0)).x_t.shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("augment", "error", "says"),
    [
        (lambda images, strength: images, TypeError, r"needs an argument 'strength'.*`augment`"),
        (lambda images, rng: images, TypeError, "needs an argument 'rng'"),
        (5, TypeError, "augment is a int"),
    ],
)
def test_what_cannot_be_called_is_refused_when_it_is_given(augment: Any, error: type[Exception], says: str) -> None:  # noqa: ANN401
    with pytest.raises(error, match=says):
        ForwardDiffusion(STILL, augment=augment)


@pytest.mark.parametrize("augment", [5, v2.RandomHorizontalFlip])
def test_only_functions_and_modules_are_wrapped(augment: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=r"PerExample.*`augment`"):
        PerExample(augment)


def test_images_of_several_shapes_are_refused() -> None:
    def cut(images: Tensor, generator: torch.Generator) -> Tensor:
        return images[..., : int(torch.randint(4, 8, (), generator=generator))]

    with pytest.raises(ValueError, match=r"of shapes \(3, 8, 4\) and .*must share one"):
        augmented(cut, IMAGES, torch.arange(20))


def test_an_augmentation_may_be_replaced_or_ended_between_epochs() -> None:
    transform = ForwardDiffusion(STILL, augment=shift, compile=False)
    position = torch.arange(20)
    first = transform(IMAGES, position).x_t
    transform.augment = None
    assert torch.equal(transform(IMAGES, position).x_t, IMAGES / 127.5 - 1)
    transform.augment = lambda images: 255 - images
    assert torch.equal(transform(IMAGES, position).x_t, (255 - IMAGES) / 127.5 - 1)
    transform.augment = shift
    assert torch.equal(transform(IMAGES, position).x_t, first)


def test_arguments_with_defaults_are_left_alone() -> None:
    def invert(images: Tensor, top: int = 255, *rest: object, **more: object) -> Tensor:
        assert (top, rest, more) == (255, (), {})
        return 255 - images

    assert torch.equal(augmented(invert, IMAGES, torch.arange(20)), 255 - IMAGES)


def module(augment: Augment, **options: Any) -> DDPMDataModule:  # noqa: ANN401  # the class's
    arguments = dict(train=TensorDataset(IMAGES), schedule=schedules.linear(10), batch_size=5, compile=False)
    return DDPMDataModule(augment=augment, **arguments | options)  # type: ignore[arg-type]  # they are right


@pytest.mark.parametrize("kind", SHARED)
def test_randomness_that_examples_share_is_warned_of_in_setup(kind: str) -> None:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    with pytest.warns(UserWarning, match=r"augment: .*ddpm_data\.PerExample\(\.\.\.\).*Change `augment`\."):
        module(SHARED[kind]()).setup("fit")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]  # type: ignore[index,union-attr]


@pytest.mark.parametrize("kind", KEYED)
def test_randomness_of_examples_is_not_warned_of(kind: str) -> None:
    with warnings.catch_warnings(action="error"):
        module(KEYED[kind]()).setup("fit")
        module(lambda images: 255 - images).setup("fit")


def test_an_augmentation_that_works_elsewhere_only_is_not_judged_in_setup() -> None:
    def of_cuda(images: Tensor) -> Tensor:
        raise ValueError("cpu tensor?")

    module(of_cuda).setup("fit")


def test_wrong_results_are_refused_in_setup() -> None:
    with pytest.raises(TypeError, match=r"augment returned a Tensor .*float32"):
        module(lambda images: images / 255).setup("fit")


def test_under_a_trainer_any_batch_size_sees_the_same_images(tmp_path: Path) -> None:
    seen = []
    for batch_size in (4, 10):
        model = Recorder()
        trainer(tmp_path, max_epochs=2).fit(model, datamodule=module(PerExample(V2), batch_size=batch_size))
        seen.append(model.all("train").x_t)
    assert torch.equal(*seen)


def test_an_iterable_dataset_is_augmented_too() -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Any:  # noqa: ANN401
            return iter(IMAGES)

    dm = module(shift, train=Stream())
    dm.setup("fit")
    assert len(list(triples(dm, dm.train_dataloader(), "cpu"))) == 4


def serve(rank: int, world: int, folder: Path, batch_size: int) -> None:
    """Write one process's images, by position."""
    if world > 1:
        distributed.init_process_group("gloo", f"file://{folder}/store{world}", rank=rank, world_size=world)
    dm = module(PerExample(V2), batch_size=batch_size, num_workers=0)
    dm.setup("fit")
    loader = dm.train_dataloader()
    images = {}
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader:
            x_t = dm.on_after_batch_transfer(batch, 0)[0]
            images |= dict(zip(batch.position.tolist(), x_t, strict=True))
    torch.save(images, folder / f"{world}-{rank}.pt")
    if world > 1:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_augment_as_one_does(tmp_path: Path) -> None:
    serve(0, 1, tmp_path, batch_size=5)
    multiprocessing.spawn(serve, (2, tmp_path, 3), nprocs=2)
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert len(first) == len(second) == 20
    assert sorted(first | second) == sorted(alone) == list(range(40))
    for position, image in (first | second).items():
        assert torch.equal(image, alone[position])
