"""What the batch transform does on a CUDA device: ``python -m benchmarks.device`` (a minute on an H100).

Each line of the table is a question, its answer, and whether the answer is what we promise. The script asks for
agreement with the CPU, for the same bits in any batch, for waits and kernels per batch, for the time beside other ways
to make a triple and beside a copy of the same bytes, for the host's time, memory and CUDA graphs, and it trains with a
Trainer in three precisions. ``--device cpu`` asks what a CPU can answer. Any broken promise makes the exit status 1; a
missed goal of speed does not, since it depends on the card.
"""

import argparse
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import TensorDataset

from benchmarks import harness
from benchmarks.transform import STEPS, make_tutorial
from ddpm_data import DDPMDataModule, ForwardDiffusion, ForwardProcess, Triple, UniformTimesteps, schedules
from ddpm_data.latents import Latents

SHAPES = [(128, 3, 32, 32), (64, 3, 64, 64), (64, 4, 128, 128), (32, 3, 256, 256), (256, 3, 256, 256)]
SMALL = (64, 3, 64, 64)
# x_t and noise are float32 and images uint8; a copy moves as many bytes.
BYTES_PER_NUMBER = 9


class Answer(NamedTuple):
    """The answer to one question.

    Attributes:
        question: What was asked.
        answer: What was found.
        holds: Whether it is as promised; ``None`` if nothing is promised.
        is_goal: Whether it is a goal of speed, which a slower card may miss.
    """

    question: str
    answer: str
    holds: bool | None = None
    is_goal: bool = False

    def row(self) -> harness.Row:
        """Return the answer as a row of a table."""
        words = {None: "", True: "met" if self.is_goal else "yes", False: "missed" if self.is_goal else "**no**"}
        return {"question": self.question, "answer": self.answer, "holds": words[self.holds]}


Part = Callable[[torch.device, bool], Iterator[Answer]]


def main() -> int:
    """Ask all questions and print the answers; returns 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, to see that it runs")
    parser.add_argument("--output-dir", "--out", type=Path, help="folder for device.json")
    args = parser.parse_args()
    device = torch.device(args.device)
    answers: list[Answer] = []
    for part in PARTS if device.type == "cuda" else CPU_PARTS:
        began = time.perf_counter()
        try:
            for answer in part(device, args.quick):
                answers.append(answer)
                print(" | ".join(map(str, answer.row().values())), flush=True)
        except Exception as error:  # the other parts' answers count all the same
            traceback.print_exc(limit=4)
            answers.append(Answer(part.__name__.strip("_"), f"{type(error).__name__}: {error}"[:200], False))
        print(f"-- {part.__name__}: {time.perf_counter() - began:.0f} s", flush=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    print(f"\n{name}; {harness.describe_machine()}\n\n{harness.markdown_table([answer.row() for answer in answers])}")
    if args.output_dir:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        record = {"device": name, "answers": [answer._asdict() for answer in answers]}
        (args.output_dir / "device.json").write_text(json.dumps(record, indent=1) + "\n")
    return int(any(answer.holds is False and not answer.is_goal for answer in answers))


def agreement(device: torch.device, quick: bool) -> Iterator[Answer]:
    """Compare with the uncompiled CPU: ``t`` and flips to the bit, noise and ``x_t`` within 1e-5."""
    cases: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
        "": (SMALL, {}),
        ", flips": (SMALL, {"flip": 0.5}),
        ", low-discrepancy t": (SMALL, {"timesteps": UniformTimesteps(low_discrepancy=True)}),
        ", grey, flips": ((16, 1, 28, 28), {"flip": 0.5}),
        ", odd sides": ((5, 4, 33, 47), {}),
        ", latents": ((16, 8, 32, 32), {"latents": Latents(stacked=True)}),
    }
    for name, (shape, options) in list(cases.items())[: 1 if quick else None]:
        images, position = _make_batch(shape)
        if "latents" in options:  # a mean and a standard deviation, as floats
            images = images.float() / 255
        expected = _make_transform(compile=False, **options)(images, position)
        for compiles in (True, False):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                transform = _make_transform(compile=compiles, **options).to(device)
                result = Triple(*(v.cpu() for v in transform(images.to(device), position.to(device))))
            failed = [str(warning.message) for warning in caught if "compiled" in str(warning.message)]
            error = max(
                _largest_difference(result.noise, expected.noise), _largest_difference(result.x_t, expected.x_t)
            )
            same_t = torch.equal(result.t, expected.t)
            answer = f"t {'equal' if same_t else 'DIFFERS'}, noise and x_t within {error:.1e}" + "".join(failed)[:200]
            question = f"{shape}{name}, {'compiled' if compiles else 'uncompiled'}: as on the CPU?"
            yield Answer(question, answer, same_t and error < 1e-5 and not failed)


def many_numbers(device: torch.device, quick: bool) -> Iterator[Answer]:
    """Compare a batch of more than 2**31 numbers, whose indices need 64 bits, with its last images alone."""
    del quick
    shape = (170, 3, 2056, 2056)  # 2.16e9 numbers
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    position = torch.arange(len(images), device=device)
    transform = _make_transform().to(device)
    large = transform(images, position)
    alone = _make_transform().to(device)(images[-2:].clone(), position[-2:].clone())
    same = torch.equal(large.t[-2:], alone.t)
    error = max(_largest_difference(a[-2:], b) for a, b in ((large.noise, alone.noise), (large.x_t, alone.x_t)))
    answer = f"t {'equal' if same else 'DIFFERS'}, noise and x_t within {error:.1e}"
    yield Answer(f"{shape}: as in a small batch?", answer, same and error < 1e-5)


def batches(device: torch.device, quick: bool) -> Iterator[Answer]:
    """Ask for the same bits in any order, batch size and memory format, and in half precision."""
    images, position = (tensor.to(device) for tensor in _make_batch(SMALL))
    transform = _make_transform(flip=0.0 if quick else 0.5).to(device)
    whole = transform(images, position)
    order = torch.randperm(len(images)).to(device)
    trials = {
        "another order": (transform(images[order], position[order]), [v[order] for v in whole]),
        "a short batch": (transform(images[10:27], position[10:27]), [v[10:27] for v in whole]),
        "channels_last": (transform(images.contiguous(memory_format=torch.channels_last), position), whole),
        "another process's transform": (
            _make_transform(flip=transform.flip).to(device)(images[:5], position[:5]),
            [v[:5] for v in whole],
        ),
    }
    for dtype in () if quick else (torch.bfloat16, torch.float16):
        trials[str(dtype)] = (
            transform(images, position, "train", dtype),
            [whole[0].to(dtype), whole[1], whole[2].to(dtype)],
        )
    for name, (result, expected) in trials.items():
        same = all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
        yield Answer(f"{name}: the same bits?", "the same" if same else "they differ", same)


def statistics(device: torch.device, quick: bool) -> Iterator[Answer]:
    """Ask for the noise's mean and variance in standard errors."""
    images, position = (tensor.to(device) for tensor in _make_batch((64 if quick else 256, 3, 64, 64)))
    noise = _make_transform().to(device)(images, position).noise.double()
    mean = float(noise.mean() * noise.numel() ** 0.5)
    variance = float((noise.var() - 1) * (noise.numel() / 2) ** 0.5)
    answer = f"{mean:.2f} and {variance:.2f}"
    yield Answer("mean and variance of the noise, in standard errors", answer, max(abs(mean), abs(variance)) < 5)


def waits(device: torch.device, quick: bool) -> Iterator[Answer]:
    """Run in the mode in which every wait for the device is an error."""
    del quick
    images, position = (tensor.to(device) for tensor in _make_batch(SMALL))
    cases: dict[str, dict[str, Any]] = {"plain": {}, "flips": {"flip": 0.5}, "uncompiled": {"compile": False}}
    for name, options in cases.items():
        transform = _make_transform(**options).to(device)
        for count in (64, 60):
            transform(images[:count], position[:count])
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for count in (64, 60):
                transform(images[:count], position[:count])
            found = "none"
        except RuntimeError as error:
            found = str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        yield Answer(f"{name}, also a short batch: waits for the device", found, found == "none")


def kernels(device: torch.device, quick: bool) -> Iterator[Answer]:
    """Count a batch's kernels, with the profiler's time of each."""
    del quick
    images, position = (tensor.to(device) for tensor in _make_batch((64, 3, 256, 256)))
    for flip, dtype in ((0.0, torch.float32), (0.5, torch.float32), (0.5, torch.bfloat16)):
        transform = _make_transform(flip=flip).to(device)
        transform(images, position, "train", dtype)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
            for _ in range(5):
                transform(images, position, "train", dtype)
            torch.cuda.synchronize()
        events = [event for event in profiler.key_averages() if event.device_type.name == "CUDA"]
        count = sum(event.count for event in events)
        times = ", ".join(f"{event.key[:40]} {event.self_device_time_total / event.count:.1f} us" for event in events)
        yield Answer(f"(64, 3, 256, 256), flip={flip}, {dtype}: kernels", f"{count / 5:g}: {times}", count <= 10)


def speed(device: torch.device, quick: bool) -> Iterator[Answer]:
    """Time the device: ours, the tutorials' code, that code under ``torch.compile``, and a copy of as many bytes."""
    tutorial = make_tutorial(device)
    compiled_tutorial = torch.compile(tutorial, dynamic=False)
    for shape in SHAPES[:1] if quick else SHAPES:
        images, position = (tensor.to(device) for tensor in _make_batch(shape))
        calls = _list_ways(images, position) | {
            "tutorial": partial(tutorial, images),
            "its torch.compile": partial(compiled_tutorial, images),
            "copy": _make_copy(images),
        }
        times = _time_on_device(calls)
        answer = ", ".join(f"{name} {time:.1f}" for name, time in times.items())
        rate = images.numel() * BYTES_PER_NUMBER / times["ours"] / 1000
        yield Answer(f"{shape}: device microseconds", f"{answer}; ours {rate:,.0f} GB/s")
        for question, ratio, goal in (
            ("times the tutorial's speed (5)", times["tutorial"] / times["ours"], 5),
            ("times its torch.compile's speed (2)", times["its torch.compile"] / times["ours"], 2),
        ):
            yield Answer(f"{shape}: {question}", f"{ratio:.2f}", ratio >= goal, is_goal=True)
        over = times["ours"] / times["copy"]
        yield Answer(f"{shape}: times a copy's time (1.5)", f"{over:.2f}", over <= 1.5, is_goal=True)
        in_a_row = {name: _time_in_a_row(calls[name]) for name in ("ours", "tutorial", "its torch.compile")}
        answer = ", ".join(f"{name} {time:.1f}" for name, time in in_a_row.items())
        yield Answer(f"{shape}: microseconds per batch in a row, host and device", answer)


def host_time(device: torch.device, quick: bool) -> Iterator[Answer]:
    """Time the host: what Python takes to launch a batch, without waiting for it."""
    del quick
    images, position = (tensor.to(device) for tensor in _make_batch((8, 3, 32, 32)))
    for name, flip in {"plain": 0.0, "flips": 0.5}.items():
        transform = _make_transform(flip=flip).to(device)
        microseconds = _time_host(partial(transform, images, position))
        question = f"{name}: host microseconds per batch (60)"
        yield Answer(question, f"{microseconds:.1f}", microseconds < 60, is_goal=True)


def graphs(device: torch.device, quick: bool) -> Iterator[Answer]:
    """Capture the transform in a CUDA graph and replay it on other positions."""
    del quick
    images, position = (tensor.to(device) for tensor in _make_batch(SMALL))
    transform = _make_transform().to(device)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
    with torch.cuda.stream(side):
        transform(images, position)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = transform(images, position)
    position += 1000
    graph.replay()
    torch.cuda.synchronize()
    same = all(torch.equal(a, b) for a, b in zip(captured, transform(images, position), strict=True))
    yield Answer("captured in a CUDA graph, replayed on other positions: the same bits?", str(same), same)


def memory(device: torch.device, quick: bool) -> Iterator[Answer]:
    """Measure the peak of allocated memory beside the size of the results."""
    del quick
    images, position = (tensor.to(device) for tensor in _make_batch((256, 3, 256, 256)))
    transform = _make_transform(flip=0.5).to(device)
    transform(images, position)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    held = transform(images, position)
    torch.cuda.synchronize()
    ratio = (torch.cuda.max_memory_allocated() - before) / (2 * held.x_t.numel() * held.x_t.element_size())
    yield Answer("peak memory, as a multiple of x_t and noise", f"{ratio:.3f}", ratio < 1.1)


def training(device: torch.device, quick: bool) -> Iterator[Answer]:
    """Train with a Trainer in three precisions, with and without workers."""
    images = torch.randint(0, 256, (512, 3, 64, 64), dtype=torch.uint8)
    precisions: tuple[Literal["32-true", "bf16-mixed", "bf16-true"], ...] = ("32-true", "bf16-mixed", "bf16-true")
    for precision in precisions[: 1 if quick else None]:
        for workers in (0,) if quick else (0, 2):
            model = _Model()
            datamodule = DDPMDataModule(
                train=TensorDataset(images),
                val=0.1,
                schedule=schedules.linear(STEPS),
                batch_size=64,
                num_workers=workers,
                flip=0.5,
            )
            trainer = L.Trainer(
                accelerator="gpu" if device.type == "cuda" else "cpu",
                devices=1,
                precision=precision,
                max_epochs=2,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trainer.fit(model, datamodule=datamodule)
            dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
            expected = {(device.type, dtype, torch.int64)}
            answer = "; ".join(f"x_t {dtype} on {kind}, t {steps}" for kind, dtype, steps in model.kinds)
            yield Answer(f"Trainer, {precision}, {workers} workers", answer, model.kinds == expected)


PARTS: tuple[Part, ...] = (
    agreement,
    batches,
    statistics,
    waits,
    kernels,
    speed,
    host_time,
    graphs,
    memory,
    training,
    many_numbers,
)
CPU_PARTS: tuple[Part, ...] = (agreement, batches, statistics, training)


class _Model(L.LightningModule):
    """A small model that keeps the kinds of tensors that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.kinds: set[tuple[str, torch.dtype, torch.dtype]] = set()

    def training_step(self, batch: Triple, batch_idx: int) -> Tensor:
        x_t, t, noise = batch
        self.kinds.add((x_t.device.type, x_t.dtype, t.dtype))
        return torch.nn.functional.mse_loss(self.network(x_t).float(), noise.float())

    def validation_step(self, batch: Triple, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def _make_transform(
    flip: float = 0.0,
    timesteps: UniformTimesteps | None = None,
    compile: bool = True,
    latents: Latents | None = None,
) -> ForwardDiffusion:
    process = ForwardProcess(schedules.linear(STEPS))
    return ForwardDiffusion(process, seed=5, flip=flip, timesteps=timesteps, compile=compile, latents=latents)


def _make_batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images, torch.arange(shape[0]) * 7919 + 123456789012


def _list_ways(images: Tensor, position: Tensor) -> dict[str, Callable[[], object]]:
    """List our ways to make a triple, ready to be called."""
    plain, flips, eager = (
        transform.to(images.device)
        for transform in (_make_transform(), _make_transform(flip=0.5), _make_transform(compile=False))
    )
    return {
        "ours": partial(plain, images, position),
        "flips": partial(flips, images, position),
        "bfloat16": partial(plain, images, position, "train", torch.bfloat16),
        "uncompiled": partial(eager, images, position),
    }


def _make_copy(images: Tensor) -> Callable[[], object]:
    """Make a call that moves as many bytes as a batch: a read of the images, two writes of float32."""
    bytes_in = images.numel()
    source = torch.empty(bytes_in * BYTES_PER_NUMBER // 2, dtype=torch.uint8, device=images.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _largest_difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def _time_on_device(calls: dict[str, Callable[[], object]], rounds: int = 30) -> dict[str, float]:
    """Time calls in turn by the device's clock, with its cache swept; returns the medians in microseconds.

    The device sleeps until the host has launched everything, so the host's time is not in the figures.
    """
    sweep = torch.empty(96 * 2**20, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 4):
        for name, call in calls.items():
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
            torch.cuda._sleep(2_000_000)  # type: ignore[no-untyped-call]  # torch's; a millisecond
            sweep.zero_()
            began.record()
            call()
            ended.record()
            torch.cuda.synchronize()
            if number >= 4:
                times[name].append(began.elapsed_time(ended) * 1000)
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()}


def _time_in_a_row(call: Callable[[], object], count: int = 100) -> float:
    """Time many calls in a row, waiting only for the last; returns microseconds per call."""
    call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / count * 1e6


def _time_host(call: Callable[[], object], count: int = 300) -> float:
    """Time the host alone; returns microseconds per call."""
    for _ in range(20):
        call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        call()
    seconds = time.perf_counter() - began
    torch.cuda.synchronize()
    return seconds / count * 1e6


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
