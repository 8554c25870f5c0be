"""How batches are loaded: the loader's options, checked once."""

import multiprocessing
import os
from dataclasses import dataclass

from ddpm_data._checks import check_float, check_int
from ddpm_data.types import Stage


@dataclass(frozen=True)
class LoaderOptions:
    """The options of the loader. Options with a name from :class:`torch.utils.data.DataLoader` mean the same.

    Args:
        batch_size: Images per process and step, at least 1.
        num_workers: Processes that load images; 0 loads in the main process.
        prefetch_factor: Batches that each worker keeps ready, at least 1; ``None`` is torch's default, 2.
        persistent_workers: Keep workers from one epoch to the next.
        multiprocessing_context: How workers start: ``"fork"``, ``"forkserver"`` or ``"spawn"``; ``None`` is the
            system's default.
        pin_memory: Copy batches to page-locked memory, from which transfers to a CUDA device are faster; ``None`` does
            so where the Trainer trains on one.
        drop_last: Leave out an epoch's last global batch where it is incomplete.
        timeout: Seconds to wait for a worker's batch before the run ends with an error; 0 waits forever.
        on_bad_item: ``"raise"`` ends the run at an item that cannot be used; ``"replace"`` uses a neighbouring item.
        max_bad_fraction: Share of an epoch's images that may be replaced before the run ends, in ``[0, 1]``.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.
    """

    batch_size: int
    num_workers: int = 0
    prefetch_factor: int | None = None
    persistent_workers: bool = True
    multiprocessing_context: str | None = None
    pin_memory: bool | None = None
    drop_last: bool = False
    timeout: float = 300
    on_bad_item: str = "raise"
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        for name, minimum in (("batch_size", 1), ("num_workers", 0), ("prefetch_factor", 1)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_int("DDPMDataModule", f"loader.{name}", value, minimum))
        for name in ("timeout", "max_bad_fraction"):
            object.__setattr__(self, name, check_float("DDPMDataModule", f"loader.{name}", getattr(self, name)))
        for name in ("persistent_workers", "drop_last", "pin_memory"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "pin_memory" and value is None):
                raise TypeError(f"DDPMDataModule({name}={value!r}): true or false is needed. Change `loader.{name}`.")
        if self.num_workers == 0 and (self.prefetch_factor, self.multiprocessing_context) != (None, None):
            raise ValueError(
                "DDPMDataModule(num_workers=0): there are no workers that could prefetch or be started. Leave "
                "`loader.prefetch_factor` and `loader.multiprocessing_context` null, or raise `loader.num_workers`."
            )
        methods = multiprocessing.get_all_start_methods()
        if self.multiprocessing_context not in (None, *methods):
            raise ValueError(
                f"DDPMDataModule(multiprocessing_context={self.multiprocessing_context!r}): on this system workers "
                f"start by {', '.join(methods)}. Change `loader.multiprocessing_context`."
            )
        if self.timeout < 0:
            raise ValueError(
                f"DDPMDataModule(timeout={self.timeout}): seconds, at least 0, are needed. Change `loader.timeout`."
            )
        if self.on_bad_item not in ("raise", "replace"):
            raise ValueError(
                f"DDPMDataModule(on_bad_item={self.on_bad_item!r}): 'raise' or 'replace' is needed. Change "
                "`loader.on_bad_item`."
            )
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(
                f"DDPMDataModule(max_bad_fraction={self.max_bad_fraction}): a share lies in [0, 1]. Change "
                "`loader.max_bad_fraction`."
            )

    @property
    def replaces(self) -> bool:
        """Whether a neighbouring item replaces an item that cannot be used."""
        return self.on_bad_item == "replace"

    @property
    def start_method(self) -> str | None:
        """The start method of workers; ``None`` is the system's default.

        In a job of joblib the default is loky's own method, which cannot start torch's workers.
        """
        methods = multiprocessing.get_all_start_methods()  # the system's default first
        is_foreign = multiprocessing.get_start_method(allow_none=True) not in (None, *methods)
        return methods[0] if self.multiprocessing_context is None and is_foreign else self.multiprocessing_context

    def shm_bytes(self, bytes_per_image: int) -> int:
        """Estimate the shared memory that the workers' finished batches take, in bytes."""
        return self.num_workers * (self.prefetch_factor or 2) * self.batch_size * bytes_per_image

    def check_length(self, stage: Stage, length: int, world_size: int) -> None:
        """Refuse a split that would leave a process without a batch.

        Raises:
            ValueError: The split is too small.
        """
        needed = world_size * self.batch_size if stage == "train" and self.drop_last else world_size
        if length < needed:
            if needed == world_size:
                raise ValueError(
                    f"{stage} has {length} images, but {world_size} processes need one each. Use fewer devices, or "
                    f"give more images: `dataset.{stage}`."
                )
            raise ValueError(
                f"{stage} has {length} images, but {world_size} process(es) with batch_size={self.batch_size} and "
                f"drop_last={self.drop_last} need {needed} for a first batch. Lower `loader.batch_size`, set "
                "`loader.drop_last=false`, or use fewer devices."
            )


def cpu_count() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Loading = LoaderOptions  # its name before 0.1, kept for 0.1
