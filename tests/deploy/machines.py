"""Machines that a test can play: a `Reader` over files, answers of commands and installed distributions."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.diagnosis.capabilities import KERNELS, PLUGIN
from deploy.diagnosis.system import NOT_FOUND, Host, Outcome, Reader

GIB = 2**30
INFERENCE = {"numpy": "2.4.6", "opencv-python-headless": "4.13.0", "tokenizers": "0.23.3"}
EXPORT = {"torch": "2.15.0", "torchvision": "0.29.2", "timm": "1.0.31", "open_clip_torch": "3.3.0", "peft": "0.21.2",
          "onnx": "1.21.0", "onnxsim": "0.8.1", "onnxscript": "0.7.2", "nvidia-modelopt": "0.47.0",
          "onnxruntime-gpu": "1.24.4"}
NOT_INSTALLED = {"failure": "not installed"}
NO_DRIVER = {"failure": "no CUDA driver is installed (no libcuda.so.1)"}


def command_name(command: Sequence[str]) -> str:
    """"nvidia-smi", "cuda", "import tensorrt": what the tests call a command."""
    return " ".join(command[2:]) if command[0] == sys.executable else command[0]


def play(root: Path, *, files: Mapping[str, str] | None = None, answers: Mapping[str, Any] | None = None,
         packages: Mapping[str, str] | None = None, architecture: str = "x86_64", python: str = "3.12.3",
         memory: int = 32 * GIB, disk: int = 100 * GIB, libraries: Collection[str] = (KERNELS, PLUGIN)) -> Reader:
    """A machine. answers: by command name, an Outcome, or what deploy/diagnosis/probe.py would say. libraries: those of
    ours that are built.
    """
    known = {"proc/meminfo": f"MemTotal:       {memory // 1024} kB\nMemAvailable:   {memory // 2048} kB\n"
                             "SwapTotal:       0 kB\n", "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\n'}
    for name, text in {**known, **(files or {})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    packages = {**INFERENCE, **(packages or {})}
    probes = {"cuda": NO_DRIVER, "nvml": NOT_INSTALLED, "import cv2": {"version": "4.13.0"}}
    for name in ("onnxruntime", "tensorrt", "tensorrt_rtx"):
        version = packages.get(name) or packages.get(f"{name}-gpu")
        probes[f"import {name}"] = {"version": version} if version else NOT_INSTALLED
    probes |= answers or {}

    def run(command: Sequence[str]) -> Outcome:
        said = probes.get(command_name(command), Outcome(failure=NOT_FOUND))
        return said if isinstance(said, Outcome) else Outcome("a package may print this\n" + json.dumps(said))

    host = Host(system="Linux", release="6.8.0", architecture=architecture, python=python, cores=8,
                temporary_free_bytes=disk)
    return Reader(root=root, run=run, version=packages.get, host=lambda: host,
                  library=lambda name: root / f"build/lib{name}.so" if name in libraries else None)


def cuda(name: str, capability: str, version: str = "13.0") -> dict[str, Any]:
    """What the driver shows: one GPU."""
    return {"cuda": version, "gpus": [{"name": name, "compute_capability": capability, "memory_bytes": 24 * GIB,
                                       "max_clock_mhz": 2520}]}


def bare(root: Path, **changes: Any) -> Reader:
    """NumPy, OpenCV and tokenizers, and nothing else."""
    return play(root, **changes)


def desktop(root: Path, **changes: Any) -> Reader:
    """An RTX 4090 with TensorRT-RTX and everything that talent-export needs; nvidia-smi but no NVML package."""
    row = "NVIDIA GeForce RTX 4090, 8.9, 24564, 23500, 580.95.05, 450.00, 3105, 41\n"
    answers = {"nvidia-smi": Outcome(row), "cuda": cuda("NVIDIA GeForce RTX 4090", "8.9"),
               "nvcc": Outcome("Cuda compilation tools, release 13.0, V13.0.88\n")} | changes.pop("answers", {})
    packages = {**EXPORT, "tensorrt_rtx": "1.7.1.116", "tensorrt_rtx_cu13_libs": "1.7.1.116", "polygraphy": "0.53.6"}
    return play(root, answers=answers, packages=packages | changes.pop("packages", {}), **changes)


def server(root: Path, **changes: Any) -> Reader:
    """An H100 with full TensorRT 10.16, asked through NVML."""
    gpu = {"name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "memory_bytes": 80 * GIB,
           "memory_free_bytes": 79 * GIB, "power_limit_watts": 700.0, "max_clock_mhz": 1980, "temperature_celsius": 33}
    answers = {"nvml": {"driver": "580.95.05", "gpus": [gpu]}, "cuda": cuda(gpu["name"], "9.0")}
    packages = {**EXPORT, "tensorrt": "10.16.1.11", "tensorrt_cu13_libs": "10.16.1.11", "polygraphy": "0.53.6",
                "nvidia-ml-py": "13.615.71"}
    return play(root, answers=answers | changes.pop("answers", {}), packages=packages | changes.pop("packages", {}),
                **changes)


JETSON_FILES = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64\n",
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0000\0nvidia,tegra234\0",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MODE_30W >\n"}


def orin(root: Path, **changes: Any) -> Reader:
    """A Jetson AGX Orin with JetPack 6.1, whose nvidia-smi says almost nothing."""
    answers = {"nvidia-smi": Outcome("Orin (nvgpu), [N/A], [N/A], [N/A], 540.4.0, [N/A], [N/A], [N/A]\n"),
               "nvpmodel": Outcome("NV Power Mode: MODE_30W\n2\n"), "cuda": cuda("Orin", "8.7", "12.6"),
               "nvcc": Outcome("Cuda compilation tools, release 12.6, V12.6.68\n")}
    packages = {"tensorrt": "10.3.0", "polygraphy": "0.53.6", "onnxruntime": "1.24.4"}
    return play(root, files=JETSON_FILES | changes.pop("files", {}), answers=answers | changes.pop("answers", {}),
                packages=packages | changes.pop("packages", {}),
                **{"architecture": "aarch64", "python": "3.10.12", **changes})
