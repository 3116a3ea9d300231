"""CMakeLists.txt: what it builds with and without CUDA and TensorRT's headers, and the host tests that ctest runs."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest

from tests.native_build import ROOT, build, nvcc, run

ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120)


def _symbols(library) -> list[str]:
    """What a shared library defines for others."""
    return [line.split()[-1] for line in run("nm", "-D", "--defined-only", str(library)).splitlines()]


@pytest.mark.slow
def test_everything_builds_for_every_gpu_and_ctest_passes(tmp_path):
    """One build for all architectures that this nvcc knows, as a user makes it."""
    known = subprocess.run([nvcc(), "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    said = build(tmp_path, "-DTALENT_WARNINGS_ARE_ERRORS=ON")
    for architecture in ARCHITECTURES:
        if f"sm_{architecture}" in known:
            assert f"{architecture}-real" in said
        else:
            assert "left out" in said and str(architecture) in said.split("left out: ")[1].splitlines()[0]
    library = tmp_path / "libtalent_kernels.so"
    assert set(_symbols(library)) >= {"talent_kernels_interface", "talent_rca_cost_aggregation"}
    assert not [name for name in _symbols(library) if "rca" in name and not name.startswith("talent_")]
    kernels = ctypes.CDLL(str(library))  # loads where no driver is
    kernels.talent_rca_cost_aggregation.restype = ctypes.c_char_p
    assert kernels.talent_kernels_interface() == 1
    run("ctest", "--test-dir", str(tmp_path), "--output-on-failure")


def test_without_a_cuda_compiler_the_host_part_is_left(tmp_path):
    said = run("cmake", "-S", str(ROOT), "-B", str(tmp_path), "-DTALENT_CUDA=OFF") if shutil.which("cmake") else ""
    if not said:
        pytest.skip("needs cmake")
    assert "No CUDA kernels and no TensorRT plugin: TALENT_CUDA is off" in said
    listed = run("cmake", "--build", str(tmp_path), "--target", "help")
    assert "talent_reference" in listed and "talent_kernels" not in listed and "talent_plugin" not in listed


def test_without_headers_the_plugin_is_left_out_and_it_says_how_to_get_it(tmp_path):
    nvcc()
    said = run("cmake", "-S", str(ROOT), "-B", str(tmp_path), "-DTENSORRT_ROOT=")
    if "TensorRT plugin for" in said:
        pytest.skip("TensorRT's headers are installed in the system")
    assert "No TensorRT plugin" in said and "-DTENSORRT_ROOT=" in said and "libnvinfer-headers-dev" in said
    assert "talent_kernels" in run("cmake", "--build", str(tmp_path), "--target", "help")


def test_headers_that_were_asked_for_and_are_not_there_are_an_error(tmp_path):
    nvcc()
    said = run("cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DTENSORRT_ROOT={tmp_path}", code=1)
    assert "expected TensorRT's headers" in said and str(tmp_path) in said


def test_an_architecture_that_nvcc_does_not_know_is_named(tmp_path):
    nvcc()
    said = run("cmake", "-S", str(ROOT), "-B", str(tmp_path), "-DTALENT_ARCHITECTURES=86;999")
    assert "does not know these architectures, which are left out: 999" in said
    assert "CUDA kernels for: 86-real;86-virtual" in said
