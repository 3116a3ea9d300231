"""It lasts: 10,000 inferences with the shipped tiny network, and the memory does not grow."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from deploy import Segmenter
from deploy.export import main as export
from tests.native_build import ROOT

INFERENCES = 10_000
SETTLED = 1_000  # inferences after which every buffer has been needed once
ALLOWED_BYTES = 5 * 2**20
SENTENCES = [f"the {colour} {shape} number {number}" for colour in ("red", "green", "blue") for shape in
             ("circle", "square", "star", "triangle") for number in range(8)]  # 96: more than the 64 that are kept


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_ten_thousand_inferences_with_flat_memory(tmp_path, record_property):
    assert export([str(ROOT / "weights" / "tiny"), "--fp32", "--no-engine", "--data", "shapes", "--parity", "2", "-o",
                   str(tmp_path / "bundle")]) == 0
    generator = np.random.default_rng(0)
    photos = [generator.integers(0, 256, shape, np.uint8) for shape in ((240, 320, 3), (300, 200, 3), (168, 168, 3))]
    with Segmenter(tmp_path / "bundle", "onnxruntime", threads=int(os.environ.get("OMP_NUM_THREADS", 2))) as segmenter:
        first = segmenter(SENTENCES[0], photos[0])
        settled = 0
        for number in range(INFERENCES):
            prompt = segmenter.encode(SENTENCES[number // 10 % len(SENTENCES)])
            segmenter.segment(photos[number % len(photos)], prompt)
            if number == SETTLED:
                settled = _resident_bytes()
        grown = _resident_bytes() - settled
        last = segmenter(SENTENCES[0], photos[0])
        stats = segmenter.stats()
    record_property("grown_bytes", grown)
    print(f"grew by {grown / 2**20:.2f} MiB from inference {SETTLED} to {INFERENCES}; {stats}")
    assert grown <= ALLOWED_BYTES
    assert np.array_equal(first.mask, last.mask) and np.array_equal(first.logits, last.logits)
    assert stats.frames == INFERENCES + 2
