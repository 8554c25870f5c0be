"""Loops without a Trainer see what a Trainer's model sees: plain-torch.md's and accelerate.md's blocks are run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

from ddpm_data import DDPMDataModule, schedules, triples
from ddpm_data._distributed import World
from ddpm_data.loading.loader import make_loader
from ddpm_data.sources import digits
from tests.conftest import ROOT, Recorder, trainer, uint8_images
from tests.groups import finished
from tests.warm import python

PAGE = (ROOT / "docs/how-to/plain-torch.md").read_text()
FABRIC, ALONE, TORCHRUN = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
[ACCELERATE] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/accelerate.md").read_text(), re.DOTALL)
STEP = re.compile(r"^( +)loss = ", re.MULTILINE)
KEEP = r"\1seen.append((x_t, t, noise))\n"
LEAVE = "\ntorch.save([torch.cat(parts) for parts in zip(*seen, strict=True)], f'{loader.sampler.rank}.pt')\n"
PROCESSES = {FABRIC: 2, ALONE: 1, TORCHRUN: 2, ACCELERATE: 2}


@pytest.fixture(scope="module")
def under_a_trainer(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    """All triples of two epochs, from one process."""
    model = Recorder()
    dm = DDPMDataModule(digits, schedule=schedules.cosine(), batch_size=128)
    trainer(tmp_path_factory.mktemp("one"), max_epochs=2).fit(model, datamodule=dm)
    return list(model.all("train"))


def by_example(parts: list[Tensor]) -> list[bytes]:
    return sorted(b"".join(part.numpy().tobytes() for part in row) for row in zip(*parts, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("block", PROCESSES, ids=["fabric", "one process", "torchrun", "accelerate"])
def test_a_documented_loop_sees_what_a_trainers_model_sees(
    block: str, under_a_trainer: list[Tensor], tmp_path: Path
) -> None:
    """Bit for bit: every triple of two epochs, once, over all processes together."""
    if block == ACCELERATE:
        pytest.importorskip("accelerate")
    kept, count = STEP.subn(KEEP + r"\g<0>", block)
    assert count == 1
    (tmp_path / "train.py").write_text("seen = []\n" + kept + LEAVE)
    is_launched = block in (TORCHRUN, ACCELERATE)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if is_launched else []
    code, said = finished([python(), *launcher, "train.py"], tmp_path)
    assert code == 0, said[-3000:]
    ranks = [torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("*.pt"))]
    assert len(ranks) == PROCESSES[block]
    assert len({len(rank[1]) for rank in ranks}) <= 2  # 1,797 digits are shared out, one more or less
    assert by_example([torch.cat(parts) for parts in zip(*ranks, strict=True)]) == by_example(under_a_trainer)


class Stream(IterableDataset[Tensor]):
    """Splits itself over its workers."""

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        return iter(uint8_images(24, 1, 4, 4)[info.id if info else 0 :: info.num_workers if info else 1])


def source(kind: str) -> Any:  # noqa: ANN401  # whatever the DataModule takes
    images = TensorDataset(uint8_images(24, 1, 4, 4))
    return {"dataset": images, "iterable": Stream(), "loader": DataLoader(images, batch_size=4)}[kind]


def module(kind: str, **options: Any) -> DDPMDataModule:  # noqa: ANN401  # the DataModule's own
    return DDPMDataModule(source(kind), schedule=schedules.linear(100), batch_size=4, flip=0.5, **options)


KINDS = [("dataset", 0), ("dataset", 2), ("iterable", 0), ("iterable", 2), ("loader", 0)]


@pytest.mark.parametrize(("kind", "workers"), KINDS)
def test_set_epoch_means_the_same_for_every_kind_of_set(kind: str, workers: int, tmp_path: Path) -> None:
    model = Recorder()
    trainer(tmp_path, max_epochs=3).fit(model, datamodule=module(kind, num_workers=workers))
    dm = module(kind, num_workers=workers)
    dm.setup("fit")
    loader = dm.train_dataloader()
    seen = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        seen += list(triples(dm, loader, "cpu"))
    assert len(seen) == 18
    for mine, its in zip(seen, model.seen["train"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, its, strict=True))

    loader = dm.train_dataloader()  # as after a restart: two of the second epoch's batches have been seen
    loader.set_epoch(1, 2 * 4 if kind == "dataset" else 2)
    rest = list(triples(dm, loader, "cpu"))
    loader.set_epoch(2)
    rest += list(triples(dm, loader, "cpu"))
    for mine, its in zip(rest, seen[8:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, its, strict=True))


@pytest.mark.parametrize("kind", ["dataset", "iterable", "loader"])
def test_evaluation_is_the_same_in_every_epoch(kind: str) -> None:
    dm = DDPMDataModule(None, val=source(kind), schedule=schedules.linear(100), batch_size=4)
    dm.setup("validate")
    loader = dm.val_dataloader()
    first = list(triples(dm, loader, "cpu"))
    loader.set_epoch(3, 2)
    for a, b in zip(first, triples(dm, loader, "cpu"), strict=True):
        assert torch.equal(a.noise, b.noise)


def test_strings_are_forgotten_as_under_a_trainer() -> None:
    images = [(image, "a cat") for image in uint8_images(64, 1, 4, 4)]
    dm = DDPMDataModule(
        images, schedule=schedules.linear(10), condition=1, condition_dropout=0.5, null_condition="", batch_size=64
    )
    dm.setup("fit")
    (_, _, _, captions), *_ = triples(dm, dm.train_dataloader(), "cpu")
    assert 10 < captions.count("") < 54  # of 64 halves: 2e-8 false alarms
    assert captions.count("") + captions.count("a cat") == 64


@pytest.mark.parametrize(
    ("epoch", "place", "error", "says"),
    [
        (-1, 0, ValueError, "epoch=-1.*at least 0"),
        (0, 25, ValueError, "offset=25.*24 examples"),
        (0, 0.5, TypeError, r"offset=0\.5.*whole number"),
    ],
)
def test_impossible_places_are_refused(epoch: int, place: Any, error: type[Exception], says: str) -> None:  # noqa: ANN401
    dm = module("dataset")
    dm.setup("fit")
    with pytest.raises(error, match=says):
        dm.train_dataloader().set_epoch(epoch, place)


def test_processes_that_are_not_connected_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    dm = module("dataset")
    with pytest.warns(UserWarning, match=r"torchrun started 2 processes.*init_process_group"):
        dm.setup("fit")


def test_processes_are_connected_before_setup(tmp_path: Path) -> None:
    """A group of one process cannot be told from none; that it is asked for at all shows in the loops above."""
    dm = module("dataset")
    dm.setup("fit")
    images = dm.splits.images("train")
    with pytest.raises(ValueError, match=r"setup\(\) found 1 process\(es\), and now this is process 1 of 2"):
        make_loader(images, "train", dm._order, dm.loader_options, World(2, 1), 0)  # type: ignore[arg-type]  # setup has made it


def test_accelerate_leaves_the_loader_as_it_is(tmp_path: Path) -> None:
    """It ended with "object of type 'Positioned' has no len()"."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(
        cpu=True, dataloader_config=accelerate.DataLoaderConfiguration(even_batches=True)
    )
    for kind, workers in KINDS:
        dm = module(kind, num_workers=workers)
        dm.setup("fit")
        loader = dm.train_dataloader()
        assert accelerator.prepare(loader) is loader
    accelerator.save_state(str(tmp_path / "state"))
    accelerator.load_state(str(tmp_path / "state"))
    for state in ("AcceleratorState", "PartialState", "GradientState"):
        getattr(accelerate.state, state)._reset_state()
