"""The most memory of a GPU that this process held, beside PeakMemory of deploy/build_memory.py for the host's.

A GPU does not keep its peak, so a thread looks all the while: what is freed again within milliseconds is missed. NVML
tells what all programs have, so other programs must not begin or end meanwhile. A Jetson's NVML does not tell it; CUDA
does, of the memory that its GPU and CPU share, so that there the host's memory is in it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.nvml import Nvml, open_nvml
from deploy.runtime.driver import CudaError, Driver
from talent.errors import UserError

NVML = "NVML"
INTERVAL = 0.005
"""Seconds between two looks."""


@dataclass(frozen=True)
class GpuMemory:
    """used: bytes of the GPU that are taken now. source: who says so."""

    used: Callable[[], int]
    source: str


def gpu_memory(nvml: Callable[[], Nvml | str] = open_nvml, driver: Callable[[], Driver] = Driver) -> GpuMemory | str:
    """Who can tell the memory of the first GPU, or why nobody can. Where that is CUDA, it makes the primary context."""
    managed = nvml()
    if isinstance(managed, Nvml) and managed.used_bytes() is not None:
        return GpuMemory(lambda: managed.used_bytes() or 0, NVML)
    try:
        cuda = driver()
        context = cuda.retain_primary_context(0)
    except (UserError, CudaError) as error:
        return str(error)

    def used() -> int:
        cuda.push_context(context)
        try:
            free, total = cuda.free_memory()
        finally:
            cuda.pop_context()
        return total - free

    return GpuMemory(used, "CUDA, with all that the CPU uses where they share the memory")


class PeakGpuMemory:
    """The most that was taken of the GPU in a block, less what was taken when it began. `bytes` is None without a GPU,
    and `reason` says why; else `source` is who says so."""

    def __init__(self, memory: GpuMemory | str) -> None:
        self._memory = memory
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.bytes: int | None = None
        self.source, self.reason = (None, memory) if isinstance(memory, str) else (memory.source, None)

    def __enter__(self) -> PeakGpuMemory:
        if isinstance(self._memory, GpuMemory):
            self._before, self.bytes = self._memory.used(), 0
            self._thread = threading.Thread(target=self._watch, name="GPU memory", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._look()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, self._memory.used() - self._before)
