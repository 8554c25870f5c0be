"""Two real gloo processes under strategy="ddp" see, together, what one process sees."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import ROOT

Rank = dict[str, Any]


def run(folder: Path, devices: int, batch_size: int, workers: int = 0) -> list[Rank]:
    folder.mkdir()
    arguments = [str(folder), str(devices), str(batch_size), str(workers)]
    command = [sys.executable, "-m", "tests.ddp_job", *arguments]
    subprocess.run(command, check=True, cwd=ROOT, timeout=300, capture_output=True)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(devices)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Rank:
    return run(tmp_path_factory.mktemp("one") / "run", 1, 8)[0]


@pytest.fixture(scope="module", params=[0, 1], ids=["no workers", "one worker"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Rank]:
    return run(tmp_path_factory.mktemp("two") / "run", 2, 4, request.param)


def test_every_step_sees_the_same_triples(one: Rank, two: list[Rank]) -> None:
    steps = len(one["seen"]["train"])
    assert steps == 2 * 4  # 26 training images in batches of 8, 8, 8 and 2
    for step in range(steps):
        together = [torch.cat(parts) for parts in zip(*(rank["seen"]["train"][step] for rank in two), strict=True)]
        for a, b in zip(one["seen"]["train"][step], together, strict=True):
            assert torch.equal(a, b)


def test_ranks_never_share_noise(two: list[Rank]) -> None:
    noises = [torch.cat([batch[2] for batch in rank["seen"]["train"]]).flatten(1) for rank in two]
    assert [len(noise) for noise in noises] == [26, 26]
    everything = torch.cat(noises)
    correlation = np.corrcoef(everything.numpy()) - np.eye(52)
    assert np.abs(correlation).max() < 6 / 192**0.5  # 1,326 pairs of 192 numbers at 6 sigma: 3e-6 false alarms


def test_validation_sees_every_example_once_whatever_the_world(one: Rank, two: list[Rank]) -> None:
    def rows(ranks: list[Rank], epoch: int) -> set[bytes]:
        found = []
        for rank in ranks:
            batches = rank["seen"]["val"]
            half = len(batches) // 2
            found += [
                noise.numpy().tobytes() for batch in batches[epoch * half : (epoch + 1) * half] for noise in batch[2]
            ]
        assert len(found) == len(set(found)) == 11
        return set(found)

    assert rows([one], 0) == rows([one], 1) == rows(two, 0) == rows(two, 1)


def test_the_factory_runs_on_one_process_first(two: list[Rank]) -> None:
    assert [rank["calls"] for rank in two] == [[False], [True]]
