"""A whole set gone through for the check command: in workers by number, or along a source's own order."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from time import perf_counter
from typing import NamedTuple, cast

from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from ddpm_data.cli.checking.survey import Bad, ItemStats, ItemStatsDataset
from ddpm_data.loading.iterable import IterableImages
from ddpm_data.loading.map_style import MapStyleImages

_AT_ONCE = 32  # items a worker looks at between two reports
_SHOWN = 64  # images to show
_SIDE = 128  # pixels of the longer side of these, at most
_AGAIN = 16  # items of a source that are asked for twice


class ScanResult(NamedTuple):
    """One set, gone through.

    Attributes:
        images: The set.
        survey: What its items hold.
        shown: Up to 64 of its images as the processor wants them, spread evenly, made smaller where they are large.
        order: What is to be said of a source's own order; empty where there is none.
    """

    images: MapStyleImages | IterableImages
    survey: ItemStats
    shown: list[Tensor]
    order: str = ""


def scan_map_style(images: MapStyleImages, workers: int, context: str | None) -> ScanResult:
    """Every item of a map-style dataset.

    Args:
        images: The dataset, and how its items become images.
        workers: Processes that look; 0 looks in this one.
        context: How they start, see :class:`~ddpm_data.loading.options.LoaderOptions`.

    Raises:
        RuntimeError: A worker was killed or crashed.
    """
    surveys, survey = ItemStatsDataset(images, _AT_ONCE), ItemStats()
    workers = min(workers, len(surveys))
    # Surveys are no tensors, so that they come as they are.
    loader = DataLoader(
        surveys, batch_size=None, num_workers=workers, multiprocessing_context=context if workers else None
    )
    with tqdm(desc=f"Checking {images.name}", total=len(images.dataset), unit="image") as bar:
        try:
            for some in loader:
                survey.merge(some)
                bar.update(len(some))
        except RuntimeError as error:
            raise RuntimeError(
                f"a worker was killed or crashed at an item of {images.name} not far after {bar.n} ({error}). Look at "
                "the memory; --workers 0 leads to the item."
            ) from error
    good = survey.rows["index"]
    return ScanResult(images, survey, list(_looked_again(images, good[_spread(len(good))].tolist())))


def scan_iterable(images: IterableImages, most: int) -> ScanResult:
    """A source's first items in its own order, in this process.

    Args:
        images: The source, and how its items become images.
        most: How many items.
    """
    with tqdm(desc=f"Checking {images.name}", total=most, unit="image") as bar:
        survey, shown = _along(images, most, bar)
    first = _along(images, min(_AGAIN, len(survey)), tqdm(disable=True))[0].rows["content"]
    same = "the same" if first.tolist() == survey.rows["content"][: len(first)].tolist() else "another"
    end = f"; no more than {most:,} were looked at" if len(survey) == most else ""
    return ScanResult(
        images, survey, [shown[place] for place in _spread(len(shown))], f"its own, {same} each time{end}"
    )


def _along(images: IterableImages, most: int, bar: tqdm) -> tuple[ItemStats, list[Tensor]]:
    survey, shown, step = ItemStats(), [], 1
    items = chain.from_iterable([images.source])  # its iter() is called by the first next()
    for index in range(most):
        started = perf_counter()
        try:
            item = next(items)
        except StopIteration:
            break
        except Exception as error:  # after which it gives no more
            survey.bad.append(Bad(index, None, f"the source itself: {type(error).__name__}: {error}"))
            break
        survey.seconds += perf_counter() - started
        image = survey.add_item(index, partial(_given, item), images.processor, images.condition)
        bar.update()
        if image is not None and index % step == 0:
            shown.append(_small(image))
        if len(shown) == 2 * _SHOWN:  # how many there will be is not known
            shown, step = shown[::2], 2 * step
    return survey, shown


def _given(item: object) -> object:
    return item


def _looked_again(images: MapStyleImages, indices: list[int]) -> Iterator[Tensor]:
    for index in indices:
        image = ItemStats().add_item(index, partial(images.dataset.__getitem__, index), images.processor)
        if image is not None:
            yield _small(image)


def _spread(count: int) -> list[int]:
    """Up to 64 places among ``count``, evenly."""
    shown = min(_SHOWN, count)
    return [number * (count - 1) // max(1, shown - 1) for number in range(shown)]


def _small(image: Tensor) -> Tensor:
    side = max(image.shape[-2:])
    if side <= _SIDE:
        return image
    size = [max(1, length * _SIDE // side) for length in image.shape[-2:]]
    return cast(Tensor, F.resize(image, size, antialias=True))
