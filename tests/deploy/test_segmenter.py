"""Sentence and picture to mask, in ONNX Runtime on a toy bundle; and TensorRT's side as far as no GPU is needed."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto

from deploy import Segmenter
from deploy.runtime import gpu
from deploy.runtime import segmenter as segmenter_module
from talent.errors import UserError
from talent.image import save_image

RECTANGLES = {"r": (10, 20, 50, 60), "g": (60, 30, 90, 80), "b": (100, 10, 145, 40)}  # x0, y0, x1, y1 in `picture`


def rectangle(name: str) -> np.ndarray:
    x0, y0, x1, y1 = RECTANGLES[name]
    mask = np.zeros((90, 150), bool)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize("sentence", RECTANGLES)
def test_segments_what_is_meant(toy_bundle, picture, sentence):
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        result = segmenter(sentence, picture)
    wanted = rectangle(sentence)
    assert result.mask.shape == result.probability.shape == (90, 150)
    assert result.mask.dtype == np.bool_ and result.probability.dtype == np.float32
    assert np.count_nonzero(result.mask & wanted) / np.count_nonzero(result.mask | wanted) > 0.8
    np.testing.assert_allclose(result.box, RECTANGLES[sentence], atol=5)
    x0, y0, x1, y1 = result.box
    assert result.mask[y0:y1, x0:x1].sum() == result.mask.sum()  # the box holds the mask,
    edges = (result.mask[y0], result.mask[y1 - 1], result.mask[:, x0], result.mask[:, x1 - 1])
    assert all(edge.any() for edge in edges)  # and fits it
    assert result.score == pytest.approx(float(result.probability[result.mask].mean())) and 0.8 < result.score <= 1
    assert np.array_equal(result.mask, result.probability > 0.35)


def test_prompt_serves_many_pictures_and_stages_compose(toy_bundle, picture):
    segmenter = Segmenter(toy_bundle.directory, backend="onnxruntime", threads=1)
    prompt = segmenter.encode("r")
    assert prompt.sentence == "r" and set(prompt.tensors) == {"colour", "bias"}
    flipped = np.ascontiguousarray(picture[:, ::-1])
    first, second = segmenter.segment(picture, prompt), segmenter.segment(flipped, prompt)
    assert not np.array_equal(first.mask, second.mask)
    tensor, letterbox = segmenter.preprocess(picture)
    assert tensor.shape == (1, 3, 64, 64)
    logits = segmenter.infer(tensor, prompt)
    assert logits.shape == (1, 1, 32, 32) and logits.dtype == np.float32
    again = segmenter.postprocess(logits, letterbox)
    assert np.array_equal(again.probability, first.probability)
    assert (again.box, again.score) == (first.box, first.score)


def test_the_probability_is_made_when_it_is_asked_for(toy_bundle, picture, monkeypatch):
    made = []
    original = segmenter_module.probability_on_photo
    monkeypatch.setattr(segmenter_module, "probability_on_photo", lambda *given: made.append(1) or original(*given))
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        tensor, letterbox = segmenter.preprocess(picture)
        logits = segmenter.infer(tensor, segmenter.encode("r"))
        result = segmenter.postprocess(logits, letterbox)
    assert result.mask.any() and not made
    logits[...] = 0  # the caller's own, who may use it again
    assert np.array_equal(result.mask, result.probability > 0.35) and made == [1]
    assert result.probability is result.probability and made == [1]


def test_backend_takes_a_batch(toy_bundle, picture):
    segmenter = Segmenter(toy_bundle, "onnxruntime", threads=1)
    prompt = segmenter.backend.text(segmenter.tokenizer(["r", "b"]))
    tensor, _ = segmenter.preprocess(picture)
    logits = segmenter.backend.vision(np.concatenate([tensor, tensor]), prompt)
    assert logits.shape == (2, 1, 32, 32)
    for index, sentence in enumerate("rb"):
        alone = segmenter.infer(tensor, segmenter.encode(sentence))
        np.testing.assert_allclose(logits[index:index + 1], alone, atol=1e-5)


def test_reads_a_file(toy_bundle, picture, tmp_path):
    save_image(tmp_path / "photo.png", picture)
    segmenter = Segmenter(toy_bundle, "onnxruntime", threads=1)
    assert np.array_equal(segmenter("b", tmp_path / "photo.png").mask, segmenter("b", picture).mask)


def test_nothing_found(toy_bundle):
    result = Segmenter(toy_bundle, "onnxruntime", threads=1)("r", np.zeros((30, 40, 3), np.uint8))
    assert not result.mask.any() and result.box is None and result.score == 0.0


def test_threshold(toy_bundle, picture):
    strict, loose = (Segmenter(toy_bundle, "onnxruntime", threads=1, threshold=threshold)("r", picture).mask
                     for threshold in (0.9, 0.1))
    assert strict.sum() < loose.sum() and not np.any(strict & ~loose)
    with pytest.raises(UserError, match="threshold"):
        Segmenter(toy_bundle, "onnxruntime", threshold=1.0)


def test_logits_that_overflowed_are_no_empty_mask(make_bundle, picture):
    segmenter = Segmenter(make_bundle(scale=float("inf")), "onnxruntime", threads=1)
    with pytest.raises(UserError, match="not finite"):
        segmenter("r", picture)


def test_bad_input(toy_bundle, picture):
    segmenter = Segmenter(toy_bundle, "onnxruntime", threads=1)
    with pytest.raises(UserError, match="names an object"):
        segmenter("  ", picture)
    with pytest.raises(UserError, match="received float64"):
        segmenter("r", picture / 255)
    with pytest.raises(UserError, match="no such picture"):
        segmenter("r", "none.png")
    with pytest.raises(UserError, match="did you mean 'onnxruntime'"):
        Segmenter(toy_bundle, "onnxruntim")
    with pytest.raises(UserError, match="at least one thread"):
        Segmenter(toy_bundle, "onnxruntime", threads=0)


def test_closed(toy_bundle, picture):
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        pass
    segmenter.close()
    with pytest.raises(RuntimeError, match="closed"):
        segmenter("r", picture)


@pytest.mark.parametrize("fault, message", [({"colour_name": "color"}, "'color', which text does not make"),
                                            ({"prompt_type": TensorProto.FLOAT16}, "text makes tensor\\(float16\\)")])
def test_graphs_that_do_not_fit(make_bundle, fault, message):
    with pytest.raises(UserError, match=message):
        Segmenter(make_bundle(**fault), "onnxruntime", threads=1)


def test_broken_graph(toy_bundle):
    toy_bundle.vision_onnx.write_bytes(b"not a graph")
    with pytest.raises(UserError, match=r"cannot load .*vision\.onnx") as caught:
        Segmenter(toy_bundle, "onnxruntime", threads=1)
    assert "\n" not in str(caught.value)


def test_auto_without_a_gpu(toy_bundle, monkeypatch):
    monkeypatch.setattr(segmenter_module, "gpu_architecture", lambda device: None)
    segmenter = Segmenter(toy_bundle, threads=1)
    assert segmenter.backend.name == "onnxruntime" and segmenter.auto_report == ("no NVIDIA GPU was found",)


def test_importing_deploy_loads_nothing():
    code = ("import sys, deploy; assert not {'numpy', 'cv2', 'tokenizers'} & set(sys.modules)\n"
            "print(deploy.Segmenter.__name__)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "Segmenter", done.stderr


def test_gpu_architecture(monkeypatch):
    def get_attribute(value, attribute, device):
        value._obj.value = {75: 12, 76: 1}[attribute]
        return 0

    def get_name(name, size, device):
        name.value = b"NVIDIA GB10"[:size]
        return 0

    driver = SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGet=lambda device, index: 0,
                             cuDeviceGetAttribute=get_attribute, cuDeviceGetName=get_name)
    monkeypatch.setattr(gpu, "_driver", lambda: driver)
    assert gpu.gpu_architecture() == "sm121" and gpu.gpu_name() == "NVIDIA GB10"
    driver.cuInit = lambda flags: 100  # CUDA_ERROR_NO_DEVICE
    assert gpu.gpu_architecture() is None and gpu.gpu_name() is None
    monkeypatch.setattr(gpu, "_driver", lambda: None)
    assert gpu.gpu_architecture() is None and gpu.gpu_name() is None


def test_polygraphy_is_bound_to_the_chosen_tensorrt():
    pytest.importorskip("polygraphy")
    pytest.importorskip("tensorrt_rtx")
    code = ("import tensorrt_rtx; from talent.errors import UserError\n"
            "from deploy.runtime.tensorrt import polygraphy_for\n"
            "polygraphy_for('tensorrt_rtx')\n"
            "from polygraphy.backend.trt import util; assert util.trt.__version__ == tensorrt_rtx.__version__\n"
            "try: polygraphy_for('tensorrt')\n"
            "except UserError as error: print(error)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "this process already uses tensorrt_rtx" in done.stdout, done.stderr
