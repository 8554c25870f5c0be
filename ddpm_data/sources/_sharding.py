"""Split a streamed source over processes."""

from collections.abc import Iterable

from ddpm_data._distributed import EpochShard
from ddpm_data.sources._epochs import tell_epoch
from ddpm_data.sources.tar_shards import TarShards


def split_by_rank(source: Iterable[object], share: EpochShard) -> Iterable[object]:
    """Return the part of an iterable source that one process reads in one epoch.

    - Streamed datasets of Hugging Face's ``datasets`` and :class:`TarShards` are split over processes here.
    - LitData and MosaicML ask for their rank when they are created. We check that the rank is right.
    - Any other source has to split itself over processes.

    A source is told the epoch (:func:`~ddpm_data.sources._epochs.tell_epoch`). Every source splits its own part over
    its workers.

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
    place = _find_own_place(source)
    if place not in (None, (share.world_size, share.rank)):
        raise ValueError(
            f"the {kind} was built for process {place[1]} of {place[0]}, and this is process {share.rank} of "
            f"{share.world_size}, so some images would be read twice. Set `dataset` to a function that builds it, "
            "which is called once the processes run (in the configs: `_partial_: true`). MosaicML's takes its rank "
            "from the variables RANK and WORLD_SIZE, which torchrun sets, and Lightning's own launcher does not."
        )
    tell_epoch(source, share.epoch)
    return source


def _find_own_place(source: object) -> tuple[int, int] | None:
    """Return the world size and rank that a source found at construction; ``None`` if it did not look for them."""
    if (env := getattr(source, "distributed_env", None)) is not None:  # LitData's
        return env.world_size, env.global_rank
    if (world := getattr(source, "_parallel_rank_world", None)) is not None:  # MosaicML's
        return world.num_ranks, world.rank
    return None


def _is_hugging_face(source: object) -> bool:
    """Return whether a source is a streamed Hugging Face dataset; by name, so that the package is not imported."""
    name = ("datasets.iterable_dataset", "IterableDataset")
    return any((kind.__module__, kind.__name__) == name for kind in type(source).__mro__)
