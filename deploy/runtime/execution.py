"""Running an engine for one caller: its buffers on the GPU, and execution contexts over them."""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.runtime.cuda import CudaDevice, CudaError, CudaGraph, CudaStream
from deploy.runtime.loaded_engine import LoadedEngine
from talent.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
_MOST_CONTEXTS = 16  # of different shapes


@dataclass
class _Context:
    """An execution context, and the graph of its work with the shapes that it has.

    shapes: of the outputs. runs: that were no replay.
    """

    context: Any
    shapes: dict[str, tuple[int, ...]]
    runs: int = 0
    graph: CudaGraph | None = None

    def close(self) -> None:
        if self.graph is not None:
            self.graph.close()
            self.graph = None
        self.context = None


class Execution:
    """For one caller at a time, who is in the device's context and gives the stream that all of it runs on.

    The buffers are as large as the engine allows, so that their addresses never change. With `graphs`, each combination
    of shapes has an execution context of its own, all of them over the same memory, and from its second run on the work
    is replayed as a CUDA graph (a graph belongs to the shapes that its context had); TensorRT-RTX does that by itself.
    `no_graph`: why there is none, where the engine cannot be captured. `failed`: a run failed, so that nothing is known
    of the contexts.
    Raises UserError where the GPU has too little memory.
    """

    def __init__(self, loaded: LoadedEngine, cuda: CudaDevice, stream: CudaStream, *, graphs: bool) -> None:
        self._loaded, self._cuda, self._stream = loaded, cuda, stream
        self._asked_for_graphs = graphs
        self._capturing = graphs and not loaded.captures_itself
        self._stack = contextlib.ExitStack()
        self._contexts: OrderedDict[tuple, _Context] = OrderedDict()
        self.no_graph: str | None = None
        self.failed = False
        self.inputs, self.outputs = loaded.inputs, loaded.outputs
        self.dtypes = {name: loaded.dtype(name) for name in (*self.inputs, *self.outputs)}
        self.addresses: dict[str, int] = {}
        try:
            self._allocate()
        except BaseException:
            self.close()
            raise

    def _allocate(self) -> None:
        largest = {name: self._loaded.largest(name) for name in self.inputs}
        context = self._loaded.new_context(graphs=self._asked_for_graphs)
        outputs = self._set_shapes(context, largest)
        for name, shape in (largest | outputs).items():
            self.addresses[name] = self._memory(math.prod(shape) * self.dtypes[name].itemsize)
        self._scratch_bytes = self._loaded.scratch_bytes
        self._scratch = self._memory(self._scratch_bytes) if self._scratch_bytes else None
        self._adopt(_Context(context, outputs), _key(largest))

    def _memory(self, nbytes: int) -> int:
        memory = self._cuda.allocate(nbytes)
        self._stack.callback(memory.close)
        return memory.address

    def _adopt(self, own: _Context, key: tuple) -> None:
        """Give a context the buffers, and keep it for the shapes that it has."""
        if self._scratch is not None:
            own.context.set_device_memory(self._scratch, self._scratch_bytes)
        for name, address in self.addresses.items():
            if not own.context.set_tensor_address(name, address):
                raise UserError(f"{self._loaded.name} does not take the address of {name} (TensorRT's own messages are "
                                f"above); {self._loaded.advice}")
        self._contexts[key] = own

    def _set_shapes(self, context: Any, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Those of the outputs, for these of the inputs. Raises UserError for one that the engine does not take."""
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise UserError(f"{self._loaded.name} takes no {name} of {list(shape)} (it allows up to "
                                f"{list(self._loaded.largest(name))}); {self._loaded.advice}")
        return {name: tuple(context.get_tensor_shape(name)) for name in self.outputs}

    def prepare(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Be ready to run with these shapes of the inputs; returns those of the outputs.

        Raises UserError for a shape that the engine does not take, and where there is too little memory.
        """
        key = _key(shapes)
        own = self._contexts.get(key)
        if own is None and self._capturing:
            context = self._loaded.new_context(graphs=self._asked_for_graphs)
            own = _Context(context, self._set_shapes(context, shapes))
            self._adopt(own, key)
            while len(self._contexts) > _MOST_CONTEXTS:
                self._contexts.popitem(last=False)[1].close()
        elif own is None:  # the one context there is, with other shapes
            _, own = self._contexts.popitem()
            self._contexts[()] = own  # under no shapes, in case it does not take these
            own.shapes = self._set_shapes(own.context, shapes)
            del self._contexts[()]
            self._contexts[key] = own
        self._contexts.move_to_end(key)
        return own.shapes

    def run(self) -> None:
        """Queue one run, over what the inputs' buffers hold, with the shapes that were prepared last.

        Raises UserError where TensorRT refuses.
        """
        own = next(reversed(self._contexts.values()))
        # The first run of some shapes is a plain one: TensorRT may still upload what depends on them.
        if own.graph is None and own.runs and self._capturing and self.no_graph is None:
            try:
                own.graph = self._cuda.capture(self._stream, lambda: self._enqueue(own))
            except (CudaError, UserError) as error:
                self.no_graph, self.failed = " ".join(str(error).split()), False
        if own.graph is None:
            self._enqueue(own)
        else:
            own.graph.launch(self._stream)

    def _enqueue(self, own: _Context) -> None:
        if not own.context.execute_async_v3(self._stream.handle):
            self.failed = True
            raise UserError(f"{self._loaded.name} did not run (TensorRT's own messages are above); "
                            f"{self._loaded.advice}")
        own.runs += 1

    def close(self) -> None:
        """Free everything, once the stream has nothing to do any more. Twice is fine."""
        while self._contexts:  # before their buffers
            self._contexts.popitem()[1].close()
        self._stack.close()


def _key(shapes: Shapes) -> tuple:
    return tuple(sorted(shapes.items()))
