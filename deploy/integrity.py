"""Whether a file is still the one that was recorded.

Its size is cheap to ask and finds what was cut short; its SHA-256 takes reading it all and finds every change. A digest
that travels with its file is no signature: it finds accidents and other versions, not somebody who changes both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[int], object]
"""Told the number of bytes of each piece that was read."""
_PIECE = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 (hexadecimal) of a file."""

    bytes: int
    sha256: str


def measure(path: str | Path, progress: Progress | None = None) -> FileRecord:
    """Size and digest of a file, read in pieces: weights may be larger than the memory of a small board."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
            if progress is not None:
                progress(len(piece))
    return FileRecord(bytes=size, sha256=digest.hexdigest())


def problem(path: str | Path, expected: FileRecord, *, digest: bool, progress: Progress | None = None) -> str | None:
    """What is wrong with the file at `path`, to follow its name in a sentence; None for nothing.

    digest: also compare its SHA-256, which reads it all unless its size is wrong already.
    """
    path = Path(path)
    try:
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != expected.bytes:
            change = "was cut short" if size < expected.bytes else "was changed"
            return f"{change} (expected {expected.bytes} bytes, received {size})"
        if digest and (received := measure(path, progress).sha256) != expected.sha256:
            return f"was changed (expected SHA-256 {expected.sha256}, received {received})"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None
