"""A bundle: the directory that export writes and every runtime reads.

    text.onnx  vision.onnx  [*.onnx.data]  tokenizer.json  bundle.json  engines/<runtime>-<version>-<arch>/*.plan

`text` turns token ids into prompt tensors; `vision` turns a picture and those tensors into logits. bundle.json says how
to feed them, where they came from and what was measured.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from talent import provenance
from talent.errors import UserError, suggest
from talent.files import atomic_write
from talent.image import CLIP_MEAN, CLIP_STD, THRESHOLD

SCHEMA = 1
MANIFEST = "bundle.json"
TEXT = "text.onnx"
VISION = "vision.onnx"
TOKENIZER = "tokenizer.json"
GRAPHS = ("text", "vision")
PRECISIONS = ("fp32", "fp16", "int8")
PORTABLE = "portable"  # the `arch` of a TensorRT-RTX engine for every GPU that TensorRT-RTX targets by default:
_PORTABLE_FROM = 80  # compute capability 8.0 and later
_REQUIRED_FILES = (TEXT, VISION, TOKENIZER)
_AGAIN = "export the bundle again with talent-export"

PREPROCESSING = {"mean": list(CLIP_MEAN), "std": list(CLIP_STD), "interpolation": "cubic", "letterbox": True}


@dataclass(frozen=True)
class EngineRecord:
    """One TensorRT engine of a bundle.

    graph: "text" or "vision". runtime: "tensorrt" or "tensorrt_rtx". version: `__version__` of that package. arch:
    "sm87", several as "sm86+sm89", or "portable". path: relative to the bundle. seconds: what the build took.
    """

    graph: str
    precision: str
    runtime: str
    version: str
    arch: str
    path: str
    bytes: int
    seconds: float

    def fits(self, *, runtime: str, version: str, arch: str) -> bool:
        """Whether this engine may be loaded: engines belong to one TensorRT version and one GPU architecture."""
        portable = self.arch == PORTABLE and int(arch.removeprefix("sm")) >= _PORTABLE_FROM
        return self.runtime == runtime and self.version == version and (portable or arch in self.arch.split("+"))


def engine_directory(runtime: str, version: str, arch: str) -> str:
    """Where the engines of one TensorRT and GPU lie, relative to the bundle."""
    return f"engines/{runtime}-{version}-{arch}"


@dataclass(frozen=True)
class Bundle:
    """What bundle.json says, and the directory that it says it of.

    image_size: side of the network's square input in pixels. context_length: tokens of a sentence. threshold:
    probability above which a pixel belongs to the object. files: SHA-256 of each file by name.
    """

    directory: Path
    preset: str
    precision: str
    image_size: int
    context_length: int
    threshold: float
    preprocessing: Mapping[str, Any]
    source: Mapping[str, Any]
    files: Mapping[str, str]
    engines: tuple[EngineRecord, ...]
    parity: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str
    created: str

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool = False) -> Bundle:
        """Read a bundle; `verify` also compares every file with its SHA-256 (which reads them all).

        Raises UserError for a missing directory, manifest, field or file, for JSON that is malformed or of a newer
        schema, for preprocessing other than this version's, and for a file that differs from its digest.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"no such bundle: {directory}; expected a directory that talent-export wrote")
        manifest = _read_manifest(directory / MANIFEST)
        engines = tuple(_engine(entry, directory / MANIFEST) for entry in manifest.pop("engines"))
        del manifest["schema"]
        bundle = cls(directory=directory, engines=engines, **manifest)
        bundle._check(verify=verify)
        return bundle

    @classmethod
    def write_manifest(cls, directory: str | Path, *, preset: str, precision: str, image_size: int, context_length: int,
                       source: Mapping[str, Any], parity: Mapping[str, Any] | None = None, threshold: float = THRESHOLD,
                       engines: Iterable[EngineRecord] = (), versions: Mapping[str, str] | None = None) -> Bundle:
        """Describe a directory that holds the graphs and the tokenizer: hashes the files, writes bundle.json, loads it.

        source: {"checkpoint": name, "sha256": digest}. The commit and the time are filled in here.
        Raises UserError when a file of the bundle is missing.
        """
        directory = Path(directory)
        names = [*_REQUIRED_FILES, *sorted(path.name for path in directory.glob("*.onnx.data"))]
        for name in names:
            if not (directory / name).is_file():
                raise UserError(f"expected {name} in {directory} before its {MANIFEST} is written")
        bundle = cls(
            directory=directory, preset=preset, precision=precision, image_size=image_size,
            context_length=context_length, threshold=threshold, preprocessing=PREPROCESSING, source=dict(source),
            files={name: provenance.sha256(directory / name) for name in names}, engines=tuple(engines),
            parity=dict(parity or {}), versions=dict(provenance.versions() if versions is None else versions),
            commit=provenance.commit(),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))
        bundle._write()
        return cls.load(directory)

    def with_engines(self, records: Iterable[EngineRecord]) -> Bundle:
        """Add engines (one with the path of an old one takes its place), rewrite bundle.json, return the new bundle."""
        by_path = {record.path: record for record in (*self.engines, *records)}
        bundle = dataclasses.replace(self, engines=tuple(by_path.values()))
        bundle._write()
        return Bundle.load(self.directory)

    @property
    def text_onnx(self) -> Path:
        return self.directory / TEXT

    @property
    def vision_onnx(self) -> Path:
        return self.directory / VISION

    @property
    def tokenizer_json(self) -> Path:
        return self.directory / TOKENIZER

    def engine(self, graph: str, *, runtime: str, version: str, arch: str) -> Path | None:
        """The engine of a graph that fits this TensorRT and GPU, or None; one for this GPU before a portable one."""
        fitting = [record for record in self.engines
                   if record.graph == graph and record.fits(runtime=runtime, version=version, arch=arch)
                   and (self.directory / record.path).is_file()]
        best = min(fitting, key=lambda record: record.arch == PORTABLE, default=None)
        return self.directory / best.path if best else None

    def _write(self) -> None:
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name != "directory"}
        with atomic_write(self.directory / MANIFEST) as temporary:
            text = json.dumps({"schema": SCHEMA, **fields}, indent=2, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    def _check(self, *, verify: bool) -> None:
        where = self.directory / MANIFEST
        if self.precision not in PRECISIONS:
            raise UserError(f"{where}: expected precision to be one of {', '.join(PRECISIONS)}, received "
                            f"{self.precision!r}; {_AGAIN}")
        if self.image_size < 1 or self.context_length < 3 or not 0 <= self.threshold < 1:
            raise UserError(f"{where}: expected image_size >= 1, context_length >= 3 and 0 <= threshold < 1, received "
                            f"{self.image_size}, {self.context_length}, {self.threshold}; {_AGAIN}")
        if dict(self.preprocessing) != PREPROCESSING:
            raise UserError(f"{where}: expected preprocessing {PREPROCESSING}, received {dict(self.preprocessing)}; "
                            f"this version cannot feed that network: {_AGAIN}")
        for name in (*_REQUIRED_FILES, *self.files):
            if name not in self.files:
                raise UserError(f"{where}: expected a digest of {name} under 'files'; {_AGAIN}")
            _check_inside(name, where)
            if not (self.directory / name).is_file():
                raise UserError(f"the bundle {self.directory} is incomplete: {name} is missing; copy it whole or "
                                f"{_AGAIN}")
            if verify and (received := provenance.sha256(self.directory / name)) != self.files[name]:
                raise UserError(f"the bundle {self.directory} is damaged: expected {name} to have SHA-256 "
                                f"{self.files[name]}, received {received}; copy it again or {_AGAIN}")


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": int, "preset": str, "precision": str, "image_size": int, "context_length": int, "threshold": (int, float),
    "preprocessing": dict, "source": dict, "files": dict, "engines": list, "parity": dict, "versions": dict,
    "commit": str, "created": str}
_ENGINE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "graph": str, "precision": str, "runtime": str, "version": str, "arch": str, "path": str, "bytes": int,
    "seconds": (int, float)}


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"not a bundle: {path.parent} has no {MANIFEST}; expected a directory that talent-export "
                        "wrote") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: malformed JSON ({error}); {_AGAIN}") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: expected a JSON object, received {type(manifest).__name__}; {_AGAIN}")
    schema = manifest.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise UserError(f"{path}: expected schema {SCHEMA} or older, received {schema}: the bundle was made by a newer "
                        "version; run: pip install --upgrade talent-edge")
    _check_fields(manifest, _FIELDS, path)
    return manifest


def _engine(entry: Any, where: Path) -> EngineRecord:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an engine to be a JSON object, received {type(entry).__name__}; {_AGAIN}")
    _check_fields(entry, _ENGINE_FIELDS, where)
    _check_inside(entry["path"], where)
    return EngineRecord(**entry)


def _check_fields(record: dict[str, Any], fields: dict[str, type | tuple[type, ...]], where: Path) -> None:
    for name, kind in fields.items():
        if name not in record:
            raise UserError(f"{where}: missing field {name!r}; {_AGAIN}")
        if not isinstance(record[name], kind) or isinstance(record[name], bool):
            expected = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise UserError(f"{where}: expected {name!r} to be {expected}, received {record[name]!r}; {_AGAIN}")
    for name in record:
        if name not in fields:
            raise UserError(f"{where}: unknown field {name!r}{suggest(name, fields)}")


def _check_inside(name: str, where: Path) -> None:
    """A bundle may come from a stranger: its manifest must not name files outside it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where}: expected a path inside the bundle, received {name!r}")
