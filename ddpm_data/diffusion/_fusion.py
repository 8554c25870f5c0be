"""A pass by which inductor generates the CPU code of a batch once instead of twice; imported when code is compiled.

Inductor tries to put the loop that draws ``t`` and the one over the images into one outer loop: it generates the code
of both, finds that their inner loops do not match, and generates it again. Told to keep them apart, it generates the
same code in less time (``benchmarks/transform.md``).
"""

from typing import Any

from torch._inductor.custom_graph_pass import CustomSchedulerPass  # a torch without it could not cache code of a pass


class KeepLoopsApart(CustomSchedulerPass):
    """Take loops out of a shared outer loop again."""

    def __call__(self, nodes: list[Any]) -> list[Any]:
        """Return the scheduler's nodes, those of an outer loop one by one."""
        lists = [node.get_outer_nodes() if hasattr(node, "get_outer_nodes") else [node] for node in nodes]
        return [node for outer_nodes in lists for node in outer_nodes]

    def uuid(self) -> str:
        """Return a name for the keys of inductor's cache; another behaviour needs another name."""
        return "ddpm_data: keep loops apart"
