"""Two processes that hold one model together; each leaves the steps ``t`` that it saw in a file of its rank."""

import json
import sys
from pathlib import Path

from lightning.pytorch.strategies import ModelParallelStrategy

from ddpm_data import DDPMDataModule, schedules
from tests.conftest import Recorder, trainer, uint8_images


class Model(Recorder):
    def configure_model(self) -> None:
        """Required by the strategy; the model is too small to be cut."""


def main() -> None:
    """Arguments: a folder, the number of processes that share the data, the number that share the model."""
    folder, data, tensor = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    model = Model()
    strategy = ModelParallelStrategy(data_parallel_size=data, tensor_parallel_size=tensor)
    run = trainer(folder, devices=2, strategy=strategy)
    datamodule = DDPMDataModule(uint8_images(20, 1, 4, 4), schedule=schedules.linear(1000), batch_size=4)
    run.fit(model, datamodule=datamodule)
    (folder / f"{run.global_rank}.json").write_text(json.dumps([t.tolist() for _, t, _ in model.seen["train"]]))


if __name__ == "__main__":
    main()
