"""The findings of ``ddpm-data check`` in plain numbers for ``check.json``, in cells for its table, and in messages."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_data.cli._table import markdown_table
from ddpm_data.cli.checking.duplicates import Duplicates, find_duplicates
from ddpm_data.cli.checking.survey import ItemStats, Rows
from ddpm_data.images.latent_processor import LatentProcessor
from ddpm_data.loading.bad_items import shape_mismatch_message
from ddpm_data.loading.iterable import IterableImages
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.loading.options import LoaderOptions, cpu_count
from ddpm_data.sources._classes import class_names
from ddpm_data.sources._paths import path_of

_MAX_BAD = 10  # bad items that are named
_MAX_CAUSE = 300  # characters of an error that are printed
_MAX_NAMED = 3  # copies, and kinds in a cell, that are named
_MAX_CLASSES = 20  # classes that are printed
_FEATURE_LABELS = {
    "enlarged": "enlarged to image_size",
    "transparent": "transparent",
    "turned": "turned by EXIF",
    "animated": "of several frames",
}

SplitSummary = dict[str, Any]  # one split's entry in check.json
DuplicateSummary = dict[str, Any]  # "count" of the copies, and the "first" few as text
ScannableImages = MapStyleImages | IterableImages


def summarize(
    images: ScannableImages, stats: ItemStats, loading: LoaderOptions, is_cached: bool, problem: str | None
) -> SplitSummary:
    """Summarize one split.

    Args:
        images: The split's images.
        stats: The statistics of its items.
        loading: How it is loaded in training.
        is_cached: Whether a cache would be built with a cache folder.
        problem: The error that ``setup()`` would raise even if bad items were replaced.
    """
    rows, counts = stats.rows, stats.counts
    with_path = rows[rows["path"] != 0]
    forms = Counter({f"{form.dtype} {tuple(form.shape)}": n for form, n in counts.get("form", {}).items()})
    summary: SplitSummary = {
        "items": len(images.dataset) if isinstance(images, MapStyleImages) else len(stats),
        "looked_at": len(stats),
        "problems": [message for message in (problem or _find_shape_mismatch(images.name, stats),) if message],
        "warnings": [message for message in (stats.peaks.message(images.name),) if message],
        "bad": [{"index": bad.item, "path": bad.path, "cause": bad.reason} for bad in stats.bad_items],
        "modes": _sort_counts(counts.get("mode")),
        "formats": _sort_counts(counts.get("format")),
        "channels": _sort_counts(counts.get("channels")),
        "sizes": _summarize_sizes(rows),
        "values": stats.value_range if stats.value_range[0] <= stats.value_range[1] else None,
        **{name: counts["has"][name] for name in ("transparent", "turned", "animated") if "has" in counts},
        "becomes": _sort_counts(forms),
        "copies": name_duplicates(find_duplicates(rows["content"]), images, rows, images, rows),
        "same_path": name_duplicates(find_duplicates(with_path["path"]), images, with_path, images, with_path),
    }
    if size := getattr(images.processor, "image_size", None):
        summary["enlarged"] = int(((rows["height"] < size[0]) | (rows["width"] < size[1])).sum())
    if len(rows):
        summary["speed"] = _estimate_speed(len(rows) / stats.seconds, loading)
        summary["bytes"] = _count_bytes(summary["items"], stats, loading, is_cached)
    if isinstance(images.processor, LatentProcessor):
        summary["latents"] = [_summarize_latents(sums, images.processor) for sums in stats.moments.values()]
    if "condition" in counts:
        names = name_classes(images, stats.classes)
        classes = _sort_counts({names.get(label, label): count for label, count in stats.classes.items()})
        summary["conditions"] = {"kinds": _sort_counts(counts["condition"]), "classes": classes}
    return summary


def name_classes(images: ScannableImages, classes: Mapping[int | str, int]) -> dict[int | str, str]:
    """Return the names of labels that have one, such as ``"cats (0)"``."""
    if not classes:
        return {}
    (key,) = images.conditions.keys if images.conditions.is_single else (None,)
    names = class_names(images.dataset, key) if isinstance(images, MapStyleImages) else []
    return {
        label: f"{names[label]} ({label})" for label in classes if isinstance(label, int) and label in range(len(names))
    }


def name_duplicates(
    duplicates: Duplicates, images: ScannableImages, rows: Rows, other_images: ScannableImages, other_rows: Rows
) -> DuplicateSummary:
    """Count copies, and name the first few and their originals.

    Args:
        duplicates: Indices into ``other_rows`` and ``rows``.
        images: The images that hold the originals.
        rows: Their rows.
        other_images: The images that hold the copies.
        other_rows: Their rows.
    """
    copies = other_rows["index"][duplicates.copies[:_MAX_NAMED]].tolist()
    originals = rows["index"][duplicates.originals[:_MAX_NAMED]].tolist()
    pairs = zip(copies, originals, strict=True)
    names = [f"{_name_item(other_images, copy)} is {_name_item(images, original)}" for copy, original in pairs]
    return {"count": len(duplicates.copies), "first": names}


def format_table(summaries: Mapping[str, SplitSummary]) -> str:
    """Format the numbers of all splits as a table with one column per split."""
    columns = {name: _make_cells(summary) for name, summary in summaries.items()}
    labels = list(dict.fromkeys(label for cells in columns.values() for label in cells))
    lines = [["", *columns], *([label, *(cells.get(label, "") for cells in columns.values())] for label in labels)]
    return markdown_table(lines)


def list_messages(name: str, summary: SplitSummary) -> list[str]:
    """List a split's problems, bad items, copies and classes, which do not fit into the table."""
    messages = [f"{name}: {problem}" for problem in summary["problems"] + summary["warnings"]]
    for bad in summary["bad"][:_MAX_BAD]:
        path, cause = bad["path"], next(iter(bad["cause"].splitlines()))[:_MAX_CAUSE]
        file = f" ({path})" if path is not None and path not in cause else ""
        messages.append(f"bad: {name}[{bad['index']}]{file}: {cause}")
    if len(summary["bad"]) > _MAX_BAD:
        messages.append(f"bad: {len(summary['bad']) - _MAX_BAD} more items of {name}, see check.json")
    messages += [f"same path: {pair}" for pair in summary["same_path"]["first"]]
    messages += [f"same content: {pair}" for pair in summary["copies"]["first"]]
    if classes := list(summary.get("conditions", {}).get("classes", {}).items()):
        counts = ", ".join(f"{condition}: {count:,}" for condition, count in classes[:_MAX_CLASSES])
        rest = f", and {len(classes) - _MAX_CLASSES} more" if len(classes) > _MAX_CLASSES else ""
        messages.append(f"{name}, images per condition: {counts}{rest}")
    return messages


def _make_cells(summary: SplitSummary) -> dict[str, str]:
    """Format a split's numbers, by the label of their line in the table."""
    forms = summary["becomes"]
    cells = {
        "items": _format_items(summary),
        "order": summary.get("order", ""),
        "bad": f"{len(summary['bad']):,}",
        "modes or dtypes": _format_counts(summary["modes"]),
        "file formats": _format_counts(summary["formats"]),
        "channels": _format_counts(summary["channels"]),
        "height x width": _format_sizes(summary["sizes"]),
        "values": "{:.6g} to {:.6g}".format(*summary["values"]) if summary["values"] else "",
        **{label: f"{summary[name]:,}" for name, label in _FEATURE_LABELS.items() if name in summary},
        "after processing": _format_counts(forms) if len(forms) <= _MAX_NAMED else f"{len(forms):,} shapes",
        "copies": f"{summary['copies']['count']:,} by content, {summary['same_path']['count']:,} by path",
    }
    if "speed" in summary:
        speed, size = summary["speed"], summary["bytes"]
        shared, cache = size["shared"], size["cache"]
        cells["images per second"] = f"{speed['a_worker']:,.0f} per worker, {speed['configured']:,.0f} as configured"
        cells["sent to device per batch"] = _format_megabytes(size["batch"])
        cells["shared memory of workers"] = _format_megabytes(shared) if shared else "none, there are no workers"
        cells["cache"] = _format_megabytes(cache) if cache else "not needed, or not possible"
    for latents in summary.get("latents", ()):
        cells["mean per channel"] = ", ".join(f"{value:.4g}" for value in latents["mean"])
        cells["standard deviation"] = ", ".join(f"{value:.4g}" for value in latents["std"])
        cells["scale for unit variance"] = f"{latents['scale']:.5g}" if latents["scale"] else "none, they do not vary"
    if conditions := summary.get("conditions"):
        cells["conditions"] = _format_counts(conditions["kinds"])
    return {label: cell for label, cell in cells.items() if cell}


def _format_items(summary: SplitSummary) -> str:
    text = f"{summary['items']:,}"
    if summary["looked_at"] < summary["items"]:
        text += f", {summary['looked_at']:,} of them checked"
    for stage, count in summary.get("held_out_for", {}).items():
        text += f", {count:,} of them for {stage}"
    return text


def _format_sizes(sizes: dict[str, Any] | None) -> str:
    if sizes is None:
        return ""
    smallest, median, largest = (f"{h} x {w}" for h, w in (sizes["smallest"], sizes["median"], sizes["largest"]))
    if sizes["different"] == 1:
        return smallest
    return f"{smallest} to {largest}, median {median}, {sizes['different']:,} different"


def _format_counts(counts: Mapping[str, int]) -> str:
    """Format the most frequent values with their counts; a single value stands without its count."""
    if len(counts) == 1:
        return next(iter(counts))
    parts = [f"{value}: {count:,}" for value, count in list(counts.items())[:_MAX_NAMED]]
    if len(counts) > _MAX_NAMED:
        parts.append(f"{len(counts) - _MAX_NAMED} more")
    return ", ".join(parts)


def _format_megabytes(count: int) -> str:
    return f"{count / 1e6:,.3g} MB"


def _sort_counts(counts: Mapping[Any, int] | None) -> dict[str, int]:
    """Sort counts, the most frequent first, and turn their keys into text."""
    return {str(value): count for value, count in Counter(counts or {}).most_common()}


def _find_shape_mismatch(name: str, stats: ItemStats) -> str | None:
    """Describe the first two items whose images could not share a batch."""
    forms = list(stats.forms.items())
    for form, index in forms[1:]:
        if form.shape != forms[0][0].shape:
            return shape_mismatch_message(name, forms[0][1], forms[0][0].shape, index, form.shape)
    return None


def _summarize_sizes(rows: Rows) -> dict[str, Any] | None:
    if not len(rows):
        return None
    sizes = np.stack([rows["height"], rows["width"]], 1).astype(np.int64)
    order = np.argsort(sizes.prod(1), kind="stable")
    ranks = {"smallest": 0, "median": len(rows) // 2, "largest": -1}
    summary: dict[str, Any] = {name: sizes[order[rank]].tolist() for name, rank in ranks.items()}
    return summary | {"different": len(np.unique(sizes, axis=0))}


def _name_item(images: ScannableImages, index: int) -> str:
    path = path_of(images.dataset, index) if isinstance(images, MapStyleImages) else None
    return f"{images.name}[{index}]" + (f" ({path})" if path else "")


def _estimate_speed(per_worker: float, loading: LoaderOptions) -> dict[str, float]:
    """Estimate images per second with the configured workers. Workers beyond the number of cores add nothing."""
    workers = min(max(1, loading.num_workers), cpu_count())
    return {"a_worker": per_worker, "configured": per_worker * workers, "workers": loading.num_workers}


def _count_bytes(items: int, stats: ItemStats, loading: LoaderOptions, is_cached: bool) -> dict[str, int]:
    image = max(form.nbytes for form in stats.forms)
    example = image + stats.condition_bytes
    position = 8  # int64, beside each image
    return {
        "batch": loading.batch_size * (example + position),
        "shared": loading.shm_bytes(image),
        "cache": items * example if is_cached else 0,
    }


def _summarize_latents(sums: Rows, processor: LatentProcessor) -> dict[str, Any]:
    """Compute mean and standard deviation per channel of the latents as they would be drawn.

    Args:
        sums: Values per channel, their sum and the sum of their squares, shape ``(3, channels)``.
        processor: Says whether the second half of the channels are standard deviations.
    """
    count, total, squares = sums[0], sums[1], sums[2]
    mean, mean_square = total / count, squares / count
    if processor.stacked or processor.std_key is not None:
        half = len(mean) // 2
        mean, mean_square = mean[:half], mean_square[:half] + mean_square[half:]  # E[(m + s e)^2] = E[m^2] + E[s^2]
    std = np.sqrt(np.maximum(mean_square - mean**2, 0))
    overall_std = float(np.sqrt(max(mean_square.mean() - mean.mean() ** 2, 0)))
    return {"mean": mean.tolist(), "std": std.tolist(), "scale": 1 / overall_std if overall_std else None}
