"""What can be built and run on a machine, and the command that changes it where something cannot."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.diagnosis.gpus import Gpus
from deploy.diagnosis.software import Package, Software
from deploy.diagnosis.system import Machine, Reader
from deploy.plugin import LIBRARY as PLUGIN
from deploy.targets import OLDEST_CAPABILITY, RTX_PORTABLE_FROM, RTX_TARGETS, build_command
from talent.native import KERNELS

OLDEST_TENSORRT = (10, 3)
WRONG_TENSORRTS = (10, 3), (10, 8)
"""From the first to before the second, TensorRT compiles vision transformers of DINOv2's kind wrongly: findings.py."""
EXPORT = ("torch", "torchvision", "timm", "open_clip_torch", "peft", "onnx", "onnxsim", "onnxscript", "nvidia-modelopt")


@dataclass(frozen=True)
class Verdict:
    """Whether something is possible here. remedy: what changes a no or a limited yes; None where nothing here does."""

    possible: bool
    reason: str
    remedy: str | None = None


@dataclass(frozen=True)
class Capability:
    """What one program can do here. build, run: None where the question does not apply."""

    name: str
    title: str
    version: str | None
    build: Verdict | None
    run: Verdict | None


@dataclass(frozen=True)
class Libraries:
    """Where RCA's CUDA kernels, which PyTorch calls, and its TensorRT plugin are; None for what is not found."""

    kernels: str | None
    plugin: str | None


def read_libraries(reader: Reader) -> Libraries:
    kernels, plugin = (path and str(path) for path in map(reader.library, (KERNELS, PLUGIN)))
    return Libraries(kernels=kernels, plugin=plugin)


def capabilities(machine: Machine, gpus: Gpus, software: Software) -> tuple[Capability, ...]:
    """ONNX Runtime, TensorRT, TensorRT-RTX and talent-export, in this order."""
    return (_onnxruntime(machine, software), _tensorrt(machine, gpus, software),
            _tensorrt_rtx(machine, gpus, software), _export(software))


def _onnxruntime(machine: Machine, software: Software) -> Capability:
    package = software.loaded["onnxruntime"]
    if not package.installed:
        run = Verdict(False, "not installed", "pip install 'talent-edge[cpu]'")
    elif package.loads is False:
        run = Verdict(False, f"does not load: {package.failure}", "pip uninstall -y onnxruntime onnxruntime-gpu && "
                                                                  "pip install 'talent-edge[cpu]'")
    else:
        run = Verdict(True, f"the ONNX files of every bundle, on the CPU ({machine.cores} cores); needs no engine")
    return Capability("onnxruntime", "ONNX Runtime", package.version, None, run)


def _tensorrt(machine: Machine, gpus: Gpus, software: Software) -> Capability:
    package = software.loaded["tensorrt"]
    build = run = _tensorrt_gpu(gpus, software) or _package_verdict(package, tensorrt_remedy(machine))
    if build is None:
        trust = ", which are not to be trusted: see the findings" if compiles_wrongly(package) else ""
        build = Verdict(True, f"engines for this GPU ({gpus.arch}) and no other{trust}")
        run = _polygraphy(software) or Verdict(True, f"engines that TensorRT {package.version} built for {gpus.arch}")
    return Capability("tensorrt", "TensorRT", package.version, build, run)


def _tensorrt_gpu(gpus: Gpus, software: Software) -> Verdict | None:
    """What keeps full TensorRT from this machine, installed or not; None where nothing does."""
    package = software.loaded["tensorrt"]
    if gpus.capability is None:
        without_gpu = "pip install 'talent-edge[rtx]' builds engines for RTX cards without a GPU"
        return Verdict(False, f"it works only where its GPU is; {gpus.failure}",
                       None if software.loaded["tensorrt_rtx"].installed else without_gpu)
    if gpus.capability < OLDEST_CAPABILITY:
        return Verdict(False, f"{gpus.arch} is older than sm{OLDEST_CAPABILITY} (Turing), the oldest it serves",
                       "use ONNX Runtime: pip install 'talent-edge[cpu]'")
    if package.numbers and package.numbers < OLDEST_TENSORRT:
        oldest = ".".join(map(str, OLDEST_TENSORRT))
        return Verdict(False, f"{package.version} is too old, expected {oldest} or newer", "install a newer TensorRT")
    return None


def compiles_wrongly(package: Package) -> bool:
    return WRONG_TENSORRTS[0] <= package.numbers < WRONG_TENSORRTS[1]


def tensorrt_remedy(machine: Machine) -> str:
    """How full TensorRT gets here."""
    if machine.jetson is None:
        return "pip install 'talent-edge[tensorrt]'"
    # Its Python package comes with JetPack and belongs to the system's Python; pip's is for servers.
    return ("sudo apt install python3-libnvinfer, and use the system's Python: "
            "python3 -m venv --system-site-packages .venv")


def _tensorrt_rtx(machine: Machine, gpus: Gpus, software: Software) -> Capability:
    package, capability = software.loaded["tensorrt_rtx"], gpus.capability
    missing = _package_verdict(package, "pip install 'talent-edge[rtx]'")
    if capability is None:
        run = Verdict(False, gpus.failure)
    elif capability not in RTX_TARGETS:
        full = capability >= OLDEST_CAPABILITY and not software.loaded["tensorrt"].installed
        run = Verdict(False, f"{gpus.arch} is no target of it",
                      f"use full TensorRT: {tensorrt_remedy(machine)}" if full else None)
        missing = run if missing else None
    else:
        run = missing or _polygraphy(software) or Verdict(True, f"engines that TensorRT-RTX {package.version} built")
    if missing:
        build = missing
    elif capability in RTX_TARGETS and capability < RTX_PORTABLE_FROM:
        build = Verdict(True, f"engines for {gpus.arch} where it is named; a portable one leaves this GPU out",
                        build_command("BUNDLE", runtime="tensorrt_rtx", arch=gpus.arch))
    else:
        where = "; needs no GPU" if capability is None else "" if capability in RTX_TARGETS else "; this GPU is none"
        build = Verdict(True, f"portable engines, for every RTX card from Ampere (sm{RTX_PORTABLE_FROM}) on{where}")
    return Capability("tensorrt_rtx", "TensorRT-RTX", package.version, build, run)


def _package_verdict(package: Package, remedy: str) -> Verdict | None:
    if not package.installed:
        return Verdict(False, "not installed", remedy)
    if package.loads is False:
        return Verdict(False, f"does not load: {package.failure}", f"reinstall it: {remedy}")
    return None


def _polygraphy(software: Software) -> Verdict | None:
    if software.missing("polygraphy"):
        return Verdict(False, "needs the package polygraphy", "pip install polygraphy")
    return None


def _export(software: Software) -> Capability:
    missing = software.missing(*EXPORT)
    if not software.loaded["onnxruntime"].installed:
        missing.append("onnxruntime-gpu")
    if missing:
        # The extra brings onnxruntime-gpu, which must not lie beside plain onnxruntime.
        first = "pip uninstall -y onnxruntime && " if software.packages["onnxruntime"] else ""
        build = Verdict(False, f"needs {', '.join(missing)}", f"{first}pip install 'talent-edge[export]'")
    else:
        build = Verdict(True, "bundles from checkpoints, with the engines of a TensorRT that can build here")
    return Capability("export", "talent-export", software.talent_edge, build, None)
