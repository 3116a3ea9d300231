"""bundle.json: what is written is read, and what is wrong is refused with the reason."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from deploy.bundle import PORTABLE, Bundle, EngineRecord, engine_directory
from talent import provenance
from talent.errors import UserError


def record(graph: str = "text", *, runtime: str = "tensorrt", version: str = "10.3.0",
           arch: str = "sm87") -> EngineRecord:
    path = f"{engine_directory(runtime, version, arch)}/{graph}.plan"
    return EngineRecord(graph=graph, precision="fp16", runtime=runtime, version=version, arch=arch, path=path, bytes=4,
                        seconds=1.5)


def put_plan(bundle: Bundle, engine: EngineRecord) -> Path:
    plan = bundle.directory / engine.path
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_bytes(b"plan")
    return plan


def edit(bundle: Bundle, **changes) -> Path:
    path = bundle.directory / "bundle.json"
    manifest = json.loads(path.read_text())
    for name, value in changes.items():
        if value is ...:
            del manifest[name]
        else:
            manifest[name] = value
    path.write_text(json.dumps(manifest))
    return bundle.directory


def test_written_is_read(toy_bundle):
    assert Bundle.load(toy_bundle.directory, verify=True) == toy_bundle
    manifest = json.loads((toy_bundle.directory / "bundle.json").read_text())
    assert list(manifest) == ["schema", "preset", "precision", "image_size", "context_length", "threshold",
                              "preprocessing", "source", "files", "engines", "parity", "versions", "commit", "created"]
    assert manifest["schema"] == 1 and manifest["threshold"] == 0.35 and manifest["parity"] == {"iou": 1.0}
    assert manifest["preprocessing"]["interpolation"] == "cubic" and manifest["preprocessing"]["letterbox"] is True
    assert manifest["files"] == {name: provenance.sha256(toy_bundle.directory / name)
                                 for name in ("text.onnx", "vision.onnx", "tokenizer.json")}
    assert manifest["commit"] == provenance.commit() and "python" in manifest["versions"]
    assert datetime.datetime.fromisoformat(manifest["created"]).tzinfo is not None


def test_external_data_belongs_to_the_bundle(toy_bundle):
    data = toy_bundle.directory / "vision.onnx.data"
    data.write_bytes(b"weights")
    bundle = Bundle.write_manifest(toy_bundle.directory, preset="toy", precision="fp16", image_size=56,
                                   context_length=17, source={})
    assert bundle.files["vision.onnx.data"] == provenance.sha256(data)
    data.unlink()
    with pytest.raises(UserError, match="vision.onnx.data is missing"):
        Bundle.load(toy_bundle.directory)


def test_write_needs_the_files(tmp_path):
    with pytest.raises(UserError, match="expected text.onnx"):
        Bundle.write_manifest(tmp_path, preset="toy", precision="fp32", image_size=56, context_length=17, source={})
    assert list(tmp_path.iterdir()) == []


def test_engines(toy_bundle):
    engines = [record("text"), record("vision"),
               record("text", runtime="tensorrt_rtx", version="1.7.1.116", arch=PORTABLE)]
    for engine in engines:
        put_plan(toy_bundle, engine)
    bundle = toy_bundle.with_engines(engines)
    assert Bundle.load(bundle.directory).engines == tuple(engines)
    exact, _, portable = (bundle.directory / engine.path for engine in engines)
    assert bundle.engine("text", runtime="tensorrt", version="10.3.0", arch="sm87") == exact
    assert bundle.engine("text", runtime="tensorrt", version="10.3.0", arch="sm120") is None
    assert bundle.engine("text", runtime="tensorrt", version="10.4.0", arch="sm87") is None
    assert bundle.engine("vision", runtime="tensorrt_rtx", version="1.7.1.116", arch="sm89") is None
    assert bundle.engine("text", runtime="tensorrt_rtx", version="1.7.1.116", arch="sm89") == portable
    exact.unlink()
    assert bundle.engine("text", runtime="tensorrt", version="10.3.0", arch="sm87") is None


def test_exact_engine_goes_before_a_portable_one(toy_bundle):
    engines = [record(runtime="tensorrt_rtx", version="1.7", arch=arch) for arch in (PORTABLE, "sm89")]
    for engine in engines:
        put_plan(toy_bundle, engine)
    found = toy_bundle.with_engines(engines).engine("text", runtime="tensorrt_rtx", version="1.7", arch="sm89")
    assert found == toy_bundle.directory / engines[1].path


@pytest.mark.parametrize("built_for, gpu, fits", [
    ("sm87", "sm87", True), ("sm87", "sm8", False), ("sm86+sm89", "sm89", True), ("sm86+sm89", "sm87", False),
    (PORTABLE, "sm80", True), (PORTABLE, "sm120", True), (PORTABLE, "sm75", False)])
def test_which_gpu_an_engine_fits(built_for, gpu, fits):
    assert record(arch=built_for).fits(runtime="tensorrt", version="10.3.0", arch=gpu) == fits


def test_rebuilt_engine_takes_the_place_of_the_old_one(toy_bundle):
    bundle = toy_bundle.with_engines([record("text"), record("vision")])
    rebuilt = EngineRecord(**{**record("text").__dict__, "bytes": 99})
    assert bundle.with_engines([rebuilt]).engines == (rebuilt, record("vision"))


def test_no_bundle(tmp_path):
    with pytest.raises(UserError, match="no such bundle"):
        Bundle.load(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no bundle\.json"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("content, message", [("{", "malformed JSON"), ("[]", "expected a JSON object, received list"),
                                              ("\ufffd", "malformed JSON")])
def test_malformed(tmp_path, content, message):
    (tmp_path / "bundle.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("changes, message", [
    ({"schema": 2, "novelty": 1}, "newer version"), ({"precision": ...}, "missing field 'precision'"),
    ({"engines": ...}, "missing field 'engines'"), ({"image_size": "448"}, "'image_size' to be int, received '448'"),
    ({"image_size": True}, "'image_size' to be int"),
    ({"tresholds": 1}, "unknown field 'tresholds'; did you mean 'threshold'"),
    ({"precision": "fp8"}, "one of fp32, fp16, int8, received 'fp8'"), ({"threshold": 35}, "threshold < 1"),
    ({"preprocessing": {"mean": [0.485, 0.456, 0.406]}}, "expected preprocessing"),
    ({"engines": ["x"]}, "engine to be a JSON object"), ({"engines": [{"graph": "text"}]}, "missing field 'precision'"),
    ({"engines": [{**record().__dict__, "path": "../../x.plan"}]}, "inside the bundle"),
    ({"files": {}}, "digest of text.onnx"),
    ({"files": dict.fromkeys(["text.onnx", "vision.onnx", "tokenizer.json", "/etc/passwd"], "0")}, "inside the bundle"),
])
def test_wrong_fields(toy_bundle, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        Bundle.load(edit(toy_bundle, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["text.onnx", "vision.onnx", "tokenizer.json"])
def test_missing_file(toy_bundle, name):
    (toy_bundle.directory / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        Bundle.load(toy_bundle.directory)


def test_damage_is_found_when_asked_for(toy_bundle):
    path = toy_bundle.directory / "vision.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert Bundle.load(toy_bundle.directory).preset == "toy"
    with pytest.raises(UserError, match=r"damaged: expected vision\.onnx"):
        Bundle.load(toy_bundle.directory, verify=True)
