"""Python code for our configs: build the DataModule from its groups, record Hydra jobs, and print short errors."""

import atexit
import difflib
import inspect
import json
import os
import signal
import time
import traceback
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ddpm_data import _interruption
from ddpm_data._errors import app_keys, did_you_mean, explain
from ddpm_data._errors import short_errors as short_errors
from ddpm_data._interruption import is_first_process
from ddpm_data._keys import GROUPS, naming_keys
from ddpm_data.datamodule.module import DDPMDataModule
from ddpm_data.diffusion.process import make_process
from ddpm_data.diffusion.transform import ForwardDiffusion

DATASET_KEYS = (  # arguments of DDPMDataModule that the group dataset holds
    *("train", "val", "test", "predict", "image_key", "image_size", "value_range", "channels", "resize", "crop"),
    *("background", "flip", "augment", "latents", "condition", "condition_images"),
    *("condition_dropout", "null_condition"),
)
SOURCE_KEYS = (  # further keys, which its train and val refer to: ${..root}
    *("root", "labels", "path", "shards", "split", "key", "count"),
    "own",  # a mapping for values that your own configs refer to
)
LOADER_KEYS = (  # arguments of DDPMDataModule that the group loader holds
    *("batch_size", "num_workers", "drop_last", "prefetch_factor", "persistent_workers", "multiprocessing_context"),
    *("pin_memory", "timeout", "on_bad_item", "max_bad_fraction", "cache_dir"),
)
DEFAULTS = {"val": 0.1, "channels": 3, "flip": 0.5, "batch_size": 128}  # for keys that the configs leave out
RECORD, ERROR = "job.json", "error.txt"


def build_datamodule(
    cls: str = "ddpm_data.DDPMDataModule",
    namespace: object = None,
    key_names: Mapping[str, str] | None = None,
    **config: Any,  # noqa: ANN401  # arguments of any type
) -> DDPMDataModule:
    """Build the DataModule that ``conf/datamodule/default.yaml`` describes.

    Args:
        cls: The path of :class:`~ddpm_data.datamodule.DDPMDataModule` or of a subclass.
        namespace: Not ``None`` where the app has our groups below ``ddpm_data``.
        key_names: Where our keys stand in the app, if that is known better, see :func:`~ddpm_data._keys.naming_keys`.
        **config: See :func:`merge_groups`; what has a ``_target_`` is instantiated here, so that its errors name keys
            as they are in the app.

    Raises:
        ValueError: A key of a group is misspelt; or see the class.
        TypeError: See the class.
    """
    names = _name_groups(namespace) if key_names is None else key_names
    for name in ("dataset", "loader"):  # what an argument overrides is not built, and may be missing
        group = config.get(name) or {}
        if not isinstance(group, Mapping):
            raise ValueError(f"`datamodule.{name}` is {group!r}, but it holds the config group. Write {name}={group}")
        config[name] = {key: value for key, value in group.items() if key not in config}
    for key, value in config["dataset"].items():  # a function in place of ImageFiles need not know of labels
        if isinstance(value, Mapping) and value.get("labels") is False:
            config["dataset"][key] = {name: value[name] for name in value if name != "labels"}
    with naming_keys(names):
        datamodule: DDPMDataModule = get_class(cls)(**merge_groups(**_instantiate(config)))
    datamodule.key_names = names
    return datamodule


def _name_groups(namespace: object) -> dict[str, str]:
    """Return where our groups stand in the app's config, see :func:`build_datamodule`."""
    return {group: group if namespace is None else f"ddpm_data.{group}" for group in GROUPS}


def _instantiate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Instantiate what arguments hold; errors name keys, without Hydra's words around them."""
    groups = {key: value for key, value in config.items() if isinstance(value, dict)}  # Hydra would copy an object
    try:
        built: dict[str, Any] = instantiate(groups, _convert_="all")
        for key, value in built.items():
            _check_partial(key, value)
        return {**config, **built}
    except (MissingMandatoryValue, InstantiationException) as error:
        message = explain(error, {})  # the names are given by whoever calls this
        if message is None:
            raise
        raise ValueError(message) from error


def _check_partial(key: str, value: object) -> None:
    """Refuse misspelt arguments of a function that is called later, such as a loss weight.

    Raises:
        ValueError: It has no such argument.
    """
    if not isinstance(value, partial):
        return
    known = inspect.signature(value.func).parameters
    wrong = [name for name in value.keywords if name not in known]
    if wrong and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        where = f"{value.func.__module__}.{value.func.__qualname__}"
        raise ValueError(f"`{key}.{wrong[0]}` is no argument of {where}.{did_you_mean(wrong[0], known, f'{key}.')}")


def merge_groups(
    dataset: Mapping[str, Any] | None = None,
    loader: Mapping[str, Any] | None = None,
    **arguments: Any,  # noqa: ANN401  # arguments of any type
) -> dict[str, Any]:
    """Merge the config groups ``dataset`` and ``loader`` into arguments of the DataModule.

    Args:
        dataset: The group; its keys are :data:`DATASET_KEYS` and :data:`SOURCE_KEYS`.
        loader: The group; its keys are :data:`LOADER_KEYS`.
        **arguments: Further arguments of the DataModule, which override the groups. ``seed`` and ``compile`` come from
            the app's root: a seed that is null, and a ``compile`` that is null or a mapping, mean the defaults.

    Raises:
        ValueError: A group has an unknown key.
    """
    if arguments.get("seed", 0) is None:
        del arguments["seed"]
    if not _is_ours(arguments.get("compile", True)):
        del arguments["compile"]
    groups = {"dataset": dict(dataset or {}), "loader": dict(loader or {})}
    for name, group in groups.items():
        check_keys(name, group)
    values = groups["dataset"] | groups["loader"]
    if values.get("labels") is True and values.get("condition") is None:
        values["condition"] = 1  # items are then (image, label)
    return DEFAULTS | {key: value for key, value in values.items() if key not in SOURCE_KEYS} | arguments


def build_transform(
    compile: object = True,
    namespace: object = None,
    **config: Any,  # noqa: ANN401  # arguments of any type
) -> ForwardDiffusion:
    """Build the transform that ``conf/transform/default.yaml`` describes.

    Args:
        compile: The key of the app's root; see :class:`~ddpm_data.diffusion.transform.ForwardDiffusion`.
        namespace: See :func:`build_datamodule`.
        **config: Its other arguments.

    Raises:
        ValueError: See there.
        TypeError: Likewise.
    """
    config["seed"] = choose_seed(config.get("seed"))
    arguments = config | ({"compile": compile} if _is_ours(compile) else {})
    with naming_keys(_name_groups(namespace)):
        values = _instantiate(arguments)
        return ForwardDiffusion(**values | {"process": make_process(values.get("process"))})


def choose_seed(seed: int | None = None) -> int:
    """Return the seed of the app's root, which many apps leave null for a random one; then it is 0."""
    return 0 if seed is None else seed


def _is_ours(compile: object) -> bool:
    """Tell whether the root's ``compile`` is meant for the transform: other apps keep torch.compile's options there."""
    return compile is not None and not isinstance(compile, Mapping)


def check_keys(group: str, keys: Iterable[str]) -> None:
    """Refuse unknown keys of a config group, which would silently have no effect.

    Args:
        group: ``"dataset"`` or ``"loader"``.
        keys: Its keys in a configuration.

    Raises:
        ValueError: A key is not one of the group's.
    """
    known = {"dataset": (*DATASET_KEYS, *SOURCE_KEYS), "loader": LOADER_KEYS}
    for key in keys:
        if key not in known[group]:
            names = {name: f"{owner}.{name}" for owner in (group, *known) for name in known[owner]}
            near = difflib.get_close_matches(str(key), names, 1)
            own = " Put your own values below `dataset.own`." if group == "dataset" else ""
            raise ValueError(
                f"`{group}.{key}` is not a key of the config group {group}, so it would have no effect. "
                + (f"Did you mean `{names[near[0]]}`?" if near else f"Its keys are {', '.join(known[group])}.")
                + own
            )


class JobRecords(Callback):
    """A Hydra callback that records every job: ``hydra.callbacks.jobs._target_=ddpm_data.hydra.JobRecords``.

    Each job's folder gets ``config.yaml``, the configuration with every value resolved, and ``job.json``, with the
    overrides, how the job ended, its seconds and its value.

    A job that Ctrl-C or SIGTERM ends is recorded as interrupted, prints the command that resumes it, and ends its
    sweep. A job that starts anew in the folder of another run is refused, because it would overwrite that run.

    A failed job does not end its sweep. Its folder also gets ``error.txt``. At its end, the sweep names the failed jobs
    and exits with status 1. For a sweeper that searches for the best value (Optuna's), a failed job has no value.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._handlers: dict[int, _interruption.Handler] = {}

    def on_run_start(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401  # Hydra's
        """Refuse a folder that another run has used, unless SLURM has started the same job again: then resume it.

        Raises:
            SystemExit: It has.
        """
        folders = [word.partition("=")[2] for word in config.hydra.overrides.hydra if word.startswith("hydra.run.dir=")]
        if is_first_process() or not folders:
            folder = Path(config.hydra.run.dir)
        else:
            folder = Path(folders[0])  # as typed: train_stub.py adds another one for these processes
        if "ckpt_path" not in config or not _interruption.is_used(folder):
            return
        checkpoint = _interruption.find_checkpoint(folder)
        if int(os.environ.get("SLURM_RESTART_COUNT", "0")) and checkpoint is not None:
            with read_write(config):
                config.ckpt_path = str(checkpoint)
            if is_first_process():
                print(f"SLURM has started this job again. It resumes from {checkpoint}", flush=True)
            return
        if not is_first_process():
            return
        if config.ckpt_path is not None and Path(config.ckpt_path).resolve().is_relative_to(folder.resolve()):
            return
        raise SystemExit(
            f"{folder} holds the files of another run, and a run that starts anew would overwrite them. Set "
            "`hydra.run.dir` to another folder"
            + (
                f", or go on with that run: {_interruption.shell_quote(f'ckpt_path={_interruption.quote(checkpoint)}')}"
                if checkpoint
                else ", or remove this one."
            )
        )

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401  # Hydra's
        """Refuse a folder that another sweep has used, and listen to signals if jobs run in processes of their own.

        Raises:
            SystemExit: It has.
        """
        if _interruption.is_used(folder := Path(config.hydra.sweep.dir)):
            raise SystemExit(
                f"{folder} holds the files of another sweep, and this one would overwrite them. Set `hydra.sweep.dir` "
                "to another folder, or remove this one."
            )
        if config.hydra.launcher._target_.endswith((".JoblibLauncher", ".LocalLauncher")):  # they kill their jobs
            _interruption.end_sweep_on_signals(lambda: _find_running(folder))
            atexit.register(self._on_sweep_interruption, config)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401  # Hydra's
        """Write the configuration and the overrides."""
        self._began = time.monotonic()
        self._handlers = _interruption.end_on_signals()
        atexit.register(self._on_interruption, config)  # on_job_end is not called if SystemExit passes
        if is_first_process():
            (_folder(config) / ERROR).unlink(missing_ok=True)
            _write(_folder(config), _list_overrides(config) | {"status": "started"})
            resolved = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
            try:
                OmegaConf.save(resolved, _folder(config) / "config.yaml", resolve=True)
            except OmegaConfBaseException:
                (_folder(config) / "config.yaml").unlink(missing_ok=True)  # the job itself will raise the error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:  # noqa: ANN401  # Hydra's
        """Write how the job ended; if it failed, let the sweep continue."""
        atexit.unregister(self._on_interruption)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        record: dict[str, object] = {"seconds": round(time.monotonic() - self._began, 1)}
        error = job_return._return_value if job_return.status == JobStatus.FAILED else None
        if isinstance(error, Exception):
            record |= {
                "status": "failed",
                "error": explain(error, app_keys(config)) or f"{type(error).__name__}: {error}",
            }
        else:
            value = job_return.return_value
            record |= {"status": "finished", "value": value if isinstance(value, int | float) else None}
        if is_first_process():
            _write(_folder(config), _list_overrides(config) | record)
        if isinstance(error, Exception) and config.hydra.mode == RunMode.MULTIRUN:
            job_return.return_value, job_return.status = None, JobStatus.COMPLETED
            (_folder(config) / ERROR).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            print(f"job {_folder(config).name} failed, and the sweep continues: {record['error']}", flush=True)

    def _on_interruption(self, config: DictConfig) -> None:
        """Write that the job was interrupted, and print how to go on with it."""
        if is_first_process():
            folder, seconds = _folder(config), round(time.monotonic() - self._began, 1)
            print(f"\nInterrupted; the run's folder is {folder}")
            _end_interrupted(folder, _list_overrides(config) | {"seconds": seconds}, config)

    def _on_sweep_interruption(self, config: DictConfig) -> None:
        """Do so for every job of a sweep whose launcher has killed it, before it could."""
        folder = Path(config.hydra.sweep.dir)
        print(f"\nInterrupted; the sweep's folder is {folder}")
        for job in _find_running(folder):
            print(f"Job {job.name}:")
            record = json.loads((job / RECORD).read_text(encoding="utf-8"))
            _end_interrupted(job, record, config)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401  # Hydra's
        """Print how many jobs finished, and name those that failed.

        Raises:
            SystemExit: A job has failed.
        """
        atexit.unregister(self._on_sweep_interruption)
        folder = Path(config.hydra.sweep.dir)
        jobs = _read_jobs(folder)
        failed = {path: job for path, job in jobs.items() if job["status"] != "finished"}
        print(f"\n{len(jobs) - len(failed)} of {len(jobs)} jobs finished; the sweep is in {folder}")
        print(f"To compare them: ddpm-data compare {_interruption.shell_quote(str(folder))}", flush=True)
        if failed:
            common = set.intersection(*(set(job["overrides"]) for job in jobs.values()))
            lines = [f"{len(failed)} of {len(jobs)} jobs failed:"]
            for path, job in failed.items():
                own = [override for override in job["overrides"] if override not in common]
                lines += [f"  job {path.name} ({' '.join(own)}): {job.get('error', 'it did not end').splitlines()[0]}"]
                lines += [f"    {path / ERROR}"] if (path / ERROR).exists() else []
            raise SystemExit("\n".join(lines))


def _folder(config: DictConfig) -> Path:
    return Path(config.hydra.runtime.output_dir)


def _read_jobs(sweep: Path) -> dict[Path, dict[str, Any]]:
    """Return the record of each job of a sweep, by the job's folder, in their order."""
    paths = sorted(sweep.rglob(RECORD), key=lambda path: (len(path.parent.name), path))
    return {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _find_running(sweep: Path) -> list[Path]:
    return [folder for folder, job in _read_jobs(sweep).items() if job["status"] in ("started", "interrupted")]


def _end_interrupted(folder: Path, record: dict[str, Any], config: DictConfig) -> None:
    """Write that a job was interrupted, and print the command that goes on with it."""
    checkpoint = _interruption.find_checkpoint(folder)
    step = _interruption.read_step(checkpoint) if checkpoint else None
    record |= {"status": "interrupted"} | ({} if step is None else {"step": step})
    _write(folder, record)
    overrides = [*record["overrides"], *config.hydra.overrides.hydra]
    command = _interruption.resume_command(overrides, folder, checkpoint, bool(config.hydra.job.chdir))
    if checkpoint is None:
        print(f"There is no checkpoint in it yet. To start again:\n  {command}", flush=True)
    else:
        at = "" if step is None else f" after step {step}"
        how = ", start it on every machine as before, with these arguments" * _interruption.is_on_several_machines()
        print(f"To resume from its checkpoint {checkpoint.name}{at}{how}:\n  {command}", flush=True)


def _write(folder: Path, record: Mapping[str, object]) -> None:
    part = folder / f"{RECORD}.part"  # a sweep may read the record at the same time
    part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / RECORD)


def _list_overrides(config: DictConfig) -> dict[str, Any]:
    return {"overrides": OmegaConf.to_container(config.hydra.overrides.task)}
