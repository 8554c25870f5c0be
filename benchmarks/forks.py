"""Do forked workers of a gloo process hang? ``torchrun --nproc_per_node=2 benchmarks/forks.py``.

Each process runs a few collectives, as a training step does, and forks a child that ends at once, again and again;
with and without a pause between the two, in turn. Printed, by each process: how many children never came to life.
CPython before 3.11.10 loses some (gh-112275, a lock that the child inherits locked); loading.py therefore pauses there.
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
    """Fork, count, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    args = parser.parse_args()
    distributed.init_process_group("gloo")
    rank, began = distributed.get_rank(), time.monotonic()
    draw, forks, hung = random.Random(rank), dict.fromkeys(PAUSES, 0), dict.fromkeys(PAUSES, 0)
    while _all_agree(time.monotonic() - began < args.seconds):
        for pause in PAUSES:
            works = [distributed.broadcast(torch.zeros(8), 0, async_op=True) for _ in range(8)]
            for work in filter(None, works):  # None would be a process outside the group
                work.wait()
            del works
            time.sleep(pause + draw.random() * 1e-4)
            hung[pause] += _fork_hangs()
            forks[pause] += 1
    version = sys.version.split()[0]
    for pause in PAUSES:
        print(f"Python {version}, pause {1000 * pause:g} ms: {hung[pause]} of {forks[pause]} forks hung", flush=True)
    distributed.destroy_process_group()


def _all_agree(go_on: bool) -> bool:
    answer = torch.tensor(float(go_on))
    distributed.broadcast(answer, 0)
    return bool(answer)


def _fork_hangs() -> bool:
    child = os.fork()
    if child == 0:
        os._exit(0)
    patience = time.monotonic() + 2
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > patience:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(1e-4)
    return False


if __name__ == "__main__":
    main()
