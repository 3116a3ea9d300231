"""Bundles whose two graphs are a few operators: made in milliseconds, they run like any other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy.bundle import Bundle
from talent import provenance
from talent.checkpoint import TOKENIZER, WEIGHTS, load_checkpoint

CELL = 7  # pixels of the input a side for each of the logits


def toy_bundle(directory: Path, checkpoint: Path, *, image_size: int | None = None) -> Bundle:
    """A bundle that says it is of this checkpoint directory, in FP32. logits: the picture's grey plus a number that
    belongs to the sentence. image_size: None for the checkpoint's."""
    config = load_checkpoint(checkpoint).config
    size = image_size or config.image_size
    directory.mkdir()
    _save(_text(config.context_length), directory / "text.onnx")
    _save(_vision(size), directory / "vision.onnx")
    shutil.copy(checkpoint / TOKENIZER, directory / "tokenizer.json")
    return Bundle.write_manifest(
        directory, preset=config.preset, precision="fp32", image_size=size, context_length=config.context_length,
        source={"checkpoint": checkpoint.name, "sha256": provenance.sha256(checkpoint / WEIGHTS)})


def _text(length: int) -> onnx.GraphProto:
    """tokens [B, L] -> shift [B, 1, 1, 1]: the mean token over the vocabulary."""
    nodes = [helper.make_node("Cast", ["tokens"], ["numbers"], to=TensorProto.FLOAT),
             helper.make_node("ReduceMean", ["numbers"], ["mean"], axes=[1]),
             helper.make_node("Reshape", ["mean", "shape"], ["shaped"]),
             helper.make_node("Mul", ["shaped", "scale"], ["shift"])]
    return helper.make_graph(
        nodes, "text", [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B", length])],
        [helper.make_tensor_value_info("shift", TensorProto.FLOAT, ["B", 1, 1, 1])],
        [numpy_helper.from_array(np.array([-1, 1, 1, 1]), "shape"),
         numpy_helper.from_array(np.float32(1e-3), "scale")])


def _vision(size: int) -> onnx.GraphProto:
    """image [P, 3, S, S] and shift [B, 1, 1, 1] -> logits [B, 1, S / 7, S / 7]."""
    nodes = [helper.make_node("AveragePool", ["image"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
             helper.make_node("ReduceMean", ["cells"], ["grey"], axes=[1]),
             helper.make_node("Add", ["grey", "shift"], ["logits"])]
    return helper.make_graph(
        nodes, "vision", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["P", 3, size, size]),
                          helper.make_tensor_value_info("shift", TensorProto.FLOAT, ["B", 1, 1, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 1, size // CELL, size // CELL])])


def _save(graph: onnx.GraphProto, path: Path) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
