"""Weights of an ONNX graph in a file beside it, which ONNX Runtime maps: copies of the graph are small then, and one
may pass the two gigabytes that protobuf can write.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

_INLINE_BYTES = 1024  # constants up to this stay in the ONNX file, where shape inference sees them
_FILE = "weights.bin"


def map_weights(tensors: Iterable[onnx.TensorProto], directory: Path) -> list[onnx.TensorProto]:
    """`tensors` for the initializers of a graph that is saved in `directory`: large float32 ones in a file there."""
    mapped = []
    with (directory / _FILE).open("wb") as file:
        for tensor in tensors:
            values = numpy_helper.to_array(tensor)
            if tensor.data_type != TensorProto.FLOAT or values.nbytes <= _INLINE_BYTES:
                mapped.append(tensor)
                continue
            file.seek(-file.tell() % 4096, 1)  # a page: only what starts at one can be mapped
            entry = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims,
                                data_location=TensorProto.EXTERNAL)
            for key, value in (("location", _FILE), ("offset", file.tell()), ("length", values.nbytes)):
                entry.external_data.add(key=key, value=str(value))
            file.write(np.ascontiguousarray(values).data)
            mapped.append(entry)
    return mapped
