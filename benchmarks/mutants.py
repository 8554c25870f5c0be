"""The share of small changes to our code that its tests notice: ``python -m benchmarks.mutants`` (about an hour).

A mutant is the code with one change: another comparison or operator, a number one higher, a condition turned round, a
statement left out. The script draws some at random, runs the quick tests of each in a process of its own, those of its
own file first, and prints the share that fails, with a 95% interval, and every mutant that no test noticed. With
``--slow``, what the quick tests have not noticed goes through the slow tests of its own file, too.
"""

import argparse
import ast
import importlib
import importlib.abc
import importlib.machinery
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType
from typing import NamedTuple

from tqdm import tqdm

_ROOT = Path(__file__).parent.parent
_SECONDS = 300  # for a mutant's tests: those that hang are noticed, too
_SLOW_SECONDS = 1200  # with the slow ones
_TESTS = {  # of each file: its own first, then those of its users
    "ddpm_data/rng": ["tests/rng", "tests/diffusion", "tests/loading/test_samplers.py"],
    "ddpm_data/diffusion": [
        "tests/diffusion",
        "tests/test_objectives.py",
        "tests/test_latents.py",
        "tests/plots",
        "tests/callbacks",
    ],
    "ddpm_data/loading/samplers.py": ["tests/loading/test_samplers.py", "tests/loading", "tests/datamodule"],
    "ddpm_data/datamodule/resume.py": ["tests/datamodule/test_resume.py", "tests/datamodule", "tests/callbacks"],
}
_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}  # fmt: skip


class Mutant(NamedTuple):
    """A change to a file.

    Attributes:
        path: The file, relative to the repository.
        place: Which of the file's changes it is.
        line: The line of the change.
        words: What is changed to what.
    """

    path: str
    place: int
    line: int
    words: str


def main() -> None:
    """Draw mutants, run their tests, and print what was noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="*", default=list(_TESTS), help="files or folders of ddpm_data/")
    parser.add_argument("--count", type=int, default=200, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--slow", action="store_true", help="also the slow tests of its own file")
    args = parser.parse_args()
    os.chdir(_ROOT)
    files = [file for path in args.path for file in ([Path(path)] if path.endswith(".py") else Path(path).glob("*.py"))]
    files = sorted(file for file in files if file.name != "_triton.py")  # whose tests are slow: by an interpreter
    everything = [mutant for file in files for mutant in list_mutants(file)]
    chosen = random.Random(args.seed).sample(everything, min(args.count, len(everything)))
    print(f"{len(everything)} mutants in {len(files)} files, of which {len(chosen)} are tried", flush=True)
    examples = {_find_tests(mutant.path)[0]: mutant.path for mutant in chosen}
    controls = [Mutant(path, -1, 0, "no change") for path in examples.values()]
    if any(fails for _, fails in run_all(controls, args.jobs, args.slow)):
        sys.exit("the tests fail without a change")
    noticed = 0
    for mutant, is_noticed in run_all(chosen, args.jobs, args.slow):
        noticed += is_noticed
        if not is_noticed:
            tqdm.write(f"{mutant.path}:{mutant.line}: {mutant.words}", file=sys.stdout)
    low, high = estimate_share(noticed, len(chosen))
    print(f"noticed: {noticed} of {len(chosen)}, {noticed / len(chosen):.1%} ({low:.1%} to {high:.1%})")


def list_mutants(path: Path) -> list[Mutant]:
    """List all changes to a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        Mutant(str(path), place, node.lineno, words) for place, (node, words) in enumerate(_change_each(tree, None))
    ]


def mutate(mutant: Mutant) -> CodeType:
    """Compile a file with a change."""
    tree = ast.parse(Path(mutant.path).read_text(encoding="utf-8"))
    for _ in _change_each(tree, mutant.place):
        pass
    return compile(ast.fix_missing_locations(tree), str(_ROOT / mutant.path), "exec")


def _change_each(tree: ast.AST, place: int | None) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    """Yield each node that can be changed, with the change in words; make that change at a place."""
    count = 0
    for node in _walk(tree):
        before = ast.unparse(node).splitlines()[0]
        change = _find_change(node)
        if change is None:
            continue
        name, value = change
        if count == place:
            setattr(node, name, value)
        elif place is None:
            old = getattr(node, name)
            setattr(node, name, value)
            yield node, f"{before}  ->  {ast.unparse(node).splitlines()[0]}"
            setattr(node, name, old)
        count += 1


def _walk(node: ast.AST) -> Iterator[ast.stmt | ast.expr]:
    """Yield statements and expressions, but none of annotations, messages and docstrings."""
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(field, ast.JoinedStr):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.JoinedStr) or (isinstance(child, ast.Call) and isinstance(node, ast.Raise)):
                continue  # messages
            if isinstance(child, ast.stmt | ast.expr):
                yield child
            if isinstance(child, ast.AST):
                yield from _walk(child)


def _find_change(node: ast.stmt | ast.expr) -> tuple[str, object] | None:
    """Return the attribute of a node to change, and its new value."""
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in _COMPARISONS:
            return "ops", [_COMPARISONS[type(operator)]()]
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in _OPERATORS:
            return "op", _OPERATORS[type(operator)]()
        case ast.BoolOp(op=operator):
            return "op", ast.Or() if isinstance(operator, ast.And) else ast.And()
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) if not isinstance(test, ast.Compare):
            return "test", ast.UnaryOp(ast.Not(), test)
        case ast.Constant(value=bool(value)):
            return "value", not value
        case ast.Constant(value=int(value) | float(value)):
            return "value", value + 1
        case ast.Expr(value=ast.Call()):
            return "value", ast.Constant(None)
    return None


def run_all(mutants: Sequence[Mutant], jobs: int, slow: bool = False) -> Iterator[tuple[Mutant, bool]]:
    """Run the tests of mutants, some at a time; yield each with whether a test failed."""
    for module in ("torch", "lightning", "pytest", "scipy.stats", "torchvision"):
        importlib.import_module(module)  # once, for all the processes that are forked
    running: dict[int, Mutant] = {}
    waiting = list(reversed(mutants))
    bar = tqdm(total=len(mutants), desc="Mutants")
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            process = os.fork()
            if process == 0:
                os._exit(_run_tests(mutant, slow))
            running[process] = mutant
        process, status = os.wait()
        yield running.pop(process), status != 0
        bar.update()


def _run_tests(mutant: Mutant, slow: bool) -> int:
    """Return 0 if all tests pass, in a process of its own, which a time limit ends."""
    import signal

    import pytest

    signal.alarm(_SLOW_SECONDS if slow else _SECONDS)
    os.setsid()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    module = mutant.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    sys.meta_path.insert(0, _Importer(module, mutant))
    sys.path.insert(0, str(_ROOT))
    tests = _find_tests(mutant.path)
    own = tests[0].removesuffix(".py") + "/test_" + Path(mutant.path).name.lstrip("_")
    first = [own] if Path(own).is_file() else []
    for paths, marked in ((first, "not slow"), (tests, "not slow"), (first or tests[:1], "slow"))[: 3 if slow else 2]:
        options = ["-x", "-q", "-m", marked, "-p", "no:cacheprovider", "-p", "no:xdist"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that are imported already
        if paths and pytest.main([*options, *paths]) not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            return 1
    return 0


def _find_tests(path: str) -> list[str]:
    return next(tests for start, tests in _TESTS.items() if path.startswith(start))


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module with a change."""

    def __init__(self, module: str, mutant: Mutant) -> None:
        self.module = module
        self.mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find that module only."""
        if fullname != self.module:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=self.mutant.path)

    def exec_module(self, module: object) -> None:
        """Run its changed code."""
        namespace = vars(module)
        namespace["__file__"] = str(_ROOT / self.mutant.path)
        exec(mutate(self.mutant), namespace)


def estimate_share(successes: int, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson 1927)."""
    z = 1.96
    share = successes / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return middle - half, middle + half


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s")
