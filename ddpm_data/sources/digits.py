"""The offline digits of the main job."""

import torch
from torch.utils.data import TensorDataset


def digits() -> TensorDataset:
    """The 1,797 handwritten digits that ship with scikit-learn (UCI; Alpaydin & Kaynak 1998), 8 x 8 pixels, grey.

    Returns:
        Items ``(image, label)``: uint8 of shape ``(1, 8, 8)``, the 17 levels spread over ``[0, 255]``; int64 in 0..9.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("dataset=digits ships with scikit-learn: pip install 'ddpm-data[demo]'") from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images)[:, None]  # float64, whole numbers 0 to 16
    return TensorDataset((images * (255 / 16)).round().to(torch.uint8), torch.from_numpy(bunch.target).long())
