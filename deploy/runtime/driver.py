"""CUDA's driver through ctypes: what pycuda or Polygraphy's wrapper lack. Handles and addresses are the same as theirs.

Every call but those about contexts needs a context that is current in the calling thread.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from talent.errors import UserError

OUT_OF_MEMORY = 2  # CUresult
NO_DEVICE = 100
STREAM_NON_BLOCKING = 1  # CUstream_flags
HOST_MEMORY = 1  # CUmemorytype
DEVICE_MEMORY = 2
_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_LAST_ERROR = 999  # CUDA_ERROR_UNKNOWN
_WITHOUT_TIMING = 2  # CUevent_flags
_THREAD_LOCAL = 1  # CUstreamCaptureMode
_PORTABLE = 1  # of page-locked memory: in every context
_POINTER_ATTRIBUTES = {"context": (1, c_void_p), "memory_type": (2, c_uint), "device_address": (3, c_uint64),
                       "managed": (8, c_uint), "device": (9, c_int)}  # CUpointer_attribute
_HANDLE = POINTER(c_void_p)
_ARGUMENTS = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDevicePrimaryCtxRetain": (_HANDLE, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (_HANDLE,),
    "cuCtxGetCurrent": (_HANDLE,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemHostAlloc": (_HANDLE, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuPointerGetAttributes": (c_uint, POINTER(c_int), _HANDLE, c_uint64),
    "cuStreamCreate": (_HANDLE, c_uint),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, _HANDLE),
    "cuEventCreate": (_HANDLE, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuGraphInstantiateWithFlags": (_HANDLE, c_void_p, c_uint64),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
}


class CudaError(Exception):
    """A call of CUDA failed. call: its name; code: the CUresult, None where it is not known."""

    def __init__(self, call: str, code: int | None, words: str) -> None:
        super().__init__(f"{call} failed: {words}")
        self.call, self.code = call, code


@dataclass(frozen=True)
class Pointer:
    """What an address is. context: the one that it was allocated in, None for memory of a pool, which belongs to a GPU.

    memory_type: HOST_MEMORY, DEVICE_MEMORY, or 0 where CUDA does not know the address. device_address: where a GPU
    finds it. managed: CUDA moves it to whoever uses it. device: the GPU that it lies on.
    """

    context: int | None
    memory_type: int
    device_address: int
    managed: bool
    device: int


class _Stream(Protocol):
    handle: int


class CudaGraph:
    """Work that a stream recorded, to be queued again in one call. The memory it works on must stay where it is."""

    def __init__(self, driver: Driver, executable: int) -> None:
        self._driver, self._executable = driver, executable

    def launch(self, stream: _Stream) -> None:
        """Queue all of it. Raises CudaError; RuntimeError when it is closed."""
        if self._executable is None:
            raise RuntimeError("this CUDA graph is closed")
        self._driver.call("cuGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Free it; what is queued still runs. Twice is fine."""
        executable, self._executable = self._executable, None
        if executable is not None:
            with giving_back("a CUDA graph"):
                self._driver.call("cuGraphExecDestroy", executable)


class Driver:
    """libcuda. Every method raises CudaError where its call fails.

    Raises UserError where there is no driver, where it is too old for CUDA graphs, and where it finds no GPU.
    """

    def __init__(self) -> None:
        try:
            self._library = libcuda()
        except OSError as error:
            raise UserError("expected NVIDIA's driver (libcuda.so.1), found none: install it and check with "
                            "nvidia-smi, in a container with --gpus all; without a GPU use the backend "
                            "onnxruntime") from error
        try:
            for name, arguments in _ARGUMENTS.items():
                getattr(self._library, name).argtypes = arguments
        except AttributeError as error:
            raise UserError(f"expected a driver of CUDA 11.4 or newer, received an older one ({error}); update "
                            "NVIDIA's driver") from error
        try:
            self.call("cuInit", 0)
        except CudaError as error:
            wrong = "found none" if error.code == NO_DEVICE else "its driver does not start"
            raise UserError(f"expected an NVIDIA GPU, {wrong} ({error}); check with nvidia-smi, and that "
                            "CUDA_VISIBLE_DEVICES does not hide it; without a GPU use the backend "
                            "onnxruntime") from error

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the driver; CudaError for any status but success."""
        if status := getattr(self._library, name)(*arguments):
            raise self.error(name.removesuffix("_v2"), status)

    def error(self, call: str, code: int) -> CudaError:
        """The error of a call that gave this status, in CUDA's own words."""
        name, words = (self._text(function, code) for function in ("cuGetErrorName", "cuGetErrorString"))
        return CudaError(call, code, f"{name} ({words})" if name else f"error {code}, which this driver does not know")

    def error_in_words(self, call: str, words: str) -> CudaError:
        """The same where only CUDA's words are known."""
        for code in range(1, _LAST_ERROR + 1):
            if self._text("cuGetErrorString", code) == words:
                return self.error(call, code)
        return CudaError(call, None, words)

    def _text(self, function: str, code: int) -> str | None:
        text = c_char_p()
        getattr(self._library, function)(code, byref(text))
        return text.value.decode(errors="replace") if text.value else None

    def _made(self, name: str, *arguments: object) -> int:
        """The handle or address that a function writes through its first argument."""
        handle = c_void_p()
        self.call(name, byref(handle), *arguments)
        return handle.value

    # Contexts

    def device_count(self) -> int:
        """GPUs that this process may use."""
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        return count.value

    def retain_primary_context(self, device: int) -> int:
        """The context of a GPU that all share who use CUDA's runtime; each retaining needs its release."""
        return self._made("cuDevicePrimaryCtxRetain", device)

    def release_primary_context(self, device: int) -> None:
        """Give it back; who retained it last ends it."""
        self.call("cuDevicePrimaryCtxRelease_v2", device)

    def push_context(self, context: int) -> None:
        """Make it current in this thread, until it is popped."""
        self.call("cuCtxPushCurrent_v2", context)

    def pop_context(self) -> None:
        """Make the one before it current again."""
        self._made("cuCtxPopCurrent_v2")

    def current_context(self) -> int | None:
        """Of this thread; None where it has none."""
        return self._made("cuCtxGetCurrent")

    def set_current_context(self, context: int | None) -> None:
        """In the place of the one that is current."""
        self.call("cuCtxSetCurrent", context)

    # Memory

    def free_memory(self) -> tuple[int, int]:
        """(free, all) bytes of the current context's GPU."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def out_of_memory(self, nbytes: int, device: int) -> UserError:
        """What to tell a user where a GPU has not as many bytes."""
        free, total = self.free_memory()
        return UserError(f"GPU {device} is out of memory: expected {_mebibytes(nbytes)} more, but "
                         f"{_mebibytes(free)} of {_mebibytes(total)} are free; close other programs that use it "
                         "(nvidia-smi shows them, tegrastats on a Jetson), or use fewer threads, or engines of a "
                         "smaller batch or preset")

    def cannot_lock(self, nbytes: int) -> UserError:
        """What to tell a user where the host cannot give as many bytes of page-locked memory."""
        return UserError(f"the host cannot lock {_mebibytes(nbytes)} of memory for the GPU; close other programs, or "
                         "use fewer threads")

    def allocate_host(self, nbytes: int) -> int:
        """The address of page-locked memory of the host."""
        return self._made("cuMemHostAlloc", nbytes, _PORTABLE)

    def free_host(self, address: int) -> None:
        """Give back what `allocate_host` gave."""
        self.call("cuMemFreeHost", address)

    def pointer(self, address: int) -> Pointer:
        """What an address is, known to CUDA or not."""
        values = {name: kind() for name, (_, kind) in _POINTER_ATTRIBUTES.items()}
        attributes = (c_int * len(values))(*(number for number, _ in _POINTER_ATTRIBUTES.values()))
        targets = (c_void_p * len(values))(*(ctypes.addressof(value) for value in values.values()))
        self.call("cuPointerGetAttributes", len(values), attributes, targets, address)
        found = {name: value.value for name, value in values.items()}
        return Pointer(**(found | {"managed": bool(found["managed"])}))

    # Streams, events, graphs

    def create_stream(self) -> int:
        """One that neither waits for the default stream nor is waited for by it."""
        return self._made("cuStreamCreate", STREAM_NON_BLOCKING)

    def create_event(self, *, timing: bool = True) -> int:
        """One that was not recorded yet."""
        return self._made("cuEventCreate", 0 if timing else _WITHOUT_TIMING)

    def record_event(self, event: int, stream: int) -> None:
        """Put it behind what is queued on a stream."""
        self.call("cuEventRecord", event, stream)

    def synchronise_event(self, event: int) -> None:
        """Wait until the GPU came to it."""
        self.call("cuEventSynchronize", event)

    def milliseconds_between(self, earlier: int, later: int) -> float:
        """On the GPU's clock, once both have passed."""
        milliseconds = c_float()
        self.call("cuEventElapsedTime", byref(milliseconds), earlier, later)
        return milliseconds.value

    def destroy_event(self, event: int) -> None:
        """At once, or once it has passed."""
        self.call("cuEventDestroy_v2", event)

    def wait_for(self, stream: int, other: int) -> None:
        """What is queued on `other` so far comes before what is queued on `stream` from now on."""
        event = self.create_event(timing=False)
        try:
            self.record_event(event, other)
            self.call("cuStreamWaitEvent", stream, event, 0)
        finally:
            self.destroy_event(event)

    def capture(self, stream: int, work: Callable[[], None]) -> CudaGraph:
        """What `work` queues on a stream, as a graph; none of it runs. Afterwards the stream takes work as before.

        What other threads do meanwhile does not disturb it. Raises CudaError where something cannot be captured, and
        what `work` raises.
        """
        self.call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
        graph = c_void_p()
        try:
            work()
        except BaseException:
            # A capture that failed is told by the status, which says no more than the error that is on its way.
            self._library.cuStreamEndCapture(stream, byref(graph))
            if graph.value is not None:
                self.call("cuGraphDestroy", graph)
            raise
        self.call("cuStreamEndCapture", stream, byref(graph))
        try:
            return CudaGraph(self, self._made("cuGraphInstantiateWithFlags", graph, 0))
        finally:
            self.call("cuGraphDestroy", graph)


def libcuda() -> ctypes.CDLL:
    """The driver's library. Raises OSError where there is none."""
    *others, last = _LIBRARIES
    for library in others:
        try:
            return ctypes.CDLL(library)
        except OSError:
            continue
    return ctypes.CDLL(last)


@contextmanager
def giving_back(what: str) -> Iterator[None]:
    """A warning for a CudaError: when the GPU failed, who waited for it knows, and nothing can be freed any more."""
    try:
        yield
    except CudaError as error:
        warnings.warn(f"{what} was not given back: {error}", RuntimeWarning, stacklevel=4)


def host_address(array: np.ndarray, *, written: bool = False) -> int:
    """Where an array of the host lies. Raises ValueError where it is not in one piece, or read-only and `written`."""
    if not array.flags.c_contiguous:
        raise ValueError(f"expected a contiguous array, received shape {list(array.shape)} with strides "
                         f"{list(array.strides)}; copy it with numpy.ascontiguousarray")
    if written and not array.flags.writeable:
        raise ValueError("expected an array that can be written, received a read-only one")
    return array.ctypes.data


def _mebibytes(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"
