"""A bundle: what is written is read, and a file that is missing, cut short or changed is refused with the reason."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import pickletools
import zipfile
from pathlib import Path

import pytest

from deploy.bundle import PORTABLE, Bundle
from deploy.integrity import FileRecord, measure, problem
from deploy.runtime.segmenter import Segmenter
from talent import provenance
from talent.errors import UserError
from tests.deploy.engines import PLAN, put_plan, record, with_engines

FILES = ("text.onnx", "vision.onnx", "tokenizer.json")
DESCRIBED = dict(preset="toy", precision="fp16", image_size=56, context_length=17, source={})


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_written_is_read(toy_bundle):
    assert Bundle.load(toy_bundle.directory, verify=True) == toy_bundle
    manifest = json.loads((toy_bundle.directory / "bundle.json").read_text())
    assert list(manifest) == ["schema", "preset", "precision", "image_size", "context_length", "threshold",
                              "preprocessing", "source", "files", "engines", "parity", "versions", "commit", "created"]
    assert manifest["schema"] == 1 and manifest["threshold"] == 0.35 and manifest["parity"] == {"iou": 1.0}
    assert manifest["preprocessing"]["interpolation"] == "cubic" and manifest["preprocessing"]["letterbox"] is True
    paths = {name: toy_bundle.directory / name for name in FILES}
    assert manifest["files"] == {name: {"bytes": path.stat().st_size, "sha256": provenance.sha256(path)}
                                 for name, path in paths.items()}
    assert toy_bundle.files == {name: provenance.sha256(path) for name, path in paths.items()}
    assert manifest["commit"] == provenance.commit() and "python" in manifest["versions"]
    assert datetime.datetime.fromisoformat(manifest["created"]).tzinfo is not None


def test_external_data_belongs_to_the_bundle(toy_bundle):
    data = toy_bundle.directory / "vision.onnx.data"
    data.write_bytes(b"weights")
    bundle = Bundle.write_manifest(toy_bundle.directory, **DESCRIBED)
    assert bundle.files["vision.onnx.data"] == provenance.sha256(data)
    assert bundle.vision_onnx == bundle.directory / "vision.onnx"
    flip_last_bit(data)
    with pytest.raises(UserError, match=r"vision\.onnx\.data was changed"):
        assert bundle.vision_onnx
    data.unlink()
    with pytest.raises(UserError, match="vision.onnx.data is missing"):
        Bundle.load(toy_bundle.directory)


def test_write_needs_the_files(tmp_path):
    with pytest.raises(UserError, match="expected text.onnx"):
        Bundle.write_manifest(tmp_path, **DESCRIBED)
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_read_is_not_written(toy_bundle):
    before = (toy_bundle.directory / "bundle.json").read_text()
    with pytest.raises(UserError, match="precision to be one of fp32, fp16, int8, received 'fp8'"):
        Bundle.write_manifest(toy_bundle.directory, **{**DESCRIBED, "precision": "fp8"})
    assert (toy_bundle.directory / "bundle.json").read_text() == before


def test_no_bundle(tmp_path):
    with pytest.raises(UserError, match="no such bundle"):
        Bundle.load(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no bundle\.json"):
        Bundle.load(tmp_path)


# Files

@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found_at_load(toy_bundle, name):
    (toy_bundle.directory / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing; copy it again or export"):
        Bundle.load(toy_bundle.directory)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found_at_load(toy_bundle, name):
    cut_short(toy_bundle.directory / name)
    with pytest.raises(UserError, match=rf"{name} was cut short \(expected \d+ bytes, received \d+\)"):
        Bundle.load(toy_bundle.directory)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_never_run(toy_bundle, name):
    flip_last_bit(toy_bundle.directory / name)
    assert Bundle.load(toy_bundle.directory).preset == "toy"  # its size is right
    with pytest.raises(UserError, match=rf"cannot load the bundle .*: {name} was changed \(expected SHA-256") as caught:
        Bundle.load(toy_bundle.directory, verify=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=f"{name} was changed"):
        Segmenter(toy_bundle.directory, "onnxruntime", threads=1)


def test_a_file_that_cannot_be_read_is_a_problem_and_no_crash(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"x")
    expected = measure(tmp_path / "x")

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("deploy.integrity.measure", refuse)
    assert problem(tmp_path / "x", expected, digest=True) == "cannot be read (Permission denied)"
    assert problem(tmp_path, expected, digest=True) == "is missing"


def test_measure_reads_in_pieces(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(content)
    pieces: list[int] = []
    assert measure(tmp_path / "x", pieces.append) == FileRecord(len(content), hashlib.sha256(content).hexdigest())
    assert sum(pieces) == len(content) and len(pieces) == 2


def test_no_file_of_a_bundle_is_a_pickle(toy_bundle):
    for path in with_engines(toy_bundle, record()).directory.rglob("*"):
        if path.is_file():
            assert not zipfile.is_zipfile(path), f"{path.name} is a zip, as torch.save writes"
            assert not is_pickle(path.read_bytes()), f"{path.name} is a pickle"


def is_pickle(content: bytes) -> bool:
    try:
        return any(operation.name == "STOP" for operation, _, _ in pickletools.genops(content))
    except Exception:  # genops raises whatever its argument readers raise
        return False


# Engines

def test_engines(toy_bundle):
    engines = [record("text"), record("vision"),
               record("text", runtime="tensorrt_rtx", version="1.7.1.116", arch=PORTABLE)]
    bundle = with_engines(toy_bundle, *engines)
    assert Bundle.load(bundle.directory, verify=True) == bundle
    assert [engine.path for engine in bundle.engines] == [engine.path for engine in engines]
    exact, _, portable = (bundle.directory / engine.path for engine in engines)
    assert bundle.engine("text", runtime="tensorrt", version="10.3.0", arch="sm87") == exact
    assert bundle.engine("text", runtime="tensorrt", version="10.3.0", arch="sm120") is None
    assert bundle.engine("text", runtime="tensorrt", version="10.4.0", arch="sm87") is None
    assert bundle.engine("vision", runtime="tensorrt_rtx", version="1.7.1.116", arch="sm89") is None
    assert bundle.engine("text", runtime="tensorrt_rtx", version="1.7.1.116", arch="sm89") == portable


def test_what_an_engine_is_and_came_from_is_measured(toy_bundle):
    engine, = with_engines(toy_bundle, dataclasses.replace(record("vision"), bytes=99, sha256="0" * 64)).engines
    assert (engine.bytes, engine.sha256) == (len(PLAN), hashlib.sha256(PLAN).hexdigest())
    assert engine.built_from == {"vision.onnx": toy_bundle.files["vision.onnx"]}


def test_exact_engine_goes_before_a_portable_one(toy_bundle):
    engines = [record(runtime="tensorrt_rtx", version="1.7", arch=arch) for arch in (PORTABLE, "sm89")]
    found = with_engines(toy_bundle, *engines).engine("text", runtime="tensorrt_rtx", version="1.7", arch="sm89")
    assert found == toy_bundle.directory / engines[1].path


@pytest.mark.parametrize("built_for, gpu, fits", [
    ("sm87", "sm87", True), ("sm87", "sm8", False), ("sm86+sm89", "sm89", True), ("sm86+sm89", "sm87", False),
    (PORTABLE, "sm80", True), (PORTABLE, "sm120", True), (PORTABLE, "sm75", False), (PORTABLE, "sm87", False),
    (PORTABLE, "sm90", False), (PORTABLE, "sm100", False), (PORTABLE, "sm110", False), ("sm75", "sm75", True)])
def test_which_gpu_an_engine_fits(built_for, gpu, fits):
    assert record(arch=built_for).fits(runtime="tensorrt", version="10.3.0", arch=gpu) == fits


def test_rebuilt_engine_takes_the_place_of_the_old_one(toy_bundle):
    bundle = with_engines(toy_bundle, record("text"), record("vision"))
    put_plan(bundle, record("text"), b"another plan")
    rebuilt = bundle.with_engines([record("text")])
    assert [engine.bytes for engine in rebuilt.engines] == [12, 4] and rebuilt.engines[1] == bundle.engines[1]


def test_an_engine_is_there_before_it_is_recorded(toy_bundle):
    with pytest.raises(UserError, match=r"expected engines/tensorrt-10\.3\.0-sm87/text\.plan"):
        toy_bundle.with_engines([record()])


def test_a_copy_may_leave_engines_out(toy_bundle):
    bundle = with_engines(toy_bundle, record())
    (bundle.directory / record().path).unlink()
    again = Bundle.load(bundle.directory, verify=True)
    assert again.engines == bundle.engines and record().path not in again.present()
    assert again.engine("text", runtime="tensorrt", version="10.3.0", arch="sm87") is None


def test_a_truncated_engine_is_found_at_load(toy_bundle):
    bundle = with_engines(toy_bundle, record())
    cut_short(bundle.directory / record().path)
    with pytest.raises(UserError, match=r"text\.plan was cut short .* remove it, or build it again: talent-build "):
        Bundle.load(bundle.directory)


def test_a_changed_engine_is_never_run(toy_bundle):
    bundle = with_engines(toy_bundle, record("text"), record("vision"))
    flip_last_bit(bundle.directory / record().path)
    bundle = Bundle.load(bundle.directory)
    with pytest.raises(UserError, match=r"text\.plan was changed .*build it again: talent-build "):
        bundle.engine("text", runtime="tensorrt", version="10.3.0", arch="sm87")
    assert bundle.engine("vision", runtime="tensorrt", version="10.3.0", arch="sm87")


def test_an_engine_of_another_network_is_never_run(make_bundle, tmp_path):
    bundle = with_engines(make_bundle(), record("text"), record("vision"))
    bundle.directory.rename(tmp_path / "other")
    engines = [dict(entry) for entry in json.loads((tmp_path / "other" / "bundle.json").read_text())["engines"]]
    bundle = make_bundle(scale=2.0)  # another vision graph, the same text graph
    (tmp_path / "other" / "engines").rename(bundle.directory / "engines")
    manifest = json.loads((bundle.directory / "bundle.json").read_text())
    (bundle.directory / "bundle.json").write_text(json.dumps({**manifest, "engines": engines}))
    bundle = Bundle.load(bundle.directory, verify=True)
    assert bundle.engine("text", runtime="tensorrt", version="10.3.0", arch="sm87")
    with pytest.raises(UserError, match=r"was built from another vision\.onnx than this bundle has; .*talent-build "):
        bundle.engine("vision", runtime="tensorrt", version="10.3.0", arch="sm87")


def test_an_engine_is_not_recorded_for_a_graph_that_was_changed(toy_bundle):
    put_plan(toy_bundle, record())
    flip_last_bit(toy_bundle.directory / "text.onnx")
    with pytest.raises(UserError, match=r"text\.onnx was changed"):
        toy_bundle.with_engines([record()])
