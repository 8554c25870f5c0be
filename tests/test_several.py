"""Several machines, as far as one can play them: two torchrun nodes on loopback with nothing in common but a port."""

import re
import shlex
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from tests.conftest import ROOT, Recorder, trainer
from tests.datamodule.test_ddp import free_port
from tests.datamodule.test_loops import by_example
from tests.groups import PATIENCE, started
from tests.test_configs import composed
from tests.warm import python

SMALL = ["model.width=16", "model.ema_decay=0.5", "samples=4", "schedule.num_timesteps=20", "compile=false"]
TORCHRUN = [python(), "-m", "torch.distributed.run", "--nnodes=2", "--master-addr=127.0.0.1"]


class Node(NamedTuple):
    """What one of two machines was left with."""

    folder: Path
    code: int
    said: str

    def files(self, pattern: str) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob(pattern))


def nodes(folder: Path, processes: int, *job: str) -> list[Node]:
    """Both at once, each in a working folder of its own."""
    command = [*TORCHRUN, f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
    with ExitStack() as stack:
        running = []
        for rank in range(2):
            (here := folder / f"node{rank}").mkdir()
            environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            node = started([*command, f"--node-rank={rank}", *job], here, **environment)
            running.append((here, stack.enter_context(node)))
        return [Node(here, *node.finished()) for here, node in running]


PAGE = (ROOT / "docs/how-to/several-gpus.md").read_text()
COMMANDS = [line.partition("#")[0] for line in PAGE.splitlines() if re.match("(python|torchrun|srun) ", line)]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_pages_commands_compose(command: str) -> None:
    *_, overrides = command.partition("train_stub.py ")
    words = [word.replace("$SLURM_JOB_ID", "7") for word in shlex.split(overrides)]
    group = words[0].partition("=")[2]
    target = composed(*words).trainer.get("strategy")
    assert words[0].startswith("trainer=")
    assert "FSDP" in str(target) if group == "fsdp" else "ddp" in str(target).lower()


def test_the_page_has_all_its_commands() -> None:
    assert len(COMMANDS) == 8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty files, all of them too small."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(40):
        pixels = generator.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def overrides(pictures: Path, batch_size: int) -> list[str]:
    return [
        *("dataset=image_folder", f"dataset.root={pictures}", "dataset.image_size=16", "compile=false"),
        *(f"loader.batch_size={batch_size}", "schedule.num_timesteps=20"),
    ]


@pytest.fixture(scope="module")
def both(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Node]:
    """Two nodes of two processes, after the main job."""
    job = ["trainer=multi_node", "trainer.accelerator=cpu", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1"]
    job += ["model.channels=3", "model.width=8", "samples=4", "loader=cached", *overrides(pictures, 4)]
    job += ["dataset.train._target_=tests.node_job.downloaded", "+callbacks.keep={_target_:tests.node_job.Keep}"]
    found = nodes(tmp_path_factory.mktemp("both"), 2, str(ROOT / "train_stub.py"), *job)
    for node in found:
        assert node.code == 0, node.said[-3000:]
    return found


@pytest.mark.slow
def test_nodes_see_together_what_one_process_sees(both: list[Node], pictures: Path, tmp_path: Path) -> None:
    model, dm = Recorder(), instantiate(composed(*overrides(pictures, 16)).datamodule)
    alone = trainer(tmp_path, max_epochs=2)
    with pytest.warns(UserWarning, match="are enlarged") as told:
        alone.fit(model, datamodule=dm)
    assert (
        sum("are enlarged" in str(warning.message) for warning in told) == 1
    )  # of train, not again of the part of it that is held out
    ranks = [torch.load(path, weights_only=True) for node in both for path in node.folder.glob("rank*.pt")]
    assert len(ranks) == 4
    assert by_example([torch.cat(parts) for parts in zip(*ranks, strict=True)]) == by_example(list(model.all("train")))


@pytest.mark.slow
def test_each_node_downloads_and_decodes_once(both: list[Node]) -> None:
    for node in both:
        assert (node.folder / "calls.txt").read_text().splitlines() == ["0 False", "1 True"]
        assert len(node.files("*.npy")) == 1
        assert node.said.count("Decoding train into cache:   0%") == 1


@pytest.mark.slow
def test_a_run_has_one_folder_that_of_rank_0(both: list[Node]) -> None:
    first, second = both
    (run,) = first.folder.glob("outputs/*/*")
    own = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    best = next(name for name in own if name.startswith("checkpoints/epoch001"))
    hydras = [f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")]
    pictures = ["noising.png", "samples.png", "schedule.png", "timestep_loss.png"]
    tables = ["config.yaml", "job.json", "metrics.csv", "timestep_loss.csv"]
    assert own == sorted([*hydras, best, "checkpoints/last.ckpt", *tables, *pictures])
    left = ("cache", "calls.txt", "downloaded", "rank")  # the job's own, in the working folder
    assert {path.name for path in first.folder.iterdir() if not path.name.startswith(left)} == {"outputs"}
    assert not {path.name for path in second.folder.iterdir() if not path.name.startswith(left)}


@pytest.mark.slow
def test_what_is_true_of_the_run_is_said_once(both: list[Node]) -> None:
    said = both[0].said + both[1].said
    assert said.count("are enlarged") == 1
    assert said.count("The run's folder is") == said.count("The run took") == 1


@pytest.mark.slow
def test_an_error_on_one_node_ends_both(tmp_path: Path) -> None:
    first, second = nodes(tmp_path, 1, "-m", "tests.loading.faults_job", "error", str(tmp_path), "1", "2")
    assert first.code != 0
    assert second.code != 0
    assert re.search(r"RuntimeError: train\[\d+\]: KeyError: 'no row", second.said)
    assert "Check the logs of the remote worker" in first.said
    # Without an end by the failing rank, a collective would wait for half an hour.
    assert time.time() - float((tmp_path / "failed").read_text()) < PATIENCE


@pytest.mark.slow
def test_fsdp_in_two_tasks_of_slurm_learns_what_one_process_learns(tmp_path: Path) -> None:
    """All but the device and srun itself, whose environment is played; weights and their average agree."""
    job = [python(), str(ROOT / "train_stub.py"), *SMALL, "trainer.accelerator=cpu", "trainer.max_epochs=1"]
    job += ["trainer.limit_train_batches=6", "trainer.check_val_every_n_epoch=1", "trainer.gradient_clip_val=null"]
    shards = ["trainer=fsdp", "trainer.strategy._target_=tests.fsdp_cpu.OnCPU"]
    shards += ["loader.batch_size=16"]
    slurm = {"PYTHONPATH": str(ROOT), "MASTER_PORT": str(free_port()), "SLURM_NODELIST": "127.0.0.1"}
    slurm |= {f"SLURM_{name}": "2" for name in ("NTASKS", "NNODES")}
    slurm |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7"}
    with ExitStack() as stack:
        tasks = []
        for rank in ("0", "1"):
            environment = slurm | {"SLURM_PROCID": rank, "SLURM_NODEID": rank}
            tasks.append(stack.enter_context(started([*job, *shards], tmp_path, **environment)))
        alone = [*job, "trainer=cpu", "loader.batch_size=32", "hydra.run.dir=one"]
        tasks.append(stack.enter_context(started(alone, tmp_path)))
        for task in tasks:
            code, said = task.finished()
            assert code == 0, said[-3000:]
    (run,) = tmp_path.glob("outputs/*/*")  # one folder, though each task has a clock
    assert {path.name for path in tmp_path.iterdir()} == {"outputs", "one"}
    assert {"samples.png", "metrics.csv", "config.yaml"} < {path.name for path in run.iterdir()}
    sharded, whole = (torch.load(at / "checkpoints/last.ckpt")["state_dict"] for at in (run, tmp_path / "one"))
    assert sharded.keys() == whole.keys()
    fresh = 0.0
    for name, weights in whole.items():
        torch.testing.assert_close(sharded[name], weights, atol=1e-4, rtol=1e-4)
        if name.startswith("net."):
            fresh += float((weights - whole[name.replace("net.", "ema.module.")]).abs().sum())
    assert fresh > 0  # the average is another thing than the weights
