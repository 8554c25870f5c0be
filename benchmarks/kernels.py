"""The batch transform's kernel for CUDA devices: ``python -m benchmarks.kernels`` (ten seconds, needs no GPU).

The script compiles the kernel for an A100 and an H100, and prints what the compiler made of it: registers per thread,
bytes per thread that did not fit into registers, and instructions per number of the batch. An H100 issues about 29.6e12
instructions per second, and its memory moves about 330e9 numbers per second at 9 bytes per number (float32). So the
kernel waits for memory while it has less than some 90 instructions per number.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks import harness
from ddpm_data.diffusion import _triton

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
CASES: dict[str, dict[str, object]] = {
    "float32": {},
    "float32, flips": {"FLIP_BELOW": 2**31},
    "bfloat16, flips": {"FLIP_BELOW": 2**31, "dtype": "*bf16"},
    "float32, flips, odd sides": {"FLIP_BELOW": 2**31, "is_divisible": False},
    "float32 from float32": {"images": "*fp32", "IS_BYTES": False},
    "float32, t given": {"DRAW": "given"},
    "float32, t of low discrepancy": {"DRAW": "low discrepancy"},
    "float32, t from a density": {"HAS_DENSITY": True},
    "float32, another target": {"PREDICTS_NOISE": False},
}


class Report(NamedTuple):
    """The compiler's report of one kernel.

    Attributes:
        registers: Per thread.
        spilled: Bytes per thread that did not fit into registers.
        instructions: Per number of the batch.
        code: The machine's instructions.
    """

    registers: int
    spilled: int
    instructions: float
    code: str


def main() -> None:
    """Print a table with the kernel of several kinds of batches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", action="store_true", help="also print the code")
    args = parser.parse_args()
    rows: list[harness.Row] = []
    for card, capability in {"A100": 80, "H100": 90}.items():
        for name, case in CASES.items():
            report = compile_kernel(capability, case)
            if args.code:
                print(report.code)
            row: harness.Row = {"batch": f"({card}) {name}", "registers": str(report.registers)}
            rows.append(row | {"spilled": str(report.spilled), "instructions per number": report.instructions})
    print(harness.markdown_table(rows))


def compile_kernel(capability: int, case: dict[str, object]) -> Report:
    """Compile the kernel for one kind of card and batch.

    Args:
        capability: The card's compute capability, times ten.
        case: What differs from float32 results of uint8 images without flips and with independent ``t``.
    """
    constants = {"STAGE": 0, "DRAW": "independent", "HAS_DENSITY": False, "PREDICTS_NOISE": True, "FLIP_BELOW": 0}
    constants |= {"IS_BYTES": True, "BLOCK": _triton._BLOCK} | case
    dtype, images = str(constants.pop("dtype", "*fp32")), str(constants.pop("images", "*u8"))
    is_divisible = bool(constants.pop("is_divisible", True))
    types = {"images": images, "position": "*i64", "signal": "*fp32", "sigma": "*fp32", "key": "*i64", "x_t": dtype}
    types |= {"t": "*i64", "target_x": "*fp32", "target_n": "*fp32", "thresholds": "*i64", "target": dtype}
    names: list[str] = _triton._kernel.arg_names
    signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in names}
    # As in a launch, where Triton looks whether addresses and sizes are multiples of 16.
    sizes = ("numel", "quarter", "width") if is_divisible else ()
    divisible = [number for number, name in enumerate(names) if name in types or name in sizes]
    attributes = {(number,): [["tt.divisibility", 16]] for number in divisible}
    source = ASTSource(_triton._kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    kernel = triton.compile(source, target=target, options={"num_warps": _triton._WARPS})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        code, usage = (_run_cuobjdump(option, file.name) for option in ("-sass", "-res-usage"))
    instructions = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?!NOP)", code, re.MULTILINE)
    numbers = 4 * _triton._BLOCK / (32 * _triton._WARPS)  # per thread
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))  # type: ignore[index]  # cuobjdump prints both
    return Report(registers, stack, len(instructions) / numbers, code)


def _run_cuobjdump(option: str, path: str) -> str:
    return subprocess.run([CUOBJDUMP, option, path], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
