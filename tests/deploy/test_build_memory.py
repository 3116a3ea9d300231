"""The peak memory of a build, told by the kernel."""

from __future__ import annotations

import sys

import pytest

from deploy.build_memory import PeakMemory

MIB = 1 << 20


@pytest.fixture
def process(tmp_path):
    """process(kib): a /proc/self whose peak is that."""

    def set_peak(kib: int | str):
        (tmp_path / "status").write_text(f"Name:\tpython\nVmPeak:\t  999999 kB\nVmHWM:\t  {kib} kB\nVmRSS:\t  1 kB\n")
        return tmp_path

    return set_peak


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_what_was_held_meanwhile_is_counted_and_what_was_before_is_not():
    before = bytearray(b"x") * (300 * MIB)  # in one piece: of b"x" * n there would be two
    del before
    memory = PeakMemory()
    nothing = memory.bytes()
    during = bytearray(b"x") * (100 * MIB)
    del during
    peak = memory.bytes()
    if nothing is None:
        pytest.skip("this kernel does not let a process set its peak back")
    assert 90 * MIB < peak - nothing < 150 * MIB


def test_the_peak_is_set_back_where_the_kernel_lets_it(process):
    directory = process(2048)
    memory = PeakMemory(directory)
    assert (directory / "clear_refs").read_text() == "5" and memory.bytes() == 2 * MIB


def test_a_peak_from_before_that_cannot_be_set_back_hides_a_lower_one(process):
    directory = process(2048)
    (directory / "clear_refs").mkdir()  # so that writing to it fails
    memory = PeakMemory(directory)
    assert memory.bytes() is None
    process(4096)
    assert memory.bytes() == 4 * MIB


def test_elsewhere_nothing_is_known(tmp_path):
    assert PeakMemory(tmp_path / "nowhere").bytes() is None
