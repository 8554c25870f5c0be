"""The DataModule's part of a user's configuration, as the commands that are run by ``python -m`` take it."""

import argparse
from pathlib import Path
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """Have a command ask for a configuration as training does."""
    parser.add_argument("--config-dir", type=Path, default=Path("conf"), help="folder of your configs (default conf)")
    parser.add_argument("--config-name", default="train", help="the root config (default train)")
    parser.add_argument("--key", default="datamodule", help="where in it the DataModule is (default datamodule)")
    parser.add_argument("overrides", nargs="*", help="as for training: dataset=digits loader.batch_size=32")


def composed(args: argparse.Namespace) -> dict[str, Any]:
    """The DataModule's configuration, ready to be instantiated.

    Raises:
        SystemExit: There is no such folder of configs, or no DataModule where it is said to be.
    """
    import hydra
    from omegaconf import OmegaConf

    if not args.config_dir.is_dir():
        raise SystemExit(f"there is no folder {args.config_dir.absolute()}: give the one of your configs, --config-dir")
    with hydra.initialize_config_dir(str(args.config_dir.absolute()), version_base="1.3"):
        cfg = hydra.compose(args.config_name, args.overrides)
    node = OmegaConf.select(cfg, args.key)
    if node is None:
        raise SystemExit(f"the configuration has no {args.key}: say where its DataModule is, --key")
    values = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}
