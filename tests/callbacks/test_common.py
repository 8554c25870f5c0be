"""What every callback needs, and the names of arguments that are out of range."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from ddpm_data.callbacks import NoisingStrip, TimestepLoss
from tests.callbacks.helpers import IMAGES
from tests.conftest import Recorder, trainer


def test_without_a_ddpm_datamodule_they_say_what_they_need(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(TensorDataset(IMAGES))
    for callback in (TimestepLoss(), NoisingStrip()):
        with pytest.raises(ValueError, match=f"{type(callback).__name__} .* DDPMDataModule"):
            trainer(tmp_path, callbacks=[callback]).fit(Recorder(), loader)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TimestepLoss(0), "callbacks.timestep_loss.buckets"),
        (lambda: TimestepLoss(folder=3), "callbacks.timestep_loss.folder"),  # type: ignore[arg-type]
        (lambda: NoisingStrip(0), "callbacks.noising_strip.every_n_epochs"),
        (lambda: NoisingStrip(images=0), "callbacks.noising_strip.images"),
        (lambda: TimestepLoss(linear="no"), "callbacks.timestep_loss.linear"),  # type: ignore[arg-type]
        (lambda: NoisingStrip(columns=1.5), "callbacks.noising_strip.columns"),  # type: ignore[arg-type]
        (lambda: NoisingStrip(spacing="snr"), "callbacks.noising_strip.spacing"),  # type: ignore[arg-type]
    ],
)
def test_arguments_out_of_range_name_their_key(make: Any, says: str) -> None:  # noqa: ANN401
    with pytest.raises((TypeError, ValueError), match=says):
        make()
