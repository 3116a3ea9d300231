"""Engines: built for real by TensorRT-RTX, which needs no GPU for it; running one does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper

from calibration.quantize import to_int8
from deploy import engine
from deploy.engine import PORTABLE, Runtime, build_engine, installed_runtimes
from deploy.fuse_rca import fuse_rca
from deploy.precision import simplify, to_fp16
from talent.errors import UserError
from tests.deploy import toy


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
    for name, model in (("fp16", to_fp16(plain)), ("int8", to_int8(plain, calibration=calibration)), ("fp32", plain)):
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
    assert b"layer_norm_QuantizeLinear_Output" in plans["int8"]
    assert b"QuantizeLinear_Output" not in plans["fp16"]


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


def test_no_runtime_says_how_to_get_one(monkeypatch, tmp_path: Path) -> None:
    def import_module(name: str):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(engine.importlib, "import_module", import_module)
    assert installed_runtimes() == []
    (tmp_path / "x.onnx").touch()
    with pytest.raises(UserError, match="found neither TensorRT.*talent-edge.rtx.*JetPack"):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.plan", profiles={})


def test_full_tensorrt_without_a_gpu_says_so(monkeypatch, tmp_path: Path) -> None:
    trt = SimpleNamespace(__version__="10.13")
    monkeypatch.setattr(engine.importlib, "import_module", lambda name: trt)
    monkeypatch.setattr(engine, "gpu_architecture", lambda: None)
    (tmp_path / "x.onnx").touch()
    with pytest.raises(UserError, match="driver shows none; run: nvidia-smi"):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.plan", profiles={}, runtime="tensorrt")
    with pytest.raises(UserError, match="expected no archs"):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.plan", profiles={}, runtime="tensorrt", archs=["sm86"])


def test_a_broken_runtime_is_not_taken_for_a_missing_one(monkeypatch) -> None:
    def import_module(name: str):
        raise ModuleNotFoundError("No module named 'tensorrt_libs'", name="tensorrt_libs")

    monkeypatch.setattr(engine.importlib, "import_module", import_module)
    with pytest.raises(ModuleNotFoundError, match="tensorrt_libs"):
        installed_runtimes()


@pytest.mark.parametrize(("flags", "expected"), [
    ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, 0b10),  # TensorRT 10
    ({"STRONGLY_TYPED": 1}, 0b10),
    ({}, 0),
])
def test_networks_are_strongly_typed_in_every_version(flags: dict, expected: int) -> None:
    trt = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(**flags))
    assert engine._strongly_typed(trt) == expected
