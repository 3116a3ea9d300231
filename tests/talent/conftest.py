"""The official base network on deterministic weights: built once, for every test that needs one of its size."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from talent.model import TalentModel
from talent.official import from_official

PARITY = Path(__file__).resolve().parents[1] / "data" / "upstream_parity"


@pytest.fixture(scope="session")
def parity() -> ModuleType:
    """tests/data/upstream_parity/weights.py."""
    spec = importlib.util.spec_from_file_location("upstream_parity_weights", PARITY / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def expected() -> dict[str, np.ndarray]:
    """What the official code computed on those weights."""
    with np.load(PARITY / "expected_base.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def official_state(parity) -> dict[str, Tensor]:
    return {key: torch.as_tensor(value) for key, value in parity.random_state_dict("base", 0).items()}


@pytest.fixture(scope="session")
def official_base(official_state) -> TalentModel:
    return from_official(official_state, preset="base")
