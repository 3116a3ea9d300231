"""Running an ONNX graph on the CPU, and taking parts of one.

A run's inputs are `Feeds`: arrays by input name.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from deploy.runtime.onnxruntime import WRONG_OPTIMIZERS
from talent.require import require

Feeds = Mapping[str, np.ndarray]
"""One run's graph inputs by name."""


def part_of(model: onnx.ModelProto, *fields: str) -> onnx.ModelProto:
    """A model with copies of these fields of the graph of `model` ("node", "input", ...) and no others."""
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    part.graph.name = model.graph.name
    for field in fields:
        getattr(part.graph, field).extend(getattr(model.graph, field))
    return part


def deviation(model: onnx.ModelProto, reference: onnx.ModelProto, *, feeds: Feeds,
              optimize: bool = True) -> dict[str, float]:
    """Per output, the largest difference of the two graphs in ONNX Runtime over the reference's largest magnitude."""
    expected, received = (run(graph, feeds=feeds, optimize=optimize) for graph in (reference, model))
    return {name: float(np.abs(received[name].astype(np.float64) - value).max() / max(np.abs(value).max(), 1e-12))
            for name, value in expected.items()}


def run(model: onnx.ModelProto, *, feeds: Feeds, optimize: bool = True) -> dict[str, np.ndarray]:
    """One run in ONNX Runtime on the CPU: outputs by name."""
    with session(model, optimize=optimize) as opened:
        return run_session(opened, feeds)


def progress(samples: Iterable[Feeds], name: str) -> Iterable[Feeds]:
    """`samples` with a progress bar, on a terminal only."""
    return require("tqdm", extra="export").tqdm(samples, desc=name, unit="sample", leave=False, disable=None)


@contextlib.contextmanager
def session(model: onnx.ModelProto, *, optimize: bool = True) -> Iterator:
    """`open_session` of a graph in memory; the file that holds it meanwhile is gone afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        onnx.save(model, path)
        yield open_session(path, optimize=optimize)


def open_session(path: Path, *, optimize: bool = True):
    """An ONNX Runtime session on the CPU. optimize: False computes node by node and makes no copies of the weights."""
    onnxruntime = require("onnxruntime", extra="export")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"],
                                        disabled_optimizers=WRONG_OPTIMIZERS)


def run_session(session, feeds: Feeds) -> dict[str, np.ndarray]:
    """Outputs by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))
