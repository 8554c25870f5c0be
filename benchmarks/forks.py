"""A count of forked workers that hang beside gloo: ``torchrun --nproc_per_node=2 benchmarks/forks.py``.

Each process runs a few collectives, as a training step does, then forks a child that ends at once, again and again. It
does so with and without a pause before the fork, in turn. Each process prints how many children never came to life.

CPython before 3.11.10 loses some: the child inherits a lock that is locked (gh-112275). On these versions
``ddpm_data/loading/loader.py`` therefore pauses.
"""

import argparse
import os
import random
import signal
import sys
import time

import torch
from torch import distributed

PAUSES = (0.0, 0.01)  # seconds


def main() -> None:
    """Fork and count until the time is up, then print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    args = parser.parse_args()
    distributed.init_process_group("gloo")
    rank, began = distributed.get_rank(), time.monotonic()
    generator, forks, hangs = random.Random(rank), dict.fromkeys(PAUSES, 0), dict.fromkeys(PAUSES, 0)
    while _broadcast_flag(time.monotonic() - began < args.seconds):
        for pause in PAUSES:
            works = [distributed.broadcast(torch.zeros(8), 0, async_op=True) for _ in range(8)]
            for work in filter(None, works):  # None would be a process outside the group
                work.wait()
            del works
            time.sleep(pause + generator.random() * 1e-4)
            hangs[pause] += _fork_hangs()
            forks[pause] += 1
    version = sys.version.split()[0]
    for pause in PAUSES:
        print(f"Python {version}, pause {1000 * pause:g} ms: {hangs[pause]} of {forks[pause]} forks hung", flush=True)
    distributed.destroy_process_group()


def _broadcast_flag(flag: bool) -> bool:
    """Return the flag of rank 0, so that all processes stop in the same round."""
    answer = torch.tensor(float(flag))
    distributed.broadcast(answer, 0)
    return bool(answer)


def _fork_hangs() -> bool:
    """Fork a child that ends at once; returns whether it is still there after two seconds."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    deadline = time.monotonic() + 2
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(1e-4)
    return False


if __name__ == "__main__":
    main()
