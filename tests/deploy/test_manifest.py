"""bundle.json: what is wrong is refused with the reason, by this package and by its JSON Schema alike."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from deploy.bundle import Bundle
from deploy.manifest import json_schema, read_manifest
from talent.errors import UserError
from tests.deploy.engines import record, with_engines

VALIDATOR = Draft202012Validator(json_schema())
DIGEST = "0123456789abcdef" * 4
NAMES = ("text.onnx", "vision.onnx", "tokenizer.json")
FILE = {"bytes": 1, "sha256": DIGEST}
ENGINE = {"graph": "text", "precision": "fp16", "runtime": "tensorrt", "version": "10.3.0", "arch": "sm87",
          "path": "engines/tensorrt-10.3.0-sm87/text.plan", "seconds": 1.5, "batch": 4,
          "peak_memory_bytes": None, "bytes": 4, "sha256": DIGEST,
          "built_from": {"text.onnx": DIGEST}}
VALUES = [None, True, False, -1, 0, 1, 2, 3, 448.0, 0.5, 1.5, 1e300, 10**30, "", "x", "x\n", "a b", "fp32", "text",
          "sm8", "sm86+sm89", "sm86+", "portable", "text.onnx", "/etc/passwd", "../x.plan", "engines/../x.plan",
          "engines//x", "engines/.x", "engines/a\\..\\x", "engines/x.plan", "engines/x.plan\n", "C:x", DIGEST,
          DIGEST[1:], DIGEST + "0", DIGEST + "\n", DIGEST.upper(), "2026-01-31T12:00:00Z", "2026-01-31 12:00:00",
          "2026-01-31T12:00:00", "\u0662\u0660-", [], [1], {}, {"x": 1}, {"x": "1"}, {"text.onnx": DIGEST},
          {"../x": DIGEST}, {"a/b": DIGEST}, FILE, [ENGINE], [ENGINE, {**ENGINE, "bytes": 0}]]


@pytest.fixture
def content(toy_bundle) -> dict[str, Any]:
    """A manifest with every field."""
    bundle = with_engines(toy_bundle, record("text"),
                          record("vision", runtime="tensorrt_rtx", arch="portable", plugin=True))
    return json.loads((bundle.directory / "bundle.json").read_text())


def refusal(text: str, directory: Path) -> str | None:
    """What this package says about a bundle.json, None where it takes it."""
    path = directory / "bundle.json"
    path.write_text(text, encoding="utf-8")
    try:
        read_manifest(path)
    except UserError as error:
        return str(error)
    return None


def places(value: Any, *path: str | int) -> Iterator[tuple[str | int, ...]]:
    """The path of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, *path, key)


def damaged(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every value of the manifest left out, renamed and replaced by each of VALUES, one at a time."""
    for *parents, last in places(content):
        def change(value: Any, parents: list = parents, last: str | int = last) -> dict[str, Any]:
            changed = copy.deepcopy(content)
            inside = changed
            for key in parents:
                inside = inside[key]
            if value is ...:
                del inside[last]
            elif isinstance(last, str) and isinstance(value, tuple):
                inside[value[0]] = inside.pop(last)
            else:
                inside[last] = value
            return changed

        where = "/".join(map(str, [*parents, last]))
        yield f"{where} left out", change(...)
        if isinstance(last, str):
            for name in ("novelty", "../x", "/x", "", "x\n", "a b", "vision.onnx.data"):
                yield f"{where} renamed to {name!r}", change((name,))
        for value in VALUES:
            yield f"{where} = {value!r}", change(value)


def test_the_schema_is_one_and_names_no_host():
    Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$id"] == "urn:talent-edge:bundle:1"


def test_the_package_and_its_schema_agree(content, tmp_path):
    assert VALIDATOR.is_valid(content) and refusal(json.dumps(content), tmp_path) is None
    refused = taken = 0
    for what, changed in damaged(content):
        said = refusal(json.dumps(changed), tmp_path)
        assert (said is None) == VALIDATOR.is_valid(changed), f"{what}: this package says {said}"
        refused, taken = refused + (said is not None), taken + (said is None)
    assert refused > 1000 and taken > 100


def test_what_is_not_said_of_a_plugin_is_that_there_is_none(content, tmp_path):
    """Bundles of before there was one."""
    assert [engine["plugin"] for engine in content["engines"]] == [False, True]
    for engine in content["engines"]:
        del engine["plugin"]
    (tmp_path / "bundle.json").write_text(json.dumps(content))
    assert VALIDATOR.is_valid(content)
    assert [engine.plugin for engine in Bundle.read(tmp_path).engines] == [False, False]


def test_a_bundle_without_engines_is_valid(toy_bundle):
    manifest = json.loads((toy_bundle.directory / "bundle.json").read_text())
    assert manifest["engines"] == [] and VALIDATOR.is_valid(manifest)


@pytest.mark.parametrize("changes, message", [
    ({"precision": ...}, "missing field 'precision', expected one of fp32"),
    ({"engines": ...}, "missing field 'engines'"),
    ({"schema": 0}, "schema to be an integer of at least 1, received 0"),
    ({"schema": "1"}, "schema to be an integer"), ({"schema": True}, "schema to be an integer"),
    ({"image_size": "448"}, "image_size to be an integer of at least 1, received '448'"),
    ({"image_size": True}, "image_size to be an integer"), ({"image_size": -448}, "received -448"),
    ({"tresholds": 1}, "unknown field 'tresholds'; did you mean 'threshold'"),
    ({"precision": "fp8"}, "one of fp32, fp16, int8, received 'fp8'"), ({"threshold": 35}, "below 1, received 35"),
    ({"preprocessing": {"mean": [0.485, 0.456, 0.406]}}, "expected preprocessing to be"),
    ({"created": "yesterday"}, "a time with its zone"),
    ({"versions": {"torch": 2}}, "versions to be an object of text"),
    ({"engines": ["x"]}, r"engines\[0\] to be a JSON object"),
    ({"engines": [{"graph": "text"}]}, r"missing field 'engines\[0\]\.precision'"),
    ({"engines": [{**ENGINE, "path": "../../x.plan"}]}, "inside the bundle"),
    ({"engines": [{**ENGINE, "path": "/x.plan"}]}, "inside the bundle"),
    ({"engines": [{**ENGINE, "path": "text.onnx"}]}, "such as engines/"),
    ({"engines": [{**ENGINE, "bytes": -1}]}, r"engines\[0\]\.bytes to be an integer of at least 1, received -1"),
    ({"engines": [{**ENGINE, "arch": "8.7"}]}, "sm87"),
    ({"engines": [{**ENGINE, "built_from": {}}]}, "SHA-256 by name"),
    ({"engines": [{**ENGINE, "runtime": "openvino"}]}, "one of tensorrt, tensorrt_rtx"),
    ({"engines": [{**ENGINE, "plugin": "yes"}]}, r"engines\[0\]\.plugin to be true or false, received 'yes'"),
    ({"files": {}}, "digest of text.onnx"),
    ({"files": {**dict.fromkeys(NAMES, FILE), "/etc/passwd": FILE}}, "inside the bundle"),
    ({"files": {**dict.fromkeys(NAMES, FILE), "../x": FILE}}, "inside the bundle"),
    ({"files": dict.fromkeys(NAMES, DIGEST)}, r"files\['text\.onnx'\] to be a JSON object"),
    ({"files": dict.fromkeys(NAMES, {**FILE, "sha256": DIGEST[1:]})}, "64 hexadecimal digits"),
    ({"files": dict.fromkeys(NAMES, {**FILE, "bytes": 0})}, r"bytes to be an integer of at least 1, received 0"),
])
def test_wrong_fields(content, tmp_path, changes, message):
    changed = {name: value for name, value in {**content, **changes}.items() if value is not ...}
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(path)
    assert "talent-export" in str(caught.value) and "\n" not in str(caught.value)
    assert not VALIDATOR.is_valid(changed)


def test_a_newer_schema_asks_for_a_newer_version_whatever_else_it_says(tmp_path):
    for changed in ({"schema": 2}, {"schema": 2, "novelty": [1]}, {"schema": 7.0}):
        (tmp_path / "bundle.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match="expected schema 1, received [27]: a newer version.*pip install --upgrade"):
            Bundle.load(tmp_path)


@pytest.mark.parametrize("text, message", [
    (b"", "malformed JSON"), (b"{", "was cut short"), (b'{"schema": 1', "malformed JSON"),
    (b"[]", r"the content to be a JSON object, received \[\]"), (b"\xff\xfe{", "malformed JSON"),
    (b'{"threshold": NaN}', "NaN is no JSON number"), (b'{"threshold": 1e999}', "too large"),
    (b'{"image_size": ' + b"9" * 5000 + b"}", "malformed JSON"), (b"[" * 200_000, "malformed JSON")])
def test_malformed(tmp_path, text, message):
    (tmp_path / "bundle.json").write_bytes(text)
    with pytest.raises(UserError, match=message) as caught:
        Bundle.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_manifest_cut_anywhere_is_refused(content, tmp_path):
    text = json.dumps(content, indent=2) + "\n"
    for length in range(0, len(text) - 2, 7):
        assert refusal(text[:length], tmp_path), f"the first {length} characters were taken for a manifest"


def test_a_manifest_that_cannot_be_opened(tmp_path):
    (tmp_path / "bundle.json").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*bundle\.json: Is a directory"):
        Bundle.load(tmp_path)
