"""libtalent's TensorRT backend: its tests over stand-ins for CUDA and TensorRT, and what the library needs of both.

Needs TENSORRT_ROOT (TensorRT's headers), nvcc and cmake. TENSORRT_ROOTS names more of them, with ":" between, whose
headers the backend is compiled with, too. No test here runs on a GPU.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.native_build import ROOT, build, nvcc, run

pytestmark = pytest.mark.slow  # compilers take minutes

SOURCES = ROOT / "deploy" / "cpp" / "src"
STAND_INS = ROOT / "tests" / "cpp" / "tensorrt"
TESTS = ("test_tensorrt_faults", "test_tensorrt_formats", "test_tensorrt_frames", "test_tensorrt_open")
OF_TENSORRT_OR_CUDA = re.compile(r"nvinfer|nvonnxparser|tensorrt_rtx|libcudart|libcuda\.")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> SimpleNamespace:
    """directory: where it was built, with its C++ tests and as a shared library. said: by CMake and the compilers."""
    if not os.environ.get("TENSORRT_ROOT"):
        pytest.skip("needs TensorRT's headers: set TENSORRT_ROOT")
    directory = tmp_path_factory.mktemp("build")
    said = build(directory, f"-DCMAKE_CUDA_COMPILER={nvcc()}", "-DCMAKE_CUDA_ARCHITECTURES=86",
                 "-DBUILD_SHARED_LIBS=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", targets=("talent", *TESTS))
    if missing := re.search("No libtalent.*", said):
        pytest.skip(missing[0])
    assert "warning" not in said.lower(), said
    return SimpleNamespace(directory=directory, said=said)


def test_its_own_tests_pass(built):
    said = run("ctest", "--test-dir", str(built.directory), "-R", "^test_tensorrt_", "-V")
    assert f"100% tests passed, 0 tests failed out of {len(TESTS) + 1}" in said  # one runs twice
    assert said.count("all checks hold") >= len(TESTS)


def test_the_library_needs_no_library_of_tensorrt_or_cuda(built):
    assert "libtalent with TensorRT: " in built.said
    library = str(built.directory / "libtalent.so")
    needed = [line for line in run("readelf", "-d", library).splitlines() if "NEEDED" in line]
    assert needed and not [line for line in needed if OF_TENSORRT_OR_CUDA.search(line)]
    undefined = {line.split()[-1] for line in run("nm", "-D", "--undefined-only", library).splitlines()}
    assert not {name for name in undefined if name.startswith(("cu", "getInfer", "createInfer"))}
    assert "dlopen" in {name.partition("@")[0] for name in undefined}


def test_the_library_shows_nothing_of_cuda(built):
    """Another CUDA runtime in the process, torch's say, keeps its own functions."""
    library = str(built.directory / "libtalent.so")
    shown = {line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()}
    assert any("Segmenter" in name for name in shown)
    assert not {name for name in shown if name.startswith(("cu", "__cuda")) or "nvinfer1" in name}


def headers() -> list[Path]:
    roots = [*os.environ.get("TENSORRT_ROOTS", "").split(":"), os.environ.get("TENSORRT_ROOT", "")]
    return [Path(root) for root in dict.fromkeys(roots) if root]


def cuda_include(directory: Path) -> str:
    """Where nvcc finds CUDA's headers."""
    (directory / "empty.cu").touch()
    said = run(nvcc(), "--dryrun", "-c", str(directory / "empty.cu"), "-o", str(directory / "empty.o"))
    return re.search('INCLUDES="-I(.+?)"', said)[1]


@pytest.mark.parametrize("root", headers() or [None], ids=str)
def test_it_compiles_with_the_headers(root, tmp_path):
    if root is None:
        pytest.skip("needs TensorRT's headers: set TENSORRT_ROOT, or several in TENSORRT_ROOTS")
    places = [SOURCES.parent / "include", SOURCES, ROOT / "deploy" / "csrc", STAND_INS]
    theirs = [cuda_include(tmp_path), str(root), str(root / "include")]
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *(f"-I{place}" for place in places),
             *(f"-isystem{place}" for place in theirs)]
    sources = [*SOURCES.glob("cuda_*.cpp"), *SOURCES.glob("tensorrt_*.cpp")]
    assert len(sources) > 5
    run("c++", *flags, *map(str, sources))
    run("c++", *flags, "-Wno-deprecated-declarations", str(STAND_INS / "stand_in_tensorrt.cpp"))
