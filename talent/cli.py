"""The console scripts of this package. Each imports its command when called, so that a missing extra is one line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from talent.errors import EXIT_BAD_INPUT

OWN = ("talent", "deploy", "calibration")


def launcher(name: str, module: str, *, extra: str) -> Callable[[Sequence[str] | None], int]:
    """`main` of `module` as a function that names the pip extra to install where a package is missing (exit code 2)."""

    def launch(argv: Sequence[str] | None = None) -> int:
        try:
            main = importlib.import_module(module).main
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if not package or package in OWN:
                raise
            print(f"{name}: error: this needs the package {package!r}, which is not installed; "
                  f"run: pip install 'talent-edge[{extra}]'", file=sys.stderr)
            return EXIT_BAD_INPUT
        return main(argv)

    return launch


train = launcher("talent-train", "talent.train", extra="train")
data = launcher("talent-data", "talent.data.check", extra="train")
pack = launcher("talent-pack", "talent.pack", extra="train")
import_official = launcher("talent-import", "talent.import_official", extra="train")
