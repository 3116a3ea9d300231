"""The .json beside an engine: what it is, what it was built from and what that took. A plan alone does not tell.

    engines/tensorrt-10.3.0-sm87/vision.plan  vision.json
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.integrity import FileRecord, problem
from talent.files import atomic_write

SUFFIX = ".json"
TIMING_CACHE = "timing.cache"
"""What full TensorRT measured while it built, beside the engines."""


@dataclass(frozen=True, kw_only=True)
class PluginChoice:
    """Why an engine has the plugin for RCA, or has not.

    requested: "auto", "on" or "off". gpu: name of the GPU for which both engines were built, None where that could not
    be. with_microseconds, without_microseconds: median time of a run at batch 1 with and without the plugin, rounds:
    how often each of the two ran; None where nothing was measured.
    """

    requested: str
    reason: str
    gpu: str | None = None
    with_microseconds: float | None = None
    without_microseconds: float | None = None
    rounds: int | None = None


@dataclass(frozen=True, kw_only=True)
class EngineNotes:
    """graph to arch: as in bundle.json. batch: the largest; the smallest and the one it is tuned for is 1.

    bundle: `bundle_digest` of the bundle that it was built in. onnx: SHA-256 by name of its graph's files. bytes,
    sha256: of the plan. seconds: what the build took. peak_memory_bytes, peak_gpu_memory_bytes: the most that the
    building process held, and that the builder took on the GPU; None for what is not known. workspace_bytes: the limit
    on what a layer may borrow, None for TensorRT's own. plugin: whether it needs the plugin for RCA, plugin_layers: how
    many of its layers are that. plugin_choice: None for a graph without RCA. commit, versions, created: of what built
    it, and when.
    """

    graph: str
    precision: str
    runtime: str
    version: str
    arch: str
    batch: int
    bundle: str
    onnx: Mapping[str, str]
    bytes: int
    sha256: str
    seconds: float
    peak_memory_bytes: int | None
    peak_gpu_memory_bytes: int | None
    workspace_bytes: int | None
    commit: str
    versions: Mapping[str, str]
    created: str
    plugin: bool = False
    plugin_layers: int = 0
    plugin_choice: PluginChoice | None = None

    @classmethod
    def read(cls, plan: str | Path) -> EngineNotes | None:
        """The notes beside a plan; None where there are none, or none that this version wrote."""
        try:
            notes = cls(**json.loads(Path(plan).with_suffix(SUFFIX).read_text(encoding="utf-8")))
            if notes.plugin_choice is not None:
                notes = dataclasses.replace(notes, plugin_choice=PluginChoice(**notes.plugin_choice))
        except (OSError, ValueError, TypeError):
            return None
        return notes if isinstance(notes.batch, int) and isinstance(notes.bytes, int) else None

    def write(self, plan: str | Path) -> None:
        with atomic_write(Path(plan).with_suffix(SUFFIX)) as temporary:
            text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    def are_of(self, plan: str | Path) -> bool:
        """Whether the plan is whole and the one that these notes are about (reads it all)."""
        return problem(plan, FileRecord(bytes=self.bytes, sha256=self.sha256), digest=True) is None


def bundle_digest(files: Mapping[str, str]) -> str:
    """One SHA-256 for a bundle: that of the lines which `sha256sum` prints for its files, sorted by name.

    files: SHA-256 by name (`Bundle.files`), without bundle.json, which changes with every engine.
    """
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()
