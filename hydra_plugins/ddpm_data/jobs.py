"""What each job of an app leaves in its folder, and what becomes of a sweep in which one fails."""

import json
import os
import time
import traceback
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

RECORD, ERROR = "job.json", "error.txt"


class Jobs(Callback):
    """A Hydra callback: ``hydra.callbacks.jobs._target_=hydra_plugins.ddpm_data.jobs.Jobs``.

    Every job leaves ``config.yaml``, its configuration with every value resolved, and ``job.json``, with its overrides,
    how it ended, after how many seconds and with what value. A job of a sweep that fails leaves ``error.txt`` too, and
    the sweep goes on; it is named when the sweep ends, which is then with status 1. It counts as a job without a value:
    a sweeper that searches for a best value (Optuna's) goes on without it.
    """

    def __init__(self) -> None:
        self._began = 0.0

    def on_job_start(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401  # Hydra's
        """Write what is known by then."""
        self._began = time.monotonic()
        if _is_first_process():
            (_folder(config) / ERROR).unlink(missing_ok=True)
            _write(config, {"status": "started"})
            resolved = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
            try:
                OmegaConf.save(resolved, _folder(config) / "config.yaml", resolve=True)
            except OmegaConfBaseException:
                (_folder(config) / "config.yaml").unlink(missing_ok=True)  # the job itself will say what is wrong

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:  # noqa: ANN401  # Hydra's
        """Write how it ended; keep a sweep from ending with it."""
        record: dict[str, object] = {"seconds": round(time.monotonic() - self._began, 1)}
        error = job_return._return_value if job_return.status == JobStatus.FAILED else None
        if isinstance(error, Exception):
            cause = error
            while isinstance(cause.__cause__, Exception):  # Hydra's own error only says where in the config
                cause = cause.__cause__
            record |= {"status": "failed", "error": f"{type(cause).__name__}: {cause}"}
        else:
            value = job_return.return_value
            record |= {"status": "finished", "value": value if isinstance(value, int | float) else None}
        if _is_first_process():
            _write(config, record)
        if isinstance(error, Exception) and config.hydra.mode == RunMode.MULTIRUN:
            job_return.return_value, job_return.status = None, JobStatus.COMPLETED
            (_folder(config) / ERROR).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            print(f"job {_folder(config).name} failed, and the sweep goes on: {record['error']}", flush=True)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401  # Hydra's
        """Name the jobs that failed.

        Raises:
            SystemExit: There are some.
        """
        folder = Path(config.hydra.sweep.dir)
        paths = sorted(folder.rglob(RECORD), key=lambda path: (len(path.parent.name), path))
        jobs = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in paths}
        failed = {path: job for path, job in jobs.items() if job["status"] != "finished"}
        print(f"\n{len(jobs) - len(failed)} of {len(jobs)} jobs finished; the sweep is in {folder}")
        print(f"To compare them: python -m ddpm_data.compare {folder}", flush=True)
        if failed:
            common = set.intersection(*(set(job["overrides"]) for job in jobs.values()))
            lines = [f"{len(failed)} of {len(jobs)} jobs failed:"]
            for path, job in failed.items():
                own = [override for override in job["overrides"] if override not in common]
                lines += [f"  job {path.name} ({' '.join(own)}): {job.get('error', 'it did not end').splitlines()[0]}"]
                lines += [f"    {path / ERROR}"] if (path / ERROR).exists() else []
            raise SystemExit("\n".join(lines))


def _is_first_process() -> bool:
    """Whether this is not one of several that torchrun or SLURM started alike, other than the first."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _folder(config: DictConfig) -> Path:
    return Path(config.hydra.runtime.output_dir)


def _write(config: DictConfig, record: dict[str, object]) -> None:
    record = {"overrides": OmegaConf.to_container(config.hydra.overrides.task)} | record
    (_folder(config) / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
