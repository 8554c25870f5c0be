"""Conditions that make no batch."""

import pytest
import torch

from ddpm_data.loading.collate import collate_conditions


def test_ragged_conditions_are_refused_in_words() -> None:
    with pytest.raises(TypeError, match=r"conditions of train do not make a batch.*one shape"):
        collate_conditions("train", [torch.zeros(2), torch.zeros(3)])
    with pytest.raises(TypeError, match=r"conditions of train do not make a batch"):
        collate_conditions("train", [{"a": 1}, {"b": 1}])
