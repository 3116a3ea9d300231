"""Where a result came from: the commit, the package versions, the digest of a file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import talent

_PACKAGE = Path(talent.__file__).resolve().parent


def commit() -> str:
    """The git commit of the source tree that is running, with `-dirty` when tracked files differ from it.

    The package version (`0.1.0`) when this is not a git checkout, when git is not installed, or when the package merely
    lies inside somebody else's repository (a virtual environment in a project).
    """
    init = str(_PACKAGE / "__init__.py")
    if _git("ls-files", "--error-unmatch", init) is None:
        return talent.__version__
    head = _git("rev-parse", "HEAD")
    if head is None:
        return talent.__version__
    return f"{head}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else head


def _git(*arguments: str) -> str | None:
    # Inside a git hook GIT_DIR names the repository of the hook, which need not be ours.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(["git", "-C", str(_PACKAGE.parent), *arguments], env=environment, timeout=10,
                              capture_output=True, text=True, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, the platform and the named distributions (`not installed` for a missing one)."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces: weights may be larger than the memory of a small board."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
