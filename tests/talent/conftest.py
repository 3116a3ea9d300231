"""Networks that are built once for every test that needs them: the official base, and the smallest as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from talent.model import TalentModel
from talent.official import from_official
from tests.networks import SMALL, save_network


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


@pytest.fixture(scope="session")
def initial(tmp_path_factory) -> Path:
    """Where runs start from: a checkpoint of SMALL, which nobody changes."""
    return save_network(tmp_path_factory.mktemp("weights") / "initial", SMALL)
