"""Python's side of stand_in_cuda.cpp: a GPU of the host's memory, for either wrapper of deploy.runtime.cuda.

    with StandInCuda.installed(library, "pycuda") as cuda:     # library: from `compile_stand_in`
        device = open_device()
        with device.current():
            ...
            cuda.queue(stream.handle, lambda: cuda.view(address, (2, 3), np.float32).__iadd__(1))
    assert not cuda.live()                                     # nothing was left behind
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from ctypes import c_char_p, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path

import numpy as np
import pytest

from deploy.runtime import driver
from tests.deploy import fake_pycuda

SOURCE = Path(__file__).with_name("stand_in_cuda.cpp")
LIBCUDA, LIBCUDART = "libcuda.so.1", "libcudart.so"
KINDS = ("allocations", "pinned", "streams", "events", "graphs", "contexts")
OUT_OF_MEMORY = 2
_Callback = ctypes.CFUNCTYPE(c_int32, c_void_p)


def compile_stand_in(directory: Path) -> Path:
    """The stand-in as libcuda.so.1, and libcudart.so beside it."""
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("needs g++, which is not installed here")
    library = directory / LIBCUDA
    subprocess.run([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", str(SOURCE), "-pthread", "-o", str(library)],
                   check=True)
    (directory / LIBCUDART).symlink_to(library.name)
    return library


class StandInCuda:
    """The stand-in, as it was compiled to `library`.

    It keeps what the callbacks of `queue` raised in `raised`: for CUDA such a kernel failed.
    """

    def __init__(self, library: Path) -> None:
        self.path = library
        self.library = ctypes.CDLL(str(library))
        self.library.stand_in_reset.argtypes = (c_int32, c_size_t)
        self.library.stand_in_reset.restype = None
        self.library.stand_in_live.argtypes = (c_char_p,)
        self.library.stand_in_live.restype = self.library.stand_in_depth.restype = c_int64
        self.library.stand_in_calls.argtypes = (c_char_p,)
        self.library.stand_in_calls.restype = c_int64
        self.library.stand_in_fail.argtypes = (c_char_p, c_int64, c_int32)
        self.library.stand_in_fail.restype = None
        self.library.stand_in_queue.argtypes = (c_void_p, _Callback, c_void_p)
        self.raised: list[BaseException] = []
        self._callbacks: list[object] = []
        self._patch: pytest.MonkeyPatch | None = None

    @classmethod
    @contextlib.contextmanager
    def installed(cls, library: Path, wrapper: str, *, devices: int = 2, memory: int = 2**30) -> Iterator[StandInCuda]:
        """Installed for the length of a block."""
        stand_in = cls(library)
        stand_in.install(wrapper, devices=devices, memory=memory)
        try:
            yield stand_in
        finally:
            stand_in.uninstall()

    def install(self, wrapper: str, *, devices: int = 2, memory: int = 2**30) -> None:
        """Make it this machine's CUDA, with so many GPUs of so many bytes: deploy.runtime finds no other one.

        wrapper: "pycuda" puts the fake pycuda where the real one would be, "polygraphy" hides it.
        """
        self.library.stand_in_reset(devices, memory)
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(driver, "_LIBRARIES", (str(self.path),))
        if wrapper == "pycuda":
            for name, module in fake_pycuda.fake(self.library).items():
                self._patch.setitem(sys.modules, name, module)
            return
        self._patch.setitem(sys.modules, "pycuda", None)  # as if it were not installed
        pytest.importorskip("polygraphy")
        self._patch.setenv("LD_LIBRARY_PATH", str(self.path.parent))  # where Polygraphy looks for libcudart first
        self._patch.setattr(importlib.import_module("polygraphy.cuda.cuda"), "G_CUDA", None)

    def uninstall(self) -> None:
        """Take it away again. What it had given out is still counted by `live`."""
        if self._patch is not None:
            self._patch.undo()
            self._patch = None

    def live(self) -> dict[str, int]:
        """How much of each of KINDS was not given back; without those of which there is none."""
        counts = {kind: self.library.stand_in_live(kind.encode()) for kind in KINDS}
        return {kind: count for kind, count in counts.items() if count}

    def depth(self) -> int:
        """How many contexts lie on this thread's stack."""
        return self.library.stand_in_depth()

    def calls(self, function: str) -> int:
        """How often an entry point was called; named without _v2."""
        return self.library.stand_in_calls(function.encode())

    def fail(self, function: str, *, nth: int = 1, code: int = OUT_OF_MEMORY) -> None:
        """Let the nth call from now of an entry point (named without _v2) give an error."""
        self.library.stand_in_fail(function.encode(), nth, code)

    def queue(self, stream: int, work: Callable[[], object]) -> None:
        """Queue `work` on a stream (its handle), as if it were a kernel: captured, it runs at each launch.

        Raises what CUDA's own launch would, as a RuntimeError.
        """
        def run(_: object) -> int:
            try:
                work()
            except BaseException as error:  # a callback of ctypes would print it and go on
                self.raised.append(error)
                return 1
            return 0

        callback = _Callback(run)
        self._callbacks.append(callback)
        if status := self.library.stand_in_queue(stream, callback, None):
            words = c_char_p()
            self.library.cuGetErrorName(status, ctypes.byref(words))
            raise RuntimeError(f"{words.value.decode()}: the stand-in does not queue this")

    def view(self, address: int, shape: tuple[int, ...], dtype: object) -> np.ndarray:
        """The GPU's memory, as work on it sees it: an array over it, without waiting for anything."""
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype).reshape(shape)

    def foreign_context(self, device: int = 0) -> int:
        """Make a context as `Device.make_context` of pycuda does, current in this thread."""
        context = c_void_p()
        assert self.library.cuCtxCreate_v2(ctypes.byref(context), 0, device) == 0
        return context.value

    def allocate(self, nbytes: int, *, function: str = "cuMemAlloc_v2") -> int:
        """Memory as somebody else would allocate it, in the current context: also by cuMemAllocManaged, page-locked on
        the host by cuMemHostAlloc, or from a pool by cuMemAllocAsync."""
        address = c_uint64()
        more = {"cuMemAllocManaged": (1,), "cuMemHostAlloc": (0,), "cuMemAllocAsync": (None,)}.get(function, ())
        assert getattr(self.library, function)(ctypes.byref(address), c_size_t(nbytes), *more) == 0
        return address.value
