"""demo/report.py: the page holds every number that it was given, and nothing that lies outside it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from benchmarks.latency import STAGES, WHOLE
from benchmarks.results_file import row
from demo.report import ANSWERS, Scene, megabytes, milliseconds, score, write_page
from talent.data.shapes import ShapesDataset
from talent.metrics import iou

ROWS = [("PyTorch eager", "fp32", False), ("ONNX Runtime", "fp16", True), ("ONNX Runtime", "int8", True)]


@pytest.fixture(scope="module")
def report():
    return {
        "miou": {"before": 0.3123, "after": 0.6234, "fp32": 0.6235, "fp16": 0.6229, "int8": 0.6187},
        "merge_max_abs": 7.6e-6, "trainable_parameters": 312345, "total_parameters": 3051234,
        "engines": [{"graph": "text", "precision": "fp16", "runtime": "tensorrt_rtx", "version": "1.7.1.116",
                     "bytes": 1_234_567, "seconds": 2.34},
                    {"graph": "vision", "precision": "int8", "runtime": "tensorrt_rtx", "version": "1.7.1.116",
                     "bytes": 4_321_098, "seconds": 5.67}],
        "seconds": 471.3, "commit": "0123456789abcdef", "versions": {"python": "3.11.7", "torch": "2.99.1"},
        "device": {"cpu": "Processor <8>", "cores": 2, "gpu": None},
        "checks": [{"name": "mIoU gained", "received": "+0.3111", "expected": "at least +0.10", "passed": True},
                   {"name": "mIoU lost by INT8", "received": "0.0147", "expected": "at most 0.01", "passed": False}]}


@pytest.fixture(scope="module")
def latency():
    rows = [row(f"{backend} {precision.upper()}{' (emulated)' if emulated else ''}", backend=backend,
                precision=precision, device="cpu", source="out", emulated=emulated,
                stages={stage: {"p50_ms": 10 * place + number + 0.11, "p90_ms": 10 * place + number + 0.52,
                                "p99_ms": 10 * place + number + 0.93}
                        for number, stage in enumerate((*STAGES, WHOLE))})
            for place, (backend, precision, emulated) in enumerate(ROWS, 1)]
    return {"rows": rows, "settings": {"samples": 17, "rounds": 3, "threads": 2, "photo": 640},
            "not_run": [{"backend": "TensorRT", "precision": precision, "source": "b", "reason": "no <GPU> here"}
                        for precision in ("fp16", "int8")]}


@pytest.fixture(scope="module")
def scenes():
    """Answers that are the truth, shifted by more pixels from one to the next."""
    samples = ShapesDataset(split="test", domain="shifted", size=224, length=2)
    return [Scene(sample, {key: np.roll(sample.mask, 9 * number, axis=1) for number, key in enumerate(ANSWERS)})
            for sample in (samples[0], samples[1])]


@pytest.fixture(scope="module")
def page(report, latency, scenes, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, report, scenes=scenes, latency=latency)
    return path.read_text(encoding="utf-8")


def test_accuracy_and_parameters(page, report):
    for value in report["miou"].values():
        assert score(value) in page
    assert "+0.3111" in page  # gained
    assert f"{0.6229 - 0.6234:+.4f}" in page and f"{0.6187 - 0.6234:+.4f}" in page
    assert "312,345" in page and "3,051,234" in page and "10.2%" in page
    assert "7.6e-06" in page and "471 seconds" in page


def test_latency(page, latency):
    for measured in latency["rows"]:
        for times in measured["stages"].values():
            for percentile in ("p50_ms", "p90_ms", "p99_ms"):
                assert milliseconds(times[percentile]) in page
    assert "ONNX Runtime INT8 (emulated)" in page and "PyTorch eager FP32<" in page
    assert "casting to FP32" in page
    assert "17 samples" in page and "3 rounds" in page and "640 px" in page
    assert "Not run: TensorRT FP16, INT8: no &lt;GPU&gt; here" in page


def test_engines_checks_and_origin(page, report):
    for engine in report["engines"]:
        assert megabytes(engine["bytes"]) in page and f"{engine['seconds']:.2f} s" in page
        assert f"{engine['runtime']} {engine['version']}" in page
    for check in report["checks"]:
        assert check["name"] in page and check["received"] in page and check["expected"] in page
    assert page.count(">FAIL<") == 1 and page.count(">pass<") == 1
    assert report["commit"] in page and "2.99.1" in page and "Processor &lt;8&gt;" in page


def test_scenes(page, scenes):
    for scene in scenes:
        assert f"“{scene.sample.expressions[0]}”" in page
        for mask in scene.masks.values():
            assert f"IoU {iou(mask, scene.sample.mask):.2f}" in page
    assert page.count("<figure>") == len(scenes) * (1 + len(ANSWERS))
    assert len(set(re.findall(r'src="(data:image/png;base64,[^"]+)"', page))) == len(scenes) * len(ANSWERS)


def test_nothing_is_loaded_from_elsewhere(page):
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert not re.search(r"url\((?!data:)", page)
    assert "prefers-color-scheme: dark" in page
