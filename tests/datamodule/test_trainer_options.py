"""What Lightning offers around a DataModule: the search for a batch size, overfit_batches, and reloading."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.tuner import Tuner
from torch.utils.data import TensorDataset

from ddpm_data import DDPMDataModule, Triple, schedules
from tests.conftest import Recorder, trainer, uint8_images
from tests.loading.test_iterable import Source

IMAGES = uint8_images(50, 3, 4, 4)
SOURCES = [TensorDataset(IMAGES), Source(IMAGES)]


def module(train: Any, **options: Any) -> DDPMDataModule:  # noqa: ANN401  # any dataset and option
    return DDPMDataModule(train, **(dict(schedule=schedules.linear(10), batch_size=3, compile=False) | options))


def agree(batches: list[Triple], others: list[Triple]) -> bool:
    pairs = zip(batches, others, strict=True)
    return all(torch.equal(a, b) for batch, other in pairs for a, b in zip(batch, other, strict=True))


@pytest.mark.filterwarnings("ignore:.*weights_only")
@pytest.mark.parametrize(
    ("way", "workers"),
    [
        ("power", 0),
        pytest.param("binsearch", 0, marks=pytest.mark.slow),
        pytest.param("callback", 0, marks=pytest.mark.slow),
        pytest.param("callback", 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("train", SOURCES)
def test_the_search_for_a_batch_size_leaves_the_stream_of_that_size(
    train: Any,  # noqa: ANN401  # any dataset
    way: str,
    workers: int,
    tmp_path: Path,
) -> None:
    """The batch size had no setter."""
    dm = module(train, val=TensorDataset(IMAGES[:9]), num_workers=workers)
    model, plain = Recorder(), Recorder()
    callbacks: list[Any] = [BatchSizeFinder(max_trials=3)] if way == "callback" else []
    run = trainer(tmp_path, max_epochs=2, callbacks=callbacks)
    if way != "callback":
        assert Tuner(run).scale_batch_size(model, datamodule=dm, max_trials=3, mode=way) == dm.batch_size
        model.seen["train"].clear()
    run.fit(model, datamodule=dm)
    assert dm.batch_size == (7 if way == "binsearch" else 8)
    trainer(tmp_path, max_epochs=2).fit(plain, datamodule=module(train, batch_size=dm.batch_size, num_workers=workers))
    assert len(plain.seen["train"][0].t) == dm.batch_size
    assert agree(model.seen["train"][-len(plain.seen["train"]) :], plain.seen["train"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*weights_only")
def test_the_search_ends_at_the_set(tmp_path: Path) -> None:
    dm = module(SOURCES[0])
    assert Tuner(trainer(tmp_path)).scale_batch_size(Recorder(), datamodule=dm) == 64
    assert len(next(iter(dm.train_dataloader())).images) == 50


def test_a_new_batch_size_cuts_the_same_stream_and_resumes_there(tmp_path: Path) -> None:
    class Doubling(Recorder):
        def on_train_epoch_end(self) -> None:
            self.trainer.datamodule.batch_size = 10

    def fit(steps: int, **options: Any) -> tuple[Any, Recorder]:  # noqa: ANN401  # of fit
        dm, model = module(SOURCES[0], batch_size=5), Doubling()
        run = trainer(tmp_path, max_epochs=3, max_steps=steps, reload_dataloaders_every_n_epochs=1)
        if options:
            dm.batch_size = 10
        run.fit(model, datamodule=dm, **options)
        return run, model

    _, first = fit(-1)
    assert [len(batch.t) for batch in first.seen["train"]] == [5] * 10 + [10] * 10

    class Saving(Doubling):
        def on_train_batch_end(self, *_: Any) -> None:  # noqa: ANN401  # Lightning's
            if self.trainer.global_step == 13:
                self.trainer.save_checkpoint(tmp_path / "x.ckpt")

    trainer(tmp_path, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(
        Saving(), datamodule=module(SOURCES[0], batch_size=5)
    )
    _, rest = fit(-1, ckpt_path=tmp_path / "x.ckpt")
    assert agree(rest.seen["train"], first.seen["train"][13:])
    whole = Recorder()
    trainer(tmp_path, max_epochs=3).fit(whole, datamodule=module(SOURCES[0], batch_size=5))
    assert torch.equal(first.all("train").noise, whole.all("train").noise)


def test_a_batch_size_is_checked_when_it_is_set() -> None:
    dm = module(SOURCES[0], drop_last=True)
    with pytest.raises(ValueError, match=r"batch_size=0.*`batch_size`"):
        dm.batch_size = 0
    dm.setup("fit")
    dm.batch_size = 64
    with pytest.raises(ValueError, match=r"50 images.*batch_size=64.*`batch_size`"):
        dm.train_dataloader()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You requested to overfit:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("train", SOURCES)
def test_overfit_batches_repeats_the_first_batches_of_the_stream(
    train: Any,  # noqa: ANN401  # any dataset
    workers: int,
    tmp_path: Path,
) -> None:
    """It was refused."""
    model, plain = Recorder(), Recorder()
    dm = module(train, val=TensorDataset(IMAGES[:9]), num_workers=workers, flip=0.5)
    run = trainer(tmp_path, max_epochs=3, overfit_batches=4)
    run.fit(model, datamodule=dm)
    trainer(tmp_path).fit(plain, datamodule=module(train, num_workers=workers, flip=0.5))
    assert len(model.seen["train"]) == 12
    for epoch in range(3):
        assert agree(model.seen["train"][4 * epoch : 4 * epoch + 4], plain.seen["train"][:4])
    assert len(model.seen["val"]) == 3 * 3


def test_overfit_batches_resumes_inside_an_epoch(tmp_path: Path) -> None:
    first, rest = Recorder(), Recorder()
    run = trainer(tmp_path, max_steps=6, max_epochs=-1, overfit_batches=4)
    run.fit(first, datamodule=module(SOURCES[0]))

    class Saving(Recorder):
        def on_train_batch_end(self, *_: Any) -> None:  # noqa: ANN401  # Lightning's
            if self.trainer.global_step == 6:
                self.trainer.save_checkpoint(tmp_path / "x.ckpt")

    trainer(tmp_path, max_epochs=2, overfit_batches=4).fit(Saving(), datamodule=module(SOURCES[0]))
    trainer(tmp_path, max_epochs=2, overfit_batches=4).fit(
        rest, datamodule=module(SOURCES[0]), ckpt_path=tmp_path / "x.ckpt"
    )
    assert agree(rest.seen["train"], first.seen["train"][2:4])


def test_pinning_is_an_argument() -> None:
    for asked, expected in ((None, False), (False, False), (True, True)):
        dm = module(SOURCES[0], pin_memory=asked)
        dm.setup("fit")
        assert dm.train_dataloader().pin_memory is expected
    with pytest.raises(TypeError, match=r"pin_memory='yes'.*`pin_memory`"):
        module(SOURCES[0], pin_memory="yes")
