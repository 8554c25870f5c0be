"""The stream in loops of one's own: Fabric, or torch alone."""

from collections.abc import Iterator

import torch

from ddpm_data.datamodule.module import DDPMDataModule
from ddpm_data.loading.loader import StreamLoader
from ddpm_data.types import ConditionedTriple, Triple


def triples(
    datamodule: DDPMDataModule, loader: StreamLoader, device: str | torch.device
) -> Iterator[Triple | ConditionedTriple]:
    """An epoch's batches as a Trainer would hand them to a model's step: on the device, and noised there.

    Args:
        datamodule: Whose loader it is.
        loader: Its ``train_dataloader()``, which is told the epoch by ``set_epoch``, or another of its loaders.
        device: Where the triples are made.
    """
    device = torch.device(device)
    for examples in loader:
        batch = datamodule.on_before_batch_transfer(examples, 0)
        yield datamodule.on_after_batch_transfer(datamodule.transfer_batch_to_device(batch, device, 0), 0)
