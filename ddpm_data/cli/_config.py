"""Compose the user's configuration for a command, as training would."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm_data.cli._parsers import DATAMODULE_KEYS, ROOT_CONFIGS


@contextmanager
def configs(args: argparse.Namespace) -> Iterator[str]:
    """Point Hydra to the folder of configs, and yield the root config's name.

    Raises:
        SystemExit: The folder does not exist, or has no root config.
    """
    import hydra

    from hydra_plugins.ddpm_data import configs as ours

    folder = args.config_dir or next(path for path in (Path("conf"), ours()) if path.is_dir())
    if not folder.is_dir():
        raise SystemExit(f"there is no folder {folder.absolute()}. Set --config-dir to the folder of your configs.")
    names = [args.config_name] if args.config_name else ROOT_CONFIGS
    name = next((name for name in names if (folder / name).with_suffix(".yaml").is_file()), None)
    if name is None:
        raise SystemExit(
            f"{folder.absolute()} has no {' or '.join(names)}.yaml. Set --config-name to your root config."
        )
    with hydra.initialize_config_dir(str(folder.absolute()), version_base="1.3"):
        yield name


def find_datamodule_config(args: argparse.Namespace) -> Any:  # noqa: ANN401  # a DictConfig, which only Hydra's users know of
    """Compose the configuration and find the DataModule in it.

    Raises:
        SystemExit: The folder of configs does not exist, or there is no DataModule where it should be.
    """
    import hydra
    from omegaconf import OmegaConf

    with configs(args) as name:
        cfg = hydra.compose(name, args.overrides)
    keys = [args.key] if args.key else DATAMODULE_KEYS
    node = next((node for key in keys if (node := OmegaConf.select(cfg, key)) is not None), None)
    if node is None:
        raise SystemExit(f"the configuration has no {' or '.join(keys)}. Set --key to the key of its DataModule.")
    return node


def compose_datamodule(args: argparse.Namespace) -> dict[str, Any]:
    """Compose the DataModule's configuration: its class and arguments, resolved and ready to be instantiated.

    Raises:
        SystemExit: See :func:`find_datamodule_config`.
    """
    from omegaconf import OmegaConf

    from ddpm_data._errors import app_keys

    node = find_datamodule_config(args)
    values = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    is_ours = values["_target_"] == "ddpm_data.hydra.build_datamodule"  # else the user's own config names the class
    own = {"key_names": app_keys(node._get_root())} if is_ours else {}
    return {str(name): value for name, value in values.items()} | own
