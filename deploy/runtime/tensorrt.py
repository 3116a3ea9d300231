"""The two engines of a bundle in TensorRT or TensorRT-RTX, driven by Polygraphy."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from deploy import plugin
from deploy.bundle import GRAPHS, Bundle, EngineRecord
from deploy.runtime.cuda import CudaError, open_device
from deploy.runtime.gpu import gpu_architecture
from deploy.runtime.interface import check_graphs
from deploy.runtime.lanes import Answers, Lane, Lanes
from deploy.runtime.loaded_engine import LoadedEngine
from deploy.runtime.picture_kernels import installed_kernels
from deploy.targets import build_advice, build_command
from talent.errors import UserError
from talent.native import BUILD
from talent.require import require

RUNTIMES = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}  # the Python package, and the pip extra that brings it


class TensorRTBackend:
    """Runs text.plan and vision.plan. `runtime`: "tensorrt" or "tensorrt_rtx"; one process can use one of the two.

    device: number of the GPU. It works in the GPU's primary context, which torch and others share. Every caller gets an
    execution context of its own. graphs: replay the vision engine as a CUDA graph while its shapes stay the same.
    Raises UserError, before any engine is read, when there is no GPU or driver, when the package is missing, when the
    bundle has no engine for this package, version and GPU, or when an engine needs the plugin for RCA and that is
    missing or does not load; afterwards when an engine does not load or the GPU has no room for it. Every method raises
    UserError where CUDA or TensorRT fails.
    """

    def __init__(self, bundle: Bundle, *, runtime: str, device: int = 0, graphs: bool = True) -> None:
        self.name = runtime
        self._image_size = bundle.image_size
        architecture = gpu_architecture(device)
        if architecture is None:
            which = f" of number {device}" if device else ""
            raise UserError(f"{runtime} needs an NVIDIA GPU{which} and its driver, and none was found (nvidia-smi "
                            "lists them); use the backend onnxruntime instead")
        version = _version(runtime)
        engines = [self._engine(bundle, graph, version, architecture) for graph in GRAPHS]
        self.most_expressions = min(engine.batch or 1 for engine in engines)
        paths = [bundle.directory / engine.path for engine in engines]
        advice = build_advice(bundle.directory, runtime=runtime, arch=architecture, force=True)
        for engine, path in zip(engines, paths, strict=True):
            if engine.plugin:
                _load_plugin(bundle, path, runtime=runtime, arch=architecture)
        self._kernels = installed_kernels()
        polygraphy_for(runtime)  # before its CUDA wrapper is imported, which would bind it to full TensorRT
        self._stack = contextlib.ExitStack()
        self._cuda = open_device(device)
        self._stack.callback(self._cuda.close)
        try:
            with self._in_context():
                text, vision = (load_engine(path, runtime=runtime, advice=advice) for path in paths)
                check_graphs(str(paths[0].parent), **_interface("text", text.engine),
                             **_interface("vision", vision.engine))
                self._lanes = Lanes(lambda: Lane(self._cuda, text, vision, graphs=graphs, kernels=self._kernels))
        except BaseException:
            self.close()
            raise

    def _engine(self, bundle: Bundle, graph: str, version: str, architecture: str) -> EngineRecord:
        engine = bundle.engine_record(graph, runtime=self.name, version=version, arch=architecture)
        if engine is None:
            have = {f"{e.runtime} {e.version} for {e.arch} {_why_not(bundle, e, self.name, version, architecture)}"
                    for e in bundle.engines if e.graph == graph}
            raise UserError(f"{bundle.directory} has no {graph} engine for {self.name} {version} on {architecture} (it "
                            f"has: {', '.join(sorted(have)) or 'none'}); engines belong to one version and GPU; "
                            + build_advice(bundle.directory, runtime=self.name, arch=architecture))
        return engine

    @contextlib.contextmanager
    def _in_context(self) -> Iterator[None]:
        """In the GPU's primary context; its errors as UserError."""
        try:
            with self._cuda.current():
                yield
        except CudaError as error:
            raise UserError(f"GPU {self._cuda.index} failed: {error}; nvidia-smi and dmesg tell more; after an error "
                            "of a kernel this process cannot use the GPU any more: start it again") from error

    @property
    def takes_pictures(self) -> bool:
        """Whether `answer` can be called: with the kernels for pictures, which libtalent_kernels.so has."""
        return self._kernels is not None

    def text(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """int64 [B, L] -> the prompt tensors by name."""
        with self._in_context(), self._lanes.lane() as lane:
            return lane.text(tokens)

    def vision(self, image: np.ndarray, prompt: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 [B or 1, 3, S, S] and the prompt tensors of B expressions -> logits float32 [B, 1, h, w]."""
        with self._in_context(), self._lanes.lane([prompt]) as lane:
            return lane.vision(image, [prompt])

    def answer(self, photo: object, prompts: Sequence[Mapping[str, np.ndarray]], threshold: float, *,
               after: int | None = None) -> Answers:
        """A photo (uint8 [H, W, 3] RGB, on the host or on this GPU) and prompts of B expressions together -> masks,
        all of it on the GPU. after: a cudaStream_t whose work so far comes first."""
        with self._in_context(), self._lanes.lane(prompts) as lane:
            return lane.answer(photo, prompts, size=self._image_size, threshold=threshold, after=after)

    def notes(self) -> tuple[str, ...]:
        """What is slower here than it could be, and why."""
        without = () if self.takes_pictures else (
            f"pictures are processed on the CPU: libtalent_kernels.so was not found ({BUILD})",)
        return (*without, *self._lanes.notes())

    def close(self) -> None:
        """Free the engines, contexts and buffers; closing twice is fine. Nobody may be inside."""
        if lanes := self.__dict__.pop("_lanes", None):
            with self._cuda.current():
                lanes.close()
                del lanes  # and the engines with it, in the context that they were made in
        self._stack.close()


def load_engine(path: Path, *, runtime: str, advice: str) -> LoadedEngine:
    """An engine, deserialised. Raises UserError as `enter_engine`."""
    polygraphy = polygraphy_for(runtime)
    with _loading(path, runtime=runtime, advice=advice):
        engine = polygraphy.engine_from_path(str(path))
    return LoadedEngine(name=str(path), engine=engine, trt=require(runtime, extra=RUNTIMES[runtime]), advice=advice)


def enter_engine(stack: contextlib.ExitStack, path: Path, *, runtime: str, advice: str):
    """Polygraphy's runner of one engine, ready to run; `stack` closes it.

    Raises UserError, which ends with `advice`, where the engine does not load. One that needs the plugin for RCA loads
    only after `load_plugin`.
    """
    polygraphy = polygraphy_for(runtime)
    with _loading(path, runtime=runtime, advice=advice):
        return stack.enter_context(polygraphy.TrtRunner(polygraphy.EngineFromPath(str(path)), name=path.stem))


@contextlib.contextmanager
def _loading(path: Path, *, runtime: str, advice: str) -> Iterator[None]:
    """Polygraphy's error about an engine as a UserError."""
    try:
        yield
    except polygraphy_exception(runtime) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{runtime} cannot load {path}: {reason} (its own messages are above); the engine is "
                        f"damaged or was built elsewhere; {advice}") from error


def load_plugin(runtime: str) -> None:
    """Register the plugin for RCA with the TensorRT that Polygraphy runs; UserError as `deploy.plugin.load` raises."""
    logger = polygraphy_for(runtime).get_trt_logger()
    plugin.load(require(runtime, extra=RUNTIMES[runtime]), logger)


def _load_plugin(bundle: Bundle, path: Path, *, runtime: str, arch: str) -> None:
    try:
        load_plugin(runtime)
    except UserError as error:
        without = build_command(bundle.directory, runtime=runtime, arch=arch, plugin="off")
        raise UserError(f"{path} needs the TensorRT plugin for RCA: {error}; or build the engines without it: "
                        f"{without}") from error


def _why_not(bundle: Bundle, engine: EngineRecord, runtime: str, version: str, architecture: str) -> str:
    """What keeps an engine from being used here, in brackets behind its name."""
    if not (bundle.directory / engine.path).is_file():
        return "(left out of this copy)"
    if engine.runtime != runtime:
        return "(another runtime)"
    wrong = [] if engine.version == version else ["version"]
    if not engine.fits(runtime=runtime, version=engine.version, arch=architecture):
        wrong.append("GPU")
    return f"(another {' and '.join(wrong)})"


def _version(runtime: str) -> str:
    try:
        return require(runtime, extra=RUNTIMES[runtime]).__version__
    except (ImportError, OSError) as error:  # the package is there, its libraries are not
        reason = " ".join(str(error).split())
        raise UserError(f"{runtime} is installed but does not load: {reason}; reinstall it, or use the backend "
                        "onnxruntime") from error


def polygraphy_for(runtime: str) -> ModuleType:
    """`polygraphy.backend.trt`, which binds itself to one of the two packages when it is first imported."""
    wanted = runtime == "tensorrt_rtx"
    config = require("polygraphy.config", extra=RUNTIMES[runtime])
    if "polygraphy.util" in sys.modules and bool(config.USE_TENSORRT_RTX) != wanted:
        other = "tensorrt_rtx" if config.USE_TENSORRT_RTX else "tensorrt"
        raise UserError(f"this process already uses {other} through Polygraphy, which can use one of tensorrt and "
                        f"tensorrt_rtx in a process; start another process for {runtime}")
    config.USE_TENSORRT_RTX = wanted
    return require("polygraphy.backend.trt", extra=RUNTIMES[runtime])


def polygraphy_exception(runtime: str) -> type[Exception]:
    """What Polygraphy raises where an engine does not load or run."""
    polygraphy_for(runtime)  # first of all: any other module of it would bind it to full TensorRT
    return require("polygraphy.exception", extra=RUNTIMES[runtime]).PolygraphyException


def _interface(graph: str, engine) -> dict[str, dict[str, str]]:
    sides: dict[str, dict[str, str]] = {f"{graph}_inputs": {}, f"{graph}_outputs": {}}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        side = "inputs" if engine.get_tensor_mode(name).name == "INPUT" else "outputs"
        sides[f"{graph}_{side}"][name] = str(engine.get_tensor_dtype(name))
    return sides
