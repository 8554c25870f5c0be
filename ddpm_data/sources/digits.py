"""A small dataset that needs no download: handwritten digits."""

import torch
from torch.utils.data import TensorDataset


def digits() -> TensorDataset:
    """Load the 1,797 handwritten digits that ship with scikit-learn: grey, 8 x 8 pixels.

    The data come from the UCI repository (Alpaydin & Kaynak 1998).

    Returns:
        A dataset of pairs ``(image, label)``. Images are uint8, shape ``(1, 8, 8)``, with the 17 levels of the original
        spread over ``[0, 255]``; labels are int64 in ``[0, 9]``.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("dataset=digits ships with scikit-learn: pip install 'ddpm-data[demo]'") from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images)[:, None]  # float64, whole numbers from 0 to 16
    return TensorDataset((images * (255 / 16)).round().to(torch.uint8), torch.from_numpy(bunch.target).long())
