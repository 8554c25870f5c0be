"""The quality of the main job's digits: ``python -m benchmarks.samples outputs/<date>/<time>``, for one run or several.

A classifier is trained on half of the real digits. Then it reads the other half, the samples of each run, and noise
that has the digits' brightness at each pixel. The script prints for each how confident the classifier is, how evenly it
finds the ten classes, and the distance to the nearest real digit of the training half. Samples much nearer than unseen
digits would be copies.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier

from ddpm_data.plots._tiles import join_tiles
from ddpm_data.sources import digits

_SHOWN = 16  # samples of each run in the picture


def main() -> None:
    """Draw samples, classify them, and print a Markdown table with one row per run, named after its folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="a run folder of train_stub.py with dataset=digits")
    parser.add_argument("--count", type=int, default=500, help="samples to draw of each run")
    parser.add_argument("--picture", type=Path, help="file for a picture with a row of samples of each run")
    args = parser.parse_args()
    names = [run.resolve().name for run in args.run]
    if len(set(names)) < len(names):
        parser.error("two of the run folders have the same name, and rows are named after them")
    samples = {name: draw_samples(run, args.count) for name, run in zip(names, args.run, strict=True)}
    if args.picture is not None:
        draw_rows(samples, args.picture)
    print_table({f"samples, {name}" if len(samples) > 1 else "samples": of_run for name, of_run in samples.items()})


def draw_samples(run: Path, count: int) -> torch.Tensor:
    """Draw samples with the last checkpoint of a run, float32 in ``[-1, 1]``, shape ``(count, 1, 8, 8)``."""
    cfg = OmegaConf.load(run / "config.yaml")
    model = instantiate(cfg.model).eval()
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
    model.load_state_dict(checkpoint["state_dict"])
    drawn: torch.Tensor = model.sample((count, 1, 8, 8), seed=1)
    return drawn


def draw_rows(samples: Mapping[str, torch.Tensor], path: Path) -> None:
    """Draw the first samples of each run in a row with its name."""
    tiles = join_tiles([image for images in samples.values() for image in images[:_SHOWN]], columns=_SHOWN, side=48)
    height, width = tiles.pixels.shape[:2]
    figure = Figure((width / 100 + 1, height / 100), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(tiles.pixels, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([bottom - 24 for bottom in tiles.bottoms], list(samples))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=200, bbox_inches="tight")


def print_table(samples: Mapping[str, torch.Tensor]) -> None:
    """Classify the samples of each run, real digits and noise, and print a row of each.

    Args:
        samples: Images in ``[-1, 1]``, float32, shape ``(count, 1, 8, 8)``, by the name of their row.
    """
    images, labels = digits().tensors
    pixels = images.flatten(1).numpy() / 127.5 - 1
    order = np.random.default_rng(0).permutation(len(pixels))
    seen, unseen = order[: len(order) // 2], order[len(order) // 2 :]
    classifier = MLPClassifier((128,), max_iter=1000, random_state=0).fit(pixels[seen], labels.numpy()[seen])
    nearest = NearestNeighbors(n_neighbors=1).fit(pixels[seen])
    noise = np.stack([np.random.default_rng(pixel).permutation(pixels[unseen, pixel]) for pixel in range(64)], axis=1)

    print(f"accuracy on unseen real digits: {classifier.score(pixels[unseen], labels.numpy()[unseen]):.3f}\n")
    print("| images | count | mean confidence | over 0.9 sure | classes 0..9, % | distance to nearest real |")
    print("|---|---|---|---|---|---|")
    drawn = {name: images.flatten(1).double().numpy() for name, images in samples.items()}
    for name, values in ({"real, unseen": pixels[unseen]} | drawn | {"noise": noise}).items():
        confidence = classifier.predict_proba(values).max(1)
        classes = np.bincount(classifier.predict(values), minlength=10) / len(values) * 100
        distance = nearest.kneighbors(values)[0].mean()
        shares = " ".join(f"{share:.0f}" for share in classes)
        certainty = f"{confidence.mean():.3f} | {(confidence > 0.9).mean():.0%}"
        print(f"| {name} | {len(values)} | {certainty} | {shares} | {distance:.2f} |")


if __name__ == "__main__":
    main()
