"""The quality of the main job's digits: ``python benchmarks/samples.py outputs/<date>/<time>``.

A classifier is trained on half of the real digits. Then it reads the other half, the model's samples, and noise that
has the digits' brightness at each pixel. The script prints for each how confident the classifier is, how evenly it
finds the ten classes, and the distance to the nearest real digit of the training half. Samples much nearer than unseen
digits would be copies.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier

from ddpm_data.sources import digits

Array = NDArray[np.float64]


def main() -> None:
    """Draw samples, classify them, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder of train_stub.py with dataset=digits")
    parser.add_argument("--count", type=int, default=500, help="samples to draw")
    args = parser.parse_args()

    cfg = OmegaConf.load(args.run / "config.yaml")
    model = instantiate(cfg.model).eval()
    checkpoint = torch.load(args.run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
    model.load_state_dict(checkpoint["state_dict"])
    samples = model.sample((args.count, 1, 8, 8), seed=1)

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
    for name, values in (("real, unseen", pixels[unseen]), ("samples", _to_array(samples)), ("noise", noise)):
        confidence = classifier.predict_proba(values).max(1)
        classes = np.bincount(classifier.predict(values), minlength=10) / len(values) * 100
        distance = nearest.kneighbors(values)[0].mean()
        shares = " ".join(f"{share:.0f}" for share in classes)
        certainty = f"{confidence.mean():.3f} | {(confidence > 0.9).mean():.0%}"
        print(f"| {name} | {len(values)} | {certainty} | {shares} | {distance:.2f} |")


def _to_array(images: torch.Tensor) -> Array:
    return images.flatten(1).double().numpy()


if __name__ == "__main__":
    main()
