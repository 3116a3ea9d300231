"""A GPU by pycuda: contexts, memory, streams and events by it, what it lacks by the driver.

pycuda keeps a stack of contexts of its own for each thread, and its objects work only where the context that they were
made in lies on top of it: so `current` pushes there, in every thread the very same object. It makes no context.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from deploy.runtime.driver import STREAM_NON_BLOCKING, Driver, giving_back, host_address
from deploy.runtime.driver_calls import DriverCalls, array_bytes, checked_bytes, lack_of_memory
from talent.errors import UserError
from talent.require import require


class PycudaDevice(DriverCalls):
    """A CudaDevice of deploy.runtime.cuda. Raises UserError where pycuda is missing or does not load."""

    name = "pycuda"

    def __init__(self, driver: Driver, index: int) -> None:
        super().__init__(driver, index)
        self.cuda = _pycuda()
        self._context: Any = None
        with self.errors():
            self.cuda.init()
            self._context = self.cuda.Device(index).retain_primary_context()

    @property
    def context(self) -> int:
        """The primary context."""
        return self._opened().handle

    def _opened(self) -> Any:
        if self._context is None:
            raise RuntimeError(f"this device (GPU {self.index}) is closed")
        return self._context

    @contextmanager
    def current(self) -> Iterator[None]:
        """The primary context is current in this thread inside the block."""
        context, before = self._opened(), self.driver.current_context()
        with self.errors():
            context.push()
        try:
            yield
        finally:
            with self.errors():
                context.pop()
            # pycuda goes back to the context below on its own stack, which need not be the one that was current.
            if self.driver.current_context() != before:
                self.driver.set_current_context(before)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """pycuda's error, "cuMemAlloc failed: out of memory", as a CudaError."""
        try:
            yield
        except self.cuda.Error as error:
            call, _, words = str(error).partition(" failed: ")
            raise self.driver.error_in_words(call, words) from error

    def allocate(self, nbytes: int) -> PycudaMemory:
        """Memory of the GPU."""
        return PycudaMemory(self, nbytes)

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> PycudaPinnedArray:
        """Page-locked memory."""
        return PycudaPinnedArray(self, shape, dtype)

    def stream(self) -> PycudaStream:
        """A stream."""
        return PycudaStream(self)

    def event(self) -> PycudaEvent:
        """An event."""
        return PycudaEvent(self)

    def copy_to_device(self, address: int, source: np.ndarray, stream: PycudaStream) -> None:
        """Queue a copy of a contiguous array."""
        host_address(source)
        with self.errors():
            self.cuda.memcpy_htod_async(address, source, stream.opened())

    def copy_to_host(self, target: np.ndarray, address: int, stream: PycudaStream) -> None:
        """Queue a copy into a contiguous array."""
        host_address(target, written=True)
        with self.errors():
            self.cuda.memcpy_dtoh_async(target, address, stream.opened())

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: PycudaStream) -> None:
        """Queue a copy from address to address."""
        with self.errors():
            self.cuda.memcpy_dtod_async(target, source, nbytes, stream.opened())

    def close(self) -> None:
        """Release the primary context. Twice is fine."""
        if self._context is None:
            return
        context, self._context = self._context, None

        def release() -> None:
            with giving_back("a primary context"), self.errors():
                context.push()
                context.detach()

        # pycuda releases it where it is on top, and leaves it on CUDA's stack there; elsewhere, in the thread that
        # retained it, pycuda pushes it once more, in any other it does not release it at all, and with the last
        # reference it calls the wrong function. So: on top, in a thread whose stack ends with it.
        thread = threading.Thread(target=release, name="release a primary context")
        thread.start()
        thread.join()


class PycudaMemory:
    """A DeviceMemory."""

    def __init__(self, device: PycudaDevice, nbytes: int) -> None:
        self._device, self.nbytes = device, checked_bytes(nbytes)
        with lack_of_memory(lambda: device.driver.out_of_memory(nbytes, device.index)), device.errors():
            self._allocation = device.cuda.mem_alloc(nbytes)
        self.address = int(self._allocation)

    def close(self) -> None:
        """Free it. Twice is fine."""
        allocation, self._allocation, self.address = self._allocation, None, 0
        if allocation is not None:
            with giving_back("memory of the GPU"), self._device.current(), self._device.errors():
                allocation.free()


class PycudaPinnedArray:
    """A PinnedArray."""

    def __init__(self, device: PycudaDevice, shape: int | tuple[int, ...], dtype: DTypeLike) -> None:
        nbytes = array_bytes(shape, dtype)
        self._device = device
        self._array: np.ndarray | None = None
        with lack_of_memory(lambda: device.driver.cannot_lock(nbytes)), device.errors():
            self._array = device.cuda.pagelocked_empty(shape, dtype, mem_flags=device.cuda.host_alloc_flags.PORTABLE)

    @property
    def array(self) -> np.ndarray:
        """The memory."""
        if self._array is None:
            raise RuntimeError("this page-locked array is closed")
        return self._array

    def close(self) -> None:
        """Free it. Twice is fine."""
        array, self._array = self._array, None
        if array is not None:
            with giving_back("page-locked memory"), self._device.current(), self._device.errors():
                array.base.free()


class PycudaStream:
    """A CudaStream, which pycuda destroys when nobody refers to it any more."""

    def __init__(self, device: PycudaDevice) -> None:
        self._device = device
        with device.errors():
            self._stream = device.cuda.Stream(STREAM_NON_BLOCKING)
        self.handle: int = self._stream.handle

    def opened(self) -> Any:
        """pycuda's stream. RuntimeError when it is closed."""
        if self._stream is None:
            raise RuntimeError("this stream is closed")
        return self._stream

    def synchronise(self) -> None:
        """Wait until all that is queued is done."""
        with self._device.errors():
            self.opened().synchronize()

    def close(self) -> None:
        """Free it. Twice is fine."""
        if self._stream is not None:
            with giving_back("a stream"), self._device.current():
                self._stream = None


class PycudaEvent:
    """A CudaEvent, which pycuda destroys when nobody refers to it any more."""

    def __init__(self, device: PycudaDevice) -> None:
        self._device = device
        with device.errors():
            self._event = device.cuda.Event()

    def record(self, stream: PycudaStream) -> None:
        """Put it behind what is queued."""
        with self._device.errors():
            self._event.record(stream.opened())

    def synchronise(self) -> None:
        """Wait until the GPU came to it."""
        with self._device.errors():
            self._event.synchronize()

    def milliseconds_since(self, earlier: PycudaEvent) -> float:
        """On the GPU's clock."""
        with self._device.errors():
            return self._event.time_since(earlier._event)

    def close(self) -> None:
        """Free it. Twice is fine."""
        if self._event is not None:
            with giving_back("an event"), self._device.current():
                self._event = None


def _pycuda() -> ModuleType:
    try:
        return require("pycuda.driver", extra="tensorrt")
    except (ImportError, OSError) as error:  # the package is there, what it was built for is not
        raise UserError(f"pycuda does not load: {error}; build it again for the CUDA and NumPy that are installed (pip "
                        "install --force-reinstall --no-binary :all: --no-deps pycuda), or uninstall it: Polygraphy's "
                        "CUDA wrapper is used then") from error
