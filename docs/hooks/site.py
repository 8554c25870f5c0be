"""What mkdocs does with our pages before it renders them: blocks shared with the README, and notebooks as pages."""

import base64
import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[2]
_BLOCKS = re.compile(r"^```.*?^```$|(?:^(?!```)[^\n]+\n?)+", re.MULTILINE | re.DOTALL)
_SHARED = re.compile(r"^<!-- README: (.+) -->$", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)]+)")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put a block of the README, named by its first words, where ``<!-- README: first words -->`` stands alone."""
    up = "../" * page.file.src_uri.count("/")

    def linked(match: re.Match[str]) -> str:
        target = match[1].removeprefix("docs/")
        return up + target if target != match[1] else config.extra["source"] + target

    def shared(match: re.Match[str]) -> str:
        blocks = _BLOCKS.findall((_ROOT / "README.md").read_text())
        found = [block.rstrip() for block in blocks if block.replace("\n", " ").startswith(match[1])]
        if len(found) != 1:
            raise PluginError(
                f"{page.file.src_uri} shows the README's block that begins with {match[1]!r}, and {len(found)} do."
            )
        return found[0] if found[0].startswith("```") else _LINK.sub(linked, found[0])

    return _SHARED.sub(shared, markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, with the outputs that are stored in it."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        name = notebook.src_uri.removesuffix(".ipynb")
        cells = json.loads(Path(str(notebook.abs_src_path)).read_text())["cells"]
        text = [f"[Download the notebook]({Path(name).name}.ipynb)"]
        for number, cell in enumerate(cells):
            source = "".join(cell["source"])
            text.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
            for place, output in enumerate(cell.get("outputs", [])):
                data = output.get("data", {})
                if "image/jpeg" in data:
                    picture = f"{name}_{number}_{place}.jpg"
                    files.append(File.generated(config, picture, content=base64.b64decode(data["image/jpeg"])))
                    text.append(f"![what this draws]({Path(picture).name})")
                else:
                    printed = "".join(output.get("text", data.get("text/plain", "")))
                    text.append(f"```text\n{printed.rstrip()}\n```")
        files.append(File.generated(config, f"{name}.md", content="\n\n".join(text)))
    return files
