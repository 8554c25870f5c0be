"""The digits that ship with scikit-learn."""

import torch

from ddpm_data.sources import digits


def test_digits_are_the_real_ones() -> None:
    images, labels = digits().tensors
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert images.unique().tolist() == [round(level * 255 / 16) for level in range(17)]
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
