"""Measurements that are kept: what was measured once, on the same network and the same samples, is not measured again.

A file per network lies in the user's cache directory, named after the content that the measurements depend on; a line
is added when a measurement is done. So a run that was killed goes on where it was, and a second export starts with all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from talent.errors import UserError


def cache_directory() -> Path:
    """$TALENT_EDGE_CACHE, else talent-edge in $XDG_CACHE_HOME or ~/.cache. Raises UserError where there is no home."""
    if own := os.environ.get("TALENT_EDGE_CACHE"):
        return Path(own)
    if there := os.environ.get("XDG_CACHE_HOME"):
        return Path(there) / "talent-edge"
    try:
        return Path.home() / ".cache" / "talent-edge"
    except RuntimeError as error:
        raise UserError(f"found no place to keep measurements in ({error}); set TALENT_EDGE_CACHE to a directory that "
                        "can be written") from error


def digest(parts: Iterable[str | bytes]) -> str:
    """SHA-256 over several parts, each with its length, so that no two lists of parts give the same bytes."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()


class Records:
    """JSON values by key, in `<directory>/<name>.jsonl`; only in memory where `directory` is None.

    What a killed run left half-written is passed over. Raises UserError where the file cannot be read or written.
    """

    def __init__(self, directory: Path | None, name: str) -> None:
        self.path = None if directory is None else directory / f"{name}.jsonl"
        self._values: dict[str, Any] = {}
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise _unusable(self.path, error) from error
        for line in content.splitlines():
            try:
                [key, value] = json.loads(line)
            except (ValueError, TypeError):
                continue  # cut off when a run was killed: measured again
            if isinstance(key, str):
                self._values[key] = value
        if content and not content.endswith(b"\n"):
            self._append(b"\n")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: str, value: Any) -> None:
        """Keep `value`, which JSON can hold, from now on."""
        self._values[key] = value
        if self.path is not None:
            self._append(json.dumps([key, value], allow_nan=False).encode() + b"\n")

    def _append(self, data: bytes) -> None:
        try:
            with open(self.path, "ab") as file:
                file.write(data)
        except OSError as error:
            raise _unusable(self.path, error) from error


def _unusable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot keep measurements in {path} ({error.strerror}); set TALENT_EDGE_CACHE to a directory "
                     "that can be written")
