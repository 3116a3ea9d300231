"""The official base network on deterministic weights: built once, for every test that needs one of its size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from talent.model import TalentModel
from talent.official import from_official


@pytest.fixture(scope="session")
def expected(parity) -> dict[str, np.ndarray]:
    """What the official code computed on the weights of `parity` (tests/data/upstream_parity)."""
    with np.load(parity.HERE / "expected_base.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def official_state(parity) -> dict[str, Tensor]:
    return {key: torch.as_tensor(value) for key, value in parity.random_state_dict("base", 0).items()}


@pytest.fixture(scope="session")
def official_base(official_state) -> TalentModel:
    return from_official(official_state, preset="base")
