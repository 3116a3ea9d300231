"""What differs between TensorRT 10, 11 and RTX: each shape of the API is asked for only what it has."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from deploy import tensorrt_api
from deploy.build_progress import Phases
from deploy.fuse_rca import DOMAIN, OP_TYPE
from deploy.tensorrt_api import without_functions
from talent.errors import UserError
from tests.deploy import fake_tensorrt
from tests.deploy.fake_tensorrt import RTX, SHAPES, fake


def model_with_functions() -> onnx.ModelProto:
    """y = (rca(x) + other(x)) * weight, both functions of the file."""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    functions = [helper.make_function(DOMAIN, name, ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets[:1])
                 for name in (OP_TYPE, "Other")]
    nodes = [helper.make_node(OP_TYPE, ["x"], ["p"], domain=DOMAIN),
             helper.make_node("Other", ["x"], ["q"], domain=DOMAIN),
             helper.make_node("Add", ["p", "q"], ["sum"]), helper.make_node("Mul", ["sum", "weight"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [2], [1.0, 2.0])
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    return helper.make_model(graph, functions=functions, opset_imports=opsets, producer_name="test")


@pytest.mark.parametrize(("version", "flags"), [("10.3.0", 0b10), ("10.16.1.11", 0b10), ("11.1.0.106", 0b1),
                                                (RTX, 0b1)])
def test_networks_are_strongly_typed_in_every_version(version, flags):
    assert tensorrt_api.network_flags(fake(version)) == flags


def test_a_version_that_lost_the_flag_has_no_other_typing():
    trt = fake("11.1.0.106")
    trt.NetworkDefinitionCreationFlag = type("NetworkDefinitionCreationFlag", (), {})
    assert tensorrt_api.network_flags(trt) == 0


@pytest.mark.parametrize(("version", "bodies"), [("10.0.1", True), ("10.3.0", True), ("10.6.0.26", True),
                                                 ("10.7.0.23", False), ("10.16.1.11", False), ("11.1.0.106", False),
                                                 (RTX, False)])
def test_which_parsers_prefer_a_functions_body_to_a_plugin(version, bodies):
    assert tensorrt_api.takes_function_bodies(fake(version)) is bodies


@pytest.mark.parametrize("version", [*SHAPES, RTX])
@pytest.mark.parametrize("plugins", [(), (OP_TYPE,)])
def test_old_parsers_get_the_model_without_the_plugins_function(tmp_path, version, plugins):
    model = model_with_functions()
    onnx.save(model, tmp_path / "x.onnx")
    trt = fake(version)
    network = trt.Builder(None).create_network(tensorrt_api.network_flags(trt))
    assert tensorrt_api.parse(trt, trt.OnnxParser(network, None), tmp_path / "x.onnx", plugins=plugins)
    if plugins and version == "10.3.0":
        kind, path, parsed = network.source
        assert (kind, path) == ("memory", str(tmp_path / "x.onnx"))  # external data lies beside that path
        assert [function.name for function in onnx.load_from_string(parsed).functions] == ["Other"]
    else:
        assert network.source == ("file", str(tmp_path / "x.onnx"))


def test_removing_a_function_is_what_onnx_would_do():
    model = model_with_functions()
    left = onnx.load_from_string(without_functions(model.SerializeToString(), [OP_TYPE]))
    del model.functions[0]
    assert left == model and left.functions[0].name == "Other"
    assert without_functions(model.SerializeToString(), []) == model.SerializeToString()


@pytest.mark.parametrize(("model", "names", "reason"), [
    (model_with_functions().SerializeToString(), ["Rca"], "received a model without Rca"),
    (model_with_functions().SerializeToString()[:-3], [OP_TYPE], "damaged .it ends in the middle"),
    (b"\xff\xff", [OP_TYPE], "damaged"),
])
def test_what_cannot_be_removed_is_an_error(model, names, reason):
    with pytest.raises(UserError, match=f"{reason}.*talent-export"):
        without_functions(model, names)


def test_the_targets_of_rtx():
    trt = fake(RTX)
    config = trt.Builder(None).create_builder_config()
    tensorrt_api.set_targets(trt, config, [])
    assert config.targets == {}  # its own default: every RTX card from Ampere on
    tensorrt_api.set_targets(trt, config, ["sm75", "sm120"])
    assert config.num_compute_capabilities == 2 and config.targets == {0: "SM75", 1: "SM120"}
    with pytest.raises(UserError, match="does not build for sm87, sm110, only for sm75, .*full TensorRT"):
        tensorrt_api.set_targets(trt, config, ["sm87", "sm86", "sm110"])


@pytest.mark.parametrize("version", SHAPES)
@pytest.mark.parametrize(("content", "begins"), [(b"known", b"known"), (b"", b""), (b"damaged", b""),
                                                 (fake_tensorrt.OTHER_GPU, b"")])
def test_a_timing_cache_that_does_not_fit_is_begun_again(version, content, begins):
    config = fake(version).Builder(None).create_builder_config()
    cache = tensorrt_api.attach_timing_cache(config, content)
    assert cache is config.cache and tensorrt_api.read_timing_cache(config) == begins


def test_a_builder_without_a_timing_cache_of_its_own():
    config = fake("10.3.0").Builder(None).create_builder_config()
    assert tensorrt_api.read_timing_cache(config) == b""
    assert tensorrt_api.has_timing_cache("tensorrt") and not tensorrt_api.has_timing_cache("tensorrt_rtx")


def test_a_monitor_is_made_where_there_is_one():
    phases = Phases()
    assert tensorrt_api.progress_monitor(fake("10.3.0", monitored=False), phases) is None
    trt = fake("11.1.0.106")
    monitor = tensorrt_api.progress_monitor(trt, phases)
    assert isinstance(monitor, trt.IProgressMonitor)
    monitor.phase_start("Building engine", None, 2)
    assert monitor.step_complete("Building engine", 0) and phases.fraction == 0.5
    phases.cancelled.set()
    assert not monitor.step_complete("Building engine", 1)
    monitor.phase_finish("Building engine")
    assert phases.fraction == 1


def test_the_real_rtx_is_shaped_like_its_fake():
    trt, shape = pytest.importorskip("tensorrt_rtx"), fake(RTX)
    assert trt.__name__ == shape.__name__ == tensorrt_api.RTX
    assert tensorrt_api.network_flags(trt) == tensorrt_api.network_flags(shape)
    assert not {"FP16", "INT8"} & set(trt.BuilderFlag.__members__)
    assert set(shape.ComputeCapability.__members__) <= set(trt.ComputeCapability.__members__)
    for name in (name for name in vars(shape) if not name.startswith("__")):
        assert hasattr(trt, name), name
    for name in ("set_memory_pool_limit", "add_optimization_profile", "set_compute_capability"):
        assert hasattr(trt.IBuilderConfig, name), name
    assert {"parse", "parse_from_file", "get_error"} <= set(dir(trt.OnnxParser))
    assert not tensorrt_api.takes_function_bodies(trt)
    assert isinstance(tensorrt_api.progress_monitor(trt, Phases()), trt.IProgressMonitor)


def test_the_real_parser_takes_a_model_from_memory_with_its_external_data(tmp_path: Path):
    """As a TensorRT 10.3 is given it: the node's own function stays, since RTX has no plugin for it."""
    trt = pytest.importorskip("tensorrt_rtx")
    model = model_with_functions()
    onnx.save(model, tmp_path / "x.onnx", save_as_external_data=True, location="x.data", size_threshold=0)
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(tensorrt_api.network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    content = without_functions((tmp_path / "x.onnx").read_bytes(), [])
    assert parser.parse(content, str(tmp_path / "x.onnx")), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    assert network.num_inputs == 1
