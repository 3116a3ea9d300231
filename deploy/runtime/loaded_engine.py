"""A deserialised engine: its tensors, and execution contexts of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from talent.errors import UserError


@dataclass(frozen=True)
class LoadedEngine:
    """name: for errors. trt: the package that it belongs to. advice: what helps where it fails.

    Threads may share it.
    """

    name: str
    engine: Any
    trt: ModuleType
    advice: str
    _configs: dict[bool, Any] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def captures_itself(self) -> bool:
        """Whether it makes CUDA graphs of its own: TensorRT-RTX, which first runs slower kernels and compiles better
        ones meanwhile, so that a graph of ours would keep the slower ones."""
        return hasattr(self.trt, "CudaGraphStrategy")

    @property
    def inputs(self) -> list[str]:
        return [name for name in self._names() if self.engine.get_tensor_mode(name).name == "INPUT"]

    @property
    def outputs(self) -> list[str]:
        return [name for name in self._names() if self.engine.get_tensor_mode(name).name != "INPUT"]

    def _names(self) -> list[str]:
        return [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(self.trt.nptype(self.engine.get_tensor_dtype(name)))

    def shape(self, name: str) -> tuple[int, ...]:
        """-1 for what may vary."""
        return tuple(self.engine.get_tensor_shape(name))

    def largest(self, name: str) -> tuple[int, ...]:
        """The largest shape that an input may have."""
        shape = self.shape(name)
        return tuple(self.engine.get_tensor_profile_shape(name, 0)[2]) if -1 in shape else shape

    @property
    def scratch_bytes(self) -> int:
        """What a context needs beside its tensors, given by `set_device_memory`."""
        size = getattr(self.engine, "device_memory_size_v2", None)  # from TensorRT 10.1 on
        return int(self.engine.device_memory_size if size is None else size)

    def new_context(self, *, graphs: bool) -> Any:
        """An IExecutionContext whose scratch memory the caller gives. graphs: TensorRT-RTX makes CUDA graphs itself.

        Raises UserError where there is too little memory.
        """
        managed = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self.engine.create_execution_context(
            self._config(graphs, managed) if self.captures_itself else managed)
        if context is None:
            raise UserError(f"{self.name} got no execution context: the GPU has too little free memory (TensorRT's own "
                            "messages are above); fewer threads at once, or other programs closed, leave more")
        return context

    def _config(self, graphs: bool, managed: Any) -> Any:
        """TensorRT-RTX's IRuntimeConfig, one for all contexts, so that they share the kernels that it compiles."""
        with self._lock:
            if graphs not in self._configs:
                config = self.engine.create_runtime_config()
                config.set_execution_context_allocation_strategy(managed)
                config.set_runtime_cache(config.create_runtime_cache())
                strategies = self.trt.CudaGraphStrategy
                config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if graphs else strategies.DISABLED
                self._configs[graphs] = config
            return self._configs[graphs]
