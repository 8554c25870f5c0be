"""What the loss of a run measures, read from the configuration that the run has saved.

Two losses compare only if they measure the same: the error of the same target, with the same weights, in the same noise
and of the same data. All of that is a run's objective.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Keys of the DataModule's configuration, or of the groups beside it, that change what a validation loss measures.
_PROCESS_KEYS = ("schedule", "process", "timesteps")
_ERROR_KEYS = ("target", "weight", "noise")
_DATA_KEYS = ("train", "val", "image_key", "image_size", "resize", "channels", "background", "value_range", "latents")

Objective = tuple[tuple[str, str], ...]  # config keys and values


def read_objective(cfg: Any) -> Objective:  # noqa: ANN401  # a DictConfig, which only Hydra's users know of
    """Read the objective of a run.

    Args:
        cfg: The resolved configuration that the run has saved.

    Returns:
        The config keys that define it, with their values; nothing if the configuration has none of them. Two runs have
        the same objective if and only if these are equal.
    """
    from omegaconf import OmegaConf

    values: dict[str, str] = {}
    container = OmegaConf.to_container(cfg)
    roots = {"": container, "ddpm_data.": container.get("ddpm_data") if isinstance(container, dict) else None}
    for root, groups in roots.items():
        if not isinstance(groups, dict):
            continue
        datamodule = groups.get("datamodule")
        datamodule = datamodule if isinstance(datamodule, dict) else {}
        dataset = datamodule.get("dataset", groups.get("dataset"))
        nodes = {root + key: datamodule.get(key, groups.get(key)) for key in (*_PROCESS_KEYS, *_ERROR_KEYS)}
        if isinstance(dataset, dict):
            nodes |= {f"{root}dataset.{key}": dataset.get(key) for key in _DATA_KEYS}
        for key, node in nodes.items():
            if not _is_immaterial(key, node):
                values |= dict(_flatten(key, node))
    return tuple(values.items())


def loss_kind(objective: Objective) -> Objective:
    """Return an objective without its process: losses of one kind compare at equal signal-to-noise ratios."""
    return tuple(pair for pair in objective if not set(pair[0].split(".")) & set(_PROCESS_KEYS))


def name_objectives(objectives: Sequence[Objective]) -> list[str]:
    """Name objectives by the keys in which they differ.

    An argument of a function is left out where all objectives with the same function have the same argument.

    Args:
        objectives: Any number of them, which may be equal.
    """
    tables = [dict(objective) for objective in objectives]

    def tells(key: str, table: Mapping[str, str]) -> bool:
        parents = [parent for parent in table if key.startswith(f"{parent}.")]
        alike = [other for other in tables if other and all(other.get(parent) == table[parent] for parent in parents)]
        return any(other.get(key) != table[key] for other in alike)

    return [" ".join(f"{key}={table[key]}" for key in table if tells(key, table)) for table in tables]


def _is_immaterial(key: str, node: object) -> bool:
    """Tell whether a value does not change what a validation loss measures.

    Validation draws ``t`` evenly under both kinds of uniform timesteps. A fraction only chooses which images are held
    out.
    """
    is_uniform = isinstance(node, dict) and str(node.get("_target_")).endswith(".UniformTimesteps")
    return node is None or is_uniform or (key.endswith("dataset.val") and isinstance(node, int | float))


def _flatten(key: str, node: object) -> Iterator[tuple[str, str]]:
    """Yield a node's values by their keys; the key of a node that will be instantiated has the name of its target."""
    if not isinstance(node, dict):
        yield key, str(node)
        return
    if "_target_" in node:
        yield key, str(node["_target_"]).rpartition(".")[2]
    for name, value in node.items():
        if name not in ("_target_", "_partial_", "_convert_", "_recursive_"):
            yield from _flatten(f"{key}.{name}", value)
