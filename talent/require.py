"""The one place where optional packages are imported, so that a missing one names the extra that brings it."""

from __future__ import annotations

import importlib
from types import ModuleType

from talent.errors import UserError


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or raise a UserError that names the pip extra which installs it.

    Only a missing package is turned into advice: an import error from inside an installed package is shown as it is.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != top:
            raise
        raise UserError(f"this needs the package {top!r}, which is not installed; "
                        f"run: pip install 'talent-edge[{extra}]'") from error
