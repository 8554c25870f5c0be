"""LightningCLI: what a YAML file may say of the DataModule, and that the configuration it saves runs again."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI, instantiate_class
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from torchvision.transforms import v2

from ddpm_data import DDPMDataModule, ForwardProcess, Latents, UniformTimesteps, densities, schedules, weights
from ddpm_data.diffusion.timesteps import find_probabilities
from ddpm_data.rng.philox import STAGES
from ddpm_data.sources import ImageFiles, digits
from tests.conftest import ROOT, Recorder
from tests.groups import PATIENCE
from tests.warm import python

pytest.importorskip("jsonargparse", reason="pip install -e '.[cli]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jsonargparse, for lightning 2.6

PAGE = (ROOT / "docs" / "how-to" / "lightning-cli.md").read_text()
HERE = "tests.test_lightning_cli"
COSINE = {"class_path": "ddpm_data.schedules.cosine", "init_args": {"num_timesteps": 50}}
Data = dict[str, Any]


# A user's own things. None has an annotation, as is usual in research code.
class Bare:
    def __init__(self, count=40, side=8):  # noqa: ANN001, ANN204
        self.count, self.side = count, side

    def __len__(self):  # noqa: ANN204
        return self.count

    def __getitem__(self, index):  # noqa: ANN001, ANN204
        return torch.full((1, self.side, self.side), index, dtype=torch.uint8)


class OfTorch(Dataset[Tensor]):
    def __init__(self, root, count=40):  # noqa: ANN001, ANN204
        self.root, self.count = root, count

    def __len__(self):  # noqa: ANN204
        return self.count

    def __getitem__(self, index):  # noqa: ANN001, ANN204
        return torch.full((1, 8, 8), index, dtype=torch.uint8)


class BareStream:
    def __init__(self, count=40):  # noqa: ANN001, ANN204
        self.count = count

    def __iter__(self):  # noqa: ANN204
        return iter([torch.zeros(1, 8, 8, dtype=torch.uint8)] * self.count)


class Stream(BareStream, IterableDataset[Tensor]):
    pass


class Early:
    def __init__(self, power=2):  # noqa: ANN001, ANN204
        self.power = power

    def __call__(self, position, num_timesteps, key, stage):  # noqa: ANN001, ANN204
        uniform = UniformTimesteps()(position, 2**24, key, stage) / 2**24
        return (uniform**self.power * num_timesteps).long()


class Invert(nn.Module):
    def __init__(self, top=255):  # noqa: ANN001, ANN204
        super().__init__()
        self.top = top

    def forward(self, images):  # noqa: ANN001, ANN201
        return self.top - images


def early(position, num_timesteps, key, stage):  # noqa: ANN001, ANN201
    return Early()(position, num_timesteps, key, stage)


def invert(images):  # noqa: ANN001, ANN201
    return 255 - images


def bare(count=30):  # noqa: ANN001, ANN201
    return Bare(count)


def late(num_timesteps):  # noqa: ANN001, ANN201
    return torch.linspace(0.02, 0.6, num_timesteps, dtype=torch.float64)


class Subclass(DDPMDataModule):
    def __init__(self, root: str = "", **arguments: Any) -> None:  # noqa: ANN401  # the class's
        super().__init__(**arguments)
        self.root = root


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns of pytest's own."""
    monkeypatch.setattr(sys, "argv", ["main.py"])


def parsed(config: Data, cls: type[DDPMDataModule], subclass: bool) -> tuple[DDPMDataModule, Data]:
    arguments = {"trainer": {"accelerator": "cpu", "logger": False}, "data": config}
    cli = LightningCLI(
        Recorder,
        cls,
        run=False,
        args=arguments,
        seed_everything_default=0,
        subclass_mode_data=subclass,
        save_config_callback=None,
    )
    assert isinstance(cli.datamodule, DDPMDataModule)
    return cli.datamodule, yaml.safe_load(cli.parser.dump(cli.config))["data"]


def built(cls: type[DDPMDataModule] = DDPMDataModule, subclass: bool = False, **config: Any) -> DDPMDataModule:  # noqa: ANN401
    """The DataModule of a YAML file's ``data``, read back from what is saved of it."""
    _, saved = parsed(
        config if subclass else {"train": "ddpm_data.sources.digits", "schedule": COSINE} | config, cls, subclass
    )
    datamodule, again = parsed(saved, cls, subclass)
    assert again == saved
    return datamodule


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "kind", "length"),
    [
        ("ddpm_data.sources.digits", "TensorDataset", 1797),
        ({"class_path": "ddpm_data.sources.digits"}, "TensorDataset", 1797),
        (f"{HERE}.bare", "Bare", 30),
        ({"class_path": f"{HERE}.bare", "init_args": {"count": 20}}, "Bare", 20),
        ({"class_path": f"{HERE}.Bare", "init_args": {"count": 20}}, "Bare", 20),
        (f"{HERE}.Bare", "Bare", 40),
        ({"class_path": f"{HERE}.OfTorch", "init_args": {"root": "x"}}, "OfTorch", 40),
        ({"class_path": f"{HERE}.BareStream", "init_args": {"count": 20}}, "BareStream", None),
        ({"class_path": f"{HERE}.Stream"}, "Stream", None),
        ({"class_path": "torchvision.datasets.FakeData", "init_args": {"size": 9}}, "FakeData", 9),
    ],
)
def test_a_dataset_is_a_class_or_a_function(train: object, kind: str, length: int | None) -> None:
    splits = built(train=train, val=train, test=train, predict=train).splits
    for stage in STAGES:
        dataset = splits.dataset(stage)
        assert type(dataset).__name__ == kind
        assert length is None or len(dataset) == length  # type: ignore[arg-type]


def test_a_folder_of_images(folder: Path) -> None:
    files = built(train={"class_path": "ddpm_data.sources.ImageFiles", "init_args": {"root": str(folder)}})
    assert isinstance(files.splits.dataset("train"), ImageFiles)


VALUES: list[tuple[str, object, Callable[[DDPMDataModule], object], object]] = [
    ("val", 0.1, lambda dm: dm.splits.fractions, {"val": 0.1}),
    ("test", 0.2, lambda dm: dm.splits.fractions, {"test": 0.2}),
    ("val", None, lambda dm: dm.splits.has("val"), False),
    ("timesteps", None, lambda dm: type(dm.transform.timesteps), UniformTimesteps),
    (
        "timesteps",
        {"class_path": "ddpm_data.UniformTimesteps", "init_args": {"low_discrepancy": True}},
        lambda dm: dm.transform.timesteps.low_discrepancy,
        True,
    ),
    ("timesteps", "ddpm_data.UniformTimesteps", lambda dm: type(dm.transform.timesteps), UniformTimesteps),
    ("timesteps", f"{HERE}.early", lambda dm: dm.transform.timesteps, early),
    (
        "timesteps",
        {"class_path": f"{HERE}.Early", "init_args": {"power": 3}},
        lambda dm: dm.transform.timesteps.power,
        3,
    ),
    ("augment", f"{HERE}.invert", lambda dm: dm.transform.augment, invert),
    ("augment", {"class_path": f"{HERE}.Invert", "init_args": {"top": 99}}, lambda dm: dm.transform.augment.top, 99),
    (
        "augment",
        {"class_path": "torchvision.transforms.v2.RandomHorizontalFlip", "init_args": {"p": 0.25}},
        lambda dm: (type(dm.transform.augment), dm.transform.augment.p),
        (v2.RandomHorizontalFlip, 0.25),
    ),
    (
        "augment",
        {
            "class_path": "ddpm_data.PerExample",
            "init_args": {"augment": {"class_path": "torchvision.transforms.v2.RandomHorizontalFlip"}},
        },
        lambda dm: type(dm.transform.augment.augment),
        v2.RandomHorizontalFlip,
    ),
    ("latents", {"scale": 0.5, "shift": [1.0, 2.0]}, lambda dm: dm.transform.latents, Latents(0.5, (1.0, 2.0))),
    (
        "latents",
        {"class_path": "ddpm_data.Latents", "init_args": {"scale": 0.5}},
        lambda dm: dm.transform.latents,
        Latents(0.5),
    ),
    ("image_size", [8, 12], lambda dm: tuple(dm.splits.processor.image_size), (8, 12)),
    ("image_key", "image", lambda dm: dm.splits.processor.image_key, "image"),
    ("image_key", 0, lambda dm: dm.splits.processor.image_key, 0),
    ("value_range", [0, 1], lambda dm: tuple(dm.splits.processor.value_range), (0, 1)),
    ("background", [9, 9, 9], lambda dm: dm.splits.processor.background, (9, 9, 9)),
    ("condition", 1, lambda dm: (dm.conditions.keys, dm.conditions.is_single), ((1,), True)),
    ("condition", "label", lambda dm: dm.conditions.keys, ("label",)),
    ("condition", ["a", "b"], lambda dm: (dm.conditions.keys, dm.conditions.is_single), (("a", "b"), False)),
    (
        "null_condition",
        {"caption": "", "embedding": 0.0},
        lambda dm: dm.dropout.null,
        {"caption": "", "embedding": 0.0},
    ),
    ("cache_dir", "cache", lambda dm: str(dm.splits.cache_dir), "cache"),
    ("seed", 2**64 - 1, lambda dm: dm.transform.seed, 2**64 - 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "get", "expected"), VALUES, ids=[f"{key}={value}" for key, value, *_ in VALUES]
)
def test_every_argument_is_saved_as_it_was_given(
    key: str, value: object, get: Callable[[DDPMDataModule], object], expected: object
) -> None:
    assert get(built(**{key: value})) == expected


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("ddpm_data.schedules.cosine", schedules.cosine()),
        (COSINE, schedules.cosine(50)),
        ({"class_path": "ddpm_data.schedules.zero_terminal_snr", "init_args": {"betas": COSINE}}, None),
        ({"class_path": f"{HERE}.late", "init_args": {"num_timesteps": 9}}, late(9)),
    ],
)
def test_a_schedule_is_what_a_function_returns(schedule: object, expected: Tensor | None) -> None:
    expected = schedules.zero_terminal_snr(schedules.cosine(50)) if expected is None else expected
    assert torch.equal(built(schedule=schedule).transform.process.betas, expected.float())


def gamma_3(process, target) -> Tensor:  # noqa: ANN001
    return weights.min_snr(process, target, gamma=3.0)


def towards_noise(process) -> Tensor:  # noqa: ANN001
    return densities.logit_normal(process, mean=0.5)


def test_a_weight_and_a_density_are_functions_ours_or_a_users_own() -> None:
    process = ForwardProcess(schedules.cosine(50))
    ours, own = (
        ("ddpm_data.weights.min_snr", "ddpm_data.densities.logit_normal"),
        (f"{HERE}.gamma_3", f"{HERE}.towards_noise"),
    )
    for (weight, density), gamma, mean in ((ours, 5.0, 0.0), (own, 3.0, 0.5)):
        timesteps = {"class_path": "ddpm_data.DensityTimesteps", "init_args": {"density": density}}
        transform = built(weight=weight, timesteps=timesteps).transform
        assert torch.equal(transform.objective.weight, weights.min_snr(process, "noise", gamma).float())
        probabilities = find_probabilities(transform.timesteps, process)
        torch.testing.assert_close(probabilities, densities.logit_normal(process, mean), rtol=0, atol=1e-9)


def test_subclasses_of_the_datamodule_by_class_and_by_path() -> None:
    own = built(Subclass, root="a")
    assert isinstance(own, Subclass)
    assert own.root == "a"
    arguments = {"train": "ddpm_data.sources.digits", "schedule": COSINE, "root": "b"}
    own = built(subclass=True, class_path=f"{HERE}.Subclass", init_args=arguments)
    assert isinstance(own, Subclass)
    assert own.root == "b"


def test_a_misspelt_argument_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        built(train={"class_path": "ddpm_data.sources.ImageFiles", "init_args": {"rooot": "x"}})
    assert "rooot" in capsys.readouterr().err


def test_parts_are_built_by_lightnings_instantiate_class_too() -> None:
    """It builds one class or calls one function; what lies deeper is for its caller."""
    parts = {
        "train": instantiate_class((), {"class_path": "ddpm_data.sources.digits"}),
        "schedule": instantiate_class((), COSINE),
        "timesteps": instantiate_class((), {"class_path": "ddpm_data.UniformTimesteps"}),
    }
    dm = instantiate_class((), {"class_path": "ddpm_data.DDPMDataModule", "init_args": parts | {"val": 0.1}})
    assert isinstance(dm, DDPMDataModule)
    assert torch.equal(dm.transform.process.betas, schedules.cosine(50).float())
    dm.setup("fit")
    assert len(next(iter(dm.train_dataloader())).images) == 64
    assert len(digits()) == sum(dm.splits.images(stage).length or 0 for stage in ("train", "val"))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_pages_project_trains_and_its_saved_configuration_runs_again(tmp_path: Path) -> None:
    """As docs/how-to/lightning-cli.md says it."""
    for name, text in re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    commands = re.findall(r"^python (.+)$", PAGE, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        result = subprocess.run(
            [python(), *command.split()], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
        )
        assert result.returncode == 0, result.stderr[-3000:]
        assert "Unable to serialize" not in result.stderr
    first, last = (
        yaml.safe_load((tmp_path / f"runs/lightning_logs/version_{n}/config.yaml").read_text()) for n in (0, 2)
    )
    assert first["data"] == last["data"]
    losses = [(tmp_path / f"runs/lightning_logs/version_{n}/metrics.csv").read_text().splitlines()[:3] for n in (0, 2)]
    assert losses[0] == losses[1]  # the same seed, the same stream
