"""Where our compiled libraries are. Python works without them; CMakeLists.txt makes them (make plugin)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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
