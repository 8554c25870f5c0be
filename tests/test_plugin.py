"""The configs as other people's Hydra apps see them: in a namespace, typed, beside configs of their own."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ddpm_data import DDPMDataModule, ForwardDiffusion, UniformTimesteps, schedules
from ddpm_data.cli.report import main as report
from hydra_plugins.ddpm_data import GROUPS, configs
from tests.conftest import ROOT
from tests.test_configs import NEEDS, composed, names

SMALL = """
defaults:
  - ddpm_data/schedule: cosine
  - ddpm_data/datamodule: default
  - _self_

ddpm_data:
  datamodule:
    train: {_target_: ddpm_data.sources.digits, _partial_: true}
    channels: 1
    batch_size: 16
"""
WHOLE = """
defaults:
  - ddpm_data/dataset: own
  - ddpm_data/schedule: own
  - ddpm_data/timesteps: low_discrepancy
  - ddpm_data/loader: cached
  - ddpm_data/datamodule: default
  - ddpm_data/transform: default
  - ddpm_data/trainer: smoke
  - ddpm_data/callbacks: default
  - ddpm_data/logger: csv
  - ddpm_data/sweep: default
  - _self_

seed: 7
"""
OWN_SCHEDULE = """
_target_: tests.test_plugin.halves
num_timesteps: 30
"""
OWN_DATASET = """
defaults: [base, _self_]
count: 40
train: {_target_: tests.test_plugin.checkers, _partial_: true, count: "${ddpm_data.dataset.count}"}
channels: 1
"""


def halves(num_timesteps: int) -> torch.Tensor:
    """A schedule of a user's own."""
    return torch.linspace(0.001, 0.5, num_timesteps, dtype=torch.float64)


def checkers(count: int) -> torch.Tensor:
    """A dataset of a user's own."""
    return (torch.arange(64).view(1, 8, 8) % 2 * 255).to(torch.uint8).expand(count, 1, 8, 8)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A user's folder of configs, as Hydra is told of it."""
    for name, text in {
        "small": SMALL,
        "whole": WHOLE,
        "ddpm_data/schedule/own": OWN_SCHEDULE,
        "ddpm_data/dataset/own": OWN_DATASET,
    }.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def theirs(app: Path, name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(app), version_base="1.3"):
        return compose(name, list(overrides))


def test_two_lines_of_defaults_make_a_datamodule(app: Path) -> None:
    cfg = theirs(app, "small").ddpm_data
    dm = instantiate(cfg.datamodule)
    assert isinstance(dm, DDPMDataModule)
    assert dm.batch_size == 16
    assert torch.equal(instantiate(cfg.schedule), schedules.cosine())
    dm.setup("fit")
    assert next(iter(dm.train_dataloader())).images.shape == (16, 1, 8, 8)


def test_the_report_reads_such_configs_too(app: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(["--config-dir", str(app), "--config-name", "small", "--output-dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.png").is_file()
    captured = capsys.readouterr()
    assert "| cosine " in captured.out
    assert "no images" not in captured.err


def test_own_schedule_and_dataset_stand_in_the_same_places(app: Path) -> None:
    overrides = ["ddpm_data.schedule.num_timesteps=20", "ddpm_data.dataset.count=30", "ddpm_data.dataset.val=0.5"]
    cfg = theirs(app, "whole", *overrides).ddpm_data
    dm = instantiate(cfg.datamodule)
    assert dm.transform.seed == 7
    assert dm.transform.process.num_timesteps == 20
    dm.setup("fit")
    assert len(dm.train_dataloader().dataset.images) == 15


def test_the_parts_are_usable_alone(app: Path) -> None:
    """And the transform alone makes the triples of the DataModule's."""
    cfg = theirs(app, "whole").ddpm_data
    assert torch.equal(instantiate(cfg.schedule), halves(30))
    timesteps = instantiate(cfg.timesteps)
    assert isinstance(timesteps, UniformTimesteps)
    assert timesteps.low_discrepancy
    transform, dm = instantiate(cfg.transform), instantiate(cfg.datamodule)
    assert isinstance(transform, ForwardDiffusion)
    images, position = checkers(6), torch.arange(6)
    for alone, within in zip(transform(images, position), dm.transform(images, position), strict=True):
        assert torch.equal(alone, within)


def test_references_move_along_with_the_configs(app: Path) -> None:
    cfg = theirs(
        app, "whole", "ddpm_data/schedule=zero_terminal_snr", "ddpm_data/schedule@ddpm_data.schedule.betas=jsd"
    )
    assert cfg.ddpm_data.schedule.betas._target_.endswith(".jsd")
    text = OmegaConf.to_yaml(cfg)
    assert "${dataset" not in text
    assert "${schedule" not in text
    assert "${ddpm_data.schedule}" in text


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_composes_there_as_it_does_here(group: str, app: Path) -> None:
    def moved(cfg: DictConfig) -> str:
        return OmegaConf.to_yaml(cfg).replace("ddpm_data.", "")

    for name in names(group):
        if name == "ray" and find_spec("ray") is None:
            continue  # no part of the extra that tests are run with: 70 MB
        needs = NEEDS.get(name, []) if group == "dataset" else []
        there = theirs(app, "whole", f"ddpm_data/{group}={name}", *(f"++ddpm_data.{need}" for need in needs))
        here = composed(f"{'+' * (group == 'transform')}{group}={name}", *needs)
        if group != "sweep":  # it is Hydra's part that these change
            assert moved(there.ddpm_data[group]) == moved(here[group])


WRONG = [
    ("++ddpm_data.loader.batch_sise=3", "ddpm_data.loader.batch_sise"),
    ("++ddpm_data.dataset.image_sise=3", "ddpm_data.dataset.image_sise"),
    ("++ddpm_data.dataset.flipp=true", "ddpm_data.dataset.flipp"),
    ("++ddpm_data.scedule.start=3", "ddpm_data.scedule"),
    ("++ddpm_data.schedule.sart=3", "sart"),
    ("++ddpm_data.datamodule.batch=3", "batch"),
    ("++ddpm_data.timesteps.low=3", "low"),
    ("ddpm_data.loader.batch_size=many", "loader.batch_size"),
    ("ddpm_data.dataset.flip=often", "dataset.flip"),
    ("ddpm_data.schedule=5", "schedule"),
    ("seed=one", "seed"),
    ("ddpm_data.timesteps.low_discrepancy=2", "timesteps.low_discrepancy"),
]


@pytest.mark.parametrize(("override", "key"), WRONG)
def test_a_wrong_key_or_type_is_refused_with_its_name(override: str, key: str, app: Path) -> None:
    with pytest.raises(Exception, match=key.replace(".", r"\.")):  # Hydra's, OmegaConf's or ours
        instantiate(theirs(app, "whole", override).ddpm_data.datamodule)


@pytest.mark.parametrize("where", ["dataset", "loader"])
def test_a_wrong_key_in_a_file_is_refused_too(where: str, app: Path) -> None:
    (app / "typo.yaml").write_text(f"defaults: [whole, _self_]\nddpm_data:\n  {where}: {{fllip: 0.5}}\n")
    with pytest.raises(Exception, match=rf"ddpm_data\.{where}\.fllip"):
        instantiate(theirs(app, "typo").ddpm_data.datamodule)


@pytest.mark.parametrize("resolved", [False, True])
def test_keys_of_a_dataset_config_of_ones_own_are_read_by_what_refers_to_them(resolved: bool, app: Path) -> None:
    cfg = theirs(app, "whole")
    if resolved:
        OmegaConf.resolve(cfg.ddpm_data.dataset)
        OmegaConf.resolve(cfg.ddpm_data.datamodule)
    assert isinstance(instantiate(cfg.ddpm_data.datamodule), DDPMDataModule)


def test_what_stands_after_the_commas_is_what_the_groups_say(app: Path) -> None:
    """A DataModule without a dataset or loader group is that of their base configs."""
    alone, groups = theirs(app, "small").ddpm_data.datamodule, composed("dataset=base", "dataset.train=[]").datamodule
    for key in set(groups) - {"train", "schedule", "timesteps", "batch_size", "channels", "seed"}:
        assert alone[key] == groups[key], key


def test_hydra_lists_the_groups_and_their_files(app: Path) -> None:
    with initialize_config_dir(str(app), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert loader.get_group_options("ddpm_data", ObjectType.GROUP) == sorted(GROUPS)
        assert set(loader.get_group_options("ddpm_data/schedule")) == {*names("schedule"), "own"}
    assert configs() == ROOT / "conf"


def test_the_plugin_imports_nothing_slow() -> None:
    """Every Hydra app of the environment pays for it."""
    slow = "('torch', 'lightning', 'numpy', 'ddpm_data')"
    code = f"import sys, hydra_plugins.ddpm_data.jobs; print([name for name in {slow} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
