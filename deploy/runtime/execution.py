"""One execution context of an engine, with buffers of its own on the GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from deploy.runtime.cuda import CudaDevice, CudaError, CudaGraph, CudaStream
from talent.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LoadedEngine:
    """A deserialised engine. name: for errors. trt: the package that it belongs to. advice: what helps if it fails."""

    name: str
    engine: Any
    trt: ModuleType
    advice: str


class Execution:
    """For one caller at a time, who is in the device's context and gives the stream that all of it runs on.

    The buffers are as large as the engine allows, so that their addresses never change, and a CUDA graph of the work
    stays right: of the second and later runs with the same shapes, where `graphs` is set. `no_graph`: why there is
    none, where the engine cannot be captured. `failed`: a run failed, so that nothing is known of the context.
    Raises UserError where the GPU has too little memory.
    """

    def __init__(self, loaded: LoadedEngine, cuda: CudaDevice, stream: CudaStream, *, graphs: bool) -> None:
        self._loaded, self._cuda, self._stream, self._graphs = loaded, cuda, stream, graphs
        self._stack = contextlib.ExitStack()
        self._graph: CudaGraph | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.no_graph: str | None = None
        self.failed = False
        self.addresses: dict[str, int] = {}
        self._context = loaded.engine.create_execution_context()
        if self._context is None:
            raise UserError(f"{loaded.name} got no execution context: the GPU has too little free memory (TensorRT's "
                            "own messages are above); fewer threads at once, or other programs closed, leave more")
        try:
            self._allocate()
        except BaseException:
            self.close()
            raise

    def _allocate(self) -> None:
        engine = self._loaded.engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name).name == "INPUT"]
        self.outputs = [name for name in names if name not in inputs]
        self.dtypes = {name: np.dtype(self._loaded.trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        self._set_shapes({name: self._largest(name) for name in inputs})
        self._shapes = {}  # the first run is one with new shapes, whatever they are
        for name in names:
            nbytes = int(np.prod(self.shape(name))) * self.dtypes[name].itemsize
            memory = self._cuda.allocate(nbytes)
            self._stack.callback(memory.close)
            self.addresses[name] = memory.address
            self._context.set_tensor_address(name, memory.address)

    def _largest(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._loaded.engine.get_tensor_shape(name))
        return tuple(self._loaded.engine.get_tensor_profile_shape(name, 0)[2]) if -1 in shape else shape

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, for the inputs' shapes as they are set."""
        return tuple(self._context.get_tensor_shape(name))

    def _set_shapes(self, shapes: Shapes) -> None:
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise UserError(f"{self._loaded.name} takes no {name} of {list(shape)} (it allows up to "
                                f"{list(self._largest(name))}); {self._loaded.advice}")

    def prepare(self, shapes: Shapes) -> None:
        """Set the inputs' shapes for the next runs. Raises UserError for one that the engine does not take."""
        if self._shapes != shapes:
            self._drop_graph()
            self._shapes = {}
            self._set_shapes(shapes)

    def run(self, shapes: Shapes) -> None:
        """Queue one run over what the inputs' buffers hold; `shapes` as they were prepared.

        Raises UserError where TensorRT refuses.
        """
        if self._shapes != shapes:  # the first of these: TensorRT may still upload what depends on them
            self._enqueue()
            self._shapes = dict(shapes)
            return
        if self._graph is None and self._graphs and self.no_graph is None:
            try:
                self._graph = self._cuda.capture(self._stream, self._enqueue)
            except (CudaError, UserError) as error:
                self.no_graph, self.failed = " ".join(str(error).split()), False
        if self._graph is None:
            self._enqueue()
        else:
            self._graph.launch(self._stream)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            self.failed = True
            raise UserError(f"{self._loaded.name} did not run (TensorRT's own messages are above); "
                            f"{self._loaded.advice}")

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def close(self) -> None:
        """Free everything, once the stream has nothing to do any more. Twice is fine."""
        self._drop_graph()
        self._context = None  # before its buffers
        self._stack.close()
