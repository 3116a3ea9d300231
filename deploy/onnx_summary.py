"""What an ONNX file takes, makes and consists of, read without any package and without its weights.

A robot that runs engines has neither onnx nor ONNX Runtime, and both would load all the weights to say it. An ONNX file
is one protobuf message; its wire format (deploy/protobuf.py) and onnx.proto's field numbers never change, so that the
few fields which tell this are found by skipping everything else.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.protobuf import fields, integer, text
from talent.errors import UserError

RCA = "talent::RcaCostAggregation"
ELEMENT_TYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string",
                 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16"}  # onnx.proto

# Field numbers in onnx.proto.
_MODEL_GRAPH, _MODEL_OPSET = 7, 8
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 11, 12
_NODE_OPERATOR, _NODE_DOMAIN = 4, 7
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR, _TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 1, 2
_SHAPE_DIM, _DIM_VALUE, _DIM_NAME = 1, 1, 2


@dataclass(frozen=True)
class Tensor:
    """An input or output. shape: sizes, and names of those that vary ("?" for one without a name)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSummary:
    """operators: how many nodes of each, those of another domain as "domain::operator"; bodies of functions apart."""

    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    operators: Mapping[str, int]

    @property
    def nodes(self) -> int:
        return sum(self.operators.values())

    @property
    def rca(self) -> int:
        """Nodes that are an RCA cost aggregation."""
        return self.operators.get(RCA, 0)


def summarise(path: str | Path) -> GraphSummary:
    """Read an ONNX file. Raises UserError where there is none, or where it is damaged."""
    try:
        with open(path, "rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return _model(content)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; expected an ONNX file") from error
    except ValueError as error:
        raise UserError(f"{path}: expected an ONNX file, received one that is damaged ({error}); export the bundle "
                        "again with talent-export") from error


def _model(content: memoryview) -> GraphSummary:
    opset, graph = 0, None
    for number, value in fields(content):
        if number == _MODEL_GRAPH:
            graph = value
        elif number == _MODEL_OPSET:
            known = dict(fields(value))
            if not text(known.get(_OPSET_DOMAIN)):
                opset = integer(known.get(_OPSET_VERSION))
    if graph is None:
        raise ValueError("it has no graph")
    inputs, outputs, operators = [], [], Counter()
    for number, value in fields(graph):
        if number == _GRAPH_NODE:
            operators[_operator(value)] += 1
        elif number == _GRAPH_INPUT:
            inputs.append(_tensor(value))
        elif number == _GRAPH_OUTPUT:
            outputs.append(_tensor(value))
    return GraphSummary(opset=opset, inputs=tuple(inputs), outputs=tuple(outputs), operators=dict(operators))


def _operator(node: memoryview) -> str:
    known = dict(fields(node))
    domain, name = text(known.get(_NODE_DOMAIN)), text(known.get(_NODE_OPERATOR))
    return f"{domain}::{name}" if domain else name


def _tensor(value: memoryview) -> Tensor:
    known = dict(fields(value))
    tensor = dict(fields(dict(fields(known.get(_VALUE_TYPE))).get(_TYPE_TENSOR)))
    element = integer(tensor.get(_TENSOR_ELEMENT))
    shape = []
    for number, dim in fields(tensor.get(_TENSOR_SHAPE)):
        if number == _SHAPE_DIM:
            size = dict(fields(dim))
            shape.append(integer(size.get(_DIM_VALUE)) or text(size.get(_DIM_NAME)) or "?")
    return Tensor(text(known.get(_VALUE_NAME)), ELEMENT_TYPES.get(element, f"type {element}"), tuple(shape))
