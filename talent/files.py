"""Files and directories that are either the old ones or the new ones, never half of either."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from talent.errors import UserError

_AT_FDCWD = -100  # <fcntl.h>: paths are relative to the working directory
_RENAME_EXCHANGE = 2  # <linux/fs.h>: swap two names in one step
NEW, OLD = "tmp", "old"  # endings of hidden names: what is being written, what was put aside for it


def _require_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist; run: mkdir -p {path.parent}")


def check_writable(path: str | Path) -> None:
    """Raise UserError where `atomic_write(path)` would: ask before the work, not after it."""
    path = Path(path)
    _require_parent(path)
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory, expected a file name")
    if kind := _special(path):
        raise UserError(f"cannot write {path}: expected a file or a free name, received {kind}, which the new file "
                        "would replace; name another one and read it when it is written")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: no permission to write in {path.parent}")


def _special(path: Path) -> str:
    """What is at `path`, where that is neither a file nor nothing; else ""."""
    try:
        if path.is_symlink() and os.readlink(path).startswith("/proc/"):  # as /dev/stdout, wherever that leads to
            return "an open file of a process"
        mode = path.stat().st_mode
    except OSError:  # nothing is there
        return ""
    kinds = {stat.S_IFREG: "", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _beside(path: Path, what: str = NEW) -> Path:
    """A free hidden name in the same folder (so the same file system) that keeps the suffix some writers look at."""
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.{what}{path.suffix}")


def _lying_beside(path: Path, what: str) -> list[Path]:
    return list(path.parent.glob(f".{path.stem}.*.{what}{path.suffix}"))


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `path` when the block ends well and vanishes when it raises.

    The bytes are on the disk before the name is, so a power cut leaves the old file or the new one.
    Raises UserError when the folder is missing or not writable, or when `path` is anything but a file.
    """
    check_writable(path)
    path = Path(path)
    temporary = _beside(path)
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: str | Path) -> None:
    """Remove what killed writers of `path` left beside it. Nobody may be writing `path` meanwhile."""
    path = Path(path)
    recover(path)
    for leftover in _lying_beside(path, NEW) + _lying_beside(path, OLD):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def recover(path: str | Path) -> None:
    """Bring back a directory that a writer had put aside when it was killed, a moment before the new one came.

    That moment is there only where two names cannot be swapped in one step (`_exchange`), as on some network drives.
    """
    path = Path(path)
    if not path.exists():
        for old in _lying_beside(path, OLD):
            with contextlib.suppress(FileNotFoundError):  # another process of the run has brought it back
                os.rename(old, path)
            return


@contextlib.contextmanager
def atomic_directory(path: str | Path, *, marker: str | None = None) -> Iterator[Path]:
    """Yield an empty directory to fill; it becomes `path` when the block ends well and vanishes when it raises.

    A directory that is already at `path` is replaced only when it is empty or holds a file named `marker` (such as
    `bundle.json`): a mistyped output path must not cost somebody's pictures. Raises UserError otherwise, before any
    work is done, and when the parent folder is missing. The bytes are on the disk before the name is, so a power cut
    leaves the old directory or the new one.
    """
    path = Path(path)
    path = path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()
    _require_parent(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"cannot write {path}: it is a file, expected a directory or a free name")
    if path.is_dir() and any(path.iterdir()) and not (marker and (path / marker).is_file()):
        wanted = f"has no {marker} in it, so it was not made by this command" if marker else "is not empty"
        raise UserError(f"will not replace the directory {path}: it {wanted}; name another one or remove it first")
    temporary = _beside(path)
    try:
        temporary.mkdir()
    except PermissionError as error:
        raise UserError(f"cannot write {path}: no permission to write in {path.parent}") from error
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            _flush(file)
        _flush(temporary)
        _move_into_place(temporary, path)
        _flush(path.parent)  # before the old one is removed
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(new: Path, path: Path) -> None:
    """`new` becomes `path`; what was at `path` afterwards lies at `new` or is gone."""
    if not path.exists():
        os.rename(new, path)
    elif not _exchange(new, path):
        old = _beside(path, OLD)
        os.rename(path, old)
        try:
            os.rename(new, path)
        except OSError:
            os.rename(old, path)
            raise
        _flush(path.parent)
        shutil.rmtree(old)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk. Raises OSError where a file does not get there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not path.is_dir():  # some systems refuse it for directories
            raise


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step, so that there is no moment without a `b`. False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), ctypes.c_uint(_RENAME_EXCHANGE)) == 0
