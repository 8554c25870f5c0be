"""What the check command says of a set: plain numbers for its JSON file, and cells for its table."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_data.cli._table import markdown
from ddpm_data.cli.checking.duplicates import Duplicates, find_duplicates
from ddpm_data.cli.checking.survey import ItemStats, Rows
from ddpm_data.images.latent_processor import LatentProcessor
from ddpm_data.loading.bad_items import shape_mismatch_message
from ddpm_data.loading.iterable import IterableImages
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.loading.options import LoaderOptions, cpu_count
from ddpm_data.sources._paths import path_of

NAMED = 10  # bad items in the table
_LONG = 300  # characters of a cause there
_PAIRS = 3  # copies that are named
_TOP = 20  # classes in the table
_COUNTED = {
    "enlarged": "enlarged to image_size",
    "transparent": "transparent",
    "turned": "turned by EXIF",
    "animated": "of several frames",
}

Facts = dict[str, Any]
SomeImages = MapStyleImages | IterableImages


def summarize(
    images: SomeImages, survey: ItemStats, loading: LoaderOptions, is_cached: bool, problem: str | None
) -> Facts:
    """All there is to say of one set by itself.

    Args:
        images: The set.
        survey: What its items hold.
        loading: How they are to be loaded.
        is_cached: Whether a cache would be made if there was a folder for it.
        problem: What ``setup()`` would say against the set as a whole.
    """
    rows, counts = survey.rows, survey.counts
    paths = rows[rows["path"] != 0]
    found: Facts = {
        "items": len(images.dataset) if isinstance(images, MapStyleImages) else len(survey),
        "looked_at": len(survey),
        "problems": [wrong for wrong in (problem or _differing(images.name, survey),) if wrong],
        "bad": [{"index": bad.item, "path": bad.path, "cause": bad.cause} for bad in survey.bad],
        "modes": _ranked(counts.get("mode")),
        "formats": _ranked(counts.get("format")),
        "channels": _ranked(counts.get("channels")),
        "sizes": _sizes(rows),
        "values": survey.span if survey.span[0] <= survey.span[1] else None,
        **{what: counts["has"][what] for what in ("transparent", "turned", "animated") if "has" in counts},
        "becomes": _ranked(Counter({f"{f.dtype} {tuple(f.shape)}": n for f, n in counts.get("form", {}).items()})),
        "copies": name_duplicates(find_duplicates(rows["content"]), images, rows, images, rows),
        "same_path": name_duplicates(find_duplicates(paths["path"]), images, paths, images, paths),
    }
    if size := getattr(images.processor, "image_size", None):
        found["enlarged"] = int(((rows["height"] < size[0]) | (rows["width"] < size[1])).sum())
    if len(rows):
        found["speed"] = _speed(len(rows) / survey.seconds, loading)
        found["bytes"] = _bytes(found["items"], survey, loading, is_cached)
    if isinstance(images.processor, LatentProcessor):
        found["latents"] = [_latents(sums, images.processor) for sums in survey.moments.values()]
    if "condition" in counts:
        found["conditions"] = {"kinds": _ranked(counts["condition"]), "classes": _ranked(survey.classes)}
    return found


def name_duplicates(
    copied: Duplicates, images: SomeImages, rows: Rows, other_images: SomeImages, other_rows: Rows
) -> Facts:
    """How many items of the second set are among those of the first, and the first few's names."""
    first = zip(other_rows["index"][copied.places[:_PAIRS]], rows["index"][copied.origins[:_PAIRS]], strict=True)
    named = [f"{_name(other_images, int(copy))} is {_name(images, int(origin))}" for copy, origin in first]
    return {"count": len(copied.places), "first": named}


def table(sets: Mapping[str, Facts]) -> str:
    """All sets' numbers, a column each."""
    columns = {name: _cells(found) for name, found in sets.items()}
    heads = list(dict.fromkeys(head for cells in columns.values() for head in cells))
    lines = [["", *columns], *([head, *(cells.get(head, "") for cells in columns.values())] for head in heads)]
    return markdown(lines)


def messages(name: str, found: Facts) -> list[str]:
    """What of a set does not fit into a table: its problems, bad items, copies and classes."""
    said = [f"{name}: {problem}" for problem in found["problems"]]
    for bad in found["bad"][:NAMED]:
        path, cause = bad["path"], next(iter(bad["cause"].splitlines()))[:_LONG]
        said.append(f"bad: {name}[{bad['index']}]{f' ({path})' * (path is not None and path not in cause)}: {cause}")
    if len(found["bad"]) > NAMED:
        said.append(f"bad: {len(found['bad']) - NAMED} more of {name}, which check.json lists")
    said += [f"same path: {pair}" for pair in found["same_path"]["first"]]
    said += [f"same content: {pair}" for pair in found["copies"]["first"]]
    if classes := list(found.get("conditions", {}).get("classes", {}).items()):
        more = f", and {len(classes) - _TOP} more" * (len(classes) > _TOP)
        said.append(f"{name}, images of each condition: " + ", ".join(f"{n}: {c:,}" for n, c in classes[:_TOP]) + more)
    return said


def _cells(found: Facts) -> dict[str, str]:
    looked_at = f", of which {found['looked_at']:,} were looked at" * (found["looked_at"] < found["items"])
    cells = {
        "items": f"{found['items']:,}{looked_at}"
        + (f", {n:,} of them for val" if (n := found.get("held_out")) else ""),
        "order": found.get("order", ""),
        "bad": f"{len(found['bad']):,}",
        "modes or dtypes": _listed(found["modes"]),
        "file formats": _listed(found["formats"]),
        "channels": _listed(found["channels"]),
    }
    if sizes := found["sizes"]:
        small, middle, large = (f"{h} x {w}" for h, w in (sizes["smallest"], sizes["median"], sizes["largest"]))
        one = f"{small} to {large}, median {middle}, {sizes['different']:,} different"
        cells["height x width"] = small if sizes["different"] == 1 else one
    if found["values"]:
        cells["values"] = "{:.6g} to {:.6g}".format(*found["values"])
    cells |= {head: f"{found[what]:,}" for what, head in _COUNTED.items() if what in found}
    forms = found["becomes"]
    cells["become"] = _listed(forms) if len(forms) <= _PAIRS else f"{len(forms):,} shapes"
    cells["copies"] = f"{found['copies']['count']:,} by content, {found['same_path']['count']:,} by path"
    if "speed" in found:
        speed, size = found["speed"], found["bytes"]
        cells["images a second"] = f"{speed['a_worker']:,.0f} a worker, {speed['configured']:,.0f} as configured"
        cells["a batch to the device"] = _megabytes(size["batch"])
        cells["shared memory of workers"] = (
            _megabytes(size["shared"]) if size["shared"] else "none, there are no workers"
        )
        cells["cache"] = _megabytes(size["cache"]) if size["cache"] else "none is needed, or possible"
    for latents in found.get("latents", ()):
        cells["mean a channel"] = ", ".join(f"{value:.4g}" for value in latents["mean"])
        cells["standard deviation"] = ", ".join(f"{value:.4g}" for value in latents["std"])
        cells["scale for unit variance"] = f"{latents['scale']:.5g}" if latents["scale"] else "none, they do not vary"
    if conditions := found.get("conditions"):
        cells["conditions"] = _listed(conditions["kinds"])
    return {head: cell for head, cell in cells.items() if cell}


def _ranked(counts: Mapping[Any, int] | None) -> dict[str, int]:
    return {str(what): count for what, count in Counter(counts or {}).most_common()}


def _listed(counts: Mapping[str, int]) -> str:
    first = [what if len(counts) == 1 else f"{what}: {count:,}" for what, count in list(counts.items())[:_PAIRS]]
    return ", ".join([*first, *([f"{len(counts) - _PAIRS} more"] if len(counts) > _PAIRS else [])])


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.3g} MB"


def _differing(name: str, survey: ItemStats) -> str | None:
    forms = list(survey.forms.items())
    for form, index in forms[1:]:
        if form.shape != forms[0][0].shape:
            return shape_mismatch_message(name, forms[0][1], forms[0][0].shape, index, form.shape)
    return None


def _sizes(rows: Rows) -> Facts | None:
    if not len(rows):
        return None
    sizes = np.stack([rows["height"], rows["width"]], 1).astype(np.int64)
    order = np.argsort(sizes.prod(1), kind="stable")
    places = {"smallest": 0, "median": len(rows) // 2, "largest": -1}
    found: Facts = {name: sizes[order[place]].tolist() for name, place in places.items()}
    return found | {"different": len(np.unique(sizes, axis=0))}


def _name(images: SomeImages, index: int) -> str:
    path = path_of(images.dataset, index) if isinstance(images, MapStyleImages) else None
    return f"{images.name}[{index}]" + (f" ({path})" if path else "")


def _speed(a_worker: float, loading: LoaderOptions) -> dict[str, float]:
    workers = min(max(1, loading.num_workers), cpu_count())
    return {"a_worker": a_worker, "configured": a_worker * workers, "workers": loading.num_workers}


def _bytes(items: int, survey: ItemStats, loading: LoaderOptions, is_cached: bool) -> dict[str, int]:
    image = max(form.nbytes for form in survey.forms)
    whole = image + survey.condition_bytes
    position = 8  # int64, beside each image
    return {
        "batch": loading.batch_size * (whole + position),
        "shared": loading.shm_bytes(image),
        "cache": items * whole if is_cached else 0,
    }


def _latents(sums: Rows, processor: LatentProcessor) -> Facts:
    """Mean and standard deviation a channel of the latents, as they would be drawn."""
    count, total, squares = sums[0], sums[1], sums[2]
    mean, square = total / count, squares / count
    if processor.stacked or processor.std_key is not None:
        half = len(mean) // 2
        mean, square = mean[:half], square[:half] + square[half:]  # E[(m + s e)^2] = E[m^2] + E[s^2]
    std = np.sqrt(np.maximum(square - mean**2, 0))
    whole = float(np.sqrt(max(square.mean() - mean.mean() ** 2, 0)))
    return {"mean": mean.tolist(), "std": std.tolist(), "scale": 1 / whole if whole else None}
