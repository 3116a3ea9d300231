"""benchmarks/peak.py: the fastest of all products counts, and only what has a peak is given a share of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import peak
from benchmarks.contenders import Contender
from benchmarks.peak import Kind, Peaks
from talent.errors import UserError

CPU = Kind("cpu", "fp32")
SECONDS = {"slow": [9.0, 4.0, 5.0, 6.0, 9.0], "fast": [9.0, 3.0, 2.0, 2.5, 9.0]}


def contender(**arguments) -> Contender:
    return Contender(**{"name": "a", "precision": "fp32", **arguments})


def played(monkeypatch, *libraries: str) -> list[str]:
    """Products that take the SECONDS of their library, again and again; returns who was called."""
    called: list[str] = []
    monkeypatch.setattr(peak, "RUNS", 4)
    monkeypatch.setattr(peak, "_products", lambda kind, threads: (
        [lambda name=name: called.append(name) for name in libraries], [] if libraries else ["no torch", "no onnx"]))

    def seconds(run):
        run()
        return SECONDS[called[-1]][called.count(called[-1]) % 5 - 1]

    monkeypatch.setattr(peak, "_seconds", seconds)
    return called


def test_the_fastest_run_of_the_fastest_library(monkeypatch):
    called = played(monkeypatch, "slow", "fast")
    peaks = Peaks([CPU, CPU], threads=1)
    peaks.measure()
    work = 2 * 2048**3 / 1e9
    assert called == ["slow"] * 5 + ["fast"] * 5  # the first of each is not timed: it would take 9 seconds or 3
    assert peaks.gflop_per_second == {CPU: work / 2.0} and peaks.unknown == {}
    assert peaks.share(contender(), work / 8) == pytest.approx(0.25)


def test_a_second_measurement_counts_where_it_is_faster(monkeypatch):
    played(monkeypatch, "fast")
    peaks = Peaks([CPU], threads=1)
    peaks.measure()
    before = peaks.gflop_per_second[CPU]
    monkeypatch.setattr(peak, "_seconds", lambda run: 100.0)
    peaks.measure()
    assert peaks.gflop_per_second[CPU] == before
    monkeypatch.setattr(peak, "_seconds", lambda run: 0.5)
    peaks.measure()
    assert peaks.gflop_per_second[CPU] == 4 * before


def test_without_a_library_the_peak_is_unknown_and_says_why(monkeypatch):
    played(monkeypatch)
    peaks = Peaks([CPU], threads=1)
    peaks.measure()
    assert peaks.gflop_per_second == {} and peaks.unknown == {CPU: "no torch; no onnx"}
    assert peaks.share(contender(), 10.0) is None


def test_what_has_a_peak():
    assert Kind.of(contender()) == CPU
    assert Kind.of(contender(device="cuda", precision="fp16")) == Kind("cuda", "fp16")
    for without in (contender(precision="fp16", emulated=True), contender(precision="int8", emulated=True),
                    contender(precision="int8", device="cuda")):
        assert Kind.of(without) is None


def test_the_libraries_of_a_cpu_compute_the_product(monkeypatch):
    monkeypatch.setitem(peak.SIDE, "cpu", 32)
    matrix = peak._matrix(32)
    products, reasons = peak._products(CPU, threads=1)
    assert len(products) == 2 and reasons == []
    (computed,) = products[1]()
    np.testing.assert_allclose(computed, matrix @ matrix, atol=1e-5)
    peaks = Peaks([CPU], threads=1)
    peaks.measure()
    assert peaks.gflop_per_second[CPU] > 0


def test_a_library_that_is_missing_leaves_the_others(monkeypatch):
    monkeypatch.setitem(peak.SIDE, "cpu", 32)
    real = peak.require

    def require(module, **arguments):
        if module == "onnx":
            raise UserError("this needs the package 'onnx'")
        return real(module, **arguments)

    monkeypatch.setattr(peak, "require", require)
    products, reasons = peak._products(CPU, threads=1)
    assert len(products) == 1 and reasons == ["this needs the package 'onnx'"]


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Peaks([Kind("cuda", "fp16")], threads=1).unknown == {Kind("cuda", "fp16"): "PyTorch sees no GPU here"}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", peak.PRECISIONS["cuda"])
def test_the_peak_of_this_gpu(precision):
    peaks = Peaks([Kind("cuda", precision)], threads=1)
    peaks.measure()
    assert peaks.gflop_per_second[Kind("cuda", precision)] > 100
