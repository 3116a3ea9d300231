"""Sentence and picture to mask, in ONNX Runtime on a toy bundle; and TensorRT's side as far as no GPU is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto

from deploy import Segmenter, plugin
from deploy.bundle import Bundle, EngineRecord
from deploy.runtime import gpu
from deploy.runtime import segmenter as segmenter_module
from deploy.runtime import tensorrt as tensorrt_backend
from deploy.runtime.tensorrt import TensorRTBackend
from talent.errors import UserError
from talent.image import save_image
from talent.native import BUILD, LIBRARIES
from tests.deploy.engines import record, with_engines
from tests.deploy.fake_tensorrt import fake

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
    monkeypatch.setattr(segmenter_module, "gpu_architecture", lambda: None)
    segmenter = Segmenter(toy_bundle, threads=1)
    assert segmenter.backend.name == "onnxruntime" and segmenter.auto_report == ("no NVIDIA GPU was found",)


def test_importing_deploy_loads_nothing():
    code = ("import sys, deploy; assert not {'numpy', 'cv2', 'tokenizers'} & set(sys.modules)\n"
            "print(deploy.Segmenter.__name__)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "Segmenter", done.stderr


# TensorRT: a GPU, a package and Polygraphy that only pretend.

class FakeRunner:
    """As Polygraphy's TrtRunner: a context manager whose outputs are views that the next call overwrites."""

    closed: list[str] = []

    def __init__(self, engine: str, name: str) -> None:
        self.name = name
        inputs, outputs = {"text": (["tokens"], ["words"]), "vision": (["image", "words"], ["logits"])}[name]
        modes = {**dict.fromkeys(inputs, "INPUT"), **dict.fromkeys(outputs, "OUTPUT")}
        self.engine = SimpleNamespace(
            num_io_tensors=len(modes), get_tensor_name=list(modes).__getitem__,
            get_tensor_mode=lambda tensor: SimpleNamespace(name=modes[tensor]), get_tensor_dtype=lambda tensor: "FLOAT")
        self._buffer = np.zeros((1, 1, 2, 2), np.float32)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.closed.append(self.name)

    def infer(self, feed):
        self._buffer[...] = sum(float(np.sum(value)) for value in feed.values())
        return {"words" if self.name == "text" else "logits": self._buffer}


@pytest.fixture
def fake_tensorrt(monkeypatch):
    """A GPU (sm87) with TensorRT 10.3.0 on it."""
    monkeypatch.setattr(FakeRunner, "closed", [])
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0", __spec__=SimpleNamespace()))
    monkeypatch.setattr(tensorrt_backend, "polygraphy_for",
                        lambda runtime: SimpleNamespace(TrtRunner=FakeRunner, EngineFromPath=lambda path: path))
    for module in (segmenter_module, tensorrt_backend):
        monkeypatch.setattr(module, "gpu_architecture", lambda: "sm87")


def with_plans(bundle: Bundle, arch: str = "sm87") -> Bundle:
    records = []
    for graph in ("text", "vision"):
        path = f"engines/tensorrt-10.3.0-{arch}/{graph}.plan"
        (bundle.directory / path).parent.mkdir(parents=True, exist_ok=True)
        (bundle.directory / path).write_bytes(b"plan")
        records.append(EngineRecord(graph=graph, precision="fp16", runtime="tensorrt", version="10.3.0", arch=arch,
                                    path=path, bytes=4, seconds=1.0))
    return bundle.with_engines(records)


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt_rtx"])
def test_tensorrt_without_a_gpu(toy_bundle, monkeypatch, runtime):
    monkeypatch.setattr(tensorrt_backend, "gpu_architecture", lambda: None)
    with pytest.raises(UserError, match=f"{runtime} needs an NVIDIA GPU.*onnxruntime"):
        Segmenter(toy_bundle, runtime)


def test_tensorrt_without_a_fitting_engine(toy_bundle, fake_tensorrt):
    command = re.escape(f"talent-build {toy_bundle.directory} --runtime tensorrt")
    with pytest.raises(UserError, match=rf"no text engine for tensorrt 10\.3\.0 on sm87 \(it has: none\).*{command}$"):
        Segmenter(toy_bundle, "tensorrt")


@pytest.mark.parametrize(("other", "reason"), [
    ({"arch": "sm120"}, "tensorrt 10.3.0 for sm120 (another GPU)"),
    ({"version": "10.16.1"}, "tensorrt 10.16.1 for sm87 (another version)"),
    ({"version": "10.16.1", "arch": "sm110"}, "tensorrt 10.16.1 for sm110 (another version and GPU)"),
    ({"runtime": "tensorrt_rtx", "arch": "portable"}, "tensorrt_rtx 10.3.0 for portable (another runtime)")])
def test_an_engine_of_another_kind_says_so_and_names_the_command(toy_bundle, fake_tensorrt, other, reason):
    bundle = with_engines(toy_bundle, *(record(graph, **other) for graph in ("text", "vision")))
    with pytest.raises(UserError, match=rf"\(it has: {re.escape(reason)}\); .* run: talent-build "):
        Segmenter(bundle, "tensorrt")
    (bundle.directory / bundle.engines[0].path).unlink()
    with pytest.raises(UserError, match=r"\(left out of this copy\)\); .* run: talent-build "):
        Segmenter(bundle, "tensorrt")


def test_an_engine_of_another_bundle_says_so_and_names_the_command(make_bundle, fake_tensorrt):
    bundle = with_plans(make_bundle())
    vision = bundle.directory / "vision.onnx"
    vision.write_bytes((bundle.directory / "text.onnx").read_bytes())
    other = Bundle.write_manifest(bundle.directory, preset="toy", precision="fp32", image_size=64, context_length=8,
                                  source={}, engines=bundle.engines)
    with pytest.raises(UserError, match="built from another vision.onnx than this .*talent-build .*tensorrt$"):
        Segmenter(other, "tensorrt")


def test_tensorrt_rtx_on_a_gpu_that_is_no_target_leads_to_full_tensorrt(toy_bundle, fake_tensorrt, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1.7.1", __spec__=SimpleNamespace()))
    engines = [record(graph, runtime="tensorrt_rtx", version="1.7.1", arch="portable") for graph in ("text", "vision")]
    with pytest.raises(UserError, match=r"portable \(another GPU\).*builds none for sm87, .* --runtime tensorrt$"):
        Segmenter(with_engines(toy_bundle, *engines), "tensorrt_rtx")


def test_an_engine_that_does_not_load_is_built_again_by_force(toy_bundle, fake_tensorrt, monkeypatch):
    exception = pytest.importorskip("polygraphy.exception").PolygraphyException

    def refuse(engine, name):
        raise exception("Failed to deserialize\nthe engine")

    monkeypatch.setattr(tensorrt_backend, "polygraphy_for",
                        lambda runtime: SimpleNamespace(TrtRunner=refuse, EngineFromPath=lambda path: path))
    with pytest.raises(UserError, match="cannot load .*: Failed to deserialize the engine .* tensorrt --force$"):
        Segmenter(with_plans(toy_bundle), "tensorrt")


def test_auto_takes_tensorrt_where_it_can(toy_bundle, fake_tensorrt, monkeypatch):
    # tensorrt_rtx is not to be found, whatever is installed here
    monkeypatch.setattr(segmenter_module.importlib.util, "find_spec", lambda name: name == "tensorrt" or None)
    without = Segmenter(toy_bundle, threads=1)
    assert without.backend.name == "onnxruntime"
    assert "no text engine" in without.auto_report[0] and without.auto_report[1] == "tensorrt_rtx is not installed"
    with Segmenter(with_plans(toy_bundle)) as segmenter:
        assert segmenter.backend.name == "tensorrt" and segmenter.auto_report == ()
    assert sorted(FakeRunner.closed) == ["text", "vision"]


def test_tensorrt_outputs_may_be_kept(toy_bundle, fake_tensorrt):
    backend = TensorRTBackend(with_plans(toy_bundle), runtime="tensorrt")
    first = backend.text(np.full((1, 4), 1))
    second = backend.text(np.full((1, 4), 2))
    assert first["words"][0, 0, 0, 0] == 4 and second["words"][0, 0, 0, 0] == 8
    image = np.ones((1, 3, 2, 2), np.float32)
    logits, _ = backend.vision(image, first), backend.vision(image, second)
    assert logits[0, 0, 0, 0] == 12 + 16 and logits.dtype == np.float32


# The plugin for RCA


@pytest.fixture
def events(fake_tensorrt, monkeypatch) -> list[str]:
    """What is loaded, in order: the plugin, with whose logger, and engines."""
    events: list[str] = []

    def runner(engine, name):
        events.append(name)
        return FakeRunner(engine, name)

    monkeypatch.setattr(tensorrt_backend, "polygraphy_for", lambda runtime: SimpleNamespace(
        TrtRunner=runner, EngineFromPath=lambda path: path, get_trt_logger=lambda: "Polygraphy's logger"))
    monkeypatch.setattr(plugin, "load", lambda trt, logger: events.append(f"plugin {trt.__version__}, {logger}"))
    return events


def with_plugin(bundle: Bundle, *, plugin: bool = True) -> Bundle:
    return with_engines(bundle, record("text"), record("vision", plugin=plugin))


def test_the_plugin_is_loaded_before_any_engine_is_read(toy_bundle, events):
    Segmenter(with_plugin(toy_bundle), "tensorrt").close()
    assert events == ["plugin 10.3.0, Polygraphy's logger", "text", "vision"]


def test_engines_without_the_plugin_need_no_library(toy_bundle, events):
    Segmenter(with_plugin(toy_bundle, plugin=False), "tensorrt").close()
    assert events == ["text", "vision"]


def test_a_missing_plugin_says_what_needs_it_and_two_ways_out(toy_bundle, fake_tensorrt, monkeypatch, tmp_path):
    monkeypatch.setattr(tensorrt_backend, "polygraphy_for", lambda runtime: SimpleNamespace(
        TrtRunner=lambda engine, name: pytest.fail("an engine was read"), EngineFromPath=str,
        get_trt_logger=lambda: None))
    monkeypatch.setitem(sys.modules, "tensorrt", fake("10.3.0"))
    monkeypatch.setattr(sys.modules["tensorrt"], "get_plugin_registry", lambda: SimpleNamespace(all_creators=[]),
                        raising=False)
    monkeypatch.setenv(LIBRARIES, str(tmp_path))
    bundle = with_plugin(toy_bundle)
    with pytest.raises(UserError) as caught:
        Segmenter(bundle, "tensorrt")
    message = str(caught.value)
    assert message.startswith(f"{bundle.directory / bundle.engines[1].path} needs the TensorRT plugin for RCA: ")
    assert BUILD in message
    assert message.endswith(f"; or build the engines without it: talent-build {bundle.directory} --runtime tensorrt "
                            "--plugin off")


def test_auto_goes_on_without_the_plugin(toy_bundle, events, monkeypatch):
    def load(trt, logger):
        raise UserError("no such library")

    monkeypatch.setattr(plugin, "load", load)
    monkeypatch.setattr(segmenter_module.importlib.util, "find_spec", lambda name: name == "tensorrt" or None)
    segmenter = Segmenter(with_plugin(toy_bundle), threads=1)
    assert segmenter.backend.name == "onnxruntime" and "no such library" in segmenter.auto_report[0]


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
