"""Real gloo processes under strategy="ddp" see, together, what one process sees, also after a kill."""

import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.datamodule.ddp_scenarios import DISAGREEING, LOSS_AWARE, SAVED, SCENARIOS
from tests.datamodule.ddp_scenarios import run as scenario
from tests.groups import PATIENCE, finished
from tests.warm import python

pytestmark = pytest.mark.slow  # processes
Rank = dict[str, Any]


def run(folder: Path, devices: int = 1, kill_after: int = -1, **options: object) -> list[Rank]:
    folder.mkdir(exist_ok=True)
    options |= {"devices": devices, "kill_after": kill_after}
    arguments = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    command = [python(), "-m", "tests.datamodule.ddp_job", str(folder), *arguments]
    result = subprocess.run(command, cwd=ROOT, timeout=PATIENCE, capture_output=True, text=True)
    if kill_after >= 0:
        assert result.returncode == -signal.SIGKILL
        return []
    assert result.returncode == 0, result.stderr[-2000:]
    return load(folder, devices)


def load(folder: Path, world_size: int) -> list[Rank]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world_size)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Rank:
    return run(tmp_path_factory.mktemp("one"), batch_size=12)[0]


@pytest.fixture(scope="module", params=[(2, 0), (2, 1), (3, 0)], ids=["2", "2, a worker", "3"])
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Rank]:
    devices, workers = request.param
    return run(tmp_path_factory.mktemp("many"), devices, batch_size=12 // devices, workers=workers)


def rows(ranks: list[Rank], steps: slice = slice(None)) -> list[bytes]:
    """Every training triple's noise, sorted."""
    batches = [batch for rank in ranks for batch in rank["seen"]["train"][steps]]
    return sorted(noise.numpy().tobytes() for batch in batches for noise in batch[2])


def test_every_step_sees_the_same_triples(one: Rank, many: list[Rank]) -> None:
    steps = len(one["seen"]["train"])
    assert steps == 2 * 3  # 26 training images in batches of 12, 12 and 2, which 3 processes join to the batch before
    if len(many) == 3:
        together = [torch.cat(parts) for parts in zip(*(rank["seen"]["train"][0] for rank in many), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(one["seen"]["train"][0], together, strict=True))
        assert rows(many) == rows([one])
        return
    for step in range(steps):
        together = [torch.cat(parts) for parts in zip(*(rank["seen"]["train"][step] for rank in many), strict=True)]
        for a, b in zip(one["seen"]["train"][step], together, strict=True):
            assert torch.equal(a, b)


def test_ranks_never_share_noise(many: list[Rank]) -> None:
    noises = [torch.cat([batch[2] for batch in rank["seen"]["train"]]).flatten(1) for rank in many]
    everything = torch.cat(noises)
    correlation = np.corrcoef(everything.numpy()) - np.eye(52)  # 26 images, 2 epochs
    assert np.abs(correlation).max() < 6 / 192**0.5  # 1,326 pairs of 192 numbers at 6 sigma: 3e-6 false alarms


def test_validation_is_the_same_whatever_the_world(one: Rank, many: list[Rank]) -> None:
    def noises(ranks: list[Rank], epoch: int) -> list[bytes]:
        found = []
        for rank in ranks:
            half = len(rank["seen"]["val"]) // 2
            batches = rank["seen"]["val"][epoch * half : (epoch + 1) * half]
            found += [noise.numpy().tobytes() for batch in batches for noise in batch[2]]
        return sorted(found)

    first = noises([one], 0)
    assert len(first) == len(set(first)) == 11
    assert first == noises([one], 1) == noises(many, 0) == noises(many, 1)
    for rank in many:
        assert rank["val_loss"] == pytest.approx(one["val_loss"], rel=1e-6)


def test_the_factory_runs_on_one_process_first(many: list[Rank]) -> None:
    assert [rank["calls"] for rank in many] == [[False], *[[True]] * (len(many) - 1)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a run that was killed in its second epoch, after 4 steps of 12."""
    folder = tmp_path_factory.mktemp("killed")
    run(folder, batch_size=12, kill_after=4)
    return folder


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 12), (2, 4), (3, 4)])
def test_a_killed_run_is_taken_up_on_any_number_of_processes(
    one: Rank, killed: Path, devices: int, batch_size: int, tmp_path: Path
) -> None:
    """What is left is seen once: of the first epoch from a checkpoint in its middle, of the second from one in its."""
    for step in (1, 4):
        rest = run(tmp_path / str(step), devices, batch_size=batch_size, ckpt=killed / f"step={step}.ckpt")
        seen = rows(rest)
        assert len(set(seen)) == len(seen)
        missing = set(rows([one], slice(step, None))) - set(seen)
        assert not set(seen) - set(rows([one], slice(step, None)))
        assert len(missing) in (0, 2) if devices == 3 else not missing  # 2 left for 3 processes: dropped
        if batch_size * devices == 12 and devices < 3:
            for number, batch in enumerate(one["seen"]["train"][step:]):
                together = [torch.cat(parts) for parts in zip(*(r["seen"]["train"][number] for r in rest), strict=True)]
                assert all(torch.equal(a, b) for a, b in zip(batch, together, strict=True))


def test_two_nodes_launched_by_torchrun_see_the_same(one: Rank, tmp_path: Path) -> None:
    command = [python(), "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    command += ["--rdzv_backend=static", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    job = ["-m", "tests.datamodule.ddp_job", str(tmp_path), "--nodes", "2", "--batch_size", "6"]
    nodes = [subprocess.Popen([*command, f"--node_rank={rank}", *job], cwd=ROOT) for rank in range(2)]
    assert [node.wait(timeout=PATIENCE) for node in nodes] == [0, 0]
    many = load(tmp_path, 2)
    for step, batch in enumerate(one["seen"]["train"]):
        together = [torch.cat(parts) for parts in zip(*(rank["seen"]["train"][step] for rank in many), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(batch, together, strict=True))


@pytest.mark.parametrize(("data", "tensor"), [(1, 2), (2, 1)])
def test_processes_that_hold_one_model_together_see_the_same_batches(data: int, tensor: int, tmp_path: Path) -> None:
    """The data are shared by as many as the strategy says, which may be fewer than there are processes."""
    command = [python(), "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    job = ["-m", "tests.datamodule.model_parallel_job", str(tmp_path), str(data), str(tensor)]
    code, printed = finished([*command, *job], ROOT)
    assert code == 0, printed[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    if data == 1:
        assert first == second
        assert [len(t) for t in first] == [4] * 5
    else:
        assert [len(t) for t in first] == [4, 4, 2]
        assert first != second


@pytest.fixture(scope="module")
def loss_aware(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rank]:
    """A folder with a checkpoint that one process wrote in the middle of an epoch, and what it saw in the whole run."""
    folder = tmp_path_factory.mktemp("scenarios")
    return folder, scenario(folder, 1, save=folder / "one.ckpt", **LOSS_AWARE[0])


@pytest.fixture(scope="module")
def together(loss_aware: tuple[Path, Rank]) -> list[Rank]:
    """What two processes saw in every scenario."""
    folder, _ = loss_aware
    command = [python(), "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += [f"--master_port={free_port()}", "-m", "tests.datamodule.ddp_scenarios", str(folder)]
    code, printed = finished(command, ROOT)
    assert code == 0, printed[-3000:]
    return load(folder, 2)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_cut_changes_nothing_in_any_optimizer_step(name: str, together: list[Rank], tmp_path: Path) -> None:
    one = scenario(tmp_path, 1, **SCENARIOS[name][0])
    alone = one["steps"]
    assert all(rank[name]["tables"] == one["tables"] for rank in together)
    if "loss-aware" in name:
        assert len(set(one["tables"][0])) > 1  # no longer uniform
    first, second = (rank[name]["steps"] for rank in together)
    assert len(alone) == len(first) == len(second) > 0
    for one_step, two_steps in zip(alone, zip(first, second, strict=True), strict=True):
        assert sorted(one_step) == sorted(two_steps[0] + two_steps[1])
        assert all(two_steps)


def test_a_density_that_follows_the_loss_is_taken_up_by_another_world(
    loss_aware: tuple[Path, Rank], together: list[Rank], tmp_path: Path
) -> None:
    """In the middle of an epoch, by two processes from one's checkpoint and by one from two's: steps and tables."""
    folder, whole = loss_aware
    saved = torch.load(folder / "one.ckpt", weights_only=True)
    assert saved["ddpm_data_loss_aware"]["number"] > 0
    assert len(set(saved["ddpm_data_loss_aware"]["shares"])) > 1
    assert saved["epoch"] == 1
    assert whole["tables"][0] != saved["ddpm_data_loss_aware"]["shares"]  # there are new tables in the rest
    one = scenario(tmp_path, 1, ckpt=folder / "two.ckpt", **LOSS_AWARE[0])
    both = [first + second for first, second in zip(*(rank["taken up"]["steps"] for rank in together), strict=True)]
    for steps in (one["steps"], both):
        assert steps[:SAVED] == [[]] * SAVED
        assert [sorted(step) for step in steps[SAVED:]] == [sorted(step) for step in whole["steps"][SAVED:]]
    assert all(rest["tables"] == whole["tables"] for rest in (one, *(rank["taken up"] for rank in together)))


def test_a_rest_smaller_than_the_world_joins_the_batch_before(together: list[Rank]) -> None:
    steps = zip(*(rank["a rest of one"]["steps"] for rank in together), strict=True)
    assert [(len(first), len(second)) for first, second in steps] == [(4, 5)] * 2


@pytest.mark.parametrize(
    ("name", "says"), [("1 image", "1 images, but 2 processes need one each"), ("7 images, drop_last", "need 8 for")]
)
def test_a_set_too_small_for_the_world_is_refused_on_every_rank(name: str, says: str, together: list[Rank]) -> None:
    assert all(says in rank[name]["error"] for rank in together)


@pytest.mark.parametrize("name", DISAGREEING)
def test_processes_that_were_not_given_the_same_are_told(name: str, together: list[Rank]) -> None:
    """They waited for each other for ever, or trained on what another process had too."""
    errors = [rank[f"disagreeing: {name}"]["error"] for rank in together]
    if name == "images":  # a warning, by the first process
        assert DISAGREEING[name][1] in errors[0]
        assert "do not have the same images" in errors[0]
        assert "do not have the same images" not in errors[1]
    else:
        assert errors[0] == errors[1]
        assert errors[0].startswith(DISAGREEING[name][1])


def test_nobody_waits_for_what_one_process_does_alone(together: list[Rank]) -> None:
    assert [rank["alone"]["error"] for rank in together] == ["done", "done"]


def test_a_checkpoint_that_only_one_process_was_given_is_an_error_in_both(together: list[Rank]) -> None:
    says = "the start of training is epoch 0 after 0 images in process 0 and epoch 1 after "
    assert all(rank["one checkpoint"]["error"].startswith(says) for rank in together)


@pytest.mark.parametrize("name", ["iterable", "iterable, workers"])
def test_ranks_of_an_iterable_source_share_no_noise(name: str, together: list[Rank]) -> None:
    rows = [row for rank in together for step in rank[name]["steps"] for row in step]
    assert len(rows) == len(set(rows)) == 2 * 24


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
def test_a_factory_that_waits_for_the_other_processes_does_not_hang(tmp_path: Path) -> None:
    """It was called on one process alone in prepare_data, and waited there for ever."""
    command = [python(), "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    code, printed = finished([*command, "-m", "tests.datamodule.collective_job", str(tmp_path)], ROOT)
    assert code == 0, printed[-3000:]
    (first, first_calls), (second, second_calls) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    )
    assert set(first.values()) == set(second.values()) == {10}
    assert first.keys() == second.keys()
    attempts = {name: first_calls.count(name) - second_calls.count(name) for name in first_calls}
    assert attempts.pop("alone") == 0  # kept from prepare_data
    assert set(attempts.values()) == {2, 3}  # given up there once for each DataModule: twice, and once by the Trainer
