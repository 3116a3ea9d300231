"""Where our compiled libraries are. Python works without them; CMakeLists.txt makes them (make plugin)."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from talent.errors import UserError

KERNELS = "talent_kernels"
INTERFACE = 1  # of deploy/csrc/talent_kernels.h: what `talent_kernels_interface` has to return
LIBRARIES = "TALENT_EDGE_LIBRARIES"
"""Environment variable: a directory that is searched in the place of the usual ones."""
BUILD = "make plugin, or: cmake -B build && cmake --build build"


def find_library(name: str) -> Path | None:
    """`lib<name>.so` in $TALENT_EDGE_LIBRARIES; without it in a checkout's build/, then in the environment's lib/."""
    for directory in places():
        path = directory / f"lib{name}.so"
        if path.is_file():
            return path.resolve()
    return None


def places() -> list[Path]:
    """The directories that are searched, in their order."""
    if directory := os.environ.get(LIBRARIES):
        return [Path(directory)]
    return [Path(__file__).parent.parent / "build", Path(sys.prefix) / "lib"]


def load_kernels(path: Path, functions: Iterable[str]) -> ctypes.CDLL:
    """The library of the CUDA kernels, which has these functions. Nothing is compiled.

    Raises UserError for a file that cannot be loaded, and for one of another interface.
    """
    try:
        library = ctypes.CDLL(str(path))
        interface, *_ = [getattr(library, name) for name in ("talent_kernels_interface", *functions)]
    except (OSError, AttributeError) as error:  # AttributeError: the library has no such function
        raise UserError(f"cannot load the kernels: expected a library of this version at {path}, received: {error}; "
                        f"build it again: {BUILD}") from error
    interface.argtypes, interface.restype = (), ctypes.c_int32
    if (received := interface()) != INTERFACE:
        raise UserError(f"{path} is of another version: expected interface {INTERFACE} of talent_kernels.h, received "
                        f"{received}; build it again: {BUILD}")
    return library
