"""The wire format of a protobuf message, as far as looking into an ONNX file needs it: without protobuf or onnx.

https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator

Value = int | memoryview
"""A number, or the bytes of a text or of a message."""
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types


def fields(value: Value | None) -> Iterator[tuple[int, Value]]:
    """The fields of a message: number and value. Raises ValueError where it is none."""
    return ((number, content) for number, content, _ in parts(value))


def parts(value: Value | None) -> Iterator[tuple[int, Value, memoryview]]:
    """The fields of a message: number, value, and all its bytes, which joined again are the message."""
    message = _message(value)
    position, end = 0, len(message)
    while position < end:
        start = position
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            content, position = _varint(message, position)
        else:
            size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(kind)
            if kind == _BYTES:
                size, position = _varint(message, position)
            if size is None or position + size > end:
                raise ValueError("it ends in the middle of a field" if size is not None else f"wire type {kind}")
            content, position = message[position:position + size], position + size
        yield number, content, message[start:position]


def text(value: Value | None) -> str:
    """A text; the empty one for a field that is missing."""
    return _message(value).tobytes().decode("utf-8")


def integer(value: Value | None) -> int:
    """A number; 0 for a field that is missing."""
    if isinstance(value, memoryview):
        raise ValueError("it has a message where a number belongs")
    return value or 0


def _message(value: Value | None) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it has a number where a message belongs")
    return memoryview(b"") if value is None else value


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
