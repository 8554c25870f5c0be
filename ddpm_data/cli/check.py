"""What is in your dataset, and what is wrong with it? ``python -m ddpm_data.check --help``.

Looks at every item of every set that your configuration's DataModule has, in worker processes, and stops at none. It
says what the images are, which ones are bad and why, which are there twice, also in training and in validation, how
fast they are read and what memory they take; ``check.json`` has all of it, ``check.png`` some images as the model will
see them. A set that gives its items in an order of its own is looked at from its beginning, in one process.
"""

import argparse
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ddpm_data.cli._config import add_config_options, compose_datamodule
from ddpm_data.cli.checking.duplicates import find_leakage
from ddpm_data.cli.checking.summary import Facts, SomeImages, messages, name_duplicates, summarize, table
from ddpm_data.cli.checking.survey import Rows
from ddpm_data.cli.checking.walk import ScanResult, scan_iterable, scan_map_style
from ddpm_data.datamodule.module import DDPMDataModule
from ddpm_data.datamodule.splits import Splits
from ddpm_data.loading.bad_items import ITEM_ERRORS
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.loading.options import cpu_count
from ddpm_data.loading.prebatched import PrebatchedImages
from ddpm_data.rng.philox import STAGES
from ddpm_data.types import Stage


def main(arguments: list[str] | None = None) -> int:
    """Look, print, write; returns 0 if nothing is bad, else 1."""
    parser = argparse.ArgumentParser(prog="python -m ddpm_data.check", description=__doc__)
    parser.add_argument("--workers", type=int, default=cpu_count(), help="processes that look (default one a core)")
    parser.add_argument("--most", type=int, default=10_000, help="items of a set with its own order (default 10000)")
    parser.add_argument("--out", type=Path, default=Path("check"), help="folder for what is written (default check)")
    add_config_options(parser)
    args = parser.parse_args(arguments)
    if args.workers < 0 or args.most < 1:
        parser.error("--workers is at least 0, --most at least 1")
    found, leakage, shown = _run_checks(args)
    print(f"\n{table(found)}\n")
    for remark in [remark for stage, some in found.items() for remark in messages(stage, some)]:
        print(remark)
    for both, common in leakage.items():
        print("\n  ".join([f"both in {both}: {common['count']:,} images", *common["first"]]))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "check.json").write_text(json.dumps({"sets": found, "leakage": leakage}, indent=1))
    print(f"\nwrote {args.out / 'check.json'}")
    _draw(shown, args.out / "check.png")
    return int(any(some["bad"] or some["problems"] for some in found.values()))


def _run_checks(args: argparse.Namespace) -> tuple[dict[str, Facts], dict[str, Facts], dict[str, list[Tensor]]]:
    """What there is to say of each set, and of each two; and images to show, by their title."""
    from hydra.utils import instantiate

    datamodule: DDPMDataModule = instantiate(compose_datamodule(args))
    splits, loading = datamodule.splits, datamodule.loading
    stages = [stage for stage in STAGES if splits.has(stage) and not (stage == "val" and splits.fraction)]
    if not stages:
        raise SystemExit("the configuration has no set to look at. Give `dataset.train`.")
    try:
        sets, held_out = {stage: splits.unchecked(stage) for stage in stages}, _held_out(splits)
    except ITEM_ERRORS as error:
        raise SystemExit(str(error)) from error
    walked: dict[Stage, ScanResult] = {}
    found: dict[str, Facts] = {}
    shown: dict[str, list[Tensor]] = {}
    for stage, images in sets.items():
        if isinstance(images, PrebatchedImages):
            raise SystemExit(
                f"{stage} is a DataLoader, and datasets are looked at: give its dataset, `dataset.{stage}`."
            )
        if isinstance(images, MapStyleImages):
            some = scan_map_style(images, args.workers, loading.multiprocessing_context)
        else:
            some = scan_iterable(images, args.most)
        walked[stage] = some
        found[stage] = summarize(images, some.survey, loading, *_as_a_whole(images))
        found[stage] |= {"order": some.order} if some.order else {}
        found[stage] |= {"held_out": int(held_out.sum())} if stage == "train" and held_out is not None else {}
        if some.shown:
            what = "latents, brightened" if some.shown[0].is_floating_point() else "images as the model will see them"
            shown[f"{stage}: {len(some.shown)} of {found[stage]['items']:,} {what}"] = some.shown
    return found, _leakage(walked, held_out), shown


def _held_out(splits: Splits) -> Tensor | None:
    """Which items of the training set are validated on: bool, shape ``(count,)``; ``None`` where none are."""
    images = splits.unchecked("val") if splits.fraction else None
    if not isinstance(images, MapStyleImages) or images.part is None:
        return None
    chosen = torch.zeros(images.part.length, dtype=torch.bool)
    chosen[images.part.indices(torch.arange(len(images)))] = True
    return chosen


def _as_a_whole(images: SomeImages) -> tuple[bool, str | None]:
    """Whether a cache would be made of a set; and what ``setup()`` would say, were its bad items replaced."""
    if not isinstance(images, MapStyleImages):
        return False, None
    whole = MapStyleImages(images.dataset, images.processor, images.name, None, images.condition, replaces=True)
    with warnings.catch_warnings(action="ignore"):
        try:
            whole.inspect()
        except ITEM_ERRORS as error:
            return True, str(error)
    return not whole.is_stored, None


def _leakage(walked: Mapping[Stage, ScanResult], held_out: Tensor | None) -> dict[str, Facts]:
    """What each two sets have in common; the part of the training set that is held out is a set of its own."""
    parts: dict[str, tuple[SomeImages, Rows]] = {}
    for stage, some in walked.items():
        rows = some.survey.rows
        if stage == "train" and held_out is not None:
            is_val = held_out.numpy()[rows["index"]]
            parts |= {"train": (some.images, rows[~is_val]), "val": (some.images, rows[is_val])}
        else:
            parts[stage] = some.images, rows
    names, found = list(parts), {}
    for (one, other), copied in find_leakage([rows["content"] for _, rows in parts.values()]):
        found[f"{names[one]} and {names[other]}"] = name_duplicates(copied, *parts[names[one]], *parts[names[other]])
    return found


def _draw(shown: Mapping[str, list[Tensor]], path: Path) -> None:
    try:
        from ddpm_data.plots.images import image_grids
    except ImportError as error:
        print(f"no {path.name}: {error}")
        return
    if shown:
        image_grids({title: _visible(images) for title, images in shown.items()}, path)
        print(f"wrote {path}")


def _visible(images: list[Tensor]) -> list[Tensor]:
    """Images as they are; of latents, or of more channels than a picture has, the first three or the first."""
    if images[0].is_floating_point():
        low, high = min(float(image.min()) for image in images), max(float(image.max()) for image in images)
        levels = [((image.double() - low) * (255 / max(high - low, 1e-9))).to(torch.uint8) for image in images]
        return [image[: 3 if len(image) > 2 else 1] for image in levels]
    return [image if len(image) in (1, 3, 4) else image[: 3 if len(image) > 4 else 1] for image in images]
