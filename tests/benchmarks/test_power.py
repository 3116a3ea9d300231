"""benchmarks/power.py with meters whose power is known."""

from __future__ import annotations

import time

import pytest

from benchmarks.power import PowerLog


class Steady:
    """So many watts, by a clock of its own."""

    def __init__(self, name: str, watts: float, *, response: float = 0.001, clock=time.perf_counter) -> None:
        self.name, self.response_seconds, self.watts, self.clock = name, response, watts, clock
        self.start, self.closed = clock(), 0

    def joules(self) -> float:
        return self.watts * (self.clock() - self.start)

    def close(self) -> None:
        self.closed += 1


class Scripted:
    """0 W until second 1, 50 W until second 3, then 0 W again."""

    name, response_seconds = "scripted", 0.01

    def __init__(self, clock) -> None:
        self.clock = clock

    def joules(self) -> float:
        return 50 * min(max(self.clock.now - 1, 0), 2)

    def close(self) -> None:
        pass


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def logged(*meters, clock, until: float, step: float = 0.25) -> PowerLog:
    """A log that was read every `step` seconds of a clock that is played."""
    log = PowerLog(meters, interval=0.01, clock=clock)
    while clock.now <= until:
        assert log.read()
        clock.now += step
    return log


def test_the_energy_of_passes_is_that_of_their_time_and_no_other():
    clock = Clock()
    log = logged(Scripted(clock), clock=clock, until=5)
    idle, busy, half = log.per_frame([(3.0, 5.0)], 4), log.per_frame([(1.0, 2.0), (2.5, 3.0)], 10), \
        log.per_frame([(0.5, 1.5)], 1)
    assert idle["energy_mj_per_frame"] == 0 and busy["energy_mj_per_frame"] == pytest.approx(1000 * 75 / 10)
    assert busy["watts"] == pytest.approx(50) and half["energy_mj_per_frame"] == pytest.approx(25_000)
    assert busy["energy_mj_per_frame_by_meter"] == {"scripted": busy["energy_mj_per_frame"]}


def test_meters_add_up():
    clock = Clock()
    log = logged(Steady("gpu", 80, clock=clock), Steady("cpu", 20, clock=clock), clock=clock, until=3)
    found = log.per_frame([(1.0, 2.0)], 5)
    assert found["energy_mj_per_frame"] == pytest.approx(20_000)
    assert found["energy_mj_per_frame_by_meter"] == {"gpu": pytest.approx(16_000), "cpu": pytest.approx(4_000)}
    assert found["energy_reason"] is None


def test_the_thread_reads_all_the_while_and_closes_its_meters():
    meter = Steady("gpu", 100.0)
    with PowerLog([meter], interval=0.005) as log:
        start = time.perf_counter()
        while time.perf_counter() - start < 0.2:
            sum(range(1000))
        end = time.perf_counter()
    assert log.per_frame([(start, end)], 1)["watts"] == pytest.approx(100, rel=0.02)
    assert len(log._times) > 5 and meter.closed == 1


def test_a_pass_that_is_too_short_for_the_meter():
    clock = Clock()
    log = logged(Steady("slow", 5, response=0.5, clock=clock), clock=clock, until=9)
    found = log.per_frame([(1.0, 4.0), (5.0, 7.0)], 3)
    assert found["energy_mj_per_frame"] is None
    assert "a pass of 2.00 s is too short for the meter slow, which needs 2.50 s" in found["energy_reason"]
    assert "--samples" in found["energy_reason"]


def test_without_a_meter_there_is_no_thread_and_a_reason():
    with PowerLog([]) as log:
        assert log._thread is None
    found = log.per_frame([(0.0, 1.0)], 1)
    assert found["energy_mj_per_frame"] is None and found["energy_reason"] == "no meter was found"


def test_a_meter_that_dies_takes_the_energy_with_it_and_not_the_benchmark():
    class Dying(Steady):
        def joules(self) -> float:
            if self.clock() - self.start > 0.02:
                raise OSError("sensor unplugged")
            return super().joules()

    with PowerLog([Dying("i2c", 1.0)], interval=0.005) as log:
        log._thread.join(timeout=5)
        assert not log._thread.is_alive()
    found = log.per_frame([(0.0, 9.0)], 1)
    assert found["energy_mj_per_frame"] is None and "sensor unplugged" in found["energy_reason"]


def test_two_meters_of_one_name():
    with pytest.raises(ValueError, match="different names"):
        PowerLog([Steady("a", 1), Steady("a", 2)])
