"""A TensorRT on the stand-in for CUDA: engines are the bundle's ONNX files, which ONNX Runtime runs on the "GPU".

That is done when the stream comes to it. What a call does follows TensorRT 10's documentation.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from tests.deploy.stand_in_cuda import StandInCuda
from tests.native_build import ROOT

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
BATCH = 4  # the largest that the engines take
SCRATCH = 640  # bytes that an execution context needs
KERNELS = "libtalent_kernels.so"


def compile_pictures(directory: Path, cuda: Path) -> Path:
    """libtalent_kernels.so on the stand-in `cuda`, in `directory`, which is returned."""
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("needs g++, which is not installed here")
    cpp = ROOT / "deploy" / "cpp"
    sources = [Path(__file__).with_name("stand_in_pictures.cpp"), cpp / "src" / "image.cpp",
               cpp / "src" / "photo_mask.cpp", ROOT / "deploy" / "csrc" / "picture_launch.cpp"]
    folders = [f"-I{folder}" for folder in (cpp / "include", ROOT / "deploy" / "csrc")]
    subprocess.run([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", *folders, *map(str, sources), str(cuda), "-o",
                    str(directory / KERNELS)], check=True)
    return directory


class FakeRuntime:
    """What Polygraphy would give, for `deploy.runtime.tensorrt.polygraphy_for`, and the package `tensorrt`.

    batch: the largest that the engines take. events: what was loaded, in order. engines: by graph. refuse_runs: how
    many of the next runs TensorRT refuses. most_contexts: that the GPU has room for, of each engine.
    """

    def __init__(self, cuda: StandInCuda) -> None:
        self.cuda, self.batch = cuda, BATCH
        self.events: list[str] = []
        self.engines: dict[str, Engine] = {}
        self.configs: list[RuntimeConfig] = []
        self.refuse_runs, self.most_contexts = 0, None
        self.package = SimpleNamespace(__version__="10.3.0", __spec__=SimpleNamespace(),
                                       nptype=lambda dtype: dtype.type,
                                       ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user's"))

    def engine_from_path(self, path: str) -> Engine:
        graph = Path(path).stem
        self.events.append(graph)
        self.engines[graph] = Engine(self, Path(path))
        return self.engines[graph]

    def as_rtx(self) -> list[RuntimeConfig]:
        """Have TensorRT-RTX's own calls from now on; the configurations that engines make."""
        self.package.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole", DISABLED="disabled")
        return self.configs

    def get_trt_logger(self) -> str:
        return "Polygraphy's logger"


class Engine:
    """bundle/engines/<one>/text.plan stands for bundle/text.onnx."""

    def __init__(self, runtime: FakeRuntime, plan: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.runtime, self.name = runtime, plan.stem
        self.session = onnxruntime.InferenceSession(plan.parents[2] / f"{plan.stem}.onnx", options,
                                                    providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.tensors = self.inputs | {value.name: value for value in self.session.get_outputs()}
        self.contexts: list[Context] = []
        self.device_memory_size_v2 = SCRATCH
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name="INPUT" if name in self.inputs else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> np.dtype:
        return np.dtype(TYPES[self.tensors[name].type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert profile == 0
        context_length = 8
        sizes = {"B": self.runtime.batch, "P": self.runtime.batch, "L": context_length}
        largest = tuple(sizes.get(size, size) for size in self.tensors[name].shape)
        return [(1, *largest[1:]), (1, *largest[1:]), largest]

    def create_runtime_config(self) -> RuntimeConfig:
        self.runtime.configs.append(RuntimeConfig())
        return self.runtime.configs[-1]

    def create_execution_context(self, strategy: object) -> Context | None:
        assert strategy == "user's" or strategy in self.runtime.configs
        if self.runtime.most_contexts is not None and len(self.contexts) >= self.runtime.most_contexts:
            return None  # too little memory
        self.contexts.append(Context(self))
        return self.contexts[-1]

    @functools.lru_cache(maxsize=32)  # noqa: B019  (an engine lives as long as its test)
    def output_shapes(self, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, tuple[int, ...]]:
        feeds = {name: np.zeros(shape, TYPES[self.inputs[name].type]) for name, shape in shapes}
        return {name: value.shape for name, value in self.run(feeds).items()}

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [value.name for value in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, feeds), strict=True))


class RuntimeConfig:
    """TensorRT-RTX's IRuntimeConfig."""

    cuda_graph_strategy = strategy = cache = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeConfig:
        return self

    def set_runtime_cache(self, cache: RuntimeConfig) -> None:
        self.cache = cache


class Context:
    """For one caller at a time: two at once fail the test."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._inside = threading.Lock()
        self.runs = 0
        self._scratch: int | None = None

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == SCRATCH
        self._scratch = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        fits = len(shape) == len(largest) and all(
            low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True))
        if fits:
            self._shapes[name] = tuple(shape)
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        return self._engine.output_shapes(tuple(sorted(self._shapes.items())))[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self._inside.acquire(blocking=False), "two callers in one execution context"
        try:
            runtime = self._engine.runtime
            if runtime.refuse_runs:
                runtime.refuse_runs -= 1
                return False
            self.runs += 1
            shapes, addresses = dict(self._shapes), dict(self._addresses)
            assert set(addresses) == set(self._engine.tensors), "a tensor without an address"
            assert self._scratch, "no scratch memory was given"

            def work() -> None:
                runtime.cuda.view(self._scratch, (SCRATCH,), np.uint8)[...] = 7  # it is there, and as large
                feeds = {name: runtime.cuda.view(addresses[name], shape, TYPES[self._engine.inputs[name].type])
                         for name, shape in shapes.items()}
                for name, value in self._engine.run(feeds).items():
                    runtime.cuda.view(addresses[name], value.shape, value.dtype)[...] = value

            try:
                runtime.cuda.queue(stream, work)
            except RuntimeError:  # an error of CUDA, which TensorRT logs
                return False
            return True
        finally:
            self._inside.release()
