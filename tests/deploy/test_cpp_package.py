"""libtalent as others find it: installed, found by find_package(talent), its examples in C++ and C built against it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from deploy import Segmenter
from talent import __version__
from tests.deploy.cpp_programs import build_programs
from tests.deploy.embedding_page import blocks, programs
from tests.native_build import ROOT, run

SOURCES = ROOT / "deploy" / "cpp"
CPP, C = "talent_segment", "talent_segment_c"


@pytest.fixture(scope="module", params=["static", "shared"])
def installed(request, tmp_path_factory) -> Path:
    """Where libtalent lies after its installation, which is not where it was installed to."""
    folder = tmp_path_factory.mktemp(request.param)
    build = build_programs(tmp_path_factory)
    if request.param == "shared":
        build = folder / "build"
        run("cmake", "-S", str(SOURCES), "-B", str(build), "-DCMAKE_CXX_FLAGS_RELEASE=-O0", "-DBUILD_TESTING=OFF",
            "-DBUILD_SHARED_LIBS=ON")
        run("cmake", "--build", str(build), "--parallel", "2")
    run("cmake", "--install", str(build), "--prefix", str(folder / "place"))
    for path in (folder / "place" / "lib" / "cmake").rglob("*.cmake"):
        text = path.read_text()
        assert not any(str(place) in text for place in (build, folder, ROOT)), f"{path.name} names a place of its own"
    (folder / "place").rename(folder / "another place")
    return folder / "another place"


@pytest.fixture(scope="module")
def example(installed) -> Path:
    """Where the two programs of deploy/cpp/example are."""
    folder = installed.parent / "example"
    run("cmake", "-S", str(SOURCES / "example"), "-B", str(folder), f"-DCMAKE_PREFIX_PATH={installed}",
        "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror", "-DCMAKE_C_FLAGS=-Wall -Wextra -Werror -pedantic")
    run("cmake", "--build", str(folder), "--parallel", "2")
    return folder


def test_what_is_installed(installed):
    names = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if not path.is_dir()}
    headers = {f"include/talent/{path.name}" for path in (SOURCES / "include" / "talent").iterdir()}
    package = {f"lib/cmake/talent/{name}" for name in
               ("talentConfig.cmake", "talentConfigVersion.cmake", "talentTargets.cmake", "talentTargets-release.cmake",
                "FindOnnxRuntime.cmake")}
    assert headers | package <= names
    shared = f"lib/libtalent.so.{__version__}"
    libraries = {name for name in names if "/cmake/" not in name and name.startswith("lib/")}
    assert libraries in ({"lib/libtalent.a"}, {"lib/libtalent.so", f"lib/libtalent.so.{__version__[:3]}", shared})
    if shared in names and shutil.which("nm"):
        shown = run("nm", "-DC", "--defined-only", str(installed / shared))
        functions = set(re.findall(r" T (talent_\w+)", shown))
        header = (SOURCES / "include" / "talent" / "talent_c.h").read_text()
        declared = re.findall(r"^TALENT_API .*?(talent_\w+)\(", header, re.MULTILINE)
        assert functions == set(declared) and "talent::Segmenter::encode" in shown
        assert "onnxruntime" not in shown and "HostBackend" not in shown and "nlohmann" not in shown


@pytest.mark.parametrize(("asked", "found"), [(__version__, True), (f"{__version__}99", False), ("9.0", False)])
def test_the_version_is_checked(installed, tmp_path, asked, found):
    (tmp_path / "CMakeLists.txt").write_text(f"cmake_minimum_required(VERSION 3.22)\nproject(asks LANGUAGES CXX)\n"
                                             f"find_package(talent {asked})\nmessage(STATUS found=${{talent_FOUND}})\n")
    said = run("cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build"), f"-DCMAKE_PREFIX_PATH={installed}")
    assert f"found={int(found)}" in said


def test_the_example_helps_and_refuses(example, tmp_path):
    help_text = run(str(example / CPP), "--help")
    assert help_text.startswith("usage: talent_segment ") and "example: " in help_text
    picture = tmp_path / "photo.ppm"
    picture.write_bytes(b"P6\n# a comment\n2 1\n255\n" + bytes(6))
    good = ("no bundle", str(picture), "r", "mask.pgm")
    for words, message in (
            ((), "expected BUNDLE PICTURE SENTENCE MASK, received 0 of them"),
            ((*good, "more"), "received 5 of them"), (("--times", "0", *good), "expected --times from 1 to 1000000"),
            ((*good, "--backend"), "expected a value behind --backend, received none"),
            (("no bundle", "no.ppm", *good[2:]), "cannot read the picture no.ppm; expected a PPM or PGM file"),
            (("no bundle", str(SOURCES / "CMakeLists.txt"), *good[2:]), "not a picture: "),
            (good, "no such bundle: no bundle; expected a directory that talent-export wrote"),
            (("--backend", "tensort", *good), "unknown backend 'tensort'; did you mean 'tensorrt'?")):
        said = run(str(example / CPP), *words, code=2)
        assert said.startswith("talent_segment: ") and message in said and said.count("\n") == 1
    picture.write_bytes(b"P5 2 3 255\n" + bytes(5))
    assert "was cut short: expected 6 bytes of pixels, received 5" in run(str(example / CPP), *good, code=2)
    said = run(str(example / C), *good, code=2)
    assert said == "talent_segment_c: expected a PPM file (P6, 8 bits) as PICTURE\n"
    picture.write_bytes(b"P6 2 1 255\n" + bytes(6))
    assert "no such bundle: no bundle" in run(str(example / C), *good, code=2)


def test_the_example_segments(example, toy_bundle, picture, tmp_path):
    photo, mask = tmp_path / "photo.ppm", tmp_path / "mask.pgm"
    photo.write_bytes(b"P6\n# from a camera\n150 90\n255\n" + picture.tobytes())
    arguments = (str(toy_bundle.directory), str(photo), "r", str(mask))
    done = subprocess.run([example / CPP, *arguments, "--times", "3"], capture_output=True, text=True, check=False)
    if "libtalent was built without onnxruntime" in done.stderr and done.returncode == 2:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        expected = segmenter("r", picture)
    content = mask.read_bytes()
    assert content.startswith(b"P5\n150 90\n255\n") and len(content) == len(b"P5\n150 90\n255\n") + 150 * 90
    found = np.frombuffer(content[-150 * 90:], np.uint8).reshape(90, 150) > 0
    assert np.count_nonzero(found != expected.mask) <= 0.001 * found.size
    answer, = re.findall(r"^box \d+ \d+ \d+ \d+, score \d\.\d{3}$", done.stdout, re.MULTILINE)
    *box, score = map(float, re.findall(r"[\d.]+", answer))
    assert np.allclose(box, expected.box, atol=1) and score == pytest.approx(expected.score, abs=1.5e-3)
    assert "(median of 3)\n" in done.stdout
    assert done.stdout.endswith(f"wrote {mask}: {np.count_nonzero(found)} pixels inside\n")
    mask.unlink()
    photo.write_bytes(b"P6 150 90 255\n" + picture.tobytes())
    assert run(str(example / C), *arguments) == f"{answer}: {mask}\n"
    assert mask.read_bytes() == content


def test_the_program_of_the_manual(installed, toy_bundle, picture, tmp_path):
    (tmp_path / "robot.cpp").write_text(programs("cpp", "//")["robot.cpp"], encoding="utf-8")
    (tmp_path / "CMakeLists.txt").write_text(*blocks("cmake"), encoding="utf-8")
    build = tmp_path / "build"
    run("cmake", "-S", str(tmp_path), "-B", str(build), f"-DCMAKE_PREFIX_PATH={installed}",
        "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror")
    run("cmake", "--build", str(build))
    assert run(str(build / "robot"), code=2).startswith("usage: robot BUNDLE")
    assert "no such bundle" in run(str(build / "robot"), "nowhere", "150", "90", "g", code=2)
    done = subprocess.run([build / "robot", toy_bundle.directory, "150", "90", "g"], input=2 * picture.tobytes(),
                          capture_output=True, check=False)
    if b"libtalent was built without onnxruntime" in done.stderr and done.returncode == 2:
        pytest.skip(done.stderr.decode().strip())
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.decode().splitlines()
    *box, score = map(float, re.findall(r"[\d.]+", first))
    np.testing.assert_allclose(box, (60, 30, 90, 80), atol=5)
    assert score > 0.8 and first == second
