"""The programs of tests/cpp that ask libtalent, built once for all tests of a session."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native_build import ROOT, run

NAMES = ("assigned", "encode_texts", "read_bundles", "segment_photos")


def build_programs(factory: pytest.TempPathFactory) -> Path:
    """Build them with CMake; where they are. Skips where a tool or a library is missing."""
    base = factory.getbasetemp()
    # pytest-xdist gives every worker a folder in one that they share: who comes second waits for the first.
    return _build((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cpp")


@functools.cache
def _build(directory: Path) -> Path:
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = run("cmake", "-S", str(ROOT / "deploy" / "cpp"), "-B", str(directory), "-DCMAKE_CXX_FLAGS_RELEASE=-O1")
        for line in said.splitlines():
            if "No libtalent" in line:
                pytest.skip(line.removeprefix("-- "))
        run("cmake", "--build", str(directory), "--parallel", "2", "--target", *NAMES)
    return directory


def answers(program: Path, *arguments: str | Path, said: str = "") -> str:
    """What a program says on stdout, given `said` on stdin. Another exit code than 0 fails the test."""
    done = subprocess.run([program, *arguments], input=said.encode(), capture_output=True, check=False)
    assert done.returncode == 0, f"{program.name}: exit code {done.returncode}: {done.stderr.decode()[-4000:]}"
    return done.stdout.decode()
