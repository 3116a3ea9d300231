"""bundle.json: what may stand in it. Only the text is looked at here, never the files that it names.

bundle.schema.json says the same as a JSON Schema (draft 2020-12) for other programs; tests hold the two together, and
a runtime needs no schema package.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from talent.errors import UserError, suggest
from talent.image import CLIP_MEAN, CLIP_STD

SCHEMA = 1
MANIFEST = "bundle.json"
TEXT = "text.onnx"
VISION = "vision.onnx"
TOKENIZER = "tokenizer.json"
REQUIRED_FILES = (TEXT, VISION, TOKENIZER)
GRAPHS = ("text", "vision")
PRECISIONS = ("fp32", "fp16", "int8")
ENGINE_RUNTIMES = ("tensorrt", "tensorrt_rtx")
PORTABLE = "portable"
"""The `arch` of a TensorRT-RTX engine for every GPU that TensorRT-RTX targets by default."""
PREPROCESSING = {"mean": list(CLIP_MEAN), "std": list(CLIP_STD), "interpolation": "cubic", "letterbox": True}
AGAIN = "export the bundle again with talent-export"


def json_schema() -> dict[str, Any]:
    """The JSON Schema of bundle.json that this package ships."""
    return json.loads(resources.files("deploy").joinpath("bundle.schema.json").read_text(encoding="utf-8"))


def read_manifest(path: Path) -> dict[str, Any]:
    """What bundle.json says, checked.

    Raises UserError where it cannot be read, is malformed or of a newer schema, and for a field that is missing,
    unknown or wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_float=_number, parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise UserError(f"not a bundle: {path.parent} has no {MANIFEST}; expected a directory that talent-export "
                        "wrote") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; expected a file that talent-export wrote") from error
    except (ValueError, RecursionError) as error:  # ValueError: JSON, UTF-8, and numbers that Python does not read
        raise UserError(f"{path}: malformed JSON ({error}): the file is damaged or was cut short; copy it again or "
                        f"{AGAIN}") from error
    check_manifest(content, path)
    return content


def check_manifest(content: Any, where: Path) -> None:
    """Raise UserError for the first thing that is wrong in the content of the bundle.json `where`."""
    if isinstance(content, dict) and _SCHEMA.holds(schema := content.get("schema")) and schema > SCHEMA:
        raise UserError(f"{where}: expected schema {SCHEMA}, received {schema}: a newer version made the bundle; run: "
                        "pip install --upgrade talent-edge")
    _check_record(content, _FIELDS, where, "")
    for name, entry in content["files"].items():
        _check(name, _FILE, where, "a name in files")
        _check_record(entry, _FILE_FIELDS, where, f"files[{name!r}]")
    for name in REQUIRED_FILES:
        if name not in content["files"]:
            raise UserError(f"{where}: expected the size and digest of {name} in files, received none; {AGAIN}")
    for index, entry in enumerate(content["engines"]):
        _check_record(entry, _ENGINE_FIELDS, where, f"engines[{index}]")


@dataclass(frozen=True)
class _Rule:
    """What a value must be, in words and as a test. required: whether its field may not be left out."""

    expected: str
    holds: Callable[[Any], bool]
    required: bool = True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _integer(least: int) -> _Rule:
    return _Rule(f"an integer of at least {least}",
                 lambda value: _is_number(value) and isinstance(value, int) and value >= least)


def _one_of(*names: str) -> _Rule:
    return _Rule(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def _text(expected: str, pattern: str) -> _Rule:
    compiled = re.compile(pattern)
    return _Rule(expected, lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None)


_NOT_EMPTY = _text("text that is not empty", r"[\s\S]+")
_DIGEST = _text("a SHA-256 of 64 hexadecimal digits", "[0-9a-f]{64}")
# A bundle may come from a stranger: its manifest must not name files outside it, on any system.
_NAME = "[A-Za-z0-9_][A-Za-z0-9._+-]*"
_FILE = _text("a file name inside the bundle of letters, digits and . _ + -", _NAME)
_PLAN = _text("a path inside the bundle such as engines/tensorrt-10.3.0-sm87/text.plan", f"engines(/{_NAME})+")
_TIME = _text("a time with its zone, such as 2026-01-31T12:00:00+00:00",
              r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})")
_OBJECT = _Rule("a JSON object", lambda value: isinstance(value, dict))
_LIST = _Rule("a list", lambda value: isinstance(value, list))
_SCHEMA = _integer(1)
_BYTES = _integer(1)

_FIELDS: Mapping[str, _Rule] = {
    "schema": _SCHEMA, "preset": _NOT_EMPTY, "precision": _one_of(*PRECISIONS), "image_size": _integer(1),
    "context_length": _integer(3),
    "threshold": _Rule("a number from 0 to below 1", lambda value: _is_number(value) and 0 <= value < 1),
    "preprocessing": _Rule(f"{PREPROCESSING}, which is how this version feeds a network",
                           lambda value: _same_json(value, PREPROCESSING)),
    "source": _OBJECT, "files": _OBJECT, "engines": _LIST, "parity": _OBJECT,
    "versions": _Rule("an object of texts", lambda value: isinstance(value, dict) and all(
        isinstance(version, str) for version in value.values())),
    "commit": _NOT_EMPTY, "created": _TIME}
_FILE_FIELDS: Mapping[str, _Rule] = {"bytes": _BYTES, "sha256": _DIGEST}
_ENGINE_FIELDS: Mapping[str, _Rule] = {
    "graph": _one_of(*GRAPHS), "precision": _one_of(*PRECISIONS), "runtime": _one_of(*ENGINE_RUNTIMES),
    "version": _NOT_EMPTY, "arch": _text(f"{PORTABLE}, or GPUs such as sm87 or sm86+sm89",
                                         rf"{PORTABLE}|sm[0-9]+(\+sm[0-9]+)*"),
    "path": _PLAN, "seconds": _Rule("a number of seconds", lambda value: _is_number(value) and value >= 0),
    "batch": _integer(1), "peak_memory_bytes": _Rule("a number of bytes, or null where it is not known",
                                                     lambda value: value is None or _BYTES.holds(value)),
    "plugin": _Rule("true or false", lambda value: isinstance(value, bool), required=False),
    "bytes": _BYTES, "sha256": _DIGEST,
    "built_from": _Rule("the SHA-256 by name of the ONNX files that it was built from",
                        lambda value: isinstance(value, dict) and len(value) > 0 and all(
                            _FILE.holds(name) and _DIGEST.holds(digest) for name, digest in value.items()))}


def _check_record(record: Any, fields: Mapping[str, _Rule], where: Path, name: str) -> None:
    _check(record, _OBJECT, where, name or "the content")
    prefix = f"{name}." if name else ""
    for field in record:
        if field not in fields:
            raise UserError(f"{where}: unknown field {prefix + field!r}{suggest(field, fields)}; {AGAIN}")
    for field, rule in fields.items():
        if field in record:
            _check(record[field], rule, where, prefix + field)
        elif rule.required:
            raise UserError(f"{where}: missing field {prefix + field!r}, expected {rule.expected}; {AGAIN}")


def _check(value: Any, rule: _Rule, where: Path, name: str) -> None:
    if not rule.holds(value):
        raise UserError(f"{where}: expected {name} to be {rule.expected}, received {reprlib.repr(value)}; {AGAIN}")


def _same_json(one: Any, other: Any) -> bool:
    """Equal as JSON is: to Python, 1 == True."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _number(text: str) -> int | float:
    """JSON does not tell 448.0 from 448, and neither does its Schema."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is too large")
    return int(value) if value.is_integer() else value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
