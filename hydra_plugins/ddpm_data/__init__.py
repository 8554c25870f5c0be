"""Adds the config groups of ddpm_data to the search path of every Hydra app, as ``ddpm_data/schedule`` and so on.

Hydra imports this at the start of every app of the environment, so nothing slow is imported here, least of all torch.
"""

from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

NAMESPACE = "ddpm_data"
GROUPS = (  # those of conf/ that fit into any project; the others belong to train_stub.py
    "callbacks",
    "datamodule",
    "dataset",
    "loader",
    "logger",
    "noise",
    "preset",
    "schedule",
    "sweep",
    "timesteps",
    "trainer",
    "transform",
    "weight",
)


def configs() -> Path:
    """Return the folder of configs: inside the installed package; in a checkout, beside it."""
    spec = find_spec(NAMESPACE)
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


class DDPMDataSearchPath(SearchPathPlugin):
    """Adds one entry to the search path, after the app's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the entry; called by Hydra."""
        search_path.append(provider=NAMESPACE, path=f"{MountedConfigs.scheme()}://{configs()}")


class MountedConfigs(ConfigSource):
    """The folder ``conf/`` under the name ``ddpm_data``: ``ddpm_data/schedule/cosine`` is its ``schedule/cosine.yaml``.

    Hydra's own ``file://`` shows a folder under its real name only, and ``conf/`` is the root of our own app.
    Values are left as they are written: what they refer to, they name relative to themselves (``${..root}``).
    """

    @staticmethod
    def scheme() -> str:
        """Return what the search path's entry begins with."""
        return "ddpm-data"

    def load_config(self, config_path: str) -> ConfigResult:
        """Read one file.

        Raises:
            ConfigLoadError: There is no such file.
        """
        if not self.is_config(config_path):
            raise ConfigLoadError(f"Config not found : {self.full_path()}, {config_path}")
        text = self._file(config_path).read_text(encoding="utf-8")
        config = OmegaConf.create(text)
        assert isinstance(config, DictConfig)
        for default in config.get("defaults", ()):
            # Hydra has no relative name for a config's own group, so that one name is absolute: `/schedule@betas`.
            for key in map(str, list(default)) if isinstance(default, DictConfig) else ():
                if key.startswith("/"):
                    default[f"/{NAMESPACE}{key}"] = default.pop(key)
        header = self._get_header_dict(text)
        if config_path.startswith(f"{NAMESPACE}/preset/"):  # it sets keys of our root, which is their `ddpm_data`
            own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "defaults"])
            config = OmegaConf.create({"defaults": config.get("defaults", []), NAMESPACE: own})
        return ConfigResult(config=config, path=self.full_path(), provider=self.provider, header=header)

    def available(self) -> bool:
        """Return whether the folder is there."""
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        """Return whether it is a group of ours."""
        top, _, group = config_path.strip("/").partition("/")
        is_ours = group == "" or (group.partition("/")[0] in GROUPS and Path(self.path, group).is_dir())
        return top == "" or (top == NAMESPACE and is_ours)

    def is_config(self, config_path: str) -> bool:
        """Return whether it is a file of ours."""
        group = config_path.rpartition("/")[0]
        return group not in ("", NAMESPACE) and self.is_group(group) and self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """List what is in a group, sorted: groups, files, or both."""
        group = config_path.strip("/")
        groups = {"": [NAMESPACE], NAMESPACE: list(GROUPS)}.get(group, [])
        files = [] if groups else [path.stem for path in self._inside(group).glob("*.yaml")]
        return sorted(groups if results_filter == ObjectType.GROUP else files if results_filter else groups + files)

    def _file(self, config_path: str) -> Path:
        return self._inside(self._normalize_file_name(config_path))

    def _inside(self, config_path: str) -> Path:
        return Path(self.path, config_path.strip("/").removeprefix(f"{NAMESPACE}/"))
