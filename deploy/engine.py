"""From an ONNX file to a TensorRT or TensorRT-RTX engine, built with whichever of the two is installed.

Full TensorRT builds on the device that will run the engine. TensorRT-RTX also builds where there is no GPU: such an
engine runs on every RTX GPU from Ampere on, which compiles its kernels when it is first loaded.

Polygraphy chooses between the two by one setting for the whole process, and keeps the parser's errors and the progress
to itself; the few calls that a build takes are made here directly.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from deploy import plugin, tensorrt_api
from deploy.build_memory import PeakMemory
from deploy.build_progress import Phases, run_with_bar
from deploy.builders import Runtime, choose_runtime, load_runtime
from deploy.manifest import PORTABLE
from deploy.runtime.gpu import gpu_architecture
from deploy.runtime.tensorrt import RUNTIMES
from deploy.targets import capability
from talent.errors import UserError, refuse_unknown
from talent.files import atomic_write

Profile = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Smallest, usual and largest shape of one input."""


@dataclass(frozen=True)
class EngineBuild:
    """What `build_engine` made.

    arch: the GPU it is for: "sm87", "sm86+sm89", or PORTABLE. peak_memory_bytes: the most that this process held in
    memory meanwhile, with everything it held already. peak_gpu_memory_bytes: the most that the builder took on the GPU,
    by its own word, in whole MiB. None for what is not known. plugin_layers: how many layers of the network that the
    parser made a plugin computes.
    """

    path: Path
    bytes: int
    seconds: float
    runtime: Runtime
    arch: str
    peak_memory_bytes: int | None
    peak_gpu_memory_bytes: int | None
    plugin_layers: int


def build_engine(onnx_path: str | Path, plan_path: str | Path, *, profiles: Mapping[str, Profile],
                 runtime: str | None = None, archs: Sequence[str] = (), workspace_bytes: int | None = None,
                 timing_cache: str | Path | None = None, plugins: Collection[str] = (),
                 progress: bool = True) -> EngineBuild:
    """Build the strongly typed network of `onnx_path` (external data beside it is read) into `plan_path`.

    `profiles` gives every dynamic input its smallest, usual and largest shape. `runtime` is one of RUNTIMES; None
    takes the first one that can build here. `archs` ("sm86") are the GPUs a TensorRT-RTX engine is made for; none means
    PORTABLE. `workspace_bytes` limits the device memory that a layer may borrow while it runs. `timing_cache`: a file
    of full TensorRT that is read where it is there, and written. `plugins`: ONNX functions that our plugin computes
    (`plugin.FUNCTIONS`); without them their bodies become layers, whatever this process has registered before. Folders
    are made when there is something to put into them.
    Raises UserError for a missing runtime, file, profile or architecture, for a plugin that is missing, does not fit or
    finds nothing to compute, with the parser's own words for a graph it refuses, and with the builder's where it gives
    up; KeyboardInterrupt where Ctrl-C stopped it. Nothing is written then.
    """
    onnx_path, plan_path = Path(onnx_path), Path(plan_path)
    if not onnx_path.is_file():
        raise UserError(f"no ONNX file at {onnx_path}")
    refuse_unknown(plugins, plugin.FUNCTIONS, what="plugin")
    chosen = choose_runtime(runtime)
    arch = engine_arch(chosen.name, archs)
    if timing_cache is not None:
        check_timing_cache(chosen.name)
    trt = load_runtime(chosen.name)
    chosen = Runtime(chosen.name, trt.__version__)
    memory, started = PeakMemory(), time.monotonic()
    log = _Log()
    builder = trt.Builder(_logger(trt, log))
    if plugins:
        plugin.load(trt, builder.logger)
    else:
        plugin.unload(trt)
    network = builder.create_network(tensorrt_api.network_flags(trt))
    parser = trt.OnnxParser(network, builder.logger)
    if not tensorrt_api.parse(trt, parser, onnx_path, plugins=plugins):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        said = [message for message in log.errors if message.startswith(tuple(plugins))]  # the parser does not know why
        raise UserError(f"{chosen.name} {chosen.version} cannot read {onnx_path}:\n  " + "\n  ".join(said + errors))
    plugin_layers = tensorrt_api.plugin_layers(trt, network)
    if plugins and not plugin_layers:
        raise UserError(f"expected {' or '.join(plugins)} in {onnx_path} for the plugin to compute, found none; build "
                        "it without the plugin, or export the bundle again with talent-export")
    config = builder.create_builder_config()
    if workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.add_optimization_profile(_optimization_profile(builder, network, profiles))
    if chosen.name == tensorrt_api.RTX:
        tensorrt_api.set_targets(trt, config, [] if arch == PORTABLE else arch.split("+"))
    cache = None if timing_cache is None else tensorrt_api.attach_timing_cache(config, _content(Path(timing_cache)))
    phases = Phases()
    monitor = tensorrt_api.progress_monitor(trt, phases)
    if monitor is not None:
        config.progress_monitor = monitor
    plan = run_with_bar(lambda: builder.build_serialized_network(network, config), phases, measured=monitor is not None,
                        title=f"build {onnx_path.name}", extra=RUNTIMES[chosen.name], enabled=progress)
    if plan is None:
        said = "".join(f"\n  {message}" for message in log.errors)
        raise UserError(f"{chosen.name} {chosen.version} built no engine from {onnx_path} (where memory is short, a "
                        f"smaller batch or workspace helps; talent-doctor says what is known of this version):{said}")
    _write(plan_path, plan)
    if cache is not None:
        _write(Path(timing_cache), tensorrt_api.read_timing_cache(config))
    return EngineBuild(path=plan_path, bytes=plan.nbytes, seconds=time.monotonic() - started, runtime=chosen, arch=arch,
                       peak_memory_bytes=memory.bytes(),
                       # where there is no GPU, the builder still counts what it would have put there
                       peak_gpu_memory_bytes=None if gpu_architecture() is None else log.gpu_bytes,
                       plugin_layers=plugin_layers)


def engine_arch(runtime: str, archs: Sequence[str] = ()) -> str:
    """What an engine of this runtime is for: the GPU here, or `archs` in their order ("sm86+sm89"), or PORTABLE.

    Raises UserError for what is no GPU architecture, and where full TensorRT has no GPU or is asked for another one.
    """
    if malformed := [arch for arch in archs if not re.fullmatch("sm[0-9]+", arch)]:
        raise UserError(f"expected GPU architectures such as sm86 (compute capability 8.6), received "
                        f"{', '.join(malformed)}; talent-doctor tells that of the GPU here")
    if runtime == tensorrt_api.RTX:
        return "+".join(sorted(set(archs), key=capability)) or PORTABLE
    arch = gpu_architecture()
    if arch is None:
        raise UserError("TensorRT builds only where its GPU is, and the driver shows none; run: nvidia-smi; to build "
                        "without a GPU: pip install 'talent-edge[rtx]' and take tensorrt_rtx")
    if set(archs) - {arch}:
        raise UserError(f"TensorRT builds for the GPU it runs on ({arch}), received {', '.join(archs)}; build on that "
                        "GPU, or for RTX cards take tensorrt_rtx")
    return arch


def check_timing_cache(runtime: str) -> None:
    """Raise UserError where a runtime has no timing cache."""
    if not tensorrt_api.has_timing_cache(runtime):
        raise UserError("TensorRT-RTX has no timing cache: it times no kernels while it builds, and compiles them when "
                        "an engine is first loaded; leave --timing-cache out")


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


class _Log:
    """What the builder said that is of use: errors, and the GPU memory it took."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.gpu_bytes: int | None = None

    def note(self, message: str) -> None:
        """A message, such as "[MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 4 MiB, ..."."""
        if found := re.search(r"Peak memory usage of TRT .*GPU (\d+) MiB", message):
            self.gpu_bytes = int(found[1]) << 20


def _logger(trt: ModuleType, log: _Log):
    """A TensorRT logger that keeps what it is told instead of printing it."""

    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity, message) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                log.errors.append(message)
            elif severity == trt.ILogger.Severity.INFO:
                log.note(message)

    return Collector()


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
