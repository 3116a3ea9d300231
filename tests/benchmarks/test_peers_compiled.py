"""torch.compile as a peer (benchmarks/peers.py): the same network, compiled afresh, and why it may not be there."""

from __future__ import annotations

import functools
import os

import pytest
import torch

from benchmarks import peers
from benchmarks.peers import compiled_afresh
from talent.errors import UserError
from tests.benchmarks.peer_answers import assert_same_network, opened, saved
from tests.networks import SMALL


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without inductor: what is traced runs as it is."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def test_what_is_compiled_is_the_same_network(checkpoint, tmp_path, traced):
    stages = opened(checkpoint, "compile", SMALL, tmp_path)
    assert_same_network(stages, checkpoint, SMALL)
    facts = stages.facts()
    assert 0 < facts["text_gflop"] < facts["gflop"]


@pytest.mark.slow
def test_inductor_computes_what_pytorch_does(checkpoint, tmp_path):
    assert_same_network(opened(checkpoint, "compile", SMALL, tmp_path), checkpoint, SMALL)


def test_without_a_compiler_nothing_is_compiled(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"there is no g\+\+ or clang\+\+.*apt install g\+\+"):
        opened(checkpoint, "compile", SMALL, tmp_path)


def test_a_compiler_that_stops_is_a_reason(checkpoint, tmp_path, monkeypatch):
    def stop(graph, **_):
        def run(*arguments):
            raise RuntimeError("C++ compile error\nand all of the command")

        return run

    monkeypatch.setattr(torch, "compile", stop)
    monkeypatch.setattr(peers.shutil, "which", lambda name: name)
    with pytest.raises(UserError, match=r"cannot compile this network here \(RuntimeError: C\+\+ compile error\)"):
        opened(checkpoint, "compile", SMALL, tmp_path)


@pytest.mark.parametrize("before", [None, "/kept"])
def test_compiling_starts_afresh(before, monkeypatch):
    monkeypatch.delenv(peers.KEPT_IN, raising=False)
    if before:
        monkeypatch.setenv(peers.KEPT_IN, before)
    with compiled_afresh():
        directory = os.environ[peers.KEPT_IN]
        assert os.listdir(directory) == []
    assert os.environ.get(peers.KEPT_IN) == before and not os.path.exists(directory)
