"""What mkdocs does for this site beside its plugins.

It reads the package's version, typesets formulas, and says where code may
be broken into lines.
"""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

_VERSION = re.compile(r'^__version__ = "(.+)"', re.MULTILINE)
_OF_PAGES = re.compile(  # as pymdownx.arithmatex marks them
    r'<(span|div) class="arithmatex">\\[(\[](.+?)\\[)\]]</\1>', re.DOTALL
)
_OF_NOTEBOOKS = re.compile(  # not in code
    r"<(script|style|pre)\b.*?</\1>|(\$\$?)([^$<]+)\2", re.DOTALL
)
_CELL = re.compile(r"<t[dh]>.*?</t[dh]>", re.DOTALL)
_NAMES = re.compile(r"<td>(?:<code>[^<]*</code>\s*){2,}</td>")  # a list
_SHAPE = re.compile(r"(?<=<td>)\((?:\d+, )+\d+\)(?=</td>)")
_OBJECT = re.compile(r'<span class="doc doc-object-name.*?</span>')
_HEADING = re.compile(r"(?<=\w\.)(?=\w[\w.]*</span>)")  # of an object
_NAME = re.compile(  # also a key that is not marked as code
    r"<code>[^<]*</code>|(?<=[>\s])[a-z_]+\.[a-z_]+(?:=\w+)?(?=[<\s])"
)
_JOINT = re.compile(r"(?<=\w[_.=/])(?=\w)")
_OPTION = re.compile(r"(?<=[\s>])--[a-z][\w-]*(?![^<]*>)")  # --steps


def on_config(config: Any) -> Any:  # noqa: ANN401, D103  # mkdocs's
    root = Path(config.config_file_path).parent
    package = (root / "ddpm_data" / "__init__.py").read_text(encoding="utf-8")
    config.extra["version_of_package"] = _VERSION.search(package)[1]
    return config


def on_page_content(
    content: str,
    page: Any,  # noqa: ANN401  # mkdocs's
    **_: object,
) -> str:
    """Turn LaTeX into MathML, which browsers draw by themselves, and mark code.

    So no script and no font has to be sent. A name in a table may be broken
    after "_", ".", "=" and "/", so that the table is not wider than the page.
    In a list of names that has no commas this would make two of one. An
    option of a command and a shape are not broken.
    """
    if page.file.src_uri.endswith(".ipynb"):
        return _OF_NOTEBOOKS.sub(
            lambda it: _typeset(it[3], it[2] == "$$") if it[3] else it[0],
            content,
        )
    content = _CELL.sub(_break_names, content)
    content = _SHAPE.sub(r'<span class="option">\g<0></span>', content)
    content = _OBJECT.sub(lambda it: _HEADING.sub("<wbr>", it[0]), content)
    content = _OPTION.sub(r'<span class="option">\g<0></span>', content)
    return _OF_PAGES.sub(lambda it: _typeset(it[2], it[1] == "div"), content)


def _break_names(cell: re.Match[str]) -> str:
    return cell[0] if _NAMES.fullmatch(cell[0]) else _NAME.sub(_break, cell[0])


def _break(name: re.Match[str]) -> str:
    return _JOINT.sub("<wbr>", name[0])


def _typeset(latex: str, is_block: bool) -> str:
    display = "block" if is_block else "inline"
    return convert(html.unescape(latex).strip(), display=display)
