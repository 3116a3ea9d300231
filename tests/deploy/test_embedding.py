"""The programs of docs/embedding.md in Python, taken out of it and run; test_cpp_package.py has the one in C++."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.deploy.embedding_page import programs
from tests.native_build import ROOT

SYSTEM_PACKAGES = Path("/usr/lib/python3/dist-packages")  # where Debian and JetPack put GStreamer's bindings


@pytest.fixture
def run(tmp_path, toy_bundle):
    """run(name, arguments of it behind the bundle, environment): what a program in Python prints, line by line."""

    def run(name: str, *arguments: str, code: int = 0, **environment: str) -> list[str]:
        program = tmp_path / name
        program.write_text(programs("python", "#")[name], encoding="utf-8")
        done = subprocess.run([sys.executable, program, toy_bundle.directory, *arguments], capture_output=True,
                              text=True, check=False, timeout=120,
                              env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
        assert done.returncode == code, done.stderr
        return (done.stdout if code == 0 else done.stderr).splitlines()

    return run


def test_python(run, tmp_path, picture):
    video = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (150, 90))
    for _ in range(4):
        video.write(np.ascontiguousarray(picture[..., ::-1]))
    video.release()
    *frames, last = run("camera.py", str(tmp_path / "clip.avi"), "g")
    assert len(frames) == 4 and len(set(frames)) == 1
    box = [int(number) for number in re.findall(r"\d+", frames[0])[:4]]
    np.testing.assert_allclose(box, (60, 30, 90, 80), atol=5)  # the green rectangle: the colours are not swapped
    assert last.startswith("onnxruntime SegmenterStats(frames=4, expressions=4, prompt_hits=0, prompt_misses=1")


@pytest.fixture(scope="module")
def gstreamer(tmp_path_factory) -> dict[str, str]:
    """The environment in which a program finds GStreamer's bindings."""
    directory = tmp_path_factory.mktemp("bindings")
    (directory / "gi").symlink_to(SYSTEM_PACKAGES / "gi")  # that package only: the others are the environment's own
    path = os.pathsep.join(map(str, (directory, ROOT)))
    probe = "import gi; gi.require_version('GstApp', '1.0'); from gi.repository import GstApp"
    done = subprocess.run([sys.executable, "-c", probe], env={**os.environ, "PYTHONPATH": path}, capture_output=True,
                          text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs GStreamer's Python bindings: {done.stderr.strip().splitlines()[-1]}")
    return {"PYTHONPATH": path}


def test_gstreamer(run, gstreamer):
    red = 0xFFFF0000  # of 81 pixels a row: padded to 244 bytes
    source = f"videotestsrc num-buffers=3 pattern=solid-color foreground-color={red} ! video/x-raw,width=81,height=60"
    frames = run("appsink.py", "r", source, **gstreamer)
    assert 1 <= len(frames) <= 3  # the newest counts
    assert all(frame.startswith("(0, 0, 81, 60)") for frame in frames)  # all of it is red
    assert all(frame.startswith("None 0.000") for frame in run("appsink.py", "b", source, **gstreamer))


def test_gstreamer_says_what_failed(run, gstreamer):
    *_, last = run("appsink.py", "r", "filesrc location=no-such-file ! decodebin", code=1, **gstreamer)
    assert last.startswith("GStreamer: ") and ("no-such-file" in last or "Resource not found" in last)


def test_ros_without_ros(run, tmp_path, picture):
    recordings = pytest.importorskip("tests.deploy.ros_recordings", reason="needs rosbags")
    bag = recordings.record(tmp_path / "in.mcap", [
        ("/camera", index * recordings.TENTH, recordings.image(picture, nanoseconds=index * recordings.TENTH))
        for index in range(3)])
    *frames, last = run("recording.py", str(bag), "b")
    assert [frame.split()[0] for frame in frames] == ["0", "100000000", "200000000"]
    box = [int(number) for number in re.findall(r"\d+", frames[0])[1:]]
    np.testing.assert_allclose(box, (100, 10, 145, 40), atol=5)
    assert "'answered': '3'" in last
