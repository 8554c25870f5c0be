"""Training triples without a Trainer, for your own loop with Fabric or torch alone."""

from collections.abc import Iterator

import torch

from ddpm_data.datamodule.module import DDPMDataModule
from ddpm_data.loading.loader import StreamLoader
from ddpm_data.types import Batch


def triples(datamodule: DDPMDataModule, loader: StreamLoader, device: str | torch.device) -> Iterator[Batch]:
    """Yield an epoch's batches as a Trainer would pass them to the model: on the device, and noised there.

    Args:
        datamodule: The DataModule, after ``setup("fit")``.
        loader: Its ``train_dataloader()``, whose ``set_epoch`` you call before each epoch, or another of its loaders.
        device: The device on which the triples are made.

    Yields:
        Triples, as :meth:`~ddpm_data.datamodule.DDPMDataModule.on_after_batch_transfer` returns them.
    """
    device = torch.device(device)
    for examples in loader:
        batch = datamodule.on_before_batch_transfer(examples, 0)
        yield datamodule.on_after_batch_transfer(datamodule.transfer_batch_to_device(batch, device, 0), 0)
