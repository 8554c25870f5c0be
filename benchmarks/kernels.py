"""The kernels of the batch transform on a CUDA device: ``python -m benchmarks.kernels`` (ten seconds, needs no GPU).

The script gives inductor the transform and tensors that have a device and a shape but no content, and asks for the code
instead of a result. If inductor asks the driver for the card, the script answers for an H100. It prints the kernels
that one batch launches, the bytes that the compiler counts as read and written, and whether anything waits for the
device or is uploaded to it. It relies on inductor's internals, so it works with the release of torch that CI runs.
"""

import argparse
import re
from contextlib import ExitStack
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
import torch._inductor.config
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks import harness
from ddpm_data.diffusion._compiler import OPTIONS
from ddpm_data.diffusion._kernels import TripleKernel

CARD = SimpleNamespace(
    major=9,
    minor=0,
    name="H100",
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 * 2**30,
    L2_cache_size=50 * 2**20,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
)
CASES = {
    "float32": (0.0, torch.float32, (64, 3, 64, 64)),
    "float32, flips": (0.5, torch.float32, (64, 3, 64, 64)),
    "bfloat16, flips": (0.5, torch.bfloat16, (64, 3, 64, 64)),
    "float32, flips, odd sides": (0.5, torch.float32, (63, 3, 63, 65)),
}


class Report(NamedTuple):
    """The cost of a batch on a CUDA device.

    Attributes:
        threads: The threads of each kernel.
        bytes_per_number: Bytes read and written per number of the batch.
        waits: Calls that wait for the device, or upload to it.
        code: The generated code.
    """

    threads: list[int]
    bytes_per_number: float
    waits: list[str]
    code: str


def main() -> None:
    """Print a table with the kernels of several kinds of batches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", action="store_true", help="also print the code")
    args = parser.parse_args()
    rows: list[harness.Row] = []
    for name, case in CASES.items():
        report = compile_transform(*case)
        if args.code:
            print(report.code)
        threads = ", ".join(f"{count:,}" for count in report.threads)
        row: harness.Row = {"batch": f"{case[2]}, {name}", "kernels": str(len(report.threads)), "threads": threads}
        rows.append(row | {"bytes per number": report.bytes_per_number, "waits, uploads": str(len(report.waits))})
    print(harness.markdown_table(rows))


def compile_transform(flip: float, dtype: torch.dtype, shape: tuple[int, ...]) -> Report:
    """Compile the transform for one kind of batch.

    Args:
        flip: Probability that an image is mirrored.
        dtype: Dtype of ``x_t`` and of the noise.
        shape: Shape of the uint8 images, ``(batch, channels, height, width)``.
    """
    code, size = _generate_code(TripleKernel(False, flip, "train", dtype), shape)
    body = code[code.index("def call(") :]
    waits = re.findall(r"synchronize\(|\.item\(|\.cpu\(|empty_strided_cpu\(|copy_\(|device_put", body)
    threads = [int(count) for count in re.findall(r"\.run\(.*, (\d+), stream", body)]
    return Report(threads, size / torch.Size(shape).numel(), waits, code)


def _generate_code(kernel: TripleKernel, shape: tuple[int, ...]) -> tuple[str, int]:
    """Generate inductor's code for a CUDA device; returns it with the bytes that it reads and writes."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        table = torch.empty(1000, device="cuda")
        key, position = (torch.empty(length, dtype=torch.int64, device="cuda") for length in (2, shape[0]))
        tensors = [table, table.clone(), key, torch.empty(shape, dtype=torch.uint8, device="cuda"), position]
        graph = make_fx(lambda *inputs: kernel(*inputs), decomposition_table=select_decomp_table())(*tensors)
    card = DeviceProperties("cuda", 0, CARD.multi_processor_count, 90, 9, CARD.regs_per_multiprocessor, warp_size=32)
    with ExitStack() as stack:
        for name, answer in (
            ("torch.cuda.get_device_properties", lambda device=None: CARD),
            ("torch.cuda.get_device_capability", lambda device=None: (9, 0)),
            ("torch.cuda.is_available", lambda: True),
            ("torch.cuda.current_device", lambda: 0),
            ("torch.cuda.device_count", lambda: 1),
            ("torch.utils._triton.triton_hash_with_backend", lambda: "none"),
        ):
            stack.enter_context(mock.patch(name, answer))
        stack.enter_context(mock.patch.object(DeviceProperties, "create", return_value=card))
        stack.enter_context(torch._inductor.config.patch(OPTIONS))
        stack.enter_context(V.set_fake_mode(mode))
        lowering = GraphLowering(graph)
        stack.enter_context(V.set_graph_handler(lowering))
        stack.enter_context(V.set_debug_handler(DebugContext()))
        lowering.run(*tensors)
        code = lowering.codegen()[0].value
        return code, int(lowering.count_bytes()[0])


if __name__ == "__main__":
    main()
