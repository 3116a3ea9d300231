"""CUDA streams that a caller brings."""

from __future__ import annotations

from typing import Any

from talent.errors import UserError

_ATTRIBUTES = ("cuda_stream", "handle", "ptr")  # torch, pycuda, CuPy


def stream_handle(stream: Any) -> int:
    """The cudaStream_t, as a number, of a stream of torch, pycuda, CuPy or whatever has `__cuda_stream__`.

    A number is taken as it is (0: the default stream). Raises UserError for anything else.
    """
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for attribute in _ATTRIBUTES:
        if isinstance(value := getattr(stream, attribute, None), int):
            return value
    raise UserError("expected a CUDA stream: the number of a cudaStream_t, or a stream of torch, pycuda or CuPy; "
                    f"received {type(stream).__name__}")
