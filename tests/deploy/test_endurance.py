"""It lasts: 10,000 inferences with the shipped tiny network, and the memory does not grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.export import main as export
from tests.native_build import ROOT

INFERENCES = 10_000
SETTLED = 1_000  # inferences after which every buffer has been needed once
ALLOWED_BYTES = 5 * 2**20
# In a process of its own, as in a robot: in one that has exported a network, memory that the export gave back is taken
# up again and looks like growth. 96 sentences, more than the 64 that are kept.
PROGRAM = f"""
import json, os, sys
from pathlib import Path
import numpy as np
from deploy import Segmenter

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

sentences = [f"the {{colour}} {{shape}} number {{number}}" for colour in ("red", "green", "blue")
             for shape in ("circle", "square", "star", "triangle") for number in range(8)]
generator = np.random.default_rng(0)
photos = [generator.integers(0, 256, shape, np.uint8) for shape in ((240, 320, 3), (300, 200, 3), (168, 168, 3))]
with Segmenter(sys.argv[1], "onnxruntime", threads=1) as segmenter:
    first, settled = segmenter(sentences[0], photos[0]), 0
    for number in range({INFERENCES}):
        prompt = segmenter.encode(sentences[number // 10 % len(sentences)])
        segmenter.segment(photos[number % len(photos)], prompt)
        if number == {SETTLED}:
            settled = resident_bytes()
    grown = resident_bytes() - settled
    last = segmenter(sentences[0], photos[0])
    same = np.array_equal(first.mask, last.mask) and np.array_equal(first.logits, last.logits)
    print(json.dumps({{"grown": grown, "settled": settled, "same": same, "frames": segmenter.stats().frames}}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_ten_thousand_inferences_with_flat_memory(tmp_path):
    assert export([str(ROOT / "weights" / "tiny"), "--fp32", "--no-engine", "--data", "shapes", "--parity", "2", "-o",
                   str(tmp_path / "bundle")]) == 0
    done = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "bundle"], capture_output=True, text=True,
                          check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    print(f"grew by {said['grown'] / 2**20:.2f} MiB from inference {SETTLED} to {INFERENCES}, from "
          f"{said['settled'] / 2**20:.1f} MiB")
    assert said["grown"] <= ALLOWED_BYTES
    assert said["same"] and said["frames"] == INFERENCES + 2
