"""Engines: built for real by TensorRT-RTX, which needs no GPU for it; running one does."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from deploy import builders, engine
from deploy.build_progress import Phases
from deploy.builders import Runtime, installed_runtimes
from deploy.engine import PORTABLE, build_engine, engine_arch
from deploy.fuse_rca import fuse_rca
from deploy.precision import simplify, to_fp16
from deploy.runtime.gpu import gpu_architecture
from talent.errors import UserError
from tests.deploy import toy
from tests.deploy.fake_tensorrt import RTX, SHAPES, fake
from tests.quantized import all_int8


@pytest.fixture(scope="module")
def rtx() -> Runtime:
    for runtime in installed_runtimes():
        if runtime.name == "tensorrt_rtx":
            return runtime
    pytest.skip("tensorrt_rtx is not installed: pip install tensorrt_rtx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32.onnx, fp16.onnx and int8.onnx, fused; the first with its weights in a file of their own."""
    path = tmp_path_factory.mktemp("onnx")
    plain = simplify(toy.export(), feeds=toy.feeds(2))
    calibration = [toy.feeds(2, seed) for seed in range(2)]
    for name, model in (("fp16", to_fp16(plain)), ("int8", all_int8(plain, calibration)), ("fp32", plain)):
        onnx.save(fuse_rca(model, expected=toy.RCA_COUNT), path / f"{name}.onnx", save_as_external_data=name == "fp32",
                  location="fp32.onnx.data", size_threshold=64)
    return path


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8"])
def test_builds_every_precision(rtx: Runtime, folder: Path, tmp_path: Path, name: str, capfd) -> None:
    assert (folder / "fp32.onnx.data").is_file()
    built = build_engine(folder / f"{name}.onnx", tmp_path / "x.plan", runtime="tensorrt_rtx", profiles=toy.profiles())
    assert (built.runtime, built.arch, built.path) == (rtx, PORTABLE, tmp_path / "x.plan")
    assert built.bytes == (tmp_path / "x.plan").stat().st_size > 100_000
    assert built.seconds > 0
    assert [file.name for file in tmp_path.iterdir()] == ["x.plan"]
    assert capfd.readouterr() == ("", "")


def test_int8_engine_has_int8_products_and_fp16_engine_has_none(rtx: Runtime, folder: Path, tmp_path: Path) -> None:
    """The plan names the tensors it computes: the quantizer's output survives as a layer's input only in INT8."""
    plans = {name: build_engine(folder / f"{name}.onnx", tmp_path / f"{name}.plan", profiles=toy.profiles(),
                                runtime="tensorrt_rtx").path.read_bytes() for name in ("fp16", "int8")}
    assert b"layer_norm/quantized" in plans["int8"]
    assert b"/quantized" not in plans["fp16"]


def test_builds_for_named_archs(rtx: Runtime, folder: Path, tmp_path: Path) -> None:
    built = build_engine(folder / "fp16.onnx", tmp_path / "x.plan", runtime="tensorrt_rtx", profiles=toy.profiles(),
                         archs=["sm86", "sm89"], workspace_bytes=1 << 28)
    assert built.arch == "sm86+sm89"


@pytest.mark.parametrize(("change", "reason"), [
    ({"archs": ["sm87"]}, "does not build for sm87, only for sm75.* full TensorRT"),
    ({"profiles": {}}, "missing .*'image', 'kernel', 'sentence', 'words'"),
    ({"profiles": toy.profiles() | {"photo": ((1,), (1,), (1,))}}, "unknown .*'photo'"),
    ({"profiles": toy.profiles() | {"words": ((1, 16, 24), (1, 16, 24), (4, 16, 24))}}, r"profile of words .*17, 24"),
    ({"profiles": toy.profiles() | {"words": ((2, 17, 24), (1, 17, 24), (4, 17, 24))}}, "min <= opt <= max"),
    ({"runtime": "openvino"}, "unknown runtime 'openvino'"),
])
def test_bad_requests_leave_the_old_plan(rtx: Runtime, folder: Path, tmp_path: Path, change: dict, reason: str) -> None:
    plan = tmp_path / "x.plan"
    plan.write_bytes(b"old")
    with pytest.raises(UserError, match=reason):
        build_engine(folder / "fp16.onnx", plan, **{"runtime": "tensorrt_rtx", "profiles": toy.profiles()} | change)
    assert plan.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no ONNX file at .*nowhere.onnx"):
        build_engine(tmp_path / "nowhere.onnx", tmp_path / "x.plan", profiles={})


def test_the_parsers_words_are_shown(rtx: Runtime, tmp_path: Path, capfd) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], name="odd_one", domain="nobody")
    graph = helper.make_graph([node], "bad", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(UserError, match="(?s)cannot read .*bad.onnx:.*NoSuchOperator"):
        build_engine(tmp_path / "bad.onnx", tmp_path / "x.plan", runtime="tensorrt_rtx", profiles={})
    assert capfd.readouterr() == ("", "")


def test_the_memory_it_took_is_told(rtx: Runtime, folder: Path, tmp_path: Path) -> None:
    built = build_engine(folder / "fp16.onnx", tmp_path / "x.plan", runtime="tensorrt_rtx", profiles=toy.profiles())
    if sys.platform.startswith("linux"):
        assert 100e6 < built.peak_memory_bytes < 20e9  # the process alone, with TensorRT's libraries, is that large
    assert (built.peak_gpu_memory_bytes is None) is (gpu_architecture() is None)


def test_ctrl_c_stops_a_real_build_and_leaves_nothing(rtx: Runtime, folder: Path, tmp_path: Path, monkeypatch) -> None:
    started = []

    class Impatient(Phases):
        def start(self, name: str, parent: str | None, steps: int) -> None:
            super().start(name, parent, steps)
            if not started:
                started.append(name)
                os.kill(os.getpid(), signal.SIGINT)
                assert self.cancelled.wait(30)

    monkeypatch.setattr(engine, "Phases", Impatient)
    with pytest.raises(KeyboardInterrupt):
        build_engine(folder / "fp16.onnx", tmp_path / "new" / "x.plan", profiles=toy.profiles(), runtime="tensorrt_rtx")
    assert started and not list(tmp_path.iterdir())


def test_no_runtime_says_how_to_get_one(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builders, "installed_runtimes", list)
    (tmp_path / "x.onnx").touch()
    with pytest.raises(UserError, match="tensorrt is not installed; .*talent-edge.rtx.*JetPack"):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.plan", profiles={})


# Full TensorRT, by modules of its shape: see fake_tensorrt.py

PROFILES = {"x": ((1, 2), (1, 2), (4, 2))}


@pytest.fixture
def shape(monkeypatch, tmp_path):
    """shape(version): a machine (sm87) with that TensorRT alone, and x.onnx."""

    def install(version: str, **options):
        module = fake(version, **options)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(builders, "installed_runtimes", lambda: [Runtime(module.__name__, version)])
        for place in (builders, engine):
            monkeypatch.setattr(place, "gpu_architecture", lambda: "sm87")
        (tmp_path / "x.onnx").write_bytes(b"")
        return module

    return install


@pytest.mark.parametrize("monitored", [True, False])
@pytest.mark.parametrize("version", [*SHAPES, RTX])
def test_every_shape_of_the_api_builds(shape, tmp_path, version, monitored) -> None:
    trt = shape(version, monitored=monitored)
    said = "[MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 6 MiB, GPU 2174 MiB"
    trt.Builder.say = ((trt.ILogger.Severity.INFO, said), (trt.ILogger.Severity.INFO, "GPU 9999 MiB"))
    built = build_engine(tmp_path / "x.onnx", tmp_path / "x.plan", profiles=PROFILES, workspace_bytes=1 << 20)
    assert (built.runtime, built.arch) == (Runtime(trt.__name__, version), PORTABLE if version == RTX else "sm87")
    assert json.loads((tmp_path / "x.plan").read_bytes()) == {
        "pools": {"WORKSPACE": 1 << 20}, "shapes": {"x": [[1, 2], [1, 2], [4, 2]]}}
    assert built.peak_gpu_memory_bytes == 2174 << 20
    (builder,) = trt.Builder.made
    assert builder.network.source == ("file", str(tmp_path / "x.onnx"))
    assert hasattr(builder.config, "progress_monitor") is monitored


@pytest.mark.parametrize("version", SHAPES)
def test_a_timing_cache_is_read_and_written(shape, tmp_path, version) -> None:
    shape(version)
    for known in (b"", b"+measured"):
        assert (tmp_path / "t.cache").exists() is bool(known)
        build_engine(tmp_path / "x.onnx", tmp_path / "x.plan", profiles=PROFILES, timing_cache=tmp_path / "t.cache")
        assert (tmp_path / "t.cache").read_bytes() == known + b"+measured"


def test_rtx_refuses_a_timing_cache_and_never_asks_for_one(shape, tmp_path) -> None:
    shape(RTX)  # its configuration has no such calls
    with pytest.raises(UserError, match="TensorRT-RTX has no timing cache"):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.plan", profiles=PROFILES, timing_cache=tmp_path / "t.cache")


@pytest.mark.parametrize("version", [*SHAPES, RTX])
def test_what_a_builder_says_when_it_fails_is_shown_and_nothing_is_left(shape, tmp_path, version) -> None:
    trt = shape(version)
    trt.Builder.say, trt.Builder.failing = ((trt.ILogger.Severity.ERROR, "OutOfMemory"),), True
    with pytest.raises(UserError, match=f"(?s){version} built no engine from .*smaller batch.*OutOfMemory"):
        build_engine(tmp_path / "x.onnx", tmp_path / "new" / "x.plan", profiles=PROFILES)
    trt.OnnxParser.refuse = True
    with pytest.raises(UserError, match="(?s)cannot read .*NoSuchOperator"):
        build_engine(tmp_path / "x.onnx", tmp_path / "new" / "x.plan", profiles=PROFILES)
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


def test_full_tensorrt_builds_for_the_gpu_that_is_here(shape, tmp_path, monkeypatch) -> None:
    shape("10.3.0")
    build_engine(tmp_path / "x.onnx", tmp_path / "x.plan", profiles=PROFILES, archs=["sm87"])
    with pytest.raises(UserError, match="runs on .sm87., received sm86; .*tensorrt_rtx"):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.plan", profiles=PROFILES, archs=["sm86"])
    monkeypatch.setattr(builders, "gpu_architecture", lambda: None)
    with pytest.raises(UserError, match="driver shows none .nvidia-smi"):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.plan", profiles=PROFILES, runtime="tensorrt")


@pytest.mark.parametrize(("archs", "expected"), [([], PORTABLE), (["sm89", "sm86", "sm89"], "sm86+sm89"),
                                                 (["sm120", "sm75"], "sm75+sm120")])
def test_targets_have_one_name_in_whatever_order_they_are_given(archs, expected) -> None:
    assert engine_arch("tensorrt_rtx", archs) == expected


def test_what_is_no_architecture_is_refused() -> None:
    with pytest.raises(UserError, match="such as sm86 .*received 8.6, ampere"):
        engine_arch("tensorrt_rtx", ["8.6", "sm86", "ampere"])
