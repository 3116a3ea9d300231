"""From a checkpoint to a running engine. `from deploy import Segmenter` is all that a robot needs.

Importing this package loads nothing; its names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.bundle import Bundle
    from deploy.runtime.segmenter import Prompt, Segmentation, Segmenter

__all__ = ["Bundle", "Prompt", "Segmentation", "Segmenter"]

_HOME = {"Bundle": "deploy.bundle", "Prompt": "deploy.runtime.segmenter", "Segmentation": "deploy.runtime.segmenter",
         "Segmenter": "deploy.runtime.segmenter"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
