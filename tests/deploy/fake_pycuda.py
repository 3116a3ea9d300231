"""Modules `pycuda` and `pycuda.driver` over the stand-in for CUDA, with pycuda's names, rules and words.

After pycuda 2026.1 (src/cpp/cuda.hpp, src/wrapper/wrap_cudadrv.cpp): a stack of contexts of its own for each thread, of
which only the top one is on CUDA's; objects that belong to the context that was on top when they were made, and are
destroyed with their last reference; the primary context, which is not always released (`Context.detach`).
"""

from __future__ import annotations

import ctypes
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from ctypes import byref, c_float, c_int, c_size_t, c_uint64, c_void_p
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np

OUT_OF_MEMORY = 2
INVALID_CONTEXT = 201
INVALID_HANDLE = 400


class Error(Exception):
    """pycuda._driver.Error."""


class MemoryError(Error):
    pass


class LogicError(Error):
    pass


class _OutOfThread(Exception):
    """cannot_activate_out_of_thread_context, which only destructors meet."""


def _as_in_c(function: Callable) -> Callable:
    """C++ leaves no frames in a traceback, which would keep the arguments from being destroyed."""

    def called(*arguments: object, **named: object) -> object:
        try:
            return function(*arguments, **named)
        except Error as error:
            failure = error.with_traceback(None)
        del arguments, named
        try:
            raise failure
        finally:
            del failure

    return called


def fake(library: ctypes.CDLL) -> dict[str, ModuleType]:
    """{"pycuda": ..., "pycuda.driver": ...} for sys.modules."""
    stacks = threading.local()

    def error(call: str, status: int, more: str = "") -> Error:
        words = ctypes.c_char_p()
        library.cuGetErrorString(status, byref(words))
        kind = MemoryError if status == OUT_OF_MEMORY else LogicError
        return kind(f"{call} failed: {words.value.decode()}" + (f" - {more}" if more else ""))

    def call(name: str, *arguments: object) -> None:
        if status := getattr(library, name)(*arguments):
            raise error(name.removesuffix("_v2"), status)

    def clean_up(name: str, *arguments: object) -> None:
        try:
            call(name, *arguments)
        except Error as failure:
            print("PyCUDA WARNING: a clean-up operation failed (dead context maybe?)", failure, file=sys.stderr)

    def stack() -> list[Context]:
        if not hasattr(stacks, "contexts"):
            stacks.contexts = []
        return stacks.contexts

    def top() -> Context | None:
        while stack() and not stack()[-1].valid:
            stack().pop()
        return stack()[-1] if stack() else None

    def leave_top() -> None:
        if stack():
            call("cuCtxPopCurrent_v2", byref(c_void_p()))

    class Device:
        def __init__(self, ordinal: int) -> None:
            device = c_int()
            call("cuDeviceGet", byref(device), ordinal)
            self.ordinal = device.value

        @staticmethod
        def count() -> int:
            count = c_int()
            call("cuDeviceGetCount", byref(count))
            return count.value

        def retain_primary_context(self) -> Context:
            handle = c_void_p()
            call("cuDevicePrimaryCtxRetain", byref(handle), self.ordinal)
            return Context(handle.value, self.ordinal)

        def make_context(self, flags: int = 0) -> Context:
            leave_top()
            handle = c_void_p()
            call("cuCtxCreate_v2", byref(handle), flags, self.ordinal)
            stack().append(Context(handle.value, None))
            return stack()[-1]

    class Context:
        def __init__(self, handle: int, primary_of: int | None) -> None:
            self.handle, self.primary_of = handle, primary_of
            self.valid, self.thread = True, threading.get_ident()

        def push(self) -> None:
            leave_top()
            call("cuCtxPushCurrent_v2", c_void_p(self.handle))
            stack().append(self)

        @staticmethod
        def pop() -> None:
            leave_top()
            if not stack():
                raise error("context::pop", INVALID_CONTEXT, "cannot pop non-current context")
            stack().pop()
            if (below := top()) is not None:
                call("cuCtxPushCurrent_v2", c_void_p(below.handle))

        @staticmethod
        def get_current() -> Context | None:
            return top()

        def _release(self) -> None:
            name, argument = ("cuDevicePrimaryCtxRelease_v2", self.primary_of) if self.primary_of is not None else (
                "cuCtxDetach", c_void_p(self.handle))
            clean_up(name, argument)

        def detach(self) -> None:
            if not self.valid:
                raise error("context::detach", INVALID_CONTEXT, "cannot detach from invalid context")
            active = top() is self
            if active:
                self._release()
            elif self.thread == threading.get_ident():
                call("cuCtxPushCurrent_v2", c_void_p(self.handle))
                self._release()
            self.valid = False
            if active and (below := top()) is not None:
                call("cuCtxPushCurrent_v2", c_void_p(below.handle))

        def __del__(self) -> None:
            self.primary_of = None  # a destructor in C++ calls its own class's function, which is the wrong one here
            if self.valid:
                self.detach()

    class _Dependent:
        def __init__(self) -> None:
            self.ward = top()
            if self.ward is None:
                raise error("explicit_context_dependent", INVALID_CONTEXT, "no currently active context?")

        @contextmanager
        def _activated(self):
            switch = top() is not self.ward
            if switch and self.ward.thread != threading.get_ident():
                raise _OutOfThread
            if switch:
                self.ward.push()
            try:
                yield
            finally:
                if switch:
                    self.ward.pop()

        def _clean_up(self, name: str, argument: object) -> None:
            if not self.ward.valid:
                return
            try:
                with self._activated():
                    clean_up(name, argument)
            except _OutOfThread:
                warnings.warn(f"{type(self).__name__} in out-of-thread context could not be cleaned up", stacklevel=2)

    class Stream(_Dependent):
        def __init__(self, flags: int = 0) -> None:
            super().__init__()
            handle = c_void_p()
            call("cuStreamCreate", byref(handle), flags)
            self.handle = handle.value

        @_as_in_c
        def synchronize(self) -> None:
            call("cuStreamSynchronize", c_void_p(self.handle))

        def __del__(self) -> None:
            if hasattr(self, "handle"):
                self._clean_up("cuStreamDestroy_v2", c_void_p(self.handle))

    class Event(_Dependent):
        def __init__(self, flags: int = 0) -> None:
            super().__init__()
            self.handle = c_void_p()
            call("cuEventCreate", byref(self.handle), flags)

        @_as_in_c
        def record(self, stream: Stream | None = None) -> Event:
            call("cuEventRecord", self.handle, _handle(stream))
            return self

        @_as_in_c
        def synchronize(self) -> Event:
            call("cuEventSynchronize", self.handle)
            return self

        @_as_in_c
        def time_since(self, start: Event) -> float:
            milliseconds = c_float()
            call("cuEventElapsedTime", byref(milliseconds), start.handle, self.handle)
            return milliseconds.value

        def __del__(self) -> None:
            if getattr(self, "handle", None):
                self._clean_up("cuEventDestroy_v2", self.handle)

    class _Freed(_Dependent):
        """What is freed by call, or with its last reference."""

        function: str
        address: int | None = None

        def free(self) -> None:
            if self.address is None:
                raise error("free", INVALID_HANDLE)
            address, self.address = self.address, None
            self._clean_up(self.function, c_void_p(address))

        def __del__(self) -> None:
            if self.address is not None:
                self.free()

    class DeviceAllocation(_Freed):
        function = "cuMemFree_v2"

        def __init__(self, nbytes: int) -> None:
            address = c_uint64()
            call("cuMemAlloc_v2", byref(address), c_size_t(nbytes))
            super().__init__()
            self.address = address.value

        def __int__(self) -> int:
            return self.address

        __index__ = __int__

    class PagelockedHostAllocation(_Freed):
        function = "cuMemFreeHost"

        def __init__(self, shape: tuple[int, ...], dtype: np.dtype, flags: int) -> None:
            super().__init__()
            address = c_void_p()
            call("cuMemHostAlloc", byref(address), c_size_t(int(np.prod(shape)) * dtype.itemsize), flags)
            self.address = address.value
            self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str,
                                        "data": (address.value, False)}

    def pagelocked_empty(shape, dtype, order: str = "C", mem_flags: int = 0) -> np.ndarray:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        array = np.asarray(PagelockedHostAllocation(shape, np.dtype(dtype), mem_flags))
        assert isinstance(array.base, PagelockedHostAllocation) and order == "C"
        return array

    def _handle(stream: Stream | None) -> c_void_p:
        if not isinstance(stream, Stream | None):
            raise TypeError(f"No registered converter to a stream from {type(stream)}")
        return c_void_p(None if stream is None else stream.handle)

    def _in_one_piece(array: np.ndarray, *, written: bool = False) -> int:
        memoryview(array).cast("B")  # BufferError or TypeError as from PyBUF_ANY_CONTIGUOUS
        if written and not array.flags.writeable:
            raise ValueError("buffer source array is read-only")
        return array.ctypes.data

    @_as_in_c
    def memcpy_htod_async(dest: int, src: np.ndarray, stream: Stream | None = None) -> None:
        call("cuMemcpyHtoDAsync_v2", c_uint64(int(dest)), c_void_p(_in_one_piece(src)), c_size_t(src.nbytes),
             _handle(stream))

    @_as_in_c
    def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Stream | None = None) -> None:
        call("cuMemcpyDtoHAsync_v2", c_void_p(_in_one_piece(dest, written=True)), c_uint64(int(src)),
             c_size_t(dest.nbytes), _handle(stream))

    @_as_in_c
    def memcpy_dtod_async(dest: int, src: int, size: int, stream: Stream | None = None) -> None:
        call("cuMemcpyDtoDAsync_v2", c_uint64(int(dest)), c_uint64(int(src)), c_size_t(size), _handle(stream))

    contents: dict[str, Callable | type | SimpleNamespace] = {
        "Error": Error, "MemoryError": MemoryError, "LogicError": LogicError, "Device": Device, "Context": Context,
        "Stream": Stream, "Event": Event, "DeviceAllocation": DeviceAllocation, "mem_alloc": DeviceAllocation,
        "pagelocked_empty": pagelocked_empty, "memcpy_htod_async": memcpy_htod_async,
        "memcpy_dtoh_async": memcpy_dtoh_async, "memcpy_dtod_async": memcpy_dtod_async,
        "host_alloc_flags": SimpleNamespace(PORTABLE=1), "init": lambda flags=0: call("cuInit", flags)}
    package, driver = ModuleType("pycuda"), ModuleType("pycuda.driver")
    for module in (package, driver):
        module.__spec__ = ModuleSpec(module.__name__, None)
    package.__path__, package.driver = [], driver
    vars(driver).update(contents)
    return {"pycuda": package, "pycuda.driver": driver}
