"""From an ONNX file to a TensorRT or TensorRT-RTX engine, built with whichever of the two is installed.

Full TensorRT builds on the device that will run the engine. TensorRT-RTX also builds where there is no GPU: such an
engine runs on every RTX GPU from Ampere on, which compiles its kernels when it is first loaded.

Polygraphy chooses between the two by one setting for the whole process, and keeps the parser's errors and the progress
to itself; the few calls that a build takes are made here directly.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from deploy.bundle import PORTABLE
from deploy.runtime.gpu import gpu_architecture
from deploy.runtime.tensorrt import RUNTIMES
from talent.errors import UserError
from talent.files import atomic_write
from talent.require import require

Profile = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Smallest, usual and largest shape of one input."""


@dataclass(frozen=True)
class Runtime:
    """An installed engine builder."""

    name: str
    """"tensorrt" or "tensorrt_rtx"."""
    version: str


@dataclass(frozen=True)
class EngineBuild:
    """What `build_engine` made."""

    path: Path
    bytes: int
    seconds: float
    runtime: Runtime
    arch: str
    """The GPU it is for: "sm87", "sm86+sm89", or PORTABLE."""


def installed_runtimes() -> list[Runtime]:
    """The engine builders that import here, full TensorRT first. A broken installation raises its own error."""
    found = []
    for name in RUNTIMES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            continue
        found.append(Runtime(name=name, version=module.__version__))
    return found


def build_engine(onnx_path: str | Path, plan_path: str | Path, *, profiles: Mapping[str, Profile],
                 runtime: str | None = None, archs: Sequence[str] = (), workspace_bytes: int | None = None,
                 progress: bool = True) -> EngineBuild:
    """Build the strongly typed network of `onnx_path` (external data beside it is read) into `plan_path`.

    `profiles` gives every dynamic input its smallest, usual and largest shape. `runtime` is one of RUNTIMES; None
    takes the first one installed. `archs` ("sm86") are the GPUs a TensorRT-RTX engine is made for; none means
    PORTABLE. `workspace_bytes` limits the device memory that a layer may borrow while it runs.
    Raises UserError for a missing runtime, file, profile or architecture and with the parser's own words for a graph
    it refuses; RuntimeError when the builder gives up.
    """
    onnx_path = Path(onnx_path)
    if not onnx_path.is_file():
        raise UserError(f"no ONNX file at {onnx_path}")
    chosen = _choose(runtime)
    trt = require(chosen.name, extra=RUNTIMES[chosen.name])
    if archs and chosen.name == "tensorrt":
        raise UserError("TensorRT builds for the GPU it runs on, expected no archs; drop them or take tensorrt_rtx")
    device = _device_arch() if chosen.name == "tensorrt" else None
    started = time.monotonic()
    messages: list[str] = []
    builder = trt.Builder(_logger(trt, messages))
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(onnx_path)):
        errors = "\n  ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise UserError(f"{chosen.name} {chosen.version} cannot read {onnx_path}:\n  {errors}")
    config = builder.create_builder_config()
    if workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.add_optimization_profile(_optimization_profile(builder, network, profiles))
    arch = device or _target(trt, config, archs)
    with _interruptible() as interrupted, _progress_bar(trt, onnx_path.name, interrupted, enabled=progress) as monitor:
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = "".join(f"\n  {message}" for message in messages)
        raise RuntimeError(f"{chosen.name} {chosen.version} built no engine from {onnx_path}:{said}")
    with atomic_write(plan_path) as temporary:
        temporary.write_bytes(plan)
    return EngineBuild(path=Path(plan_path), bytes=plan.nbytes, seconds=time.monotonic() - started, runtime=chosen,
                       arch=arch)


def _choose(name: str | None) -> Runtime:
    if name is not None and name not in RUNTIMES:
        raise UserError(f"unknown runtime {name!r}, expected one of {', '.join(RUNTIMES)}")
    installed = installed_runtimes()
    for runtime in installed:
        if name in (None, runtime.name):
            return runtime
    wanted = name or " or ".join(RUNTIMES)
    have = ", ".join(runtime.name for runtime in installed) or "neither TensorRT"
    raise UserError(f"{wanted} is not installed (found {have}); run: pip install 'talent-edge[rtx]' on an RTX "
                    "desktop or a machine without a GPU; on a Jetson, JetPack brings tensorrt")


def _strongly_typed(trt: ModuleType) -> int:
    """Network creation flags. TensorRT 10 must be asked for strong typing; a version without the flag has no other."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _optimization_profile(builder, network, profiles: Mapping[str, Profile]):
    inputs = {tensor.name: tuple(tensor.shape) for tensor in map(network.get_input, range(network.num_inputs))}
    unknown, missing = set(profiles) - set(inputs), {n for n, shape in inputs.items() if -1 in shape} - set(profiles)
    if unknown or missing:
        raise UserError(f"profiles must name the graph's dynamic inputs: unknown {sorted(unknown)}, missing "
                        f"{sorted(missing)}; the graph has {', '.join(f'{n} {shape}' for n, shape in inputs.items())}")
    profile = builder.create_optimization_profile()
    for name, shapes in profiles.items():
        fits = all(len(shape) == len(inputs[name])
                   and all(want in (-1, dim) for want, dim in zip(inputs[name], shape, strict=True))
                   for shape in shapes)
        if len(shapes) != 3 or not fits or any(not a <= b <= c for a, b, c in zip(*shapes, strict=True)):
            raise UserError(f"the profile of {name} must be min <= opt <= max shapes that fit {inputs[name]}, "
                            f"got {list(map(tuple, shapes))}")
        profile.set_shape(name, *(tuple(shape) for shape in shapes))
    return profile


def _target(trt: ModuleType, config, archs: Sequence[str]) -> str:
    """Tell TensorRT-RTX which GPUs to build for."""
    if not archs:
        return PORTABLE
    known = {name.lower(): value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    unknown = [arch for arch in archs if arch not in known]
    if unknown:
        raise UserError(f"TensorRT-RTX {trt.__version__} does not build for {', '.join(unknown)}, only for "
                        f"{', '.join(known)}; on another GPU take full TensorRT")
    config.num_compute_capabilities = len(archs)
    for index, arch in enumerate(archs):
        if not config.set_compute_capability(known[arch], index):
            raise RuntimeError(f"TensorRT-RTX {trt.__version__} refused the architecture {arch}")
    return "+".join(archs)


def _device_arch() -> str:
    """The GPU here, which full TensorRT needs and builds for."""
    arch = gpu_architecture()
    if arch is None:
        raise UserError("TensorRT builds only where its GPU is, and the driver shows none; run: nvidia-smi; to build "
                        "without a GPU: pip install 'talent-edge[rtx]' and take tensorrt_rtx")
    return arch


def _logger(trt: ModuleType, messages: list[str]):
    """A TensorRT logger that keeps errors for the exception instead of printing them."""

    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity, message) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                messages.append(message)

    return Collector()


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn Ctrl-C into an event meanwhile, and into KeyboardInterrupt at the end.

    An exception must not cross the builder's C++ frames. Elsewhere than in the main thread Python allows no handler.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _progress_bar(trt: ModuleType, name: str, interrupted: threading.Event, *, enabled: bool) -> Iterator:
    """A TensorRT progress monitor that draws its outermost phase and stops the build once `interrupted` is set."""
    tqdm = require("tqdm", extra="export").tqdm

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outermost: str | None = None

        def phase_start(self, phase_name, parent_phase, num_steps) -> None:
            if parent_phase is None:
                self.outermost = phase_name
                bar.reset(total=num_steps)

        def step_complete(self, phase_name, step) -> bool:
            if phase_name == self.outermost:
                bar.update(step + 1 - bar.n)
            return not interrupted.is_set()

        def phase_finish(self, phase_name) -> None:
            if phase_name == self.outermost:
                bar.update((bar.total or 0) - bar.n)

    with tqdm(desc=f"build {name}", unit="step", leave=False, disable=None if enabled else True) as bar:
        yield Monitor()
