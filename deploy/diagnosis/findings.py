"""What is wrong on a machine, or known to go wrong, and its remedy. Each rule is one function.

error: something that is installed does not load or gives wrong results, or the bundle cannot run here.
warning: it works badly, or something that is needed is missing. note: good to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy.diagnosis.capabilities import (
    OLDEST_TENSORRT,
    Capability,
    Libraries,
    compiles_wrongly,
    tensorrt_remedy,
)
from deploy.diagnosis.gpus import Gpus
from deploy.diagnosis.software import CUDA_LIBRARIES, Software
from deploy.diagnosis.system import Machine
from deploy.targets import OLDEST_CAPABILITY, RTX_PORTABLE_FROM, RTX_TARGETS, build_command
from talent.native import BUILD

if TYPE_CHECKING:
    from deploy.diagnosis.bundle_fit import BundleFit

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")
PYTHONS = ((3, 10), (3, 12))
LOW_MEMORY_BYTES = 8 * 2**30
LOW_DISK_BYTES = 2 * 2**30
CUDA_13_DRIVER = 580  # docs.nvidia.com/deploy/cuda-compatibility: CUDA 13.x needs driver 580 or newer


@dataclass(frozen=True)
class Finding:
    """severity: of SEVERITIES. name: stays the same from version to version, for programs that read the report."""

    severity: str
    name: str
    sentence: str
    remedy: str


@dataclass(frozen=True)
class Facts:
    """Everything the rules look at. unanswered: commands that gave no answer in time."""

    machine: Machine
    gpus: Gpus
    software: Software
    capabilities: tuple[Capability, ...]
    libraries: Libraries
    unanswered: tuple[str, ...] = ()
    bundle: BundleFit | None = None


def findings(facts: Facts) -> tuple[Finding, ...]:
    """What the rules find, the worst first."""
    found = [finding for rule in RULES for finding in rule(facts)]
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def python_version(facts: Facts) -> Iterator[Finding]:
    version = tuple(map(int, facts.software.python.split(".")[:2]))
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        yield Finding(ERROR, "python", f"Python {facts.software.python} is not supported, expected 3.10 - 3.12",
                      "make a virtual environment with another Python: python3.12 -m venv .venv")


def packages_that_do_not_load(facts: Facts) -> Iterator[Finding]:
    missing = facts.software.missing("numpy", "tokenizers")
    if not facts.software.loaded["cv2"].installed:
        missing.append("opencv-python-headless")
    if missing:
        yield Finding(ERROR, "inference-packages", f"inference needs {', '.join(missing)}, not installed here",
                      "pip install talent-edge")
    for name, package in facts.software.loaded.items():
        if package.installed and package.loads is False:
            remedy = "reinstall it with the libraries it needs"
            if name == "cv2":
                remedy = ("pip uninstall -y opencv-python opencv-contrib-python && "
                          "pip install --force-reinstall opencv-python-headless")
            yield Finding(ERROR, f"{name}-does-not-load", f"{name} is installed but does not load: {package.failure}",
                          remedy)


def two_onnxruntimes(facts: Facts) -> Iterator[Finding]:
    # Both write the same folder and the last one installed wins: microsoft/onnxruntime #26996, #7748.
    cpu, gpu = (facts.software.packages[name] for name in ("onnxruntime", "onnxruntime-gpu"))
    if cpu and gpu:
        yield Finding(ERROR, "two-onnxruntimes", f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed and "
                      "overwrite each other's files",
                      "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'talent-edge[cpu]' (to run bundles) "
                      "or 'talent-edge[export]' (to make them)")


def tensorrt_and_transformers(facts: Facts) -> Iterator[Finding]:
    """TensorRT 10.3 - 10.7 compile ViTs of DINOv2's kind wrongly.

    NVIDIA/TensorRT #4723 (10.3, FP16, DINOv3: one class all over the mask), #4419 (10.3 wrong, 10.8 right), #4742
    (10.4, DINOv3 ViT-B: cosine 0.018 to PyTorch in FP32 already, NaN in FP16), #4328 and #4333 (10.7: attention of
    open_clip fused wrongly, in FP32 too). On boards: spacewalk01/depth-anything-tensorrt #49 (10.3 wrong, 10.12
    right), ika-rwth-aachen/ros2-depth-anything-v3-trt #16 (JetPack 6.2's 10.3 wrong, 10.16.1 right),
    lpiccinelli-eth/UniDepth #135 (10.7 wrong, 10.13.2 right). So FP32 is no way around it.
    """
    package = facts.software.loaded["tensorrt"]
    if compiles_wrongly(package):
        newer = ("JetPack 7.2 brings TensorRT 10.16; on JetPack 6, NVIDIA's TensorRT container 26.03 has it too"
                 if facts.machine.jetson else "pip install --upgrade tensorrt")
        yield Finding(ERROR, "tensorrt-10.3-10.7", f"TensorRT {package.version}: 10.3 - 10.7 build wrong engines from "
                      "vision transformers like this one, silently, in FP16 and also in FP32 (NVIDIA/TensorRT #4723, "
                      "#4742, #4333)",
                      f"take 10.8 or newer ({newer}) and build the engines again; until then run bundles with "
                      "--backend onnxruntime, or compare each engine with it: talent-eval BUNDLE --backend tensorrt")


def tensorrt_too_old(facts: Facts) -> Iterator[Finding]:
    package = facts.software.loaded["tensorrt"]
    if package.numbers and package.numbers < OLDEST_TENSORRT:
        remedy = "install JetPack 7.2 (TensorRT 10.16)" if facts.machine.jetson else "pip install --upgrade tensorrt"
        yield Finding(ERROR, "tensorrt-too-old", f"TensorRT {package.version} is too old, expected 10.8 or newer",
                      remedy)


def tensorrt_without_orin(facts: Facts) -> Iterator[Finding]:
    # NVIDIA-ISAAC-ROS/isaac-ros-cli #22: "Target GPU SM 87 is not supported by this TensorRT release".
    jetson, package = facts.machine.jetson, facts.software.loaded["tensorrt"]
    if jetson and (jetson.l4t_major or 0) >= 38 and facts.gpus.arch == "sm87" and package.numbers[:2] == (10, 13):
        yield Finding(ERROR, "tensorrt-10.13-orin", f"TensorRT {package.version} of JetPack 7 is not made for Orin",
                      "install the TensorRT 10.16 of JetPack 7.2; where Isaac ROS pins 10.13, override the pin")


def attention_on_blackwell(facts: Facts) -> Iterator[Finding]:
    # NVIDIA/TensorRT #4837: SAM 3, TensorRT 10.16.1; FP32 is exact. One report, of a larger ViT than ours.
    package = facts.software.loaded["tensorrt"]
    if facts.gpus.arch == "sm120" and (10, 8) <= package.numbers < (11,):
        yield Finding(NOTE, "fp16-attention-sm120", f"TensorRT {package.version} on sm120: SAM 3's FP16 attention was "
                      "reported wrong on this kind of GPU with 10.16.1 (NVIDIA/TensorRT #4837)",
                      "compare FP16 and INT8 engines with ONNX Runtime: talent-eval BUNDLE --backend tensorrt; "
                      "talent-export --fp32 where they differ")


def rtx_target(facts: Facts) -> Iterator[Finding]:
    package, gpus = facts.software.loaded["tensorrt_rtx"], facts.gpus
    if not package.installed or gpus.capability is None:
        return
    full = facts.software.loaded["tensorrt"]
    if gpus.capability not in RTX_TARGETS:
        how = f"full TensorRT here: {'--backend tensorrt' if full.installed else tensorrt_remedy(facts.machine)}"
        if gpus.capability < OLDEST_CAPABILITY:
            how = "ONNX Runtime here: --backend onnxruntime"
        yield Finding(NOTE if full.installed else WARNING, "rtx-no-target",
                      f"TensorRT-RTX builds no engine for this GPU ({gpus.arch}), only for "
                      f"sm{', sm'.join(map(str, RTX_TARGETS))}", f"use {how}")
    elif gpus.capability < RTX_PORTABLE_FROM:
        yield Finding(WARNING, "rtx-turing", f"portable engines of TensorRT-RTX leave Turing ({gpus.arch}) out",
                      f"name it: {build_command('BUNDLE', runtime='tensorrt_rtx', arch=gpus.arch)}; or use full "
                      "TensorRT")


def two_tensorrts(facts: Facts) -> Iterator[Finding]:
    if all(facts.software.loaded[name].installed for name in ("tensorrt", "tensorrt_rtx")):
        yield Finding(NOTE, "two-tensorrts", "tensorrt and tensorrt_rtx are both installed; one process can use one of "
                      "them", "choose one for each process: --backend tensorrt or --backend tensorrt_rtx")


def torchvision_beside_cpu_torch(facts: Facts) -> Iterator[Finding]:
    torch, vision = (facts.software.packages[name] or "" for name in ("torch", "torchvision"))
    if torch.endswith("+cpu") and vision and "+" not in vision and facts.machine.architecture == "x86_64":
        yield Finding(ERROR, "torchvision-of-another-build", f"torchvision {vision} does not import beside the "
                      f"CPU-only torch {torch} (operator torchvision::nms does not exist)",
                      "install both from one place: pip install --force-reinstall torch torchvision")


def driver(facts: Facts) -> Iterator[Finding]:
    gpus, machine = facts.gpus, facts.machine
    if gpus.arch is None and gpus.gpus:
        yield Finding(ERROR, "gpu-hidden", f"{gpus.gpus[0].name} is here, but CUDA cannot use it: {gpus.failure}",
                      "look at CUDA_VISIBLE_DEVICES; in a container, start it with --gpus all; else reinstall the "
                      "driver and restart")
    elif gpus.arch is None and (machine.nvidia_device or machine.jetson):
        start = "with --runtime nvidia" if machine.jetson else "with --gpus all"
        yield Finding(WARNING, "no-driver", f"an NVIDIA GPU is in this machine, but not usable: {gpus.failure}",
                      "install " + ("JetPack: sudo apt install nvidia-jetpack" if machine.jetson else "NVIDIA's driver")
                      + f" (restart after an update of it); in a container, start it {start}")
    made_for = max((CUDA_LIBRARIES[name] for name in facts.software.cuda_libraries), default=0)
    if gpus.cuda and int(gpus.cuda.split(".")[0]) < made_for:
        yield Finding(ERROR, "driver-too-old", f"the driver serves CUDA {gpus.cuda}, the installed TensorRT is made "
                      f"for CUDA {made_for} ({', '.join(facts.software.cuda_libraries)})",
                      f"update the driver to {CUDA_13_DRIVER} or newer" if made_for == 13 else "update the driver")


def unanswered(facts: Facts) -> Iterator[Finding]:
    for command in facts.unanswered:
        remedy = "sudo nvidia-smi -pm 1 keeps the driver ready" if command in ("nvml", "nvidia-smi", "cuda") else (
            "run talent-doctor again when the machine is less busy")
        yield Finding(WARNING, "no-answer", f"{command} gave no answer in time; the report goes without it", remedy)


def toolkit_for_pycuda(facts: Facts) -> Iterator[Finding]:
    software, jetson = facts.software, facts.machine.jetson is not None
    full_tensorrt = facts.gpus.capability is not None and facts.gpus.capability not in RTX_TARGETS
    incomplete = software.missing("polygraphy") or not software.loaded["tensorrt"].installed
    if full_tensorrt and incomplete and software.missing("pycuda") and not software.cuda_toolkit:
        enough = "polygraphy tqdm (JetPack has TensorRT)" if jetson else "tensorrt polygraphy tqdm"
        yield Finding(WARNING, "no-cuda-toolkit", "pip install 'talent-edge[tensorrt]' compiles pycuda, which needs a "
                      "CUDA toolkit, and there is no nvcc on the PATH",
                      f"put the toolkit's bin folder on the PATH, or take only what inference needs: "
                      f"pip install {enough}")


def room(facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    if machine.memory_bytes is not None and machine.memory_bytes < LOW_MEMORY_BYTES:
        here = ("export the ONNX files elsewhere (talent-export --no-engine); for building here, add swap and stop the "
                "desktop: sudo systemctl isolate multi-user.target")
        yield Finding(WARNING, "low-memory", f"{machine.memory_bytes / 2**30:.1f} GiB of memory: exporting the preset "
                      "base took 7.4 GB, building its engines 1.5 GB",
                      here if machine.jetson else "export elsewhere, or take the preset small")
    if machine.temporary_free_bytes < LOW_DISK_BYTES:
        yield Finding(WARNING, "low-disk", f"{machine.temporary_free_bytes / 2**30:.1f} GiB are free in the folder "
                      "for temporary files, expected 2 GiB at least", "make room, or name another folder: "
                      "export TMPDIR=FOLDER")


def power_mode(facts: Facts) -> Iterator[Finding]:
    jetson = facts.machine.jetson
    if jetson and jetson.power_mode and not jetson.power_mode.startswith("MAXN"):
        number = jetson.fastest_mode or "ID (the MAXN of /etc/nvpmodel.conf)"
        yield Finding(NOTE, "power-mode", f"the power mode is {jetson.power_mode}: latencies are not the board's best",
                      f"sudo nvpmodel -m {number} && sudo jetson_clocks")


def libraries_to_build(facts: Facts) -> Iterator[Finding]:
    found = facts.libraries
    missing = [name for name, path in (("CUDA kernels", found.kernels), ("TensorRT plugin", found.plugin)) if not path]
    if missing and facts.gpus.capability is not None:
        yield Finding(NOTE, "libraries-not-built", f"RCA's {' and '.join(missing)} are not built: this GPU computes it "
                      "with standard operators, which is right, and may be slower", BUILD)


def something_runs(facts: Facts) -> Iterator[Finding]:
    cpu, *others = (capability for capability in facts.capabilities if capability.run)
    if facts.bundle is None:
        if not any(capability.run.possible for capability in (cpu, *others)):
            yield Finding(WARNING, "no-runner", "no bundle can run here: neither ONNX Runtime nor a TensorRT is usable",
                          cpu.run.remedy)
        return
    fitting, path = facts.bundle.runners, facts.bundle.path
    if not fitting:
        yield Finding(ERROR, "bundle-cannot-run", f"nothing here can run {path}",
                      facts.bundle.rebuild or cpu.run.remedy)
    elif facts.bundle.rebuild:
        yield Finding(WARNING, "bundle-lacks-engines", f"{path} has no engines for a TensorRT that could run it here; "
                      f"{' and '.join(fitting)} can",
                      facts.bundle.rebuild)


RULES: Sequence[Callable[[Facts], Iterator[Finding]]] = (
    python_version, packages_that_do_not_load, two_onnxruntimes, tensorrt_and_transformers, tensorrt_too_old,
    tensorrt_without_orin, attention_on_blackwell, rtx_target, two_tensorrts, torchvision_beside_cpu_torch, driver,
    unanswered, toolkit_for_pycuda, room, power_mode, libraries_to_build, something_runs)
