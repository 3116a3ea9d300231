"""FindTensorRTHeaders.cmake: which headers are taken, from where, and what is told where none will do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.native_build import ROOT, run

PROJECT = """
cmake_minimum_required(VERSION 3.22)
project(headers LANGUAGES NONE)
list(APPEND CMAKE_MODULE_PATH "{modules}")
find_package(TensorRTHeaders MODULE)
message(STATUS "found=${{TensorRTHeaders_FOUND}} version=${{TensorRTHeaders_VERSION}}")
message(STATUS "problem=${{TensorRTHeaders_PROBLEM}}")
if(TARGET TensorRT::headers)
  get_target_property(directories TensorRT::headers INTERFACE_SYSTEM_INCLUDE_DIRECTORIES)
  message(STATUS "system=${{directories}}.")
endif()
"""
MACHINE = "aarch64-linux-gnu"
MISSING = "expected TensorRT's headers (include/NvInferRuntime.h)"
PREFIXES = {"plain": "", "ENTERPRISE": "TRT_{}_ENTERPRISE", "RTX": "TRT_{}_RTX"}


@pytest.fixture
def configure(tmp_path, monkeypatch) -> Callable[..., str]:
    """configure(*options, code=): what CMake says, on one line. TENSORRT_ROOT is not set."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "CMakeLists.txt").write_text(PROJECT.format(modules=ROOT / "deploy" / "csrc" / "cmake"))

    def say(*options: str, code: int = 0) -> str:
        said = run("cmake", "-S", str(tmp_path / "project"), "-B", str(tmp_path / "build"), *options, code=code)
        return " ".join(said.split())  # CMake wraps its errors

    return say


def put_headers(directory: Path, version: str, shape: str = "plain") -> Path:
    """Headers of a version in a directory. shape: of PREFIXES, how NvInferVersion.h tells it."""
    lines = []
    for part, value in zip(("MAJOR", "MINOR", "PATCH", "BUILD"), version.split("."), strict=True):
        if macro := PREFIXES[shape].format(part):
            lines += [f"#define {macro} {value}", f"#define NV_TENSORRT_{part} {macro} //!< TensorRT {part} version."]
        else:
            lines += [f"#define NV_TENSORRT_{part} {value} //!< TensorRT {part} version."]
    directory.mkdir(parents=True)
    (directory / "NvInferVersion.h").write_text("\n".join(lines) + "\n")
    (directory / "NvInferRuntime.h").write_text("#pragma once\n")
    return directory


def system(root: Path) -> list[str]:
    """Options that make `root` the only file system."""
    return [f"-DCMAKE_FIND_ROOT_PATH={root}", "-DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY",
            f"-DCMAKE_LIBRARY_ARCHITECTURE={MACHINE}"]


@pytest.mark.parametrize(("version", "shape", "told"), [
    ("10.3.0.26", "plain", "10.3.0"), ("10.16.1.11", "ENTERPRISE", "10.16.1"), ("11.1.0.106", "ENTERPRISE", "11.1.0"),
    ("1.7.1.116", "RTX", "1.7.1")])
def test_the_version_is_read_in_every_shape(configure, tmp_path, version, shape, told):
    headers = put_headers(tmp_path / "trt" / "include", version, shape)
    said = configure(f"-DTENSORRT_ROOT={tmp_path / 'trt'}")
    assert f"found=TRUE version={told} " in said and f"system={headers}." in said


@pytest.mark.parametrize("place", ["include", ".", f"targets/{MACHINE}/include", f"include/{MACHINE}"])
def test_a_root_is_looked_into_as_tar_files_and_packages_are_laid_out(configure, tmp_path, place):
    headers = put_headers(tmp_path / "trt" / place, "10.13.3.9")
    said = configure(f"-DTENSORRT_ROOT={tmp_path / 'trt'}", f"-DCMAKE_LIBRARY_ARCHITECTURE={MACHINE}")
    assert f"system={headers}." in said


def test_the_environment_names_a_root_too_and_the_option_goes_before_it(configure, tmp_path, monkeypatch):
    for version in ("10.3.0.26", "11.1.0.106"):
        put_headers(tmp_path / version / "include", version)
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path / "10.3.0.26"))
    assert "version=10.3.0 " in configure()
    assert "version=11.1.0 " in configure(f"-DTENSORRT_ROOT={tmp_path / '11.1.0.106'}")
    monkeypatch.delenv("TENSORRT_ROOT")
    assert "version=10.3.0 " in configure(f"-DTENSORRT_ROOT={tmp_path / '10.3.0.26'}")  # in the same build directory


@pytest.mark.parametrize("place", [f"usr/include/{MACHINE}", "usr/include", "usr/local/tensorrt/include"])
def test_the_places_of_the_system_are_known(configure, tmp_path, place):
    headers = put_headers(tmp_path / "root" / place, "10.3.0.26")
    assert f"system={headers}." in configure(*system(tmp_path / "root"))


def test_where_there_are_none_it_says_how_to_get_them(configure, tmp_path):
    (tmp_path / "root").mkdir()
    said = configure(*system(tmp_path / "root"))
    assert "found=FALSE version= " in said and "system=" not in said
    assert f"problem={MISSING} in the system's directories, found none" in said
    assert "apt install libnvinfer-headers-dev" in said and "-DTENSORRT_ROOT=/path/to/TensorRT" in said


@pytest.mark.parametrize("version", ["10.2.0.19", "8.5.2.2"])
def test_old_headers_are_left_alone_and_are_an_error_once_asked_for(configure, tmp_path, version):
    headers = put_headers(tmp_path / "root" / "usr" / "include", version)
    expected = f"expected TensorRT 10.3 or newer, found the headers of {version.rpartition('.')[0]} in {headers}"
    said = configure(*system(tmp_path / "root"))
    assert "found=FALSE" in said and expected in said
    assert "CMake Error" in (said := configure(f"-DTENSORRT_ROOT={tmp_path / 'root' / 'usr'}", code=1))
    assert expected in said


def test_a_root_without_headers_is_an_error_though_the_system_has_some(configure, tmp_path):
    put_headers(tmp_path / "root" / "usr" / "include", "10.3.0.26")
    (tmp_path / "empty").mkdir()
    said = configure(*system(tmp_path / "root"), f"-DTENSORRT_ROOT={tmp_path / 'empty'}", code=1)
    assert "CMake Error" in said
    assert f"{MISSING} in TENSORRT_ROOT={tmp_path / 'empty'}, found none" in said


@pytest.mark.parametrize("content", [None, "", "#define NV_TENSORRT_MAJOR 10", "#define NV_TENSORRT_MAJOR SOMETHING"])
def test_headers_that_do_not_tell_their_version_are_an_error(configure, tmp_path, content):
    header = put_headers(tmp_path / "trt" / "include", "10.3.0.26") / "NvInferVersion.h"
    header.unlink()
    if content is not None:
        header.write_text(content)
    said = configure(f"-DTENSORRT_ROOT={tmp_path / 'trt'}", code=1)
    assert f"expected NV_TENSORRT_MAJOR, MINOR and PATCH in {header}, found none" in said
