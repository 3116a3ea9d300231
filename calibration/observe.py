"""Running a flat graph on samples for some of its inner tensors, or for what is reduced from them inside the graph."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from deploy.mapped_weights import map_weights
from deploy.onnx_run import Feeds, open_session, part_of, progress, run_session


def observe(model: onnx.ModelProto, outputs: Sequence[str], *, calibration: Iterable[Feeds], title: str,
            probes: Sequence[onnx.NodeProto] = (), constants: Sequence[onnx.TensorProto] = (),
            ) -> Iterator[dict[str, np.ndarray]]:
    """Per sample, the float32 tensors `outputs` of a graph to which `probes`, that read `constants`, were added.

    Only what leads to the outputs is computed. Weights are mapped from a file, so that this needs little more memory
    than running the model; `model` is left as it is. title: of the progress bar.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "observed.onnx"
        onnx.save(_observed(model, outputs, probes, constants, Path(directory)), path)
        session = open_session(path)
        for feeds in progress(calibration, title):
            yield run_session(session, feeds)


def _observed(model: onnx.ModelProto, outputs: Sequence[str], probes: Sequence[onnx.NodeProto],
              constants: Sequence[onnx.TensorProto], directory: Path) -> onnx.ModelProto:
    """What of `model` and `probes` leads to `outputs`, with the large constants in a file of `directory`."""
    needed, nodes = set(outputs), []
    for node in reversed((*model.graph.node, *probes)):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    observed = part_of(model, "input")
    graph = observed.graph
    graph.node.extend(reversed(nodes))
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    graph.initializer.extend(map_weights((tensor for tensor in (*model.graph.initializer, *constants)
                                          if tensor.name in needed), directory))
    return observed
