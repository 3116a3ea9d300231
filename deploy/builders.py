"""The TensorRTs that are installed here, and which of them builds the engines.

They are looked up, not imported: one process can use one of the two, so only the one that is chosen gets in.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from types import ModuleType

from deploy.diagnosis import probe
from deploy.runtime.gpu import gpu_architecture
from deploy.runtime.tensorrt import RUNTIMES
from talent.errors import UserError, suggest

INSTALL = ("run: pip install 'talent-edge[rtx]' for RTX cards and on machines without a GPU, or pip install "
           "'talent-edge[tensorrt]' where an NVIDIA GPU is; on a Jetson, JetPack brings tensorrt")
_PATIENCE = 60  # seconds, for a package to say its version


@dataclass(frozen=True)
class Runtime:
    """An installed engine builder."""

    name: str
    """"tensorrt" or "tensorrt_rtx"."""
    version: str


def installed_runtimes() -> list[Runtime]:
    """The TensorRTs that are installed here, full TensorRT first.

    Raises UserError for one that must be asked for its version and does not load.
    """
    return [Runtime(name=name, version=_version(name)) for name in RUNTIMES if _is_installed(name)]


def usable_runtimes() -> list[Runtime]:
    """Those that can build here: full TensorRT needs the GPU that it builds for, TensorRT-RTX needs none."""
    return [runtime for runtime in installed_runtimes() if not _lacks_gpu(runtime.name)]


def choose_runtime(name: str | None = None) -> Runtime:
    """The TensorRT that builds: `name` of RUNTIMES, or the first one that can. Raises UserError where there is none."""
    if name is not None and name not in RUNTIMES:
        raise UserError(f"unknown runtime {name!r}{suggest(name, RUNTIMES)}")
    installed = {runtime.name: runtime for runtime in installed_runtimes()}
    reasons = []
    for wanted in RUNTIMES if name is None else [name]:
        if wanted not in installed:
            reasons.append(f"{wanted} is not installed")
        elif _lacks_gpu(wanted):
            reasons.append("tensorrt builds only where its GPU is, and the driver shows none (nvidia-smi lists them)")
        else:
            return installed[wanted]
    raise UserError(f"no engine can be built here: {'; '.join(reasons)}; {INSTALL}")


def load_runtime(name: str) -> ModuleType:
    """Import a TensorRT that is installed. Raises UserError where its libraries are missing or do not fit."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise _does_not_load(name, str(error)) from error


def _lacks_gpu(name: str) -> bool:
    return name == "tensorrt" and gpu_architecture() is None


def _does_not_load(name: str, why: str) -> UserError:
    return UserError(f"{name} is installed but does not load: {' '.join(why.split())}; reinstall it, or choose "
                     "another with --runtime; talent-doctor says more")


def _is_installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a mere folder of that name has no origin


def _version(name: str) -> str:
    """What pip knows, else what the package says itself, in a process of its own (JetPack installs without pip)."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        command = [sys.executable, probe.__file__, "import", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True)
        said = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise _does_not_load(name, str(error)) from error
    if not said.get("version"):
        raise _does_not_load(name, said.get("failure") or "it does not say its version")
    return said["version"]
