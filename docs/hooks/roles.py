"""Our docstrings as mkdocstrings reads them.

Sphinx roles become links, a line of several arguments one line each.
"""

import re

from griffe import Extension, NameResolutionError, Object, Package

_ROLE = re.compile(r":(?:class|func|meth|mod|attr):`(~?)([\w.]+)`")
_TOGETHER = re.compile(
    r"^    (\w+(?:, \w+)+): (.*(?:\n {5,}.*)*)", re.MULTILINE
)  # "flip, augment: ..."


class Roles(Extension):
    """Rewrites docstrings once the package is loaded and names are known."""

    def on_package(self, *, pkg: Package, **_: object) -> None:  # noqa: D102  # griffe's
        _rewrite(pkg)


def _rewrite(object_: Object) -> None:
    if object_.docstring:
        text = _ROLE.sub(
            lambda match: _link(object_, *match.groups()),
            object_.docstring.value,
        )
        text = _TOGETHER.sub(
            lambda match: "\n".join(
                f"    {name}: {match[2]}" for name in match[1].split(", ")
            ),
            text,
        )
        object_.docstring.value = text.replace(
            "::\n\n", ":\n\n"
        )  # before a block of code
    for member in object_.members.values():
        if not member.is_alias:
            _rewrite(member)


def _link(object_: Object, short: str, name: str) -> str:
    try:
        path = name if "." in name else object_.resolve(name)
    except NameResolutionError:
        path = name
    shown = name.rpartition(".")[2] if short else name
    # optional: torch's are not linked
    return (
        f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'
    )
