"""The strip of the first images, in real fits on any kind of dataset."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from ddpm_data import plots
from ddpm_data.callbacks import NoisingStrip
from ddpm_data.latents import Latents
from tests.callbacks.callbacks_job import Losses
from tests.callbacks.helpers import IMAGES, Ordered, data
from tests.conftest import trainer, uint8_images

SETS: dict[str, tuple[dict[str, Any], Tensor]] = {
    "val": (dict(val=TensorDataset(IMAGES[10:])), IMAGES[10:14]),
    "few": (dict(val=TensorDataset(IMAGES[10:13])), IMAGES[10:13]),
    "no val": (dict(val=None), IMAGES[:4]),
    "iterable": (dict(val=Ordered(), batch_size=3), IMAGES[10:14]),
    "a loader": (dict(val=torch.utils.data.DataLoader(TensorDataset(IMAGES[20:]), 3)), IMAGES[20:24]),
    "iterable, no val": (dict(train=Ordered(), val=None, batch_size=3), IMAGES[10:14]),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("name", SETS)
def test_the_strip_shows_the_first_images_of_any_set(name: str, sanity: int, tmp_path: Path) -> None:
    options, expected = SETS[name]
    dm = data(**options)
    trainer(tmp_path, callbacks=[NoisingStrip(images=4)], num_sanity_val_steps=sanity).fit(Losses(), datamodule=dm)
    plots.noising_strip(dm.transform.process, expected, tmp_path / "expected.png")
    shown, wanted = (np.asarray(Image.open(tmp_path / file)) for file in ("noising.png", "expected.png"))
    assert np.array_equal(shown, wanted)
    assert not dm.transform._forward_pre_hooks


def test_a_part_of_the_training_set_is_shown_in_its_own_order(tmp_path: Path) -> None:
    dm = data(val=0.25)
    model = Losses()
    trainer(tmp_path, callbacks=[NoisingStrip(images=4)]).fit(model, datamodule=dm)
    images = next(iter(dm.val_dataloader())).images[:4]
    plots.noising_strip(dm.transform.process, images, tmp_path / "expected.png")
    shown, wanted = (np.asarray(Image.open(tmp_path / file)) for file in ("noising.png", "expected.png"))
    assert np.array_equal(shown, wanted)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(train=torch.randn(9, 4, 4, 4), val=torch.randn(9, 4, 4, 4), latents=Latents()), "latents cannot"),
        (dict(train=uint8_images(9, 2, 4, 4), val=uint8_images(9, 2, 4, 4)), "images of 2 channels cannot"),
    ],
)
def test_what_cannot_be_looked_at_is_said_and_trained_on(
    options: dict[str, Any],
    says: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    with caplog.at_level(logging.INFO):
        run = trainer(tmp_path, callbacks=[NoisingStrip()])
        run.fit(Losses(), datamodule=data(**options))
    assert run.global_step == 2
    assert [record.message for record in caplog.records if says in record.message]
    assert not list(tmp_path.rglob("*.png"))
