"""benchmarks/memory.py on a GPU that is played: the peak between two looks, and who can tell it."""

from __future__ import annotations

import threading

import pytest

from benchmarks.memory import GpuMemory, PeakGpuMemory, gpu_memory
from benchmarks.nvml import Nvml
from talent.errors import UserError


class Card(Nvml):
    """NVML that answers so many bytes, or nothing."""

    def __init__(self, used: int | None) -> None:
        self._used = used

    def used_bytes(self) -> int | None:
        return self._used


class Cuda:
    """A driver with 8000 bytes, of which some are free, and its context."""

    def __init__(self, free: int = 1000) -> None:
        self.free, self.log = free, []

    def retain_primary_context(self, device: int) -> int:
        self.log.append(("retain", device))
        return 42

    def push_context(self, context: int) -> None:
        self.log.append(("push", context))

    def pop_context(self) -> None:
        self.log.append(("pop",))

    def free_memory(self) -> tuple[int, int]:
        return self.free, 8000


def no_driver():
    raise UserError("expected NVIDIA's driver (libcuda.so.1), found none")


def test_the_peak_is_what_came_on_top_and_is_kept_when_it_is_freed():
    taken = {"now": 500}
    seen = threading.Event()

    def used() -> int:
        if taken["now"] == 2500:
            seen.set()
        return taken["now"]

    with PeakGpuMemory(GpuMemory(used, "test")) as peak:
        taken["now"] = 2500
        assert seen.wait(timeout=10)
        taken["now"] = 700
    assert peak.bytes == 2000 and peak.reason is None


def test_what_is_taken_at_the_end_counts_without_a_look_between(monkeypatch):
    monkeypatch.setattr("benchmarks.memory.INTERVAL", 60)
    taken = {"now": 500}
    with PeakGpuMemory(GpuMemory(lambda: taken["now"], "test")) as peak:
        taken["now"] = 900
    assert peak.bytes == 400


def test_without_a_gpu_there_is_a_reason():
    with PeakGpuMemory("it runs on the CPU") as peak:
        pass
    assert (peak.bytes, peak.reason) == (None, "it runs on the CPU")


def test_nvml_is_asked_first():
    memory = gpu_memory(lambda: Card(123), no_driver)
    assert (memory.source, memory.used()) == ("NVML", 123)


@pytest.mark.parametrize("nvml", [Card(None), "NVML does not start"])
def test_cuda_is_asked_where_nvml_does_not_tell(nvml):
    cuda = Cuda(free=1000)
    memory = gpu_memory(lambda: nvml, lambda: cuda)
    assert memory.used() == 7000 and memory.source.startswith("CUDA")
    assert cuda.log == [("retain", 0), ("push", 42), ("pop",)]


def test_nobody_can_tell():
    assert "found none" in gpu_memory(lambda: "no NVML", no_driver)
