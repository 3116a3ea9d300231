"""A bundle: the directory that export writes and every runtime reads.

    text.onnx  vision.onnx  [*.onnx.data]  tokenizer.json  bundle.json  [export.json calibration.json int8.png]
    engines/<runtime>-<version>-<arch>/*.plan

`text` turns token ids into prompt tensors; `vision` turns a picture and those tensors into logits. bundle.json says how
to feed them, where they came from, what was measured, and the size and SHA-256 of every file (deploy/manifest.py).

Loading compares sizes, so that a copy that broke off is found at once. What a runtime is handed - the graphs or the
engines that it loads, and the tokenizer - is compared with its SHA-256 at that moment: a network that was changed is
never run. `verify` compares everything.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.integrity import FileRecord, Progress, measure, problem
from deploy.manifest import (
    AGAIN,
    GRAPHS,
    MANIFEST,
    PORTABLE,
    PRECISIONS,
    PREPROCESSING,
    REQUIRED_FILES,
    SCHEMA,
    TEXT,
    TOKENIZER,
    VISION,
    check_manifest,
    read_manifest,
)
from deploy.targets import build_command, portable_covers
from talent import provenance
from talent.errors import UserError, suggest
from talent.files import atomic_write
from talent.image import THRESHOLD

__all__ = ["CALIBRATION_LIST", "CHART", "GRAPHS", "MANIFEST", "PORTABLE", "PRECISIONS", "PREPROCESSING", "REPORT",
           "SCHEMA", "TEXT", "TOKENIZER", "VISION", "Bundle", "EngineRecord", "covers", "engine_directory"]

REPORT = "export.json"  # what the export measured and decided, for people
CALIBRATION_LIST = "calibration.json"  # which samples set the ranges
CHART = "int8.png"  # how the INT8 layers were chosen
EXTRAS = (REPORT, CALIBRATION_LIST, CHART)
EXTERNAL_DATA = ".data"  # weights of vision.onnx lie in vision.onnx.data where they are large


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """One TensorRT engine of a bundle.

    graph: "text" or "vision". runtime: "tensorrt" or "tensorrt_rtx". version: `__version__` of that package. arch:
    "sm87", several as "sm86+sm89", or "portable". path: relative to the bundle. seconds: what the build took. batch:
    the largest it takes. peak_memory_bytes: the most that the building process held, None for what is not known.
    plugin: whether it needs the plugin for RCA, which deploy/plugin.py loads. bytes, sha256, and built_from (SHA-256 of
    the graph's ONNX files by name): `Bundle.with_engines` measures them.
    """

    graph: str
    precision: str
    runtime: str
    version: str
    arch: str
    path: str
    seconds: float
    batch: int = 1
    peak_memory_bytes: int | None = None
    plugin: bool = False
    bytes: int = 0
    sha256: str = ""
    built_from: Mapping[str, str] = field(default_factory=dict)

    def fits(self, *, runtime: str, version: str, arch: str) -> bool:
        """Whether this engine may be loaded: engines belong to one TensorRT version and one GPU architecture."""
        return self.runtime == runtime and self.version == version and covers(self.arch, arch)


def covers(built_for: str, arch: str) -> bool:
    """Whether an engine for `built_for` ("sm87", "sm86+sm89" or PORTABLE) runs on the GPU `arch` ("sm86")."""
    return portable_covers(arch) if built_for == PORTABLE else arch in built_for.split("+")


def engine_directory(runtime: str, version: str, arch: str) -> str:
    """Where the engines of one TensorRT and GPU lie, relative to the bundle."""
    return f"engines/{runtime}-{version}-{arch}"


@dataclass(frozen=True)
class Bundle:
    """What bundle.json says, and the directory that it says it of.

    image_size: side of the network's square input in pixels. context_length: tokens of a sentence. threshold:
    probability above which a pixel belongs to the object. records: size and digest of each file by name; the engines
    have theirs with them.
    """

    directory: Path
    preset: str
    precision: str
    image_size: int
    context_length: int
    threshold: float
    preprocessing: Mapping[str, Any]
    source: Mapping[str, Any]
    records: Mapping[str, FileRecord]
    engines: tuple[EngineRecord, ...]
    parity: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str
    created: str

    @classmethod
    def read(cls, directory: str | Path) -> Bundle:
        """What bundle.json says; no other file is looked at.

        Raises UserError for a missing directory or manifest, for JSON that is malformed or of a newer schema, and for
        fields that are missing, unknown or wrong.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"no such bundle: {directory}; expected a directory that talent-export wrote")
        manifest = read_manifest(directory / MANIFEST)
        del manifest["schema"]
        records = {name: FileRecord(**entry) for name, entry in manifest.pop("files").items()}
        engines = tuple(EngineRecord(**entry) for entry in manifest.pop("engines"))
        return cls(directory=directory, records=records, engines=engines, **manifest)

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool = False) -> Bundle:
        """Read a bundle and compare the size of every file; `verify` also compares every digest (reads them all).

        Engines may be left out of a copy; those that are there must be whole.
        Raises UserError as `read` does, and for a file that is missing or differs.
        """
        bundle = cls.read(directory)
        for name in bundle.present():
            bundle.checked(name, digest=verify)
        return bundle

    @classmethod
    def write_manifest(cls, directory: str | Path, *, preset: str, precision: str, image_size: int, context_length: int,
                       source: Mapping[str, Any], parity: Mapping[str, Any] | None = None, threshold: float = THRESHOLD,
                       engines: Iterable[EngineRecord] = (), versions: Mapping[str, str] | None = None) -> Bundle:
        """Describe a directory that holds the graphs and the tokenizer: hashes the files, writes bundle.json, loads it.

        source: {"checkpoint": name, "sha256": digest}. The commit and the time are filled in here.
        Raises UserError when a file of the bundle is missing or a value is one that `read` would refuse.
        """
        directory = Path(directory)
        names = [*REQUIRED_FILES, *sorted(path.name for path in directory.glob(f"*.onnx{EXTERNAL_DATA}"))]
        names += [name for name in EXTRAS if (directory / name).is_file()]
        for name in names:
            if not (directory / name).is_file():
                raise UserError(f"expected {name} in {directory} before its {MANIFEST} is written")
        bundle = cls(
            directory=directory, preset=preset, precision=precision, image_size=image_size,
            context_length=context_length, threshold=threshold, preprocessing=PREPROCESSING, source=dict(source),
            records={name: measure(directory / name) for name in names}, engines=tuple(engines),
            parity=dict(parity or {}), versions=dict(provenance.versions() if versions is None else versions),
            commit=provenance.commit(),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))
        bundle._write()
        return cls.load(directory)

    def with_parity(self, parity: Mapping[str, Any]) -> Bundle:
        """Record how far its answers are from the network's, rewrite bundle.json, return the new bundle."""
        dataclasses.replace(self, parity=dict(parity))._write()
        return Bundle.load(self.directory)

    def with_engines(self, records: Iterable[EngineRecord]) -> Bundle:
        """Add engines (one with the path of an old one takes its place), rewrite bundle.json, return the new bundle.

        What they are and which ONNX files they were built from is measured here.
        Raises UserError when an engine's file is missing, or when its graph is no longer the one of bundle.json.
        """
        by_path = {record.path: record for record in (*self.engines, *map(self._measured, records))}
        bundle = dataclasses.replace(self, engines=tuple(by_path.values()))
        bundle._write()
        return Bundle.load(self.directory)

    def check_precision(self, precision: str | None) -> None:
        """Raise UserError for a precision that there is not, and where the graphs compute in another; None is any."""
        if precision is not None and precision not in PRECISIONS:
            raise UserError(f"unknown precision {precision!r}{suggest(precision, PRECISIONS)}")
        if precision not in (None, self.precision):
            checkpoint = self.source.get("checkpoint", "CHECKPOINT")
            raise UserError(f"expected an {precision} bundle, received {self.directory}, which is {self.precision}: "
                            "the precision is in its ONNX files, and its accuracy was measured with it; export another "
                            f"bundle: talent-export {checkpoint} --{precision} -o BUNDLE")

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file by name, without the engines."""
        return {name: record.sha256 for name, record in self.records.items()}

    @property
    def text_onnx(self) -> Path:
        """The text graph, compared with its SHA-256 just now; UserError where it differs."""
        return self._graph("text")

    @property
    def vision_onnx(self) -> Path:
        """The vision graph, compared with its SHA-256 just now; UserError where it differs."""
        return self._graph("vision")

    @property
    def tokenizer_json(self) -> Path:
        """The tokenizer, compared with its SHA-256 just now; UserError where it differs."""
        return self.checked(TOKENIZER)

    def engine(self, graph: str, *, runtime: str, version: str, arch: str) -> Path | None:
        """The plan of `engine_record`, or None; raises as it does."""
        record = self.engine_record(graph, runtime=runtime, version=version, arch=arch)
        return None if record is None else self.directory / record.path

    def engine_record(self, graph: str, *, runtime: str, version: str, arch: str) -> EngineRecord | None:
        """The engine of a graph that fits this TensorRT and GPU, or None; one for this GPU before a portable one.

        Raises UserError for an engine that was built from other ONNX files, or that differs from its SHA-256.
        """
        fitting = [record for record in self.engines
                   if record.graph == graph and record.fits(runtime=runtime, version=version, arch=arch)
                   and os.path.isfile(self.directory / record.path)]
        best = min(fitting, key=lambda record: record.arch == PORTABLE, default=None)
        if best is None:
            return None
        if changed := self.changed_since(best):
            raise UserError(f"{self.directory / best.path} was built from another {' and '.join(changed)} than this "
                            "bundle has; remove it, or build it again: "
                            + build_command(self.directory, runtime=runtime, arch=arch))
        self.checked(best.path)
        return best

    def changed_since(self, engine: EngineRecord) -> list[str]:
        """Names of the ONNX files that are not those which the engine was built from; none for one that is current."""
        now = self._graph_files(engine.graph)
        return sorted(name for name in now.keys() | engine.built_from.keys()
                      if now.get(name) != engine.built_from.get(name))

    def present(self) -> dict[str, FileRecord]:
        """Every recorded file by name, less the engines that were left out of this copy."""
        engines = {engine.path: FileRecord(bytes=engine.bytes, sha256=engine.sha256) for engine in self.engines
                   if os.path.exists(self.directory / engine.path)}
        return {**self.records, **engines}

    def checked(self, name: str, *, digest: bool = True) -> Path:
        """A recorded file, its size and (`digest`) its SHA-256 compared just now. Raises UserError where it differs."""
        if wrong := self.problem(name, digest=digest):
            raise UserError(f"cannot load the bundle {self.directory}: {name} {wrong}; {self.remedy(name)}")
        return self.directory / name

    def problem(self, name: str, *, digest: bool, progress: Progress | None = None) -> str | None:
        """What is wrong with a file that `present` names, to follow its name in a sentence; None for nothing."""
        return problem(self.directory / name, self.present()[name], digest=digest, progress=progress)

    def remedy(self, name: str) -> str:
        """What to do about a file that is damaged: an engine can go, a graph cannot."""
        if name in self.records:
            return f"copy it again or {AGAIN}"
        return f"copy it again, remove it, or build it again: {build_command(self.directory)}"

    def _graph(self, graph: str) -> Path:
        """The ONNX file of a graph, its digest and that of its external data compared."""
        return [self.checked(name) for name in self._graph_files(graph)][0]

    def _graph_files(self, graph: str) -> dict[str, str]:
        """SHA-256 of the ONNX file of a graph, and of the external data where there is some."""
        names = (f"{graph}.onnx", f"{graph}.onnx{EXTERNAL_DATA}")
        return {name: self.files[name] for name in names if name in self.files}

    def _measured(self, record: EngineRecord) -> EngineRecord:
        path = self.directory / record.path
        if not path.is_file():
            raise UserError(f"expected {record.path} in {self.directory} before it is recorded as an engine")
        self._graph(record.graph)
        return dataclasses.replace(record, **dataclasses.asdict(measure(path)),
                                   built_from=self._graph_files(record.graph))

    def _write(self) -> None:
        content: dict[str, Any] = {"schema": SCHEMA}
        for name, value in dataclasses.asdict(self).items():
            if name != "directory":
                content["files" if name == "records" else name] = value
        content["engines"] = list(content["engines"])
        check_manifest(content, self.directory / MANIFEST)
        with atomic_write(self.directory / MANIFEST) as temporary:
            text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
