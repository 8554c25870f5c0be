"""Keys of a config that nothing reads: misspelt ones, which would change nothing and say nothing."""

import difflib
import re
from collections.abc import Iterator

from omegaconf import Container, DictConfig, OmegaConf

GROUPS = (  # those of conf/ that fit into any project
    "callbacks",
    "datamodule",
    "dataset",
    "loader",
    "logger",
    "schedule",
    "sweep",
    "timesteps",
    "trainer",
    "transform",
)
_REFERENCE = re.compile(r"\$\{([^{}]*)\}")


def refuse_unread(value: str, *groups: str, _root_: DictConfig, _parent_: DictConfig) -> str:
    """A resolver that gives its first argument back, once it knows that something reads every key of the groups.

    A key is read if the config that asks (the DataModule's) has one of the same name, or something refers to it; where
    references are resolved already, if its value is found deeper in its group. A namespace holds nothing but groups.

    Args:
        value: What to give back.
        groups: Where in the config the groups are, ``"dataset"``; one that is absent has no keys.

    Raises:
        ValueError: Nothing reads a key.
    """
    texts = [found for leaf in _leaves(_root_) for found in _REFERENCE.findall(str(leaf))]
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    known = {str(key) for key in _parent_}
    namespaces = {name.rpartition(".")[0] for name in groups} - {""}
    for name, fit in [*((name, set(GROUPS)) for name in namespaces), *((name, known) for name in groups)]:
        group = OmegaConf.select(_root_, name)
        for key in group if isinstance(group, DictConfig) else ():
            if key not in words | fit and not _is_deeper(group, str(key)):
                near = difflib.get_close_matches(str(key), fit, 1)
                raise ValueError(
                    f"`{name}.{key!s}` is read by nothing, so it would change nothing. "
                    + (f"Is it {near[0]}? " if near else "")
                    + "Correct or remove it; a key of your own config counts as read where ${...} refers to it."
                )
    return value


def _leaves(node: object) -> Iterator[object]:
    """Every value in a config, as it is written."""
    if isinstance(node, Container):
        node = OmegaConf.to_container(node)
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _leaves(value)
    else:
        yield node


def _is_deeper(group: DictConfig, key: str) -> bool:
    content = OmegaConf.to_container(group)
    assert isinstance(content, dict)
    value = content.pop(key)
    leaves = [leaf for node in content.values() if isinstance(node, dict) for leaf in _leaves(node)]
    if not value or isinstance(value, bool) or any("${" in str(leaf) for leaf in leaves):
        return False
    return any(value == leaf or (isinstance(value, str) and value in str(leaf)) for leaf in leaves)
