"""Which GPUs an engine can be for, and the command that builds the engines that a machine lacks. Imports no package."""

from __future__ import annotations

import shlex
from pathlib import Path

RTX_TARGETS = (75, 80, 86, 89, 120, 121)
"""Compute capabilities that TensorRT-RTX 1.7 builds for, from its `ComputeCapability`. Not Jetson's 87 and 110, not the
servers' 90 and 100."""
RTX_PORTABLE_FROM = 80  # a portable engine leaves Turing (75) out: that one must be named
OLDEST_CAPABILITY = 75  # Turing, the oldest that TensorRT 10 and 11 serve


def capability(arch: str) -> int:
    """87 for "sm87"."""
    return int(arch.removeprefix("sm"))


def portable_covers(arch: str) -> bool:
    """Whether a portable engine of TensorRT-RTX runs on this GPU ("sm86"): a target of it, and not Turing."""
    return capability(arch) in RTX_TARGETS and capability(arch) >= RTX_PORTABLE_FROM


def build_command(directory: str | Path, *, runtime: str | None = None, arch: str | None = None,
                  plugin: str | None = None, force: bool = False) -> str:
    """The command that builds a bundle's engines. arch: the GPU ("sm75") they are to run on, None for the usual.

    plugin: "auto", "on" or "off", None for the usual. force: also what is there and fits.
    """
    words = ["talent-build", str(directory)]
    if runtime is not None:
        words += ["--runtime", runtime]
    if runtime == "tensorrt_rtx" and arch is not None and not portable_covers(arch):
        words += ["--arch", arch]
    if plugin is not None:
        words += ["--plugin", plugin]
    if force:
        words.append("--force")
    return shlex.join(words)


def build_advice(directory: str | Path, *, runtime: str, arch: str, force: bool = False) -> str:
    """What to do where a bundle lacks an engine of `runtime` for the GPU `arch`, or (`force`) has one that is bad."""
    if capability(arch) < OLDEST_CAPABILITY:
        return f"no TensorRT of today builds for {arch}: use the backend onnxruntime"
    if runtime == "tensorrt_rtx" and capability(arch) not in RTX_TARGETS:
        return (f"TensorRT-RTX builds none for {arch}, only for sm{', sm'.join(map(str, RTX_TARGETS))}; with full "
                f"TensorRT, run: {build_command(directory, runtime='tensorrt')}")
    return f"run: {build_command(directory, runtime=runtime, arch=arch, force=force)}"
