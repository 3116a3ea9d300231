"""The TensorRT backend on a real GPU: engines of the toy bundle, built here, against ONNX Runtime on the CPU.

FP32 engines may use TF32, so that logits differ in the third digit; a mask then differs beside the threshold only.
"""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from deploy import Segmenter
from deploy.build import main as build
from deploy.bundle import Bundle
from deploy.runtime.picture_kernels import installed_kernels
from deploy.runtime.tensorrt import RUNTIMES
from talent import native
from talent.native import BUILD

pytestmark = pytest.mark.gpu

SENTENCES = ("r", "g", "b", "r g", "g b")
MOST_PIXELS, LOGIT = 2e-3, 0.1


@pytest.fixture
def engines(toy_bundle) -> tuple[Bundle, str]:
    """The toy bundle with engines for this GPU, and the TensorRT that runs them."""
    if not torch.cuda.is_available():
        pytest.fail("expected a GPU that PyTorch can use, received none; leave these tests out with -m 'not gpu'")
    runtime = next((name for name in RUNTIMES if importlib.util.find_spec(name)), None)
    if runtime is None:
        pytest.fail("expected tensorrt or tensorrt_rtx, received neither; run: pip install '.[tensorrt]'")
    assert build([str(toy_bundle.directory), "--runtime", runtime, "--batch", "4"]) == 0
    return Bundle.load(toy_bundle.directory), runtime


@pytest.fixture(params=["pictures on the CPU", "pictures on the GPU"])
def segmenter(request, engines, monkeypatch, tmp_path):
    if request.param == "pictures on the CPU":
        monkeypatch.setenv(native.LIBRARIES, str(tmp_path / "none"))
    elif installed_kernels() is None:
        pytest.fail(f"expected libtalent_kernels.so, received none; run: {BUILD}")
    with Segmenter(engines[0], engines[1]) as segmenter:
        yield segmenter


@pytest.fixture
def wanted(toy_bundle):
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        yield segmenter


def check(received, wanted) -> None:
    assert np.mean(received.mask != wanted.mask) <= MOST_PIXELS
    np.testing.assert_allclose(received.logits, wanted.logits, atol=LOGIT)
    np.testing.assert_allclose(received.box or (), wanted.box or (), atol=1)


def test_answers_are_those_of_onnxruntime(segmenter, wanted, picture):
    for _ in range(4):  # plain, captured, launched
        for sentence in SENTENCES:
            check(segmenter(sentence, picture), wanted(sentence, picture))
        for sentence, received in zip(SENTENCES, segmenter.segment_many(picture, SENTENCES), strict=True):
            check(received, wanted(sentence, picture))
    assert not [note for note in segmenter.stats().notes if "CUDA graph" in note]


def test_eight_threads_give_what_one_gives(segmenter, picture):
    pictures = [np.roll(picture, shift, axis=1) for shift in range(0, 80, 10)]
    serial = [segmenter("g", one) for one in pictures]
    with ThreadPoolExecutor(8) as pool:
        for index, one in enumerate(pool.map(lambda i: segmenter("g", pictures[i % 8]), range(400))):
            assert np.array_equal(one.mask, serial[index % 8].mask)
            assert np.array_equal(one.logits, serial[index % 8].logits)


def test_tensors_of_torch_are_read_where_they_lie(engines, wanted, picture):
    if installed_kernels() is None:
        pytest.fail(f"expected libtalent_kernels.so, received none; run: {BUILD}")
    stream = torch.cuda.Stream()
    with Segmenter(engines[0], engines[1]) as segmenter:
        prompt = segmenter.encode("b")
        for _ in range(20):
            with torch.cuda.stream(stream):
                tensor = torch.zeros((2048, 2048), device="cuda")
                for _ in range(8):
                    tensor = tensor @ tensor  # keeps the stream busy before the picture is there
                frame = torch.from_numpy(picture).cuda(non_blocking=True)
            check(segmenter.segment(frame, prompt, stream=stream), wanted("b", picture))
    assert torch.zeros(3, device="cuda").add(1).sum().item() == 3  # torch's context is as it was


def test_nothing_grows(segmenter, picture):
    prompt = segmenter.encode("r")
    for _ in range(50):
        segmenter.segment(picture, prompt)
    free = torch.cuda.mem_get_info()[0]
    for _ in range(1000):
        segmenter.segment(picture, prompt)
    assert free - torch.cuda.mem_get_info()[0] <= 5 * 2**20
