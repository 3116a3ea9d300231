"""Which packages are installed here, which of them load, and which CUDA toolkit there is. Imports none of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import talent
from deploy.diagnosis import probe
from deploy.diagnosis.gpus import answer
from deploy.diagnosis.system import NO_ANSWER, Outcome, Reader

GROUPS = {
    "inference": ("numpy", "opencv-python-headless", "opencv-python", "opencv-contrib-python-headless",
                  "opencv-contrib-python", "tokenizers"),
    "runners": ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "polygraphy", "pycuda"),
    "export": ("onnx", "onnxsim", "onnxscript", "nvidia-modelopt"),
    "training": ("torch", "torchvision", "timm", "open_clip_torch", "peft", "accelerate", "safetensors"),
    "other": ("nvidia-ml-py", "tqdm"),
}
"""Distributions by what they are for."""

LOADED = {"cv2": tuple(name for name in GROUPS["inference"] if name.startswith("opencv")),
          "onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "tensorrt": ("tensorrt",),
          "tensorrt_rtx": ("tensorrt_rtx",)}
"""Packages that are imported, each in a process of its own (native libraries may be missing or too old), and the
distributions that bring them. On a Jetson some come from the system, without a distribution."""

CUDA_LIBRARIES = {"tensorrt_cu12_libs": 12, "tensorrt_cu13_libs": 13, "tensorrt_rtx_cu12_libs": 12,
                  "tensorrt_rtx_cu13_libs": 13}
"""Distributions with TensorRT's libraries, and the CUDA they are made for."""

COMMANDS = {"nvcc": ("nvcc", "--version")} | {
    f"import {name}": (sys.executable, probe.__file__, "import", name) for name in LOADED}


@dataclass(frozen=True)
class Package:
    """A package that was imported. loads: None where it took too long to say. failure: why it does not load."""

    version: str | None
    loads: bool | None
    failure: str | None = None

    @property
    def installed(self) -> bool:
        return self.failure != probe.NOT_INSTALLED

    @property
    def numbers(self) -> tuple[int, ...]:
        """(10, 3, 0) for "10.3.0", to compare with."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version or "")[:3])


@dataclass(frozen=True)
class Software:
    """packages: version of each distribution of GROUPS, None where it is missing. loaded: LOADED, imported.

    cuda_toolkit: version of nvcc. cuda_libraries: those of CUDA_LIBRARIES that are installed.
    """

    python: str
    talent_edge: str
    packages: Mapping[str, str | None]
    loaded: Mapping[str, Package]
    cuda_toolkit: str | None
    cuda_libraries: tuple[str, ...]

    def missing(self, *distributions: str) -> list[str]:
        return [name for name in distributions if self.packages[name] is None]


def read_software(reader: Reader, outcomes: Mapping[str, Outcome]) -> Software:
    """`outcomes`: of COMMANDS."""
    packages = {name: reader.version(name) for group in GROUPS.values() for name in group}
    loaded = {}
    for name, distributions in LOADED.items():
        version = next(filter(None, map(packages.get, distributions)), None)
        loaded[name] = _package(outcomes[f"import {name}"], version)
    for name in ("tensorrt", "tensorrt_rtx"):
        packages[name] = packages[name] or loaded[name].version
    toolkit = re.search(r"release ([\d.]+)", outcomes["nvcc"].output)
    return Software(python=reader.host().python, talent_edge=talent.__version__, packages=packages, loaded=loaded,
                    cuda_toolkit=toolkit[1] if toolkit else None,
                    cuda_libraries=tuple(name for name in CUDA_LIBRARIES if reader.version(name)))


def _package(outcome: Outcome, distribution: str | None) -> Package:
    """`distribution`: the version that is installed, None where no distribution brings the package."""
    said = answer(outcome)
    if outcome.failure == NO_ANSWER and distribution is not None:
        return Package(version=distribution, loads=None)
    if outcome.failure == NO_ANSWER:
        return Package(version=None, loads=False, failure=probe.NOT_INSTALLED)
    if "failure" in said:
        return Package(version=distribution, loads=False, failure=said["failure"])
    return Package(version=said["version"] or distribution, loads=True)
