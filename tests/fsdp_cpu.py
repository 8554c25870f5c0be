"""Lightning's FSDP strategy without its wish for a GPU: torch's FSDP runs on the CPU too, if told the device."""

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel


class OnCPU(FSDPStrategy):
    """All of it but the device."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        device = torch.device("cpu")
        options = {"sharding_strategy": self.sharding_strategy, **self.kwargs}
        return FullyShardedDataParallel(model, device_id=device, **options)
