"""Weights in a file beside the graph: which of them, where they lie, and that the network computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

from deploy.mapped_weights import map_weights
from deploy.onnx_run import run
from tests.deploy import toy

PAGE = 4096


def tensors() -> list[onnx.TensorProto]:
    """Float32 of 1024 bytes and of four more, integers, float64, a scalar, none at all, and one of many pages."""
    rng = np.random.default_rng(0)
    values = {"small": rng.normal(size=(16, 16)).astype(np.float32), "large": rng.normal(size=257).astype(np.float32),
              "integers": np.arange(999), "double": rng.normal(size=(30, 30)), "scalar": np.float32(3),
              "empty": np.zeros((0, 7), np.float32), "pages": rng.normal(size=(3, 70, 50)).astype(np.float32)}
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]


def test_large_float32_lies_in_the_file_and_the_rest_stays(tmp_path: Path) -> None:
    """ONNX Runtime maps what begins at a page; shape inference sees what stays."""
    before = tensors()
    copies = [tensor.SerializeToString() for tensor in before]
    mapped = map_weights(iter(before), tmp_path)
    assert [tensor.SerializeToString() for tensor in before] == copies, "the model was changed"
    assert [tensor.name for tensor in mapped] == [tensor.name for tensor in before]
    outside = {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in mapped
               if tensor.data_location == TensorProto.EXTERNAL}
    assert outside.keys() == {"large", "pages"}
    file, = tmp_path.iterdir()
    content = file.read_bytes()
    for tensor, received in zip(before, mapped, strict=True):
        values = numpy_helper.to_array(tensor)
        assert (received.data_type, list(received.dims)) == (tensor.data_type, list(values.shape))
        if received.name not in outside:
            assert received == tensor
            continue
        offset, length = (int(outside[received.name][key]) for key in ("offset", "length"))
        assert outside[received.name]["location"] == file.name and not received.raw_data and offset % PAGE == 0
        assert content[offset:offset + length] == values.tobytes()


def test_numbers_that_are_not_in_raw_bytes_are_written_too(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    tensor = onnx.helper.make_tensor("typed", TensorProto.FLOAT, values.shape, values.ravel().tolist())
    assert not tensor.raw_data
    mapped, = map_weights([tensor], tmp_path)
    np.testing.assert_array_equal(numpy_helper.to_array(mapped, base_dir=str(tmp_path)), values)


def test_a_network_with_mapped_weights_computes_the_same(plain: onnx.ModelProto, tmp_path: Path) -> None:
    mapped = onnx.ModelProto()
    mapped.CopyFrom(plain)
    del mapped.graph.initializer[:]
    mapped.graph.initializer.extend(map_weights(plain.graph.initializer, tmp_path))
    onnx.save(mapped, tmp_path / "toy.onnx")
    assert mapped.ByteSize() < 0.7 * plain.ByteSize()
    opened = onnxruntime.InferenceSession(str(tmp_path / "toy.onnx"), providers=["CPUExecutionProvider"])
    feeds = toy.feeds(2)
    received, = opened.run(["logits"], feeds)
    np.testing.assert_array_equal(received, run(plain, feeds=feeds)["logits"])


def test_without_weights_there_is_an_empty_file(tmp_path: Path) -> None:
    assert map_weights([], tmp_path) == []
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]
