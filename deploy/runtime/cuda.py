"""One GPU, for whoever runs something on it: memory, streams, events and graphs, by pycuda or by Polygraphy.

    device = open_device()
    with device.current():
        stream, memory = device.stream(), device.allocate(photo.nbytes)
        device.copy_to_device(memory.address, photo, stream)
        stream.synchronise()

Never tried on a GPU: tests/deploy/test_cuda.py runs on a stand-in for the driver, and on a card with `-m gpu`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from deploy.runtime.driver import CudaError, CudaGraph, Driver, Pointer
from talent.errors import UserError, suggest

__all__ = ["WRAPPERS", "CudaDevice", "CudaError", "CudaEvent", "CudaGraph", "CudaStream", "DeviceMemory", "PinnedArray",
           "open_device"]

WRAPPERS = ("pycuda", "polygraphy")


class DeviceMemory(Protocol):
    """`nbytes` bytes of the GPU from `address` on."""

    address: int
    nbytes: int

    def close(self) -> None:
        """Free it, once the GPU is done with what is queued. Twice is fine."""


class PinnedArray(Protocol):
    """Page-locked memory of the host, which the GPU reads and writes while the CPU goes on."""

    @property
    def array(self) -> np.ndarray:
        """The memory; no view of it may be used after `close`. RuntimeError when it is closed."""

    def close(self) -> None:
        """Free it, which waits for nothing: synchronise the stream that uses it before. Twice is fine."""


class CudaStream(Protocol):
    """A queue of work. It does not wait for the default stream, nor that for it. handle: a cudaStream_t."""

    handle: int

    def synchronise(self) -> None:
        """Wait until all that is queued is done. Raises CudaError, also for work that failed."""

    def close(self) -> None:
        """Free it; what is queued still runs. Twice is fine."""


class CudaEvent(Protocol):
    """A mark in a stream, with its time."""

    def record(self, stream: CudaStream) -> None:
        """Put it behind what is queued."""

    def synchronise(self) -> None:
        """Wait until the GPU came to it."""

    def milliseconds_since(self, earlier: CudaEvent) -> float:
        """On the GPU's clock, once both have passed. Raises CudaError before, or where one was not recorded."""

    def close(self) -> None:
        """Free it. Twice is fine."""


class CudaDevice(Protocol):
    """One GPU, in its primary context, which torch, ROS nodes and TensorRT of this process share.

    Every method but `current` and `close` is called inside a block of `current`, in any thread; so is every method of
    what they return, but for `close`, which makes the context current itself. Errors of CUDA are CudaError; where
    something cannot be closed because the GPU failed, a RuntimeWarning.
    name: "pycuda" or "polygraphy". index: the number of the GPU.
    """

    name: str
    index: int

    def current(self) -> AbstractContextManager[None]:
        """The primary context is current in this thread inside the block, afterwards again what was before.

        Blocks may lie in one another. Raises RuntimeError when the device is closed.
        """

    def allocate(self, nbytes: int) -> DeviceMemory:
        """nbytes: at least 1. Raises UserError where the GPU has not as much."""

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> PinnedArray:
        """shape: of at least one element. Raises UserError where the host cannot lock as much."""

    def stream(self) -> CudaStream: ...

    def event(self) -> CudaEvent: ...

    def copy_to_device(self, address: int, source: np.ndarray, stream: CudaStream) -> None:
        """Queue a copy of a contiguous array. Page-locked memory is read when the stream comes to it."""

    def copy_to_host(self, target: np.ndarray, address: int, stream: CudaStream) -> None:
        """Queue a copy into a contiguous array. Into memory that is not page-locked it waits for it."""

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: CudaStream) -> None:
        """Queue a copy from address to address."""

    def wait_for(self, stream: CudaStream, other: int) -> None:
        """What is queued on the stream `other` so far comes before what is queued on `stream` from now on.

        other: a cudaStream_t of this GPU's primary context, whoever made it; 0 or 1 is the legacy default stream, 2
        that of this thread.
        """

    def capture(self, stream: CudaStream, work: Callable[[], None]) -> CudaGraph:
        """What `work` queues on `stream`, to be launched again and again; nothing of it runs now.

        What other threads do meanwhile does not disturb it. Raises CudaError where something cannot be captured, and
        what `work` raises; the stream can be used all the same.
        """

    def pointer(self, address: int) -> Pointer:
        """What an address is: whose memory, on which GPU."""

    @property
    def context(self) -> int:
        """The primary context, a CUcontext. RuntimeError when the device is closed."""

    def close(self) -> None:
        """Release the primary context, of which nothing that came from here may be in use. Twice is fine."""


def open_device(index: int = 0, *, wrapper: str | None = None) -> CudaDevice:
    """A GPU of this process, by number. wrapper: "pycuda" or "polygraphy"; None for pycuda where it is installed.

    Importing Polygraphy binds it to full TensorRT, unless `deploy.runtime.tensorrt.polygraphy_for` chose before.
    Raises UserError for an unknown wrapper, one that is not installed or does not load, where there is no driver, and
    for a GPU that is not there or cannot be used.
    """
    if wrapper is not None and wrapper not in WRAPPERS:
        raise UserError(f"unknown wrapper of CUDA {wrapper!r}{suggest(wrapper, WRAPPERS)}")
    driver = Driver()
    count = driver.device_count()
    if not 0 <= index < count:
        raise UserError(f"expected the number of a GPU from 0 to {count - 1}, received {index}: this process sees "
                        f"{count} (nvidia-smi lists them; CUDA_VISIBLE_DEVICES hides those that it does not name)")
    if wrapper is None:
        wrapper = WRAPPERS[0] if importlib.util.find_spec("pycuda") is not None else WRAPPERS[1]
    try:
        if wrapper == "pycuda":
            from deploy.runtime.cuda_pycuda import PycudaDevice

            return PycudaDevice(driver, index)
        from deploy.runtime.cuda_polygraphy import PolygraphyDevice

        return PolygraphyDevice(driver, index)
    except CudaError as error:
        raise UserError(f"GPU {index} cannot be used: {error}; check with nvidia-smi that it has free memory and takes "
                        "more than one program") from error
