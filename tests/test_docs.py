"""The site: its pages say what is true, as their blocks show, and it can be built."""

import base64
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ddpm_data
from tests import blocks
from tests.conftest import ROOT
from tests.groups import PATIENCE

DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
ELSEWHERE = {  # pages whose blocks want several processes or an installed package, and the tests that run them
    "how-to/accelerate.md": "datamodule/test_loops.py",
    "how-to/class-conditional.md": "test_class_conditional.py",
    "how-to/hydra.md": "test_installed.py",
    "how-to/lightning-cli.md": "test_lightning_cli.py",
    "how-to/plain-torch.md": "datamodule/test_loops.py",
    "how-to/several-gpus.md": "test_several.py",
}
SLOW = {
    "how-to/transform.md",
    "how-to/diffusers.md",
    "how-to/text-conditional.md",
    "how-to/conditions.md",
    "how-to/speed.md",
}  # compile, or train a U-Net


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as it is published: strict, so that a link or a name that leads nowhere fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in PAGES
        if blocks.blocks(PAGES[name]) and name not in ELSEWHERE
    ],
)
def test_every_block_of_a_page_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if "from denoising_diffusion_pytorch" in PAGES[name]:
        pytest.importorskip("denoising_diffusion_pytorch", reason="compares with it: pip install -e '.[bench]'")
    hidden = blocks.run(PAGES[name], f"docs/{name}", tmp_path, monkeypatch, capfd)
    assert not hidden  # the page shows what its blocks print


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_other_pages_are_run_by_tests_of_their_own(name: str) -> None:
    assert Path(name).name in (ROOT / "tests" / ELSEWHERE[name]).read_text()


def printed(notebook: Path) -> list[str]:
    """What a notebook's cells print, and how many pictures they draw."""
    cells: list[dict[str, Any]] = json.loads(notebook.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return ["".join(output["text"]) if "text" in output else ", ".join(sorted(output["data"])) for output in outputs]


@pytest.mark.slow
def test_the_notebook_prints_what_is_stored_in_it(tmp_path: Path) -> None:
    notebook = DOCS / "forward_process.ipynb"
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", str(tmp_path)]
    result = subprocess.run([*command, str(notebook)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    number = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
    for stored, now in zip(printed(notebook), printed(tmp_path / notebook.name), strict=True):
        assert number.sub("#", stored).split() == number.sub("#", now).split()
        # A hundredth: what is printed is rounded there.
        assert [float(x) for x in number.findall(now)] == pytest.approx(
            [float(x) for x in number.findall(stored)], abs=0.011
        )


def test_every_page_is_in_the_navigation_under_its_title() -> None:
    listed = re.findall(r"- (.+): ([\w/-]+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    notebook: dict[str, Any] = json.loads((DOCS / "forward_process.ipynb").read_text())
    titles = {name: page.partition("\n")[0] for name, page in PAGES.items()}
    titles["forward_process.ipynb"] = notebook["cells"][0]["source"][0].rstrip()
    assert {name: f"# {title}" for title, name in listed} == titles


@pytest.mark.parametrize("name", [*PAGES, "../README.md"])
def test_a_page_can_be_read_without_scrolling_sideways(name: str) -> None:
    """Wider lines of commands and of what is printed are wrapped by site.css."""
    page = (DOCS / name).read_text()
    for block in blocks.blocks(page):
        wide = [line for line in block.text.splitlines() if len(line) > 80]
        assert not wide or block.language in ("bash", "text")
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^\|(.*)\|\n\|[-|: ]+\|$", prose, re.MULTILINE)
    assert all(cell.strip() for head in heads for cell in head.split("|")), "a column has no name"
    assert all(len(alt) > 10 for alt in re.findall(r"!\[(.*?)\]\((?!https)", page)), "a picture is not described"


def test_the_table_of_groups_lists_every_config() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ((?:`\w+` ?)+|all of .+?) \|", PAGES["configs.md"], re.MULTILINE))
    folders = {path.name: path for path in (ROOT / "conf").iterdir() if path.is_dir()}
    assert set(rows) == set(folders)
    for group, choices in rows.items():
        files = {path.stem for path in folders[group].glob("*.yaml")} - {"base"}
        if choices.startswith("all of"):  # the table of another page
            table = PAGES["objectives.md"].partition("| `preset=` |")[2].partition("\n\n")[0]
            choices = " ".join(re.findall(r"^\| (`\w+`)", table, re.MULTILINE))
        assert set(re.findall(r"`(\w+)`", choices)) == files


def test_the_readmes_picture_is_the_notebooks() -> None:
    cells: list[dict[str, Any]] = json.loads((DOCS / "forward_process.ipynb").read_text())["cells"]
    drawn = [output["data"]["image/jpeg"] for cell in cells for output in cell.get("outputs", []) if "data" in output]
    picture = base64.b64encode((DOCS / "pictures" / "schedules.jpg").read_bytes()).decode()
    assert [jpeg.strip() for jpeg in drawn].count(picture) == 1


@pytest.mark.slow
def test_the_notebooks_page_has_its_pictures_and_the_notebook_beside_it(site: Path) -> None:
    page = (site / "forward_process" / "index.html").read_text()
    notebook = DOCS / "forward_process.ipynb"
    pictures = sum("image/" in line for line in printed(notebook))
    assert page.count("data:image/jpeg;base64,") == pictures == 6
    assert (site / "forward_process" / notebook.name).read_text() == notebook.read_text()


def test_the_readme_and_the_page_on_datasets_state_one_contract() -> None:
    readme = (ROOT / "README.md").read_text()
    contract = readme.partition("[start:contract] -->\n")[2].partition("<!-- --8<-- [end:contract]")[0]
    assert contract.startswith("A dataset has `__len__`")
    assert contract in PAGES["how-to/own-dataset.md"]


@pytest.mark.slow
def test_the_quickstart_shows_the_readmes_parts(site: Path) -> None:
    page = re.sub(r"<[^>]+>", "", (site / "index.html").read_text())
    for part in (
        "class NoisePredictor",
        "python train_stub.py",
        "the data side of diffusion training",
        "CHW, HWC, or HW",
    ):
        assert part in page


def resolved(path: str) -> object:
    """What a path of the reference leads to; nothing where it is an attribute or a field."""
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return None


@pytest.mark.slow
def test_the_reference_has_all_that_is_public_and_all_that_pages_import(site: Path) -> None:
    html = "".join(path.read_text() for path in (site / "api").rglob("index.html"))
    described = {
        target
        for path in re.findall(r'id="(ddpm_data[\w.]+)"', html)
        if inspect.ismodule(target := resolved(path)) or inspect.isclass(target) or inspect.isfunction(target)
    }
    wanted = {getattr(ddpm_data, name) for name in ddpm_data.__all__}
    for page in (*PAGES.values(), (ROOT / "README.md").read_text()):
        for module, names in re.findall(r"^from (ddpm_data[\w.]*) import (.+|\([^)]+\))$", page, re.MULTILINE):
            wanted |= {getattr(importlib.import_module(module), name) for name in re.findall(r"\w+", names)}
    assert wanted - described == set()


@pytest.mark.slow
def test_the_built_pages_hold_no_markup_that_was_not_rendered(site: Path) -> None:
    for path in site.rglob("index.html"):
        article = path.read_text().partition("<article")[2].partition("</article")[0]
        prose = re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", article, flags=re.DOTALL)
        for wrong in ("<autoref", "``", ":class:", ":func:", ":attr:", "|---", "====", "README.md:", "--8<--", "]("):
            assert wrong not in prose, f"{path}: {wrong}"
        assert not re.search(r"\w<strong>", prose), f"{path}: a power, a**b, was taken for bold type"
        for returns in re.findall(r">Returns:</span>.*?</ul>", prose, re.DOTALL):
            assert returns.count("<li") == 1, f"{path}: a sentence was cut in two: {returns}"
        for vague in ("see there", "see below", "the same class"):
            assert vague not in prose, f"{path}: {vague!r} should be a link"


@pytest.mark.slow
def test_the_reference_names_what_is_imported_and_wraps_its_signatures(site: Path) -> None:
    for path in (site / "api").rglob("index.html"):
        page = path.read_text()
        for name in re.findall(r'<h[2-6] id="([\w.]+)" class="doc doc-heading"', page):
            assert "._" not in name, f"{path}: {name} is private"
            target = resolved(name)
            public = [short for short in ddpm_data.__all__ if getattr(ddpm_data, short) is target]
            assert not public or name in {f"ddpm_data.{short}" for short in public}, f"{name} is ddpm_data.{public[0]}"
        signatures = re.findall(r'<div class="language-python doc-signature.*?</div>', page, re.DOTALL)
        lines = [line for part in signatures for line in re.sub("<[^>]+>", "", part).splitlines()]
        assert lines
        assert max(map(len, lines)) < 120, f"{path}: is Ruff there?"


@pytest.mark.slow
def test_formulas_are_typeset(site: Path) -> None:
    for name in ("notation", "api/process", "forward_process", "how-to/text-conditional"):
        page = (site / name / "index.html").read_text()
        assert "<math " in page
        assert "arithmatex" not in page
        assert not re.search(r"<p>[^<]*\$\$", page)


@pytest.mark.slow
def test_code_is_broken_between_words(site: Path) -> None:
    presets = (site / "objectives" / "index.html").read_text()
    assert "<code>denoising_<wbr>diffusion_<wbr>pytorch</code>" in presets
    check = (site / "how-to" / "check" / "index.html").read_text()
    assert '<span class="option">--steps</span>' in check
    assert not re.search(r"(?<=[\s>])--[a-z]", check.replace('"option">--', ""))
    assert '<span class="option">(128, 3, 32, 32)</span>' in (site / "benchmarks" / "index.html").read_text()
    assert '<span id="__span-0-1">' in check  # a line of a command, which site.css indents where it is wrapped
    assert "<code>zero_terminal_snr</code> <code>shift_snr</code>" in (site / "configs" / "index.html").read_text()
    assert "<th>schedule.<wbr>num_<wbr>timesteps</th>" in (site / "how-to" / "sweeps" / "index.html").read_text()
    lightning = (site / "api" / "lightning" / "index.html").read_text()
    assert "ddpm_data.<wbr>loading.<wbr>options.<wbr>LoaderOptions</span>" in lightning
    notation = (site / "notation" / "index.html").read_text()
    assert "<wbr" not in "".join(re.findall(r"<math.*?</math>", notation, re.DOTALL)), "a formula is no name"


@pytest.mark.slow
def test_the_search_finds_what_people_look_for(site: Path) -> None:
    index: dict[str, Any] = json.loads((site / "search" / "search_index.json").read_text())
    texts = [f"{entry['title']} {entry['text']}" for entry in index["docs"]]
    for word in ("ImageFolder", "resume", "diffusers", "captions"):
        assert any(word in text for text in texts), word


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere_to_show_a_page(site: Path) -> None:
    for path in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)="(https?:[^"]+)"', path.read_text()
        )
        assert loaded == [], path
        # A notebook's page has a script that would import Mermaid from elsewhere, once it finds a diagram.
        assert '<pre class="mermaid' not in path.read_text(), path
        assert 'data-md-component="source"' not in path.read_text(), f"{path}: its script asks GitHub for stars"
