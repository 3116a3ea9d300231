"""Running an ONNX graph on the CPU, to compare it, to find its ranges.

A run's inputs are `Feeds`: arrays by input name.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from deploy.runtime.onnxruntime import WRONG_OPTIMIZERS
from talent.require import require

Feeds = Mapping[str, np.ndarray]
"""One run's graph inputs by name."""


def deviation(model: onnx.ModelProto, reference: onnx.ModelProto, *, feeds: Feeds) -> dict[str, float]:
    """Per output, the largest difference of the two graphs in ONNX Runtime over the reference's largest magnitude."""
    expected, received = run(reference, feeds=feeds), run(model, feeds=feeds)
    return {name: float(np.abs(received[name].astype(np.float64) - value).max() / max(np.abs(value).max(), 1e-12))
            for name, value in expected.items()}


def run(model: onnx.ModelProto, *, feeds: Feeds) -> dict[str, np.ndarray]:
    """One run in ONNX Runtime on the CPU: outputs by name."""
    with session(model) as opened:
        return _run(opened, feeds)


def peaks(model: onnx.ModelProto, *, calibration: Iterable[Feeds]) -> dict[str, float]:
    """Largest magnitude of every float32 tensor of the graph over the samples.

    The graph reduces each tensor to one number as it goes, so this needs no more memory than running the model.
    """
    probed = onnx.shape_inference.infer_shapes(model)
    graph = probed.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output, *graph.input)}
    names = [*(value.name for value in graph.input), *(name for node in graph.node for name in node.output)]
    names = [name for name in names if kinds.get(name) == TensorProto.FLOAT]
    del graph.output[:]
    for index, name in enumerate(names):
        graph.node.append(helper.make_node("Abs", [name], [f"peak_abs_{index}"]))
        graph.node.append(helper.make_node("ReduceMax", [f"peak_abs_{index}"], [f"peak_{index}"], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(f"peak_{index}", TensorProto.FLOAT, []))
    found = dict.fromkeys(names, 0.0)
    with session(probed) as opened:
        for feeds in progress(calibration, "ranges"):
            values = _run(opened, feeds)
            for index, name in enumerate(names):
                found[name] = max(found[name], float(values[f"peak_{index}"]))
    return found


def progress(samples: Iterable[Feeds], name: str) -> Iterable[Feeds]:
    """`samples` with a progress bar, on a terminal only."""
    return require("tqdm", extra="export").tqdm(samples, desc=name, unit="sample", leave=False, disable=None)


@contextlib.contextmanager
def session(model: onnx.ModelProto) -> Iterator:
    """An ONNX Runtime session on the CPU; the file it maps its weights from is gone afterwards."""
    onnxruntime = require("onnxruntime", extra="export")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        onnx.save(model, path)
        yield onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"],
                                           disabled_optimizers=WRONG_OPTIMIZERS)


def _run(session, feeds: Feeds) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))
