"""The configs as other people's Hydra apps see them: in a namespace, typed, beside configs of their own."""

import ast
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from ddpm_data import DDPMDataModule, ForwardDiffusion, ForwardProcess, UniformTimesteps, schedules
from ddpm_data.cli._config import compose_datamodule
from ddpm_data.cli._parsers import parse
from ddpm_data.cli.check import main as check
from ddpm_data.cli.report import main as report
from hydra_plugins.ddpm_data import GROUPS, configs
from tests.conftest import ROOT
from tests.groups import PATIENCE
from tests.test_configs import NEEDS, composed, names
from tests.warm import python

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
train: {_target_: tests.test_plugin.checkers, _partial_: true, count: "${..count}"}
channels: 1
own: {num_classes: 10}
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


@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["zero_terminal_snr", "shift_snr"])
def test_a_modified_schedule_takes_another_base_here_and_there(name: str, app: Path) -> None:
    choice, base, steps = f"schedule={name}", "schedule.betas=scaled_linear", "schedule.betas.num_timesteps=50"
    there = theirs(app, "whole", f"ddpm_data/{choice}", f"ddpm_data/schedule@ddpm_data.{base}", f"ddpm_data.{steps}")
    here = composed(choice, f"schedule@{base}", steps)
    assert there.ddpm_data.schedule == here.schedule
    expected = {
        "zero_terminal_snr": schedules.zero_terminal_snr(schedules.scaled_linear(50)),
        "shift_snr": schedules.shift_snr(schedules.scaled_linear(50), 0.5),
    }
    assert torch.equal(instantiate(there.ddpm_data.schedule), expected[name])
    betas = instantiate(there.ddpm_data.datamodule).transform.process.betas
    assert torch.equal(betas, ForwardProcess(expected[name]).betas)


@pytest.mark.slow
def test_every_choice_composes_there_as_it_does_here(app: Path) -> None:
    """One of every group at a time. (A preset makes choices itself; tests/test_presets.py has an app with one.)"""
    groups = {group: names(group) for group in sorted({*GROUPS} - {"preset"})}
    if find_spec("ray") is None:
        groups["sweep"].remove("ray")  # no part of the extra that tests are run with: 70 MB
    for number in range(max(map(len, groups.values()))):
        chosen = {group: found[number % len(found)] for group, found in groups.items()}
        needs = NEEDS.get(chosen["dataset"], [])
        adds = ("noise", "weight")  # which that app's defaults do not name
        choices = [f"{'+' * (group in adds)}ddpm_data/{group}={name}" for group, name in chosen.items()]
        there = theirs(app, "whole", *choices, *(f"++ddpm_data.{need}" for need in needs))
        here = composed(*(f"{'+' * (group == 'transform')}{group}={name}" for group, name in chosen.items()), *needs)
        for group in chosen.keys() - {"sweep"}:  # it is Hydra's part that these change
            assert OmegaConf.to_yaml(there.ddpm_data[group]) == OmegaConf.to_yaml(here[group]), chosen[group]


WRONG = [
    ("++ddpm_data.schedule.sart=3", "sart"),
    ("++ddpm_data.datamodule.batch=3", "batch"),
    ("++ddpm_data.timesteps.low=3", "low"),
    ("ddpm_data.dataset.image_sise=3", "image_sise"),
    ("ddpm_data.loader.batch_size=many", "loader.batch_size"),
    ("ddpm_data.dataset.flip=often", "dataset.flip"),
    ("ddpm_data.schedule=5", "schedule"),
    ("seed=one", "seed"),
    ("ddpm_data.timesteps.low_discrepancy=2", "timesteps.low_discrepancy"),
]
MISSPELT = [
    ("dataset", "image_sise", "dataset.image_size"),
    ("dataset", "flipp", "dataset.flip"),
    ("dataset", "batch_size", "loader.batch_size"),
    ("loader", "batch_sise", "loader.batch_size"),
    ("loader", "fllip", "dataset.flip"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("root", "seed", "compiles"),
    [
        ("seed: null", 0, True),
        ("seed: 7\ncompile: null", 7, True),
        ("seed: 7\ncompile: {mode: default, fullgraph: true}", 7, True),
        ("seed: 7\ncompile: {}", 7, True),
        ("seed: ???\ncompile: ???", 0, True),
        ("compile: false", 0, False),
        ("compile: true", 0, True),
        ("seed: null\ncompile: {mode: default}\nddpm_data: {datamodule: {seed: 3, compile: false}}", 3, False),
    ],
)
def test_a_root_whose_seed_or_compile_means_something_else(root: str, seed: int, compiles: bool, app: Path) -> None:
    chosen = WHOLE.replace("dataset: own", "dataset: webdataset").replace("seed: 7", root)
    (app / "foreign.yaml").write_text(chosen)
    cfg = theirs(app, "foreign", "ddpm_data.dataset.shards=a.tar", "ddpm_data/schedule=jsd").ddpm_data
    dm = instantiate(cfg.datamodule)
    assert (dm.transform.seed, dm.transform._compiles) == (seed, compiles)
    if "datamodule" not in root:  # whose values are its own
        transform = instantiate(cfg.transform)
        assert (transform.seed, transform._compiles) == (seed, compiles)
        assert instantiate(cfg.dataset.train, _target_="builtins.dict")()["seed"] == seed
    chunks = theirs(app, "foreign", "ddpm_data/dataset=litdata", "ddpm_data.dataset.root=x").ddpm_data.dataset.train
    assert instantiate(chunks, _target_="builtins.dict")()["seed"] == (0 if seed == 3 else seed)


@pytest.mark.parametrize("value", ["maybe", "3", "[]"])
def test_a_compile_that_is_no_bool_is_refused(value: str, app: Path) -> None:
    with pytest.raises(InstantiationException, match="compile"):
        instantiate(theirs(app, "whole", f"+compile={value}").ddpm_data.datamodule)
    with pytest.raises(InstantiationException, match="compile"):
        instantiate(theirs(app, "whole", f"+compile={value}").ddpm_data.transform)


@pytest.mark.parametrize(("override", "key"), WRONG)
def test_a_wrong_key_or_type_is_refused_with_its_name(override: str, key: str, app: Path) -> None:
    with pytest.raises(Exception, match=key.replace(".", r"\.")):  # Hydra's, OmegaConf's or ours
        instantiate(theirs(app, "whole", override).ddpm_data.datamodule)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "key", "near"), MISSPELT)
@pytest.mark.parametrize("where", ["here", "typed", "in a file"])
def test_a_misspelt_key_is_refused_beside_the_one_that_was_meant(
    where: str, group: str, key: str, near: str, app: Path
) -> None:
    if where == "here":
        node = composed(f"++{group}.{key}=3").datamodule
    elif where == "typed":
        node = theirs(app, "whole", f"++ddpm_data.{group}.{key}=3").ddpm_data.datamodule
    else:
        (app / "typo.yaml").write_text(f"defaults: [whole, _self_]\nddpm_data:\n  {group}: {{{key}: 3}}\n")
        node = theirs(app, "typo").ddpm_data.datamodule
    app_prefix = "" if where == "here" else "ddpm_data."
    said = f"`{app_prefix}{group}.{key}` is not a key .* Did you mean `{app_prefix}{near}`\\?".replace(".", r"\.", 1)
    with pytest.raises(InstantiationException, match=said):
        instantiate(node)


def test_the_commands_refuse_a_misspelt_key_too(app: Path) -> None:
    said = r"`ddpm_data\.dataset\.image_sise` is not a key .* Did you mean `ddpm_data\.dataset\.image_size`\?"
    with pytest.raises(InstantiationException, match=said):
        check(["--config-dir", str(app), "--config-name", "whole", "++ddpm_data.dataset.image_sise=3"])


def test_a_key_like_no_other_is_refused_with_the_list_of_keys_and_a_place_for_ones_own(app: Path) -> None:
    cfg = theirs(app, "whole", "++ddpm_data.dataset.xyz=3")
    with pytest.raises(InstantiationException, match=r"Its keys are train, val, .* below `ddpm_data\.dataset\.own`"):
        instantiate(cfg.ddpm_data.datamodule)
    cfg = theirs(app, "whole", "++ddpm_data.dataset.own.xyz=3")
    assert isinstance(instantiate(cfg.ddpm_data.datamodule), DDPMDataModule)


REFUSED = {  # what is wrong, and the key that the message has to name, at construction
    "ddpm_data.schedule.num_timesteps=0": "ddpm_data.schedule.num_timesteps",
    "ddpm_data.timesteps.low_discrepancy=2": "ddpm_data.timesteps.low_discrepancy",
    "ddpm_data.loader.batch_size=0": "ddpm_data.loader.batch_size",
    "ddpm_data.dataset.flip=2": "ddpm_data.dataset.flip",
    "ddpm_data.dataset.val=7": "ddpm_data.dataset.val",
    "seed=-1": "seed",
}


@pytest.mark.slow
@pytest.mark.parametrize("override", REFUSED)
def test_messages_name_a_key_as_it_is_in_the_app(override: str, app: Path) -> None:
    choices = ["ddpm_data/schedule=cosine"]
    with pytest.raises(InstantiationException) as error:
        instantiate(theirs(app, "whole", override, *choices).ddpm_data.datamodule)
    assert f"`{REFUSED[override]}`" in str(error.value)
    assert "InstantiationException" not in str(error.value)  # one frame of Hydra's, not two
    if "dataset.val" not in override and "loader" not in override:
        with pytest.raises(InstantiationException) as error:
            instantiate(theirs(app, "whole", override, *choices).ddpm_data.transform)
        assert f"`{REFUSED[override]}`" in str(error.value)
    here = override.replace("ddpm_data.", "")
    with pytest.raises(InstantiationException) as error:
        instantiate(composed(here).datamodule)
    assert f"`{REFUSED[override].replace('ddpm_data.', '')}`" in str(error.value)
    assert "the argument" not in str(error.value)


def test_a_missing_value_is_named_or_given_in_python(app: Path) -> None:
    cfg = theirs(app, "whole", "ddpm_data/loader=default", "ddpm_data/dataset=base").ddpm_data
    with pytest.raises(InstantiationException, match=r"`ddpm_data\.dataset\.train` has no value"):
        instantiate(cfg.datamodule)
    images = checkers(9)
    dm = instantiate(cfg.datamodule, train=images, batch_size=4, timesteps=UniformTimesteps(low_discrepancy=True))
    assert dm.splits._sources["train"] is images  # not a copy
    assert (dm.batch_size, dm.transform.timesteps.low_discrepancy, dm.transform.seed) == (4, True, 7)


DIM = [Image.fromarray(np.full((8, 8), 4000, np.uint16))] * 20  # all far below white, which is warned of


def test_messages_of_setup_and_of_the_loader_name_a_key_as_it_is_in_the_app(app: Path) -> None:
    dm = instantiate(theirs(app, "whole", "ddpm_data.dataset.val=0.001").ddpm_data.datamodule)
    with pytest.raises(ValueError, match=r"Change `ddpm_data\.dataset\.val`"):
        dm.setup("fit")
    with pytest.raises(ValueError, match=r"Set `ddpm_data\.dataset\.test`"):
        dm.setup("test")
    with pytest.warns(UserWarning, match=r"set `ddpm_data\.dataset\.value_range` to"):
        instantiate(theirs(app, "whole").ddpm_data.datamodule, train=DIM).setup("fit")


def test_messages_name_arguments_where_the_datamodule_is_made_in_python() -> None:
    images = torch.zeros(4, 1, 8, 8)
    dm = DDPMDataModule(train=images, schedule=schedules.jsd())
    with pytest.raises(ValueError, match=r"Change `value_range`|Set `value_range`"):
        dm.setup("fit")
    with pytest.raises(ValueError, match=r"flip=2.*Change `flip`\.$"):
        DDPMDataModule(train=images, schedule=schedules.jsd(), flip=2)
    for workers in (0, 1):
        with pytest.warns(UserWarning, match=r"set `value_range` to"):
            DDPMDataModule(train=DIM, schedule=schedules.jsd(), num_workers=workers).setup("fit")


class Subclass(DDPMDataModule):
    """A user's own, with an argument of its own."""

    def __init__(self, *, color: str, **arguments: Any) -> None:  # noqa: ANN401  # the class's
        super().__init__(**arguments)
        self.color = color


def test_a_subclass_is_built_of_the_same_groups(app: Path) -> None:
    overrides = ["ddpm_data.datamodule.cls=tests.test_plugin.Subclass", "+ddpm_data.datamodule.color=red"]
    dm = instantiate(theirs(app, "whole", *overrides).ddpm_data.datamodule)
    assert isinstance(dm, DDPMDataModule)
    assert (type(dm).__name__, dm.color) == ("Subclass", "red")
    assert dm.transform.seed == 7


def test_a_datamodule_of_the_apps_own_config_is_left_as_it_is(app: Path) -> None:
    """The commands take it as well as one that is made of the groups."""
    (app / "plain.yaml").write_text("""
defaults: [{ddpm_data/schedule: cosine}, _self_]
datamodule: {_target_: ddpm_data.DDPMDataModule, train: null, batch_size: 3, schedule: "${ddpm_data.schedule}"}
""")
    plain = compose_datamodule(parse("check", ["--config-dir", str(app), "--config-name", "plain"]))
    assert isinstance(instantiate(plain), DDPMDataModule)
    assert plain["batch_size"] == 3
    merged = compose_datamodule(parse("check", ["--config-dir", str(app), "--config-name", "small"]))
    assert merged["_target_"] == "ddpm_data.hydra.build_datamodule"
    datamodule = instantiate(merged)
    assert type(datamodule) is DDPMDataModule
    assert (datamodule.batch_size, datamodule.transform.flip) == (16, 0.5)


APP = """
import hydra
from omegaconf import OmegaConf


@hydra.main(version_base="1.3", config_path=".", config_name="whole")
def main(cfg):
    print(OmegaConf.to_yaml(cfg.ddpm_data, resolve=True))


main()
"""


@pytest.mark.slow
def test_an_app_of_its_own_puts_its_values_over_ours_and_its_experiments_over_these(app: Path, tmp_path: Path) -> None:
    """From weak to strong: our group, the app's root config, an experiment given by --config-dir, what is typed."""
    (app / "whole.yaml").write_text(
        WHOLE.replace("  - _self_", "  - _self_\n  - experiment: null")
        + "ddpm_data: {loader: {timeout: 9, batch_size: 9}}"
    )
    (app / "more" / "experiment").mkdir(parents=True)
    (app / "more" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [{override /ddpm_data/schedule: jsd}]\nddpm_data: {loader: {batch_size: 8}}\n"
    )
    (app / "app.py").write_text(APP)

    def run(*overrides: str) -> tuple[object, ...]:
        command = [python(), "app.py", "--config-dir", "more", f"hydra.run.dir={tmp_path / 'run'}", *overrides]
        result = subprocess.run(command, cwd=app, capture_output=True, text=True, timeout=PATIENCE)
        assert result.returncode == 0, result.stderr
        cfg = OmegaConf.create(result.stdout)
        assert cfg.datamodule.loader == cfg.loader
        return cfg.schedule._target_.rpartition(".")[2], cfg.loader.timeout, cfg.loader.batch_size, cfg.loader.drop_last

    assert run() == ("halves", 9, 9, False)
    assert run("experiment=mine") == ("jsd", 9, 8, False)
    typed = ["experiment=mine", "ddpm_data/schedule=cosine", "ddpm_data.loader.batch_size=7"]
    assert run(*typed) == ("cosine", 9, 7, False)


@pytest.mark.slow
def test_the_config_that_hydra_leaves_in_a_run_is_read_in_a_new_process(app: Path, tmp_path: Path) -> None:
    """No resolver or import of ours is needed. Callbacks and loggers, left out, ask Hydra for the run's folder."""
    (app / "app.py").write_text(APP)
    run = ["app.py", f"hydra.run.dir={tmp_path / 'run'}", "ddpm_data/schedule=zero_terminal_snr"]
    code = """
import sys
from omegaconf import OmegaConf
cfg = OmegaConf.load("run/.hydra/config.yaml")
for group in set(cfg.ddpm_data) - {"callbacks", "logger", "trainer"}:
    OmegaConf.to_container(cfg.ddpm_data[group], resolve=True, throw_on_missing=True)
assert not {"hydra", "ddpm_data", "hydra_plugins"} & set(sys.modules)
from hydra.utils import instantiate
datamodule = instantiate(cfg.ddpm_data.datamodule)
print(type(datamodule).__name__, datamodule.transform.process.num_timesteps, datamodule.transform.seed)
"""
    for command in ([python(), *run], [sys.executable, "-c", code]):
        result = subprocess.run(
            command,
            cwd=app,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["DDPMDataModule", "1000", "7"]


def test_hydra_lists_the_groups_and_their_files(app: Path) -> None:
    with initialize_config_dir(str(app), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert loader.get_group_options("ddpm_data", ObjectType.GROUP) == sorted(GROUPS)
        assert set(loader.get_group_options("ddpm_data/schedule")) == {*names("schedule"), "own"}
        for group in (*GROUPS, "model", "experiment", "ddpm_data/model"):  # nothing of ours is outside of our name
            assert loader.get_group_options(group) == []
    assert configs() == ROOT / "conf"


def test_the_plugin_imports_nothing_slow() -> None:
    """Every Hydra app of the environment pays for it."""
    slow = "('torch', 'lightning', 'numpy', 'ddpm_data')"
    code = f"import sys, hydra_plugins.ddpm_data; print([name for name in {slow} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_the_callback_and_the_builder_import_hydra_and_our_package_alone() -> None:
    tree = ast.parse((ROOT / "ddpm_data" / "hydra.py").read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    others = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert others == {"hydra", "omegaconf", "ddpm_data"}
