"""Every config composes and becomes what it says."""

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import SimpleProfiler
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ddpm_data import (
    DDPMDataModule,
    GaussianProcess,
    LossAwareTimesteps,
    UniformTimesteps,
    densities,
    noises,
    processes,
    schedules,
    weights,
)
from ddpm_data.hydra import DATASET_KEYS, DEFAULTS, LOADER_KEYS, SOURCE_KEYS
from ddpm_data.sources import ImageFiles
from tests.conftest import ROOT
from tests.groups import PATIENCE
from tests.warm import python
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
    groups = "callbacks datamodule dataset debug experiment loader logger model noise preset schedule sweep timesteps"
    found = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    assert found == [*groups.split(), "trainer", "transform", "weight"]


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


@pytest.mark.slow
@pytest.mark.parametrize("name", names("schedule"))
def test_schedules_are_the_functions_of_their_name_with_its_defaults(name: str) -> None:
    betas = instantiate(composed(f"schedule={name}").schedule)
    if isinstance(betas, GaussianProcess):
        default = getattr(processes, name)()
        assert torch.equal(betas.exact.signal, default.exact.signal)
        assert torch.equal(betas.exact.sigma, default.exact.sigma)
        return
    assert isinstance(betas, Tensor)
    expected: dict[str, Callable[[], Tensor]] = {
        "zero_terminal_snr": lambda: schedules.zero_terminal_snr(schedules.linear()),
        "shift_snr": lambda: schedules.shift_snr(schedules.cosine(), 0.5),
    }
    assert torch.equal(betas, expected.get(name, getattr(schedules, name))())


def test_modified_schedules_take_another_base() -> None:
    cfg = composed("schedule=zero_terminal_snr", "schedule@schedule.betas=cosine", "schedule.betas.num_timesteps=50")
    assert torch.equal(instantiate(cfg.schedule), schedules.zero_terminal_snr(schedules.cosine(50)))


@pytest.mark.parametrize("name", names("weight"))
def test_weights_are_the_functions_of_their_name_with_its_defaults(name: str) -> None:
    datamodule = instantiate(composed(f"weight={name}", "target=velocity").datamodule)
    t = torch.arange(1000)
    of = {"of": "velocity"} if name == "uniform" else {}
    expected = getattr(weights, name)(datamodule.transform.process, "velocity", **of)
    assert torch.equal(datamodule.loss_weight(t), expected.float())


@pytest.mark.parametrize("name", sorted({*names("timesteps")} - {"uniform", "low_discrepancy", "loss_aware"}))
def test_densities_are_the_functions_of_their_name(name: str) -> None:
    cfg = composed(f"timesteps={name}", "schedule=rectified_flow", "target=flow")
    timesteps = instantiate(cfg.datamodule).transform.timesteps
    arguments = {"log_normal_sigma": {"mean": -1.2, "std": 1.2}, "beta": {"a": 1.5, "b": 1.0, "start": 0.001}}
    function = densities.table if name == "density_table" else getattr(densities, name)
    expected = function(
        processes.rectified_flow(), **arguments.get(name, {"weights": [1, 1]} if "table" in name else {})
    )
    assert torch.equal(timesteps.probabilities(processes.rectified_flow()), expected)
    assert not timesteps.low_discrepancy
    assert not timesteps.importance


@pytest.mark.parametrize("name", names("noise"))
def test_noises_are_the_functions_of_their_name_with_its_defaults(name: str) -> None:
    assert instantiate(composed(f"noise={name}").datamodule).transform.noise == getattr(noises, name)()


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


def test_the_loss_aware_config_has_the_defaults() -> None:
    timesteps = instantiate(composed("timesteps=loss_aware").timesteps)
    assert isinstance(timesteps, LossAwareTimesteps)
    assert vars(timesteps) == vars(LossAwareTimesteps())


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


@pytest.mark.parametrize("name", names("callbacks"))
def test_callbacks(name: str) -> None:
    callbacks = instantiate(composed(f"callbacks={name}").callbacks)
    assert all(isinstance(callback, L.Callback) for callback in callbacks.values())
    alone = {"latest_checkpoint": ["latest"], "none": []}.get(name, [name])
    every = ["checkpoint", "latest", "progress_bar", "throughput", "noising_strip", "timestep_loss"]
    assert list(callbacks) == (every if name == "default" else alone)


def test_callbacks_are_changed_left_out_and_picked_by_name() -> None:
    cfg = composed("callbacks.throughput.every_n_steps=5", "~callbacks.timestep_loss")
    assert instantiate(cfg.callbacks.throughput).every_n_steps == 5
    assert "timestep_loss" not in cfg.callbacks
    assert list(composed("callbacks=[checkpoint,throughput]").callbacks) == ["checkpoint", "throughput"]


@pytest.mark.parametrize("name", names("logger"))
def test_loggers(name: str, tmp_path: Path) -> None:
    cfg = composed(f"logger={name}", output_dir=tmp_path)
    assert set(cfg.logger) == {"csv", name}
    if find_spec(name) is None:  # wandb and mlflow are in no extra: the file says what to install
        assert f"pip install {name})" in (CONF / "logger" / f"{name}.yaml").read_text().splitlines()[0]
        pytest.skip(f"{name} is not installed")
    assert all(isinstance(logger, Logger) for logger in instantiate(cfg.logger).values())


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


@pytest.mark.parametrize("name", names("debug"))
def test_debug_configs_run_on_one_cpu_process_whatever_else_is_chosen(name: str, tmp_path: Path) -> None:
    cfg = composed(f"debug={name}", "experiment=cifar10", "trainer=multi_node", output_dir=tmp_path)
    check(cfg)
    run = instantiate(cfg.trainer, logger=False)
    assert isinstance(run.accelerator, CPUAccelerator)
    assert (run.num_devices, run.num_nodes, run.max_epochs) == (1, 1, 1)
    assert run.fast_dev_run == (name == "fdr")
    assert isinstance(run.profiler, SimpleProfiler) == (name == "profiler")
    assert instantiate(cfg.datamodule).loader_options.num_workers == 0
    assert (cfg.samples, cfg.compile) == (4, name == "profiler")


def test_every_argument_of_the_datamodule_is_in_the_configs() -> None:
    signature = set(inspect.signature(DDPMDataModule.__init__).parameters) - {"self"}
    direct = {"schedule", "timesteps", "target", "weight", "noise", "seed", "compile"}
    assert direct <= set(composed().datamodule)
    assert sorted(signature) == sorted([*DATASET_KEYS, *LOADER_KEYS, *direct])
    assert set(composed("dataset=base").dataset) == {*DATASET_KEYS}
    assert set(composed().loader) == {*LOADER_KEYS}


@pytest.mark.parametrize("name", names("dataset"))
def test_dataset_configs_hold_the_keys_that_the_check_knows(name: str) -> None:
    assert set(composed(f"dataset={name}").dataset) <= {*DATASET_KEYS, *SOURCE_KEYS}


def test_values_for_absent_keys_are_those_of_the_base_configs() -> None:
    cfg = composed("dataset=base", "dataset.train=[]")
    groups = {**cfg.dataset, **cfg.loader}
    assert {key: groups[key] for key in DEFAULTS} == DEFAULTS
    others = {key: value.default for key, value in inspect.signature(DDPMDataModule.__init__).parameters.items()}
    for key in set(groups) - set(DEFAULTS) - {"train"}:
        assert groups[key] == others[key], key


@pytest.mark.slow
def test_values_win_from_the_group_to_the_experiment_to_the_command_line(tmp_path: Path) -> None:
    """And a folder given by --config-dir adds choices to our groups, an experiment of the user's among them."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("defaults: [digits, _self_]\nflip: 0.25\n")
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [{override /dataset: mine}, {override /schedule: cosine}]\n"
        "loader: {batch_size: 32}\ntrainer: {max_epochs: 3}\n"
    )

    def values(*overrides: str) -> tuple[object, ...]:
        command = [python(), str(ROOT / "train_stub.py"), "--config-dir", str(tmp_path), "--cfg", "job"]
        result = subprocess.run([*command, *overrides], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
        assert result.returncode == 0, result.stderr
        cfg = OmegaConf.create(result.stdout)
        name = cfg.schedule._target_.rpartition(".")[2]
        return name, cfg.dataset.flip, cfg.loader.batch_size, cfg.trainer.max_epochs

    cfg = composed()
    assert (cfg.dataset.flip, cfg.loader.batch_size, cfg.trainer.max_epochs) == (0.0, 128, 160)
    # The schedule and the batch size are typed, the epochs are those of debug, the flips of the experiment's dataset.
    typed = ["experiment=mine", "debug=default", "schedule=jsd", "loader.batch_size=8"]
    assert values(*typed) == ("jsd", 0.25, 8, 1)


@pytest.mark.slow
def test_help_lists_every_group_and_choice() -> None:
    command = [python(), str(ROOT / "train_stub.py"), "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    for folder in (path for path in CONF.iterdir() if path.is_dir()):
        assert f"\n{folder.name}: {', '.join(names(folder.name))}\n" in printed


def test_interpolations_all_resolve() -> None:
    resolved = OmegaConf.to_container(composed(), resolve=True, throw_on_missing=True)
    assert resolved["model"]["schedule"] == resolved["datamodule"]["schedule"] == resolved["schedule"]
    assert resolved["logger"]["csv"]["save_dir"] == resolved["trainer"]["default_root_dir"]


def test_saved_configs_are_read_without_hydra_or_this_package(tmp_path: Path) -> None:
    """Neither the file in .hydra, where references stand, nor the resolved one needs a resolver of ours."""
    cfg = composed("schedule=zero_terminal_snr", output_dir=tmp_path)
    del cfg.callbacks, cfg.logger, cfg.trainer  # these ask Hydra for the folder of the run
    OmegaConf.save(cfg, tmp_path / "written.yaml")
    OmegaConf.save(cfg, tmp_path / "resolved.yaml", resolve=True)
    code = """
import json, sys
from omegaconf import OmegaConf
for name in ("written", "resolved"):
    print(json.dumps(OmegaConf.to_container(OmegaConf.load(f"{name}.yaml").datamodule, resolve=True), sort_keys=True))
assert not {"hydra", "ddpm_data", "hydra_plugins"} & set(sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    written, resolved = map(json.loads, result.stdout.splitlines())
    assert written == resolved == OmegaConf.to_container(cfg.datamodule, resolve=True)
