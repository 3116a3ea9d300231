"""A bundle so small that it is made afresh for each test: "r", "g" or "b" segments what is red, green or blue."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.bundle import Bundle
from deploy.fuse_rca import fuse_rca
from deploy.runtime import segmenter as segmenter_module
from deploy.runtime import tensorrt as tensorrt_backend
from deploy.runtime.cuda import WRAPPERS
from talent import native
from talent.image import CLIP_MEAN, CLIP_STD
from talent.tokenizer import Tokenizer, build_clip_tokenizer
from tests.deploy.fake_runtime import FakeRuntime
from tests.deploy.stand_in_cuda import StandInCuda, compile_stand_in

IMAGE_SIZE = 64
CONTEXT_LENGTH = 8
VOCAB_SIZE = 600


def _save(graph: onnx.GraphProto, path: Path, *, rca: int = 0) -> None:
    model = fuse_rca(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), expected=rca)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _constant(name: str, value: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(value, name)


def _text_graph(tokenizer: Tokenizer, prompt_type: int) -> onnx.GraphProto:
    """tokens [B, L] -> colour [B, 3, 1, 1]: the sum of a table's rows; bias [B, 1, 1, 1]: minus half of its total."""
    table = np.zeros((VOCAB_SIZE, 3), np.float32)
    table[tokenizer(["r", "g", "b"])[:, 1]] = 20 * np.eye(3)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),  # [B, L, 3]
        helper.make_node("ReduceSum", ["rows", "axis"], ["sum"], keepdims=0),  # [B, 3]
        helper.make_node("Reshape", ["sum", "colour_shape"], ["colour32"]),
        helper.make_node("ReduceSum", ["sum", "axis"], ["total"], keepdims=1),  # [B, 1]
        helper.make_node("Reshape", ["total", "bias_shape"], ["total4"]),
        helper.make_node("Mul", ["total4", "minus_half"], ["bias32"]),
        helper.make_node("Cast", ["colour32"], ["colour"], to=prompt_type),
        helper.make_node("Cast", ["bias32"], ["bias"], to=prompt_type)]
    return helper.make_graph(
        nodes, "text", [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B", "L"])],
        [helper.make_tensor_value_info("colour", prompt_type, ["B", 3, 1, 1]),
         helper.make_tensor_value_info("bias", prompt_type, ["B", 1, 1, 1])],
        [_constant("table", table), _constant("axis", np.array([1])),
         _constant("colour_shape", np.array([-1, 3, 1, 1])),
         _constant("bias_shape", np.array([-1, 1, 1, 1])), _constant("minus_half", np.float32(-0.5))])


def _rca(colour_name: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes from the colour [B, 3, 1, 1] to the tensor "aggregated", which is the same: an RCA whose gate is one."""
    nodes = [
        helper.make_node("Reshape", [colour_name, "one_token"], ["visual"]),  # [B, 1, 3]
        helper.make_node("Transpose", ["visual"], ["text"], perm=[0, 2, 1]),  # [B, 3, 1]
        helper.make_node("MatMul", ["visual", "text"], ["rca_cost"]),  # [B, 1, 1]
        helper.make_node("MatMul", ["rca_cost", "rca_weight"], ["rca_mix"]),  # [B, 1, 3]
        helper.make_node("Add", ["rca_mix", "rca_bias"], ["rca_gate"]),
        helper.make_node("Mul", ["rca_gate", "visual"], ["rca"]),
        helper.make_node("Reshape", ["rca", "one_pixel"], ["aggregated"])]
    return nodes, [_constant("one_token", np.array([-1, 1, 3])), _constant("one_pixel", np.array([-1, 3, 1, 1])),
                   _constant("rca_weight", np.zeros((1, 3), np.float32)),
                   _constant("rca_bias", np.ones(3, np.float32))]


def _vision_graph(scale: float, colour_name: str, rca: bool) -> onnx.GraphProto:
    """image [B or 1, 3, S, S] -> logits [B, 1, S/2, S/2]: <colour, pixel in 0..1> - half, averaged over 2 x 2 pixels.
    """
    rca_nodes, rca_constants = _rca(colour_name) if rca else ([], [])
    nodes = [
        *rca_nodes,
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Mul", ["pooled", "std"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mean"], ["pixels"]),
        helper.make_node("Mul", ["pixels", "aggregated" if rca else colour_name], ["products"]),
        helper.make_node("ReduceSum", ["products", "axis"], ["cost"], keepdims=1),
        helper.make_node("Add", ["cost", "bias"], ["sum"]),
        helper.make_node("Mul", ["sum", "scale"], ["logits"])]
    return helper.make_graph(
        nodes, "vision",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["P", 3, IMAGE_SIZE, IMAGE_SIZE]),
         helper.make_tensor_value_info(colour_name, TensorProto.FLOAT, ["B", 3, 1, 1]),
         helper.make_tensor_value_info("bias", TensorProto.FLOAT, ["B", 1, 1, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 1, IMAGE_SIZE // 2, IMAGE_SIZE // 2])],
        [_constant("mean", np.array(CLIP_MEAN, np.float32)[None, :, None, None]),
         _constant("std", np.array(CLIP_STD, np.float32)[None, :, None, None]), _constant("axis", np.array([1])),
         _constant("scale", np.float32(scale)), *rca_constants])


@pytest.fixture
def make_bundle(tmp_path) -> Callable[..., Bundle]:
    """make_bundle(scale=, colour_name=, prompt_type=, rca=): a toy bundle, one with a fault of the graphs, or one whose
    vision graph has an RCA.
    """

    def make(*, scale: float = 1.0, colour_name: str = "colour", prompt_type: int = TensorProto.FLOAT,
             rca: bool = False) -> Bundle:
        directory = tmp_path / "bundle"
        directory.mkdir()
        tokenizer = build_clip_tokenizer(context_length=CONTEXT_LENGTH, vocab_size=VOCAB_SIZE)
        tokenizer.save(directory / "tokenizer.json")
        _save(_text_graph(tokenizer, prompt_type), directory / "text.onnx")
        _save(_vision_graph(scale, colour_name, rca), directory / "vision.onnx", rca=int(rca))
        return Bundle.write_manifest(
            directory, preset="toy", precision="fp32", image_size=IMAGE_SIZE, context_length=CONTEXT_LENGTH,
            source={"checkpoint": "toy.pt", "sha256": "0" * 64}, parity={"iou": 1.0})

    return make


@pytest.fixture
def toy_bundle(make_bundle) -> Bundle:
    return make_bundle()


@pytest.fixture
def picture() -> np.ndarray:
    """uint8 [90, 150, 3]: black, with a red, a green and a blue rectangle."""
    picture = np.zeros((90, 150, 3), np.uint8)
    picture[20:60, 10:50, 0] = 255
    picture[30:80, 60:90, 1] = 255
    picture[10:40, 100:145, 2] = 255
    return picture


@pytest.fixture(scope="session")
def stand_in_library(tmp_path_factory) -> Path:
    """The stand-in for CUDA, compiled: libcuda.so.1, and libcudart.so beside it."""
    return compile_stand_in(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(params=WRAPPERS)
def wrapper(request) -> str:
    """Each wrapper of CUDA in turn."""
    return request.param


@pytest.fixture
def cuda(stand_in_library, wrapper) -> Iterator[StandInCuda]:
    """The stand-in. What a test does not give back fails it; contexts stay on the stack of no thread."""
    with StandInCuda.installed(stand_in_library, wrapper) as stand_in:
        yield stand_in
        assert stand_in.depth() == 0
    assert not stand_in.live()


@pytest.fixture
def fake_tensorrt(stand_in_library, tmp_path, monkeypatch) -> Iterator[FakeRuntime]:
    """A GPU (sm87) with TensorRT 10.3.0 on it, and no kernels for pictures."""
    with StandInCuda.installed(stand_in_library, "polygraphy") as cuda:
        runtime = FakeRuntime(cuda)
        monkeypatch.setitem(sys.modules, "tensorrt", runtime.package)
        monkeypatch.setattr(tensorrt_backend, "polygraphy_for", lambda runtime_name: runtime)
        monkeypatch.setenv(native.LIBRARIES, str(tmp_path / "none"))
        for module in (segmenter_module, tensorrt_backend):
            monkeypatch.setattr(module, "gpu_architecture", lambda device: "sm87")
        yield runtime
