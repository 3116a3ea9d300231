"""What tests of several packages share: the toy graphs and the proof data of the official network."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from deploy.precision import simplify
from tests.deploy import toy

PARITY = Path(__file__).resolve().parent / "data" / "upstream_parity"


@pytest.fixture(scope="session", autouse=True)
def measurements(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where INT8 keeps what it measured during the tests: neither found from before nor left behind."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("measurements")
        patch.setenv("TALENT_EDGE_CACHE", str(directory))
        yield directory


@pytest.fixture(scope="session")
def exported() -> onnx.ModelProto:
    """The toy network as torch.onnx wrote it."""
    return toy.export()


@pytest.fixture(scope="session")
def plain(exported: onnx.ModelProto) -> onnx.ModelProto:
    """The toy network simplified."""
    return simplify(exported, feeds=toy.feeds(2))


@pytest.fixture(scope="session")
def parity() -> ModuleType:
    """tests/data/upstream_parity/weights.py."""
    spec = importlib.util.spec_from_file_location("upstream_parity_weights", PARITY / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
