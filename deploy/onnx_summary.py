"""What an ONNX file takes, makes and consists of, read without any package and without its weights.

A robot that runs engines has neither onnx nor ONNX Runtime, and both would load all the weights to say it. An ONNX file
is one protobuf message; its wire format and onnx.proto's field numbers never change, so that the few fields which tell
this are found by skipping everything else. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

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
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types


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
    for number, value in _fields(content):
        if number == _MODEL_GRAPH:
            graph = value
        elif number == _MODEL_OPSET:
            fields = dict(_fields(value))
            if not _text(fields.get(_OPSET_DOMAIN)):
                opset = _integer(fields.get(_OPSET_VERSION))
    if graph is None:
        raise ValueError("it has no graph")
    inputs, outputs, operators = [], [], Counter()
    for number, value in _fields(graph):
        if number == _GRAPH_NODE:
            operators[_operator(value)] += 1
        elif number == _GRAPH_INPUT:
            inputs.append(_tensor(value))
        elif number == _GRAPH_OUTPUT:
            outputs.append(_tensor(value))
    return GraphSummary(opset=opset, inputs=tuple(inputs), outputs=tuple(outputs), operators=dict(operators))


def _operator(node: memoryview) -> str:
    fields = dict(_fields(node))
    domain, name = _text(fields.get(_NODE_DOMAIN)), _text(fields.get(_NODE_OPERATOR))
    return f"{domain}::{name}" if domain else name


def _tensor(value: memoryview) -> Tensor:
    fields = dict(_fields(value))
    tensor = dict(_fields(dict(_fields(fields.get(_VALUE_TYPE))).get(_TYPE_TENSOR)))
    element = _integer(tensor.get(_TENSOR_ELEMENT))
    shape = []
    for number, dim in _fields(tensor.get(_TENSOR_SHAPE)):
        if number == _SHAPE_DIM:
            size = dict(_fields(dim))
            shape.append(_integer(size.get(_DIM_VALUE)) or _text(size.get(_DIM_NAME)) or "?")
    return Tensor(_text(fields.get(_VALUE_NAME)), ELEMENT_TYPES.get(element, f"type {element}"), tuple(shape))


def _text(value: int | memoryview | None) -> str:
    return _message(value).tobytes().decode("utf-8")


def _integer(value: int | memoryview | None) -> int:
    if isinstance(value, memoryview):
        raise ValueError("it has a message where a number belongs")
    return value or 0


def _message(value: int | memoryview | None) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it has a number where a message belongs")
    return memoryview(b"") if value is None else value


def _fields(value: int | memoryview | None) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: number, and an integer or the bytes. Raises ValueError where it is none."""
    message = _message(value)
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, position = _varint(message, position)
        else:
            size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(kind)
            if kind == _BYTES:
                size, position = _varint(message, position)
            if size is None or position + size > end:
                raise ValueError("it ends in the middle of a field" if size is not None else f"wire type {kind}")
            value, position = message[position:position + size], position + size
        yield number, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("it ends in the middle of a number")
        byte = message[position]
        value, position = value | (byte & 127) << shift, position + 1
        if byte < 128:
            return value, position
    raise ValueError("a number is too long")
