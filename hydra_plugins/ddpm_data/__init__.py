"""What Hydra finds of ddpm_data in any app: its config groups, under ``ddpm_data/``, and the check of their keys.

Hydra imports this at the start of every app of the environment, so nothing slow is imported here, least of all torch.
"""

import re
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from hydra_plugins.ddpm_data.keys import GROUPS, refuse_unread

NAMESPACE = "ddpm_data"
_GROUP = "|".join(GROUPS)
_REFERENCE = re.compile(r"\$\{[^{}]*\}")
_NAME = re.compile(rf"(?<![\w.])({_GROUP})(?=[.,}}])")
_DEFAULT = re.compile(rf"^(\s*- (?:override )?)/({_GROUP})(?=[@:])", re.MULTILINE)

OmegaConf.register_new_resolver("ddpm_data.checked", refuse_unread, replace=True)


def configs() -> Path:
    """The folder of configs: inside the installed package; in a checkout, beside it."""
    spec = find_spec(NAMESPACE)
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


class DDPMDataSearchPath(SearchPathPlugin):
    """Adds the groups to every app's search path, after the app's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append one entry; called by Hydra."""
        search_path.append(provider=NAMESPACE, path=f"{NamespacedConfigs.scheme()}://{configs()}")


class NamespacedConfigs(ConfigSource):
    """The files of ``conf/`` as other apps see them: ``schedule/cosine`` is ``ddpm_data/schedule/cosine`` here.

    What they say of each other (``${dataset.root}``, ``/schedule@betas: linear``) is moved along, so that one set of
    files serves our own app and theirs.
    """

    @staticmethod
    def scheme() -> str:
        """What the search path's entry begins with."""
        return "ddpm-data"

    def load_config(self, config_path: str) -> ConfigResult:
        """One file's content, moved.

        Raises:
            ConfigLoadError: There is no such file.
        """
        file = self._file(config_path)
        if not file.is_file():
            raise ConfigLoadError(f"Config not found : {file}")
        text = file.read_text(encoding="utf-8")
        text = _REFERENCE.sub(lambda found: _NAME.sub(rf"{NAMESPACE}.\1", found[0]), text)
        config = OmegaConf.create(_DEFAULT.sub(rf"\1/{NAMESPACE}/\2", text))
        header = self._get_header_dict(text)
        return ConfigResult(config=config, path=self.full_path(), provider=self.provider, header=header)

    def available(self) -> bool:
        """Whether the files are there."""
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        """Whether it is a folder of ours."""
        group = config_path.strip("/")
        return group in ("", NAMESPACE) or group.removeprefix(f"{NAMESPACE}/") in GROUPS

    def is_config(self, config_path: str) -> bool:
        """Whether it is a file of ours."""
        return self.is_group(config_path.rpartition("/")[0]) and self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """What is in a folder, sorted: folders, files, or both."""
        within = config_path.strip("/")
        groups = {"": [NAMESPACE], NAMESPACE: list(GROUPS)}.get(within, [])
        files = [] if groups else [path.stem for path in self._file(within).with_suffix("").glob("*.yaml")]
        return sorted(groups if results_filter == ObjectType.GROUP else files if results_filter else groups + files)

    def _file(self, config_path: str) -> Path:
        inside = config_path.strip("/").removeprefix(NAMESPACE).strip("/").removesuffix(".yaml")
        return Path(self.path, f"{inside}.yaml")
