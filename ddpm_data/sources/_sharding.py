"""Split a streamed source over processes."""

from collections.abc import Iterable

from ddpm_data._distributed import EpochShard
from ddpm_data.sources.tar_shards import TarShards


def split_by_rank(source: Iterable[object], share: EpochShard) -> Iterable[object]:
    """Return the part of an iterable source that one process reads in one epoch.

    - Streamed datasets of Hugging Face's ``datasets`` and :class:`TarShards` are split over processes here.
    - LitData asks for its rank when it is created. We check that the rank is right.
    - Any other source has to split itself over processes.

    If a source has ``set_epoch``, it is called. Every source splits its own part over its workers.

    Args:
        source: Any iterable dataset.
        share: The epoch, world size and rank.

    Raises:
        ValueError: The source is already split over processes, or was built for another rank or world size.
    """
    if isinstance(source, TarShards):
        return source.samples(share)
    kind = type(source).__name__
    if _is_hugging_face(source):
        from datasets.distributed import split_dataset_by_node

        if getattr(source, "_distributed", None) is not None:
            raise ValueError(
                f"the {kind} has been split over processes already. A second split would leave most examples unread. "
                "Set `dataset` to the full dataset, without split_dataset_by_node."
            )
        source = split_dataset_by_node(source, rank=share.rank, world_size=share.world_size)
    env = getattr(source, "distributed_env", None)  # LitData's
    if env is not None and (env.world_size, env.global_rank) != (share.world_size, share.rank):
        raise ValueError(
            f"the {kind} was built for process {env.global_rank} of {env.world_size}, and this is process "
            f"{share.rank} of {share.world_size}: it was built before the processes started, so some images would be "
            "read twice. Set `dataset` to a function that builds it, which is called once they run (in the configs: "
            "`_partial_: true`)."
        )
    set_epoch = getattr(source, "set_epoch", None)
    if callable(set_epoch):
        set_epoch(share.epoch)
    return source


def _is_hugging_face(source: object) -> bool:
    """Return whether a source is a streamed Hugging Face dataset; by name, so that the package is not imported."""
    name = ("datasets.iterable_dataset", "IterableDataset")
    return any((kind.__module__, kind.__name__) == name for kind in type(source).__mro__)
