"""The plugin, compiled, in engines that TensorRT-RTX builds, which takes no GPU; running one does.

Needs TENSORRT_ROOT (TensorRT's headers, of 11 or of TensorRT-RTX for the engines), nvcc and cmake.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import onnx
import pytest
from onnx import AttributeProto, NodeProto

from deploy import plugin
from deploy.build import graph_profiles
from deploy.bundle import Bundle
from deploy.engine import EngineBuild, build_engine
from deploy.export import main
from deploy.runtime.interface import IMAGE
from talent import native
from talent.errors import UserError
from tests.native_build import build, nvcc, run
from tests.networks import TINY, save_tiny

pytestmark = pytest.mark.slow  # nvcc takes half a minute, two exports as long

BATCH = 4
RCA_COUNT = len(TINY.vision_adapter_blocks) + 3
EXPORTED = {"getCreators", "setLoggerFinder", "talent_plugin_tensorrt"}


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> SimpleNamespace:
    """directory: where it was built, with its C++ test. said: what CMake and the compilers had to say."""
    if not os.environ.get("TENSORRT_ROOT"):
        pytest.skip("needs TensorRT's headers: set TENSORRT_ROOT")
    directory = tmp_path_factory.mktemp("build")
    said = build(directory, f"-DCMAKE_CUDA_COMPILER={nvcc()}", "-DCMAKE_CUDA_ARCHITECTURES=86",
                 targets=("talent_plugin", "test_plugin", "test_plugin_loader"))
    assert "warning" not in said.lower(), said
    return SimpleNamespace(directory=directory, said=said)


@pytest.fixture
def library(built, monkeypatch) -> Path:
    """The library, where it is looked for, in a process that has not loaded it."""
    monkeypatch.setenv(native.LIBRARIES, str(built.directory))
    return built.directory / "libtalent_plugin.so"


def headers_of(library: Path) -> tuple[int, int, int]:
    number = ctypes.CDLL(str(library)).talent_plugin_tensorrt()
    return number // 10000, number // 100 % 100, number % 100


@pytest.fixture
def rtx(library) -> ModuleType:
    trt = pytest.importorskip("tensorrt_rtx")
    if headers_of(library)[0] not in (1, 11):
        pytest.skip("needs TENSORRT_ROOT of TensorRT 11 or TensorRT-RTX")
    return trt


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    """A bundle of the preset tiny in each precision, without engines."""
    directory = tmp_path_factory.mktemp("bundles")
    checkpoint = save_tiny(directory / "tiny", lora_rank=4)
    for precision in ("fp32", "fp16"):
        assert main([str(checkpoint), f"--{precision}", "--no-engine", "--allow-drop", "--calibration", "2", "--parity",
                     "1", "--data", "shapes", "-o", str(directory / precision)]) == 0
    return directory


@pytest.fixture
def make(rtx, bundles, tmp_path) -> Callable[..., EngineBuild]:
    """make(precision, plugins, onnx=, pictures=): an engine of the vision graph, or of another model, batch 1 to 4."""

    def make(precision: str, plugins=plugin.FUNCTIONS, *, onnx: Path | None = None,
             pictures: int = BATCH) -> EngineBuild:
        bundle = Bundle.load(bundles / precision)
        profiles = graph_profiles(bundle, "vision", batch=BATCH)
        least, usual, most = profiles[IMAGE]
        profiles[IMAGE] = (least, usual, (pictures, *most[1:]))
        return build_engine(onnx or bundle.directory / "vision.onnx", tmp_path / "x.plan", profiles=profiles,
                            runtime="tensorrt_rtx", plugins=plugins, progress=False)

    return make


def test_it_shows_what_tensorrt_looks_for_and_needs_none_of_its_libraries(built, library):
    symbols = {line.split()[-1] for line in run("nm", "-D", "--defined-only", str(library)).splitlines()}
    assert symbols == EXPORTED
    needed = run("nm", "-D", "--undefined-only", str(library))
    assert "malloc" in needed and not {"getLogger", "getPluginRegistry"} & set(needed.split())
    assert f"TensorRT plugin for: {'.'.join(map(str, headers_of(library)))} (" in built.said


def test_its_own_test_passes(built):
    said = run("ctest", "--test-dir", str(built.directory), "-R", "^test_plugin$", "-V")
    assert "all checks hold" in said and "100% tests passed" in said


def test_rtx_refuses_one_of_tensorrt_10(library):
    trt = pytest.importorskip("tensorrt_rtx")
    if headers_of(library)[0] != 10:
        pytest.skip("needs TENSORRT_ROOT of TensorRT 10")
    with pytest.raises(UserError, match="expected a plugin that was built with the headers of .* of 10"):
        plugin.load(trt, trt.Logger(trt.Logger.ERROR))
    assert not plugin.is_registered(trt.get_plugin_registry())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_process_builds_engines_with_it_and_without_it(make, rtx, library, precision, capfd):
    layers, sizes = [], []
    for plugins in ((), plugin.FUNCTIONS, (), plugin.FUNCTIONS):
        engine = make(precision, plugins)
        layers.append(engine.plugin_layers)
        sizes.append(engine.bytes)
        assert plugin.is_registered(rtx.get_plugin_registry()) is bool(plugins)
        assert (b"custom_layer" in engine.path.read_bytes()) is bool(plugins)  # TensorRT-RTX's word for one
    assert layers == [0, RCA_COUNT, 0, RCA_COUNT] == [0, 6, 0, 6]
    assert sizes[0] == sizes[2] and sizes[1] == sizes[3] != sizes[0]
    assert capfd.readouterr() == ("", "")
    plugin.unload(rtx)
    assert str(library) in Path("/proc/self/maps").read_text()  # engines that are loaded go on using it


def test_one_picture_with_many_expressions(make):
    assert make("fp16", pictures=1).plugin_layers == RCA_COUNT


def test_the_library_that_the_parser_opens_has_its_name(make, rtx):
    """Without it the parser ends the process at the first plugin."""
    plugin.load(rtx, rtx.Logger(rtx.Logger.ERROR))
    assert ctypes.CDLL("libtensorrt_rtx.so").getInferLibMajorVersion() == int(rtx.__version__.split(".")[0])


def attribute(node: NodeProto, name: str) -> AttributeProto:
    return next(one for one in node.attribute if one.name == name)


def another_activation(node: NodeProto) -> None:
    attribute(node, "activation").s = b"gelu"


def no_activation(node: NodeProto) -> None:
    node.attribute.remove(attribute(node, "activation"))


def a_number(node: NodeProto) -> None:
    node.attribute.remove(attribute(node, "activation"))
    node.attribute.append(onnx.helper.make_attribute("activation", 1))


def a_contradiction(node: NodeProto) -> None:
    attribute(node, "negative_slope").f = 0.25


def swapped_inputs(node: NodeProto) -> None:
    node.input[2], node.input[3] = node.input[3], node.input[2]


@pytest.mark.parametrize(("change", "reason"), [
    (another_activation, 'expected the field activation to be "none" or "relu", received "gelu"'),
    (no_activation, "expected the field activation .* received 1 fields without it"),
    (a_number, "expected the field activation to be text"),
    (a_contradiction, r"expected negative_slope [01] with activation .* received 0.25"),
    (swapped_inputs, r"expected visual \[B or 1, N, D\].*weight \[\d+\], bias \[\d+, \d+\]")])
def test_a_node_that_is_wrong_is_refused_with_the_plugins_words(make, bundles, tmp_path, change, reason):
    model = onnx.load(bundles / "fp16" / "vision.onnx")
    change(next(node for node in model.graph.node if node.op_type == plugin.NAME))
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(UserError, match=f"(?s)wrong.onnx.*\n  RcaCostAggregation.*{reason}"):
        make("fp16", onnx=tmp_path / "wrong.onnx")
    assert not (tmp_path / "x.plan").exists()


def test_a_graph_without_an_rca_is_an_error(make, bundles):
    with pytest.raises(UserError, match="expected RcaCostAggregation in .*text.onnx for the plugin .*, found none"):
        make("fp16", onnx=bundles / "fp16" / "text.onnx")
