"""What each process reads of a source of a streaming library, in which epoch."""

from collections.abc import Iterable

from ddpm_data._distributed import EpochShard
from ddpm_data.sources.tar_shards import TarShards


def split_by_rank(source: Iterable[object], share: EpochShard) -> Iterable[object]:
    """A source as one process reads it in one epoch; over its workers, the source splits that itself.

    Streamed sets of Hugging Face's ``datasets`` and :class:`TarShards` are split over processes here. LitData finds its
    process itself, when it is made, and is asked what it found. All others are taken to split themselves. Whatever has
    a ``set_epoch`` is told the epoch.

    Raises:
        ValueError: The source is split already, or takes itself for another process's.
    """
    if isinstance(source, TarShards):
        return source.samples(share)
    kind = type(source).__name__
    if _is_hugging_face(source):
        from datasets.distributed import split_dataset_by_node

        if getattr(source, "_distributed", None) is not None:
            raise ValueError(
                f"the {kind} has been split over processes already, and would be a second time: most of it would "
                "never be seen. Give it whole, without split_dataset_by_node: `dataset`."
            )
        source = split_dataset_by_node(source, rank=share.rank, world_size=share.world_size)
    found = getattr(source, "distributed_env", None)  # LitData's
    if found is not None and (found.world_size, found.global_rank) != (share.world_size, share.rank):
        raise ValueError(
            f"the {kind} takes itself for process {found.global_rank} of {found.world_size}, and this is process "
            f"{share.rank} of {share.world_size}: it was made before the processes were, and some images "
            "would come twice. Give a function that makes it, which is called when they are there; in the configs "
            "`_partial_: true`."
        )
    set_epoch = getattr(source, "set_epoch", None)
    if callable(set_epoch):
        set_epoch(share.epoch)
    return source


def _is_hugging_face(source: object) -> bool:
    """Of their streamed kind; looked up by name, so that nobody without such a set imports the package."""
    name = ("datasets.iterable_dataset", "IterableDataset")
    return any((kind.__module__, kind.__name__) == name for kind in type(source).__mro__)
