"""``ddpm-data check``: look at every item of a dataset before you train on it.

``check.json`` has all results, and ``check.png`` shows some images as the model will see them.
"""

import argparse
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm_data.cli._command import explain_missing_picture, start_command
from ddpm_data.cli._config import compose_datamodule
from ddpm_data.cli.checking.duplicates import find_leakage
from ddpm_data.cli.checking.summary import (
    DuplicateSummary,
    ScannableImages,
    SplitSummary,
    format_table,
    list_messages,
    name_classes,
    name_duplicates,
    summarize,
)
from ddpm_data.cli.checking.survey import Rows
from ddpm_data.cli.checking.walk import Preview, ScanResult, scan_iterable, scan_map_style
from ddpm_data.datamodule.module import DDPMDataModule
from ddpm_data.datamodule.splits import Splits
from ddpm_data.loading.bad_items import ITEM_ERRORS
from ddpm_data.loading.iterable import IterableImages
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.loading.options import LoaderOptions, cpu_count
from ddpm_data.rng.philox import STAGES
from ddpm_data.types import Stage


class Findings(NamedTuple):
    """The findings of a check.

    Attributes:
        summaries: The summary of each split, by its name.
        leakage: The images that two splits have in common, by their names, such as ``"train and val"``.
        previews: Images to show, by the title above them.
    """

    summaries: dict[str, SplitSummary]
    leakage: dict[str, DuplicateSummary]
    previews: dict[str, list[Preview]]


def main(arguments: list[str] | None = None) -> int:
    """Check every split, print the findings, and write ``check.json`` and ``check.png``.

    Args:
        arguments: Command-line arguments; ``None`` takes those of the process.

    Returns:
        0 if nothing is bad, else 1.

    Raises:
        SystemExit: An argument is wrong, or the configuration has no dataset that can be checked.
    """
    args = start_command("check", arguments)
    findings = _run_checks(args)
    _print_findings(findings)
    path = args.output_dir / "check.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = json.dumps({"sets": findings.summaries, "leakage": findings.leakage}, indent=1)
    path.write_text(record, encoding="utf-8")
    print(f"\nwrote {path}")
    _draw_previews(findings.previews, args.output_dir / "check.png")
    return int(any(summary["bad"] or summary["problems"] for summary in findings.summaries.values()))


def _print_findings(findings: Findings) -> None:
    print(f"\n{format_table(findings.summaries)}\n")
    for name, summary in findings.summaries.items():
        for message in list_messages(name, summary):
            print(message)
    for names, duplicates in findings.leakage.items():
        print("\n  ".join([f"in both {names}: {duplicates['count']:,} images", *duplicates["first"]]))


def _run_checks(args: argparse.Namespace) -> Findings:
    """Scan every split that has its own dataset, and compare every two splits."""
    from hydra.utils import instantiate

    datamodule: DDPMDataModule = instantiate(compose_datamodule(args))
    splits, loading = datamodule.splits, datamodule.loader_options
    num_workers = cpu_count() if args.num_workers is None else args.num_workers
    context = loading.multiprocessing_context if num_workers else None
    reading = LoaderOptions(1, num_workers, multiprocessing_context=context, timeout=loading.timeout)
    stages = [stage for stage in STAGES if splits.has(stage) and stage not in splits.fractions]
    if not stages:
        raise SystemExit("the configuration has no dataset to check. Set `dataset.train`.")
    try:
        with datamodule.naming_keys():
            datasets, held_out = {stage: splits.unchecked(stage) for stage in stages}, _find_held_out(splits)
    except ITEM_ERRORS as error:
        raise SystemExit(str(error)) from error
    scans: dict[Stage, ScanResult] = {}
    findings = Findings({}, {}, {})
    for stage, images in datasets.items():
        if isinstance(images, MapStyleImages):
            scans[stage] = scan_map_style(images, reading)
        elif isinstance(images, IterableImages):
            scans[stage] = scan_iterable(images, args.max_items)
        else:
            raise SystemExit(
                f"{stage} is a DataLoader, and only datasets can be checked. Set `dataset.{stage}` to its dataset."
            )
        summary = _summarize_scan(scans[stage], loading, reading)
        if stage == "train" and held_out:
            summary["held_out_for"] = {name: int(mask.sum()) for name, mask in held_out.items()}
            summary["held_out"] = sum(summary["held_out_for"].values())
        findings.summaries[stage] = summary
        if previews := scans[stage].previews:
            kind = "latents, rescaled" if previews[0].image.is_floating_point() else "images as the model will see them"
            names: dict[Any, str] = name_classes(images, scans[stage].stats.classes)
            named = [preview._replace(label=names.get(preview.label, preview.label)) for preview in previews]
            findings.previews[f"{stage}: {len(previews)} of {summary['items']:,} {kind}"] = named
    return findings._replace(leakage=_compare_splits(scans, held_out))


def _summarize_scan(scan: ScanResult, loading: LoaderOptions, reading: LoaderOptions) -> SplitSummary:
    summary = summarize(scan.images, scan.stats, loading, *_inspect_dataset(scan, reading))
    return summary | ({"order": scan.order} if scan.order else {})


def _find_held_out(splits: Splits) -> dict[Stage, Tensor]:
    """Mark the items of the training set that are held out.

    Returns:
        bool, shape ``(len(dataset),)``, for each stage that they are held out for.
    """
    masks: dict[Stage, Tensor] = {}
    for stage in splits.fractions:
        images = splits.unchecked(stage)
        if isinstance(images, MapStyleImages) and images.subset is not None:
            masks[stage] = torch.zeros(images.subset.length, dtype=torch.bool)
            masks[stage][images.subset.indices(torch.arange(len(images)))] = True
    return masks


def _inspect_dataset(scan: ScanResult, reading: LoaderOptions) -> tuple[bool, str | None]:
    """Return whether a cache would be built, and the error of ``setup()`` that replacing bad items would not avoid."""
    images = scan.images
    if not isinstance(images, MapStyleImages):
        is_empty = not len(scan.stats)
        return False, f"{images.name} gave no items. Check `dataset.{images.name}`." if is_empty else None
    all_images = MapStyleImages(images.dataset, images.processor, images.name, None, images.conditions, replaces=True)
    with warnings.catch_warnings(action="ignore"):
        try:
            return not all_images.inspect(reading).is_stored, None
        except ITEM_ERRORS as error:
            return True, str(error)


def _compare_splits(scans: Mapping[Stage, ScanResult], held_out: Mapping[Stage, Tensor]) -> dict[str, DuplicateSummary]:
    """Find the images that two splits have in common; what is held out of the training set counts for its stage."""
    splits: dict[str, tuple[ScannableImages, Rows]] = {}
    for stage, scan in scans.items():
        rows = scan.stats.rows
        if stage != "train":
            splits[stage] = scan.images, rows
            continue
        masks = {name: mask.numpy()[rows["index"]] for name, mask in held_out.items()}
        is_left = ~np.any([np.zeros(len(rows), dtype=bool), *masks.values()], axis=0)
        splits |= {name: (scan.images, rows[mask]) for name, mask in {"train": is_left, **masks}.items()}
    names = list(splits)
    leakage = {}
    for (first, second), duplicates in find_leakage([rows["content"] for _, rows in splits.values()]):
        summary = name_duplicates(duplicates, *splits[names[first]], *splits[names[second]])
        leakage[f"{names[first]} and {names[second]}"] = summary
    return leakage


def _draw_previews(previews: Mapping[str, list[Preview]], path: Path) -> None:
    if problem := explain_missing_picture(path.name):
        print(problem)
    elif previews:
        from ddpm_data.plots import Captioned, image_grids

        grids = {}
        for title, shown in previews.items():
            images = _to_visible([preview.image for preview in shown])
            grids[title] = [Captioned(*pair) for pair in zip(images, map(_caption, shown), strict=True)]
        image_grids(grids, path)
        print(f"wrote {path}")


def _caption(preview: Preview) -> str:
    """Return an image's index, its class and the name of its file, as far as they are known."""
    label = "" if preview.label is None else f": {preview.label}"
    return f"{preview.number}{label}\n{Path(preview.path).name if preview.path else ''}"


def _to_visible(images: list[Tensor]) -> list[Tensor]:
    """Make images drawable: latents are rescaled to [0, 255], and of unusual channels the first three or one are kept.

    Args:
        images: uint8 or float, shape ``(channels, height, width)``.

    Returns:
        uint8, with 1, 3 or 4 channels.
    """
    if images[0].is_floating_point():
        low, high = min(float(image.min()) for image in images), max(float(image.max()) for image in images)
        levels = [((image.double() - low) * (255 / max(high - low, 1e-9))).to(torch.uint8) for image in images]
        return [image[: 3 if len(image) > 2 else 1] for image in levels]
    return [image if len(image) in (1, 3, 4) else image[: 3 if len(image) > 4 else 1] for image in images]
