"""Builds what is compiled, for tests; without the tools a test is skipped, with the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def build(directory: Path, *options: str, targets: tuple[str, ...] = ()) -> str:
    """Configure and build into `directory` with CMake; returns what both said. A failure fails the test."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    said = run("cmake", "-S", str(ROOT), "-B", str(directory), *options)
    wanted = ["--target", *targets] if targets else []
    return said + run("cmake", "--build", str(directory), "--parallel", "2", *wanted)


def run(*command: str, code: int = 0, **environment: str) -> str:
    """Run a command; returns its output and errors. Another exit code than `code` fails the test."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert done.returncode == code, f"{' '.join(command)}:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout + done.stderr


def nvcc() -> str:
    """CUDA's compiler, where CMakeLists.txt looks for it. Skips the test where there is none."""
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        pytest.skip("needs nvcc")
    return found
