"""Which engines the TensorRT backend takes, and what it says where it takes none; on a TensorRT that pretends."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest

from deploy import Segmenter, plugin
from deploy.bundle import Bundle
from deploy.runtime import segmenter as segmenter_module
from deploy.runtime import tensorrt as tensorrt_backend
from talent.errors import UserError
from talent.native import BUILD, LIBRARIES
from tests.deploy.engines import record, with_engines
from tests.deploy.fake_tensorrt import fake


def with_plans(bundle: Bundle, *, plugin: bool = False) -> Bundle:
    return with_engines(bundle, record("text"), record("vision", plugin=plugin))


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt_rtx"])
def test_without_a_gpu(toy_bundle, monkeypatch, runtime):
    monkeypatch.setattr(tensorrt_backend, "gpu_architecture", lambda device: None)
    with pytest.raises(UserError, match=f"{runtime} needs an NVIDIA GPU and its driver.*onnxruntime"):
        Segmenter(toy_bundle, runtime)
    with pytest.raises(UserError, match=f"{runtime} needs an NVIDIA GPU of number 3 and"):
        Segmenter(toy_bundle, runtime, device=3)
    with pytest.raises(UserError, match="number of a GPU, 0 or more, as device, received -1"):
        Segmenter(toy_bundle, runtime, device=-1)


def test_without_a_fitting_engine(toy_bundle, fake_tensorrt):
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


def test_rtx_on_a_gpu_that_is_no_target_leads_to_full_tensorrt(toy_bundle, fake_tensorrt, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1.7.1", __spec__=SimpleNamespace()))
    engines = [record(graph, runtime="tensorrt_rtx", version="1.7.1", arch="portable") for graph in ("text", "vision")]
    with pytest.raises(UserError, match=r"portable \(another GPU\).*builds none for sm87, .* --runtime tensorrt$"):
        Segmenter(with_engines(toy_bundle, *engines), "tensorrt_rtx")


def test_an_engine_that_does_not_load_is_built_again_by_force(toy_bundle, fake_tensorrt, monkeypatch):
    exception = pytest.importorskip("polygraphy.exception").PolygraphyException

    def refuse(path):
        raise exception("Failed to deserialize\nthe engine")

    monkeypatch.setattr(fake_tensorrt, "engine_from_path", refuse)
    with pytest.raises(UserError, match="cannot load .*: Failed to deserialize the engine .* tensorrt --force$"):
        Segmenter(with_plans(toy_bundle), "tensorrt")
    assert not fake_tensorrt.cuda.live()


def test_auto_takes_tensorrt_where_it_can(toy_bundle, fake_tensorrt, monkeypatch):
    # tensorrt_rtx is not to be found, whatever is installed here
    monkeypatch.setattr(segmenter_module.importlib.util, "find_spec", lambda name: name == "tensorrt" or None)
    without = Segmenter(toy_bundle, threads=1)
    assert without.backend.name == "onnxruntime"
    assert "no text engine" in without.auto_report[0] and without.auto_report[1] == "tensorrt_rtx is not installed"
    with Segmenter(with_plans(toy_bundle)) as segmenter:
        assert segmenter.backend.name == "tensorrt" and segmenter.auto_report == ()
    assert fake_tensorrt.events == ["text", "vision"] and not fake_tensorrt.cuda.live()


def test_polygraphy_is_bound_before_its_cuda_wrapper_is_loaded(toy_bundle, fake_tensorrt, monkeypatch):
    order = []
    for name in ("polygraphy_for", "open_device"):
        original = getattr(tensorrt_backend, name)
        monkeypatch.setattr(tensorrt_backend, name, lambda given, name=name, original=original: order.append(name) or
                            original(given))
    Segmenter(with_plans(toy_bundle), "tensorrt").close()
    assert order.index("polygraphy_for") < order.index("open_device")


@pytest.fixture
def events(fake_tensorrt, monkeypatch) -> list[str]:
    """What is loaded, in order: the plugin, with whose logger, and engines."""
    events = fake_tensorrt.events
    monkeypatch.setattr(plugin, "load", lambda trt, logger: events.append(f"plugin {trt.__version__}, {logger}"))
    return events


def test_the_plugin_is_loaded_before_any_engine_is_read(toy_bundle, events):
    Segmenter(with_plans(toy_bundle, plugin=True), "tensorrt").close()
    assert events == ["plugin 10.3.0, Polygraphy's logger", "text", "vision"]


def test_engines_without_the_plugin_need_no_library(toy_bundle, events):
    Segmenter(with_plans(toy_bundle), "tensorrt").close()
    assert events == ["text", "vision"]


def test_a_missing_plugin_says_what_needs_it_and_two_ways_out(toy_bundle, fake_tensorrt, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", fake("10.3.0"))
    monkeypatch.setattr(sys.modules["tensorrt"], "get_plugin_registry", lambda: SimpleNamespace(all_creators=[]),
                        raising=False)
    monkeypatch.setenv(LIBRARIES, str(tmp_path))
    bundle = with_plans(toy_bundle, plugin=True)
    with pytest.raises(UserError) as caught:
        Segmenter(bundle, "tensorrt")
    message = str(caught.value)
    assert fake_tensorrt.events == []  # no engine was read
    assert message.startswith(f"{bundle.directory / bundle.engines[1].path} needs the TensorRT plugin for RCA: ")
    assert BUILD in message
    assert message.endswith(f"; or build the engines without it: talent-build {bundle.directory} --runtime tensorrt "
                            "--plugin off")


def test_auto_goes_on_without_the_plugin(toy_bundle, events, monkeypatch):
    def load(trt, logger):
        raise UserError("no such library")

    monkeypatch.setattr(plugin, "load", load)
    monkeypatch.setattr(segmenter_module.importlib.util, "find_spec", lambda name: name == "tensorrt" or None)
    segmenter = Segmenter(with_plans(toy_bundle, plugin=True), threads=1)
    assert segmenter.backend.name == "onnxruntime" and "no such library" in segmenter.auto_report[0]
