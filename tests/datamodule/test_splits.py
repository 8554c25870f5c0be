"""The datasets of the splits: what they must be, and what is said where they are not."""

import pytest

from ddpm_data.datamodule.splits import CONTRACT
from tests.conftest import ROOT
from tests.sources.helpers import module


def test_the_contract_is_the_readmes_and_quoted_to_who_breaks_it() -> None:
    assert "\n".join(CONTRACT) in (ROOT / "README.md").read_text()
    with pytest.raises(TypeError, match="train is a int, not a dataset") as raised:
        module(7)
    assert all(line in str(raised.value) for line in CONTRACT)
