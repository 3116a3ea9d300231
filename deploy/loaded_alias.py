"""A second name for a shared library that this process has loaded.

A library that is opened by a name which no file has, "libx.so" where there is only libx.so.1, is found all the same
when one that calls itself so is loaded already. That one is made here: no code and no data, it is only called "libx.so"
and needs libx.so.1, whose functions are then found through it. Neither a link that is opened by its path (the loader
goes by the name inside the file) nor LD_LIBRARY_PATH (read once, when the process starts) does that in a running
process.

Linux on 64-bit little-endian machines only. Source: the ELF part of the System V ABI, chapters 4 and 5.
"""

from __future__ import annotations

import ctypes
import os
import struct
import tempfile
from pathlib import Path

_FILE_HEADER, _SEGMENT, _ENTRY = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ"), struct.Struct("<QQ")
_SHARED_OBJECT, _CURRENT = 3, 1
_LOAD, _DYNAMIC, _STACK = 1, 2, 0x6474E551  # kinds of segments
_READ_AND_WRITE, _PAGE = 6, 1 << 16  # no page is larger on any machine with a GPU
_END, _NEEDED, _HASH, _STRINGS, _SYMBOLS, _STRINGS_SIZE, _SYMBOL_SIZE, _NAME = 0, 1, 4, 5, 6, 10, 11, 14
_SYMBOL = 24  # bytes of one


def load_alias(name: str, library: str) -> None:
    """From now on opening `name` in this process gives `library`, which is loaded or can be found by that name.

    Does nothing where a library called `name` is loaded. Raises OSError where the loader refuses.
    """
    if _is_loaded(name):
        return
    with tempfile.TemporaryDirectory(prefix="talent-edge-") as directory:
        path = Path(directory) / name
        path.write_bytes(alias(name, library))
        ctypes.CDLL(str(path))  # stays when the file is gone


def _is_loaded(name: str) -> bool:
    try:
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def alias(name: str, library: str) -> bytes:
    """The shared object called `name` that needs `library`, for the machine that this Python runs on."""
    strings = b"\0" + name.encode() + b"\0" + library.encode() + b"\0"
    segments = _FILE_HEADER.size
    dynamic = segments + 3 * _SEGMENT.size
    symbols = dynamic + 8 * _ENTRY.size
    hashes = symbols + _SYMBOL
    names = hashes + 16
    size = names + len(strings)
    entries = [(_NEEDED, 2 + len(name.encode())), (_NAME, 1), (_HASH, hashes), (_STRINGS, names), (_SYMBOLS, symbols),
               (_STRINGS_SIZE, len(strings)), (_SYMBOL_SIZE, _SYMBOL), (_END, 0)]
    length = len(entries) * _ENTRY.size
    return b"".join([
        _file_header(segments),
        _SEGMENT.pack(_LOAD, _READ_AND_WRITE, 0, 0, 0, size, size, _PAGE),
        _SEGMENT.pack(_DYNAMIC, _READ_AND_WRITE, dynamic, dynamic, dynamic, length, length, 8),
        _SEGMENT.pack(_STACK, _READ_AND_WRITE, 0, 0, 0, 0, 0, 16),  # without it the stack would become executable
        *(_ENTRY.pack(*entry) for entry in entries),
        bytes(_SYMBOL),  # the one that every table begins with
        struct.pack("<4I", 1, 1, 0, 0),  # a table of one bucket, which is empty
        strings])


def _file_header(segments: int) -> bytes:
    """The machine and its ways are those of the Python that runs."""
    with open("/proc/self/exe", "rb") as file:
        own = _FILE_HEADER.unpack(file.read(_FILE_HEADER.size))
    identity, machine, flags = own[0], own[2], own[7]
    return _FILE_HEADER.pack(identity, _SHARED_OBJECT, machine, _CURRENT, 0, segments, 0, flags, _FILE_HEADER.size,
                             _SEGMENT.size, 3, 0, 0, 0)
