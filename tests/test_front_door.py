"""What stands in several files of the repository's root is the same in each."""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import ddpm_data
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", ".github/workflows/ci.yml"])
def test_the_lower_bounds_are_those_that_are_tried(name: str) -> None:
    command = re.search(r"pip install (torch==.*?) -e", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    assert command is not None
    tried = {package: Version(version) for package, version in re.findall(r"([\w-]+)==([\d.]+)", command[1])}
    requirements = [Requirement(line) for line in PROJECT["dependencies"]]
    lowest = {
        requirement.name: Version(bound.version)
        for requirement in requirements
        for bound in requirement.specifier
        if bound.operator == ">="
    }
    assert len(lowest) == len(requirements)
    assert tried == lowest


def test_pre_commit_has_the_versions_of_the_extra_dev() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    revisions = {
        hook["id"]: str(entry.get("rev", "")).removeprefix("v") for entry in repositories for hook in entry["hooks"]
    }
    pinned = dict(line.split("==") for line in PROJECT["optional-dependencies"]["dev"] if "==" in line)
    assert revisions["ruff-check"] == revisions["ruff-format"] == pinned["ruff"]
    assert revisions["codespell"] == pinned["codespell"]


def test_the_citation_has_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == ddpm_data.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = re.escape(ddpm_data.__version__)
    assert re.search(rf"^(## \[{version}\]|The first release, {version},)", changelog, re.MULTILINE)
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]


def test_classifiers_are_the_pythons_that_are_allowed() -> None:
    named = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    allowed = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert named == {f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed}
