"""A wrong key, choice or value costs a line or two: in our main job, in the commands, and in an app of a user's own."""

import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from ddpm_data import check as check_command
from ddpm_data.hydra import explain, short_errors
from tests.callbacks.helpers import data
from tests.conftest import ROOT, Recorder, trainer
from tests.groups import PATIENCE
from tests.test_configs import composed
from tests.warm import python
from train_stub import check

IN_COMPOSITION = {  # what is typed, and the whole message
    "datset=digits": "the configuration has no `datset`. Did you mean `dataset`?",
    "datset.root=x": "the configuration has no `datset.root`. Did you mean `dataset.root`?",
    "experimnt=mnist": "the configuration has no `experimnt`. Did you mean `experiment`?",
    "sampels=3": "the configuration has no `sampels`. Did you mean `samples`?",
    "ckpt=x": "the configuration has no `ckpt`. Did you mean `ckpt_path`?",
    "schedule.num_timestep=5 schedule=cosine": "the configuration has no `schedule.num_timestep`. Did you mean "
    "`schedule.num_timesteps`?",
    "batch_size=8": "the configuration has no `batch_size`. Did you mean `loader.batch_size`?",
    "loader.workers=2": "the configuration has no `loader.workers`. Did you mean `loader.num_workers`?",
    "trainer.epochs=2": "the configuration has no `trainer.epochs`. Did you mean `trainer.max_epochs`?",
    "callbacks.throughput.every=2": "the configuration has no `callbacks.throughput.every`. Did you mean "
    "`callbacks.throughput.every_n_steps`?",
    "hydra.run.dri=x": "the configuration has no `hydra.run.dri`. Did you mean `hydra.run.dir`?",
    "model.lr=1": r"the configuration has no `model.lr`. `model` has .*, learning_rate, .*, write \+model.lr=1",
    "schedule=cosin": r"the config group schedule has no `cosin`. Did you mean `cosine`\? It has .*, cosine, .*",
    "debug=fast": "the config group debug has no `fast`. It has default, fdr, profiler.",
    "hydra/launcher=joblb": r"the config group hydra/launcher has no `joblb`. Did you mean `joblib`\? It has .*",
    "+schedule=cosine": "`schedule` has a choice already. Replace it, without the plus: schedule=...",
    "schedule=linear,cosine": "`schedule=linear,cosine` gives one run several values. Add -m to run each of them, or "
    "write schedule=[linear,cosine] for a list.",
    "trainer.MAX_EPOCHS=3": "the configuration has no `trainer.MAX_EPOCHS`. Did you mean `trainer.max_epochs`?",
    "dataset.root=x": r"the configuration has no `dataset.root`. `dataset` has .*, write \+dataset.root=x",  # not crop
    "noise.strength=1": "the configuration has no `noise.strength`. `noise` has no keys. To add it, write "
    "+noise.strength=1",
    "dataset/train=mnist": "the configuration has no `dataset/train`. Did you mean `dataset.train`?",
    "+timestep@model.x=uniform": "`+timestep@model.x=uniform`: there is no config group timestep. Did you mean "
    "`timesteps`?",
    "~callbacks.timestep_los": "the configuration has no `callbacks.timestep_los`. Did you mean "
    "`callbacks.timestep_loss`?",
    "~callback.timestep_loss": "the configuration has no `callback.timestep_loss`. Did you mean "
    "`callbacks.timestep_loss`?",
    "~dataset.foo": "the configuration has no `dataset.foo`. `dataset` has .*, null_condition.",
    "~ckpt_path": "`ckpt_path` is null.",
    "~schedule=cosine": "`~schedule=cosine`: schedule is `linear`, not `cosine`. To delete it, write ~schedule",
    "~schedule@model.x": "`~schedule@model.x`: the defaults list has no schedule@model.x. Did you mean `schedule`?",
    "trainer=GPU": r"the config group trainer has no `GPU`. Did you mean `gpu`\? It has cpu, .*",
    "hydra/launcher=slurm": r"the config group hydra/launcher has no `slurm`. Did you mean `submitit_slurm`\? It .*",
    "schedule=preset/edm2": "the config group schedule has no `preset/edm2`. .*",
    "callbacks=[checkpoint,throughputs]": r"the config group callbacks has no `throughputs`. Did you mean "
    r"`throughput`\? It has .*",
    "logger=null": "`logger=null`: the config group logger has csv, mlflow, tensorboard, wandb. To leave the group "
    "out, write ~logger",
    "samples:3": "cannot read `samples:3`: mismatched input '3'. Did you mean samples=3?",
    "samples==3": "cannot read `samples==3`: extraneous input '='. Did you mean samples=3?",
    "dataset.image_size=(8,8)": "cannot read `dataset.image_size=(8,8)`: extraneous input '('. Did you mean "
    "'dataset.image_size=[8,8]'?",
    "ckpt_path=a=b.ckpt": "cannot read `ckpt_path=a=b.ckpt`: mismatched input '='. Did you mean "
    "\"ckpt_path='a=b.ckpt'\"?",
    "trainer.devices[0]=1": "cannot read `trainer.devices[0]=1`: one item of a list cannot be set. Write the whole "
    "list: trainer.devices=[...]",
    "samples": "cannot read `samples`: missing EQUAL at '<EOF>'. Write key=value, with quotes around signs: "
    "'key=\"a, b\"'.",
    "model.width=[8": r"cannot read `model.width=\[8`: .* Write key=value, with quotes around signs: 'key=\"a, b\"'.",
    "=3": "Config group override must be a string or a list. Got int",
}
IN_THE_JOB = {
    "dataset=image_folder": "`dataset.root` has no value (???). Set it: dataset.root=...",
    "dataset=image_folder dataset.root=/nowhere": "ImageFiles: there is no folder /nowhere. Change `dataset.root`.",
    "dataset=image_folder dataset.root=/tmp dataset.labels=1": "ImageFiles(labels=1): expected true or false. Change "
    "`dataset.labels`.",
    "dataset=arrays dataset.path=/nowhere.npy": r".*/nowhere.npy.* `dataset.path`.*",
    "schedule.num_timesteps=many": "linear(num_timesteps='many'): expected a whole number, got str. Change "
    "`schedule.num_timesteps`.",
    "++schedule.num_timestep=5": "`schedule.num_timestep` is no argument of ddpm_data.schedules.linear. Did you mean "
    "`schedule.num_timesteps`?",
    "+weight.k=1": r"`weight.k` is no argument of ddpm_data\.diffusion\.weights\.uniform\.",
    "+weight.off=noise": r"`weight.off` is no argument of .*\. Did you mean `weight\.of`\?",
    "datamodule.dataset=mnist": "`datamodule.dataset` is 'mnist', but it holds the config group. Write dataset=mnist",
    "++loader.batchsize=5": "`loader.batchsize` is not a key of the config group loader, so it would have no effect. "
    "Did you mean `loader.batch_size`?",
    "dataset.flip=yes": "ForwardDiffusion(flip='yes'): expected a number, got str. Change `dataset.flip`.",
    "timesteps.low_discrepancy=2": r"UniformTimesteps\(low_discrepancy=2\): .* `timesteps.low_discrepancy`.",
    "dataset.train._target_=ddpm_data.sources.digit": "`dataset.train._target_`: ddpm_data.sources has no digit. Did "
    "you mean `ddpm_data.sources.digits`?",
    "schedule._target_=nowhere.linear": "`schedule._target_`: nowhere.linear cannot be imported: ModuleNotFoundError: "
    "No module named 'nowhere'. (HYDRA_FULL_ERROR=1 shows the traceback.)",
    "model._target_=train_stub.DPM": "`model._target_`: train_stub has no DPM. Did you mean `train_stub.DDPM`?",
    "trainer.accelerator=gpus": r"`trainer`: You selected an invalid accelerator name: `accelerator='gpus'`.*",
    "trainer.precision=fp16": r"`trainer`: ValueError: Precision 'fp16' is invalid. .* \(HYDRA_FULL_ERROR=1 shows .*",
    "++trainer.max_epoch=3": "`trainer.max_epoch` is no argument of lightning.pytorch.trainer.trainer.Trainer. Did you "
    "mean `trainer.max_epochs`?",
    "dataset.condition_dropout=0.1": r"condition_dropout=0.1: .*Set `dataset.null_condition`.",
    "loader.batch_size=${nowhere}": r".*Interpolation key 'nowhere' not found",
}

OF_RUN = "It is the run's folder: set `hydra.run.dir` to one that you may write to."


def run_job(typed: str, folder: Path) -> None:
    """Do what the main job does before it trains."""
    cfg = composed(*typed.split(" "), output_dir=folder)
    check(cfg)
    datamodule = instantiate(cfg.datamodule)
    instantiate(cfg.model)
    instantiate(cfg.trainer, logger=list(instantiate(cfg.logger).values()))
    datamodule.prepare_data()
    datamodule.setup("fit")


@pytest.mark.slow
@pytest.mark.parametrize("typed", [*IN_COMPOSITION, *IN_THE_JOB])
def test_a_mistake_is_a_line_that_says_what_was_meant(typed: str, tmp_path: Path) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011  # Hydra's, OmegaConf's, Lightning's and ours
        run_job(typed, tmp_path)
    message, says = explain(error.value), (IN_COMPOSITION | IN_THE_JOB)[typed]
    assert message is not None
    assert message == says or re.fullmatch(says, message)
    assert "\n" not in message


CONFIG = """
defaults:
  - ddpm_data/dataset@data: fake
  - ddpm_data/schedule@noise: cosine
  - ddpm_data/datamodule: default
  - _self_
ddpm_data: {datamodule: {dataset: "${data}", schedule: "${noise}", batch_size: 8}}
hydra:
  callbacks: {jobs: {_target_: ddpm_data.hydra.JobRecords}}
  run: {dir: run}
  job_logging: {disable_existing_loggers: false}
value: 1
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """An app of a user's own, which mounts our groups in other places: call it with what is typed."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*typed: str, task: Callable[[DictConfig], Any] = lambda cfg: None) -> None:
        @short_errors
        @hydra.main(version_base="1.3", config_path=str(tmp_path), config_name="config")
        def main(cfg: DictConfig) -> None:
            datamodule = instantiate(cfg.ddpm_data.datamodule)
            datamodule.setup("fit")
            task(cfg)

        monkeypatch.setattr(sys, "argv", ["app.py", *typed])
        main()

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (
            "data.image_size=x",
            "DDPMDataModule(image_size='x'): expected a whole number, got str. Change `data.image_size`.",
        ),
        ("noise.num_timesteps=0", "cosine(num_timesteps=0): it must be at least 1. Change `noise.num_timesteps`."),
        (
            "ddpm_data.datamodule.batch_size=0",
            "DDPMDataModule(batch_size=0): it must be at least 1. Change `ddpm_data.datamodule.batch_size`.",
        ),
        (
            "data.train.size=2",  # found in setup()
            "val=0.1 of 2 training images leaves 2 to train and 0 for val, but each needs one at least. Change "
            "`data.val`, or give a set of its own.",
        ),
        ("++data.flipp=1", r"`data.flipp` is not a key .* Did you mean `data.flip`\? .* below `data.own`."),
    ],
)
def test_in_an_app_the_keys_are_where_the_app_has_them_and_the_record_has_the_message(
    typed: str, says: str, app: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        app(typed)
    assert error.value.code == says or re.fullmatch(says, str(error.value.code))
    assert capfd.readouterr().err == f"Error executing job with overrides: ['{typed}']\n"  # Hydra's
    assert json.loads(Path("run", "job.json").read_text())["error"] == error.value.code


def test_a_reader_that_has_ended_ends_the_app_in_silence(
    app: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as error:
            app("--help")
    assert error.value.code == 141
    assert capfd.readouterr() == ("", "")


def test_before_an_app_starts_nothing_else_is_printed(
    app: Callable[..., None], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    not_a_folder = tmp_path / "file" / "run"
    for typed, says in {
        "noise.num_timestep=5": "the configuration has no `noise.num_timestep`. Did you mean `noise.num_timesteps`?",
        "ddpm_data/datset=a": "the configuration has no `ddpm_data/datset`. Did you mean `ddpm_data/dataset`?",
        "valu=2": "the configuration has no `valu`. Did you mean `value`?",
        "--value=2": "`--value=2` is no option. Overrides have no dashes: value=2",
        "--mutirun": "`--mutirun` is no option. Did you mean `--multirun`? --hydra-help lists the options.",
        f"hydra.run.dir={not_a_folder}": f"{not_a_folder}: Not a directory. {OF_RUN}",
    }.items():
        with pytest.raises(SystemExit) as error:
            app(typed)
        assert error.value.code == says
        assert capfd.readouterr() == ("", "")


def test_a_wrong_option_that_lightning_finds_in_training_is_a_line_but_not_a_mistake_in_a_model(tmp_path: Path) -> None:
    class Wrong(Recorder):
        def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ANN401  # Lightning's
            self.log("a", 1.0, on_step=False, on_epoch=False)

    told = []
    for model, monitor in ((Recorder(), "valloss"), (Wrong(), "a")):
        checkpoint = ModelCheckpoint(tmp_path, monitor=monitor)
        with pytest.raises(MisconfigurationException) as error:
            trainer(tmp_path, callbacks=[checkpoint], enable_checkpointing=True).fit(model, datamodule=data())
        told.append(explain(error.value))
    assert re.fullmatch(r".*monitor='valloss'.* \(HYDRA_FULL_ERROR=1 shows the traceback\.\)", str(told[0]))
    assert told[1] is None


def test_a_checkpoint_that_lightning_does_not_find_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        trainer(tmp_path).fit(Recorder(), datamodule=data(), ckpt_path="gone.ckpt")
    assert re.search(r"gone\.ckpt.* \(HYDRA_FULL_ERROR=1 shows the traceback\.\)", str(explain(error.value)))


@pytest.mark.slow
def test_errors_of_the_apps_own_code_keep_their_traceback_without_hydras_frames(app: Callable[..., None]) -> None:
    def task(cfg: DictConfig) -> None:
        Path("nowhere.csv").read_text()

    for error, mistake in ((FileNotFoundError, task), (ZeroDivisionError, lambda cfg: 1 / 0)):
        with pytest.raises(error) as caught:
            app(task=mistake)
        files = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert not any(f"{os.sep}hydra{os.sep}" in file for file in files)
        assert json.loads(Path("run", "job.json").read_text())["error"].startswith(f"{error.__name__}: ")


def test_with_the_environment_variable_every_error_keeps_it(
    app: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(hydra.errors.ConfigCompositionException):
        app("valu=2")
    with pytest.raises(hydra.errors.InstantiationException):
        app("data.image_size=x")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_the_variable_is_as_it_was_afterwards_and_processes_that_a_job_starts_print_short_errors_too(
    app: Callable[..., None],
) -> None:
    inner: list[object] = []

    def task(cfg: DictConfig) -> None:
        inner.append(os.environ["HYDRA_FULL_ERROR"])  # Hydra must not print errors in its own way
        with pytest.raises(SystemExit) as error:
            short_errors(lambda: instantiate({"_target_": "ddpm_data.schedules.linear", "ende": 5}))()
        inner.append(error.value.code)

    app(task=task)
    assert inner == ["1", "`ende` is no argument of ddpm_data.schedules.linear. Did you mean `end`?"]
    assert "HYDRA_FULL_ERROR" not in os.environ


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("datset=digits", IN_COMPOSITION["datset=digits"]),
        ("dataset=image_folder", IN_THE_JOB["dataset=image_folder"]),
        ("dataset=image_folder dataset.root=/nowhere", IN_THE_JOB["dataset=image_folder dataset.root=/nowhere"]),
        (
            "dataset.image_size=x",
            "DDPMDataModule(image_size='x'): expected a whole number, got str. Change `dataset.image_size`.",
        ),
    ],
)
def test_the_commands_say_it_in_a_line_too(typed: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as error:
        check_command.main([*typed.split(" "), "--num-workers", "0"])
    assert error.value.code == says


@pytest.mark.slow
def test_the_main_job_prints_one_line_and_in_a_folder_without_write_permission_too(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    # Root may write anywhere, unless it gives that up.
    powerless = ["setpriv", "--bounding-set=-dac_override"] if sys.platform == "linux" and os.geteuid() == 0 else []
    if powerless and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, or another user than root")
    for command, typed, says in (
        ([python()], "datset=digits", IN_COMPOSITION["datset=digits"]),
        ([*powerless, sys.executable], f"hydra.run.dir={folder}/run", f"{folder}/run: Permission denied. {OF_RUN}"),
    ):
        result = subprocess.run(
            [*command, ROOT / "train_stub.py", typed],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert (result.returncode, result.stderr, result.stdout) == (1, says + "\n", "")
