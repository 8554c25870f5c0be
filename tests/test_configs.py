"""Every config composes and becomes what it says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ddpm_data import DDPMDataModule, UniformTimesteps, schedules
from ddpm_data.sources import ImageFiles
from tests.conftest import ROOT
from train_stub import DDPM, check

CONF = ROOT / "conf"
NEEDS = {
    "image_folder": ["dataset.root=images"],
    "latents": ["dataset.path=latents.safetensors"],
    "base": ["dataset.train=[]"],
    "arrays": ["dataset.path=images.npy"],
    "huggingface": ["dataset.path=images"],
    "webdataset": ["dataset.shards=a.tar"],
    "litdata": ["dataset.root=chunks"],
}


def composed(*overrides: str, output_dir: str | Path = "outputs") -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = f"hydra.runtime.output_dir={output_dir}"
        cfg = compose("train", overrides=[run, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)  # what ${hydra:...} reads
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def test_the_groups_are_those_of_the_design() -> None:
    groups = "callbacks datamodule dataset experiment loader logger model schedule sweep timesteps trainer transform"
    assert sorted(path.name for path in CONF.iterdir() if path.is_dir()) == groups.split()


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_value_is_commented(path: Path) -> None:
    """A value says what it is and in which unit, unless it only passes another key on."""
    for line in path.read_text().splitlines():
        key, _, value = line.strip().partition(":")
        value, _, comment = value.strip().partition("#")
        plain = value and not value.startswith("${") and key.strip() not in ("_target_", "_partial_", "_convert_")
        if plain and not line.startswith("#") and "override" not in key and not line.lstrip().startswith("-"):
            repeats = path.parent.name in ("experiment", "trainer", "dataset") and path.stem not in ("cpu", "base")
            assert comment or repeats, f"{path.name}: {line}"


@pytest.mark.parametrize("name", names("schedule"))
def test_schedules_are_the_functions_of_their_name_with_its_defaults(name: str) -> None:
    betas = instantiate(composed(f"schedule={name}").schedule)
    assert isinstance(betas, Tensor)
    expected: dict[str, Callable[[], Tensor]] = {
        "zero_terminal_snr": lambda: schedules.zero_terminal_snr(schedules.linear()),
        "shift_snr": lambda: schedules.shift_snr(schedules.cosine(), 0.5),
    }
    assert torch.equal(betas, expected.get(name, getattr(schedules, name))())


def test_modified_schedules_take_another_base() -> None:
    cfg = composed("schedule=zero_terminal_snr", "schedule@schedule.betas=cosine", "schedule.betas.num_timesteps=50")
    assert torch.equal(instantiate(cfg.schedule), schedules.zero_terminal_snr(schedules.cosine(50)))


@pytest.mark.parametrize("name", names("dataset"))
def test_datasets_make_a_datamodule(name: str) -> None:
    cfg = composed(f"dataset={name}", *NEEDS.get(name, []))
    check(cfg)
    assert isinstance(instantiate(cfg.datamodule), DDPMDataModule)


@pytest.mark.filterwarnings("ignore:.* images looked at are smaller:UserWarning")
@pytest.mark.parametrize("loader", ["default", "cached"])
def test_a_folder_becomes_batches(folder: Path, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    options = [f"loader={loader}", "loader.batch_size=3"]
    cfg = composed("dataset=image_folder", f"dataset.root={folder}", "dataset.val=0.2", *options)
    check(cfg)
    dm = instantiate(cfg.datamodule)
    dm.setup("fit")
    assert isinstance(instantiate(cfg.dataset.train)(), ImageFiles)
    assert [tuple(batch.images.shape) for batch in dm.train_dataloader()] == [(3, 3, 64, 64), (1, 3, 64, 64)]
    assert len(list(folder.parent.glob("cache/ImageFiles-*.npy"))) == (loader == "cached")


def test_fake_data_becomes_batches() -> None:
    dm = instantiate(composed("dataset=fake").datamodule)
    dm.setup("fit")
    assert next(iter(dm.train_dataloader())).images.shape == (128, 3, 32, 32)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "celeba"])
def test_torchvision_datasets_look_for_their_files_where_told(name: str, tmp_path: Path) -> None:
    """No network here: without the download they must say that their files are missing, in root."""
    cfg = composed(f"dataset={name}", f"dataset.root={tmp_path}")
    for part in (cfg.dataset.train, cfg.dataset.val):
        with pytest.raises(RuntimeError, match="not found"):
            instantiate(part, download=False)()


@pytest.mark.parametrize(("name", "low_discrepancy"), [("uniform", False), ("low_discrepancy", True)])
def test_timesteps(name: str, low_discrepancy: bool) -> None:
    timesteps = instantiate(composed(f"timesteps={name}").timesteps)
    assert isinstance(timesteps, UniformTimesteps)
    assert timesteps.low_discrepancy == low_discrepancy
    dm = instantiate(composed(f"timesteps={name}").datamodule)
    assert dm.transform.timesteps.low_discrepancy == low_discrepancy


@pytest.mark.parametrize("name", names("trainer"))
def test_trainers(name: str) -> None:
    cfg = composed(f"trainer={name}")
    if cfg.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        cfg.trainer.accelerator, cfg.trainer.devices = "cpu", 1  # everything but the device
        if name == "fsdp":  # which is refused without it
            cfg.trainer.strategy._target_ = "tests.fsdp_cpu.OnCPU"
    assert isinstance(instantiate(cfg.trainer, logger=False, enable_checkpointing=False), L.Trainer)


@pytest.mark.parametrize(
    "environment",
    [
        {"GROUP_WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "8"},
        {"SLURM_NNODES": "3", "SLURM_NTASKS_PER_NODE": "8"},
        # torchrun started by srun, one a machine
        {"GROUP_WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "8", "SLURM_NNODES": "3", "SLURM_NTASKS_PER_NODE": "1"},
    ],
    ids=["torchrun", "srun", "torchrun in srun"],
)
def test_machines_and_processes_are_those_that_were_started(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cfg = composed("trainer=multi_node")
    assert (cfg.trainer.num_nodes, cfg.trainer.devices) == (3, 8)


@pytest.mark.parametrize("group", ["logger", "callbacks"])
def test_loggers_and_callbacks(group: str, tmp_path: Path) -> None:
    for name in names(group):
        cfg = composed(f"{group}={name}", output_dir=tmp_path)
        made = list(instantiate(cfg[group]).values())
        kinds: Any = (L.Callback, L.pytorch.loggers.Logger)
        assert made
        assert all(isinstance(thing, kinds) for thing in made)


def test_the_model_is_noised_as_its_data_is() -> None:
    cfg = composed("schedule=cosine", "schedule.num_timesteps=20")
    model, dm = instantiate(cfg.model), instantiate(cfg.datamodule)
    assert isinstance(model, DDPM)
    assert torch.equal(model.process.betas, dm.transform.process.betas)


@pytest.mark.parametrize("name", names("experiment"))
def test_experiments_compose_and_fit_their_groups(name: str) -> None:
    cfg = composed(f"experiment={name}")
    check(cfg)
    assert cfg.dataset.train._target_.endswith(name.upper())
    assert isinstance(instantiate(cfg.model), DDPM)
    assert isinstance(instantiate(cfg.datamodule), DDPMDataModule)


def test_every_key_of_the_datamodule_is_in_the_configs() -> None:
    import inspect

    wanted = set(inspect.signature(DDPMDataModule.__init__).parameters) - {"self", "test", "predict"}
    assert wanted == {key for key in composed().datamodule if not key.startswith("_")}


def test_interpolations_all_resolve() -> None:
    resolved = OmegaConf.to_container(composed(), resolve=True, throw_on_missing=True)
    assert resolved["model"]["schedule"] == resolved["datamodule"]["schedule"] == resolved["schedule"]
    assert resolved["logger"]["csv"]["save_dir"] == resolved["trainer"]["default_root_dir"]
