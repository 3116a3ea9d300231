"""A GPU by Polygraphy's CUDA wrapper: memory and copies by it, what it lacks by the driver."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from deploy.runtime.driver import CudaError, Driver, giving_back, host_address
from deploy.runtime.driver_calls import DriverCalls, array_bytes, checked_bytes, lack_of_memory
from talent.errors import UserError
from talent.require import require

_CODE = re.compile(r"CUDA Error: (\d+)")  # Polygraphy's errors tell no more
_TO_DEVICE, _TO_HOST, _ON_DEVICE = (ctypes.c_int(kind) for kind in (1, 2, 3))  # cudaMemcpyKind


class PolygraphyDevice(DriverCalls):
    """A CudaDevice of deploy.runtime.cuda. Raises UserError where Polygraphy or libcudart is missing."""

    name = "polygraphy"

    def __init__(self, driver: Driver, index: int) -> None:
        super().__init__(driver, index)
        self.wrapper = _wrapper()
        self._exception = require("polygraphy.exception", extra="tensorrt").PolygraphyException
        self._context: int | None = driver.retain_primary_context(index)

    @property
    def context(self) -> int:
        """The primary context."""
        if self._context is None:
            raise RuntimeError(f"this device (GPU {self.index}) is closed")
        return self._context

    @contextmanager
    def current(self) -> Iterator[None]:
        """The primary context is current in this thread inside the block."""
        self.driver.push_context(self.context)
        try:
            yield
        finally:
            self.driver.pop_context()

    @contextmanager
    def errors_of(self, call: str) -> Iterator[None]:
        """Polygraphy's error about a call of libcudart as a CudaError."""
        try:
            yield
        except self._exception as error:
            # Left there, it would come up at the next kernel that this thread launches, as that kernel's error.
            self.wrapper.handle.cudaGetLastError()
            code = _CODE.search(str(error))
            if code is None:
                raise CudaError(call, None, str(error)) from error
            raise self.driver.error(call, int(code[1])) from error

    def allocate(self, nbytes: int) -> PolygraphyMemory:
        """Memory of the GPU."""
        return PolygraphyMemory(self, nbytes)

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> DriverPinnedArray:
        """Page-locked memory, which Polygraphy has not."""
        return DriverPinnedArray(self, shape, dtype)

    def stream(self) -> PolygraphyStream:
        """A stream."""
        return PolygraphyStream(self)

    def event(self) -> DriverEvent:
        """An event, which Polygraphy has not."""
        return DriverEvent(self)

    def copy_to_device(self, address: int, source: np.ndarray, stream: PolygraphyStream) -> None:
        """Queue a copy of a contiguous array."""
        self._copy(address, host_address(source), source.nbytes, _TO_DEVICE, stream)

    def copy_to_host(self, target: np.ndarray, address: int, stream: PolygraphyStream) -> None:
        """Queue a copy into a contiguous array."""
        self._copy(host_address(target, written=True), address, target.nbytes, _TO_HOST, stream)

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: PolygraphyStream) -> None:
        """Queue a copy from address to address."""
        self._copy(target, source, nbytes, _ON_DEVICE, stream)

    def _copy(self, target: int, source: int, nbytes: int, kind: ctypes.c_int, stream: PolygraphyStream) -> None:
        with self.errors_of("cudaMemcpyAsync"):
            self.wrapper.memcpy(target, source, nbytes, kind, stream.handle)

    def close(self) -> None:
        """Release the primary context. Twice is fine."""
        if self._context is not None:
            self._context = None
            with giving_back("a primary context"):
                self.driver.release_primary_context(self.index)


class PolygraphyMemory:
    """A DeviceMemory."""

    def __init__(self, device: PolygraphyDevice, nbytes: int) -> None:
        self._device, self.nbytes = device, checked_bytes(nbytes)
        with lack_of_memory(lambda: device.driver.out_of_memory(nbytes, device.index)), device.errors_of("cudaMalloc"):
            self.address: int = device.wrapper.malloc(nbytes)

    def close(self) -> None:
        """Free it. Twice is fine."""
        address, self.address = self.address, 0
        if address:
            with giving_back("memory of the GPU"), self._device.current(), self._device.errors_of("cudaFree"):
                self._device.wrapper.free(address)


class PolygraphyStream:
    """A CudaStream. The driver makes it: Polygraphy's wait for the default stream, so that capturing one would fail
    whenever another thread used that."""

    def __init__(self, device: PolygraphyDevice) -> None:
        self._device, self.handle = device, device.driver.create_stream()
        self._open = True

    def synchronise(self) -> None:
        """Wait until all that is queued is done."""
        with self._device.errors_of("cudaStreamSynchronize"):
            self._device.wrapper.stream_synchronize(self.handle)

    def close(self) -> None:
        """Free it. Twice is fine."""
        if self._open:
            self._open = False
            with giving_back("a stream"), self._device.current(), self._device.errors_of("cudaStreamDestroy"):
                self._device.wrapper.destroy_stream(self.handle)


class DriverPinnedArray:
    """A PinnedArray by the driver."""

    def __init__(self, device: PolygraphyDevice, shape: int | tuple[int, ...], dtype: DTypeLike) -> None:
        nbytes = array_bytes(shape, dtype)
        self._device = device
        with lack_of_memory(lambda: device.driver.cannot_lock(nbytes)):
            self._address = device.driver.allocate_host(nbytes)
        memory = (ctypes.c_uint8 * nbytes).from_address(self._address)
        self._array: np.ndarray | None = np.frombuffer(memory, dtype).reshape(shape)

    @property
    def array(self) -> np.ndarray:
        """The memory."""
        if self._array is None:
            raise RuntimeError("this page-locked array is closed")
        return self._array

    def close(self) -> None:
        """Free it. Twice is fine."""
        if self._array is not None:
            self._array = None
            with giving_back("page-locked memory"), self._device.current():
                self._device.driver.free_host(self._address)


class DriverEvent:
    """A CudaEvent by the driver."""

    def __init__(self, device: PolygraphyDevice) -> None:
        self._device, self._event = device, device.driver.create_event()
        self._open = True

    def record(self, stream: PolygraphyStream) -> None:
        """Put it behind what is queued."""
        self._device.driver.record_event(self._event, stream.handle)

    def synchronise(self) -> None:
        """Wait until the GPU came to it."""
        self._device.driver.synchronise_event(self._event)

    def milliseconds_since(self, earlier: DriverEvent) -> float:
        """On the GPU's clock."""
        return self._device.driver.milliseconds_between(earlier._event, self._event)

    def close(self) -> None:
        """Free it. Twice is fine."""
        if self._open:
            self._open = False
            with giving_back("an event"), self._device.current():
                self._device.driver.destroy_event(self._event)


def _wrapper() -> Any:
    """Polygraphy's wrapper of libcudart; with that of a pip package where Polygraphy itself looks for none."""
    polygraphy = require("polygraphy.cuda", extra="tensorrt")
    logger = require("polygraphy.logger", extra="tensorrt").G_LOGGER
    try:
        with logger.verbosity(logger.CRITICAL):  # what it would say is in the error below
            return polygraphy.wrapper()
    except OSError as error:
        for library in _libraries_of_wheels():
            wrapper = polygraphy.Cuda.__new__(polygraphy.Cuda)
            wrapper.handle = ctypes.CDLL(str(library))
            return wrapper
        raise UserError("expected CUDA's runtime (libcudart.so) for Polygraphy's CUDA wrapper, found none; run: pip "
                        "install nvidia-cuda-runtime-cu12, or add the folder of libcudart.so (on a Jetson "
                        "/usr/local/cuda/lib64) to LD_LIBRARY_PATH, or install pycuda") from error


def _libraries_of_wheels() -> list[Path]:
    """libcudart of NVIDIA's pip packages: for CUDA 12 in nvidia/cuda_runtime, for CUDA 13 in nvidia/cu13."""
    return [library for folder in sys.path if folder
            for library in sorted(Path(folder).glob("nvidia/*/lib/libcudart.so.*"), reverse=True)]
