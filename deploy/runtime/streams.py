"""CUDA streams that a caller brings."""

from __future__ import annotations

import operator
from typing import Any

from talent.errors import UserError

_ATTRIBUTES = ("cuda_stream", "handle", "ptr")  # torch, pycuda, CuPy


def stream_handle(stream: Any) -> int:
    """The cudaStream_t, as a number, of a stream of torch, pycuda, CuPy or whatever has `__cuda_stream__`.

    A number is taken as it is (0: the default stream). Raises UserError for anything else.
    """
    for attribute in _ATTRIBUTES:
        stream = getattr(stream, attribute, stream)
    if hasattr(stream, "__cuda_stream__"):
        stream = stream.__cuda_stream__()[1]
    try:
        handle = operator.index(stream)
    except TypeError:
        handle = -1
    if handle < 0 or isinstance(stream, bool):
        raise UserError("expected a CUDA stream: the number of a cudaStream_t, or a stream of torch, pycuda or CuPy; "
                        f"received {stream!r}")
    return handle
