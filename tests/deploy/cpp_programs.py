"""The programs of tests/cpp that ask libtalent, built once for all tests of a session."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native_build import ROOT, run

NAMES = ("assigned", "encode_texts", "read_bundles")


@functools.cache
def build_programs(directory: Path) -> Path:
    """Build them into `directory` with CMake and return it. Skips where a tool or a library is missing."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
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
