"""benchmarks/warm_up.py: it ends when times no longer fall, and at the latest when it was told to."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.warm_up import WarmUp, until_stable


def of(*times: float, then: float | None = None):
    sequence = itertools.chain(times, itertools.repeat(then) if then is not None else ())
    return lambda: next(sequence)


def test_steady_from_the_start():
    assert until_stable(of(then=1.0), window=3) == WarmUp(6, True)


def test_slow_first_runs_are_waited_for():
    assert until_stable(of(900, 300, 100, 60, 40, 30, 25, 22, then=20), window=3, most=50) == WarmUp(13, True)


def test_one_outlier_does_not_hold_it_up():
    assert until_stable(of(10, 10, 99, 10, 10, 10), window=3) == WarmUp(6, True)


def test_what_never_settles_ends_at_the_bound():
    calls = []

    def run() -> float:
        calls.append(None)
        return 0.5 ** len(calls)

    assert until_stable(run, window=2, most=9) == WarmUp(9, False) and len(calls) == 9


def test_how_much_may_differ():
    times = [100.0, 100.0, 92.0, 92.0]
    assert not until_stable(of(*times), window=2, within=0.05, most=4).stable
    assert until_stable(of(*times), window=2, within=0.1, most=4).stable


def test_bad_window():
    with pytest.raises(ValueError, match="at least one run"):
        until_stable(of(then=1.0), window=0)
