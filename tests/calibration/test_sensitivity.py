"""What is measured of a set of layers, against numbers by hand; nothing is run twice, whatever happened before."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from calibration.records import Records
from calibration.sensitivity import HeldOut, Sensitivity
from deploy.onnx_run import Feeds
from deploy.runtime.interface import LOGITS
from talent.errors import UserError
from talent.metrics import Score

SHIFT = {"a": 1.0, "b": 2.0, "c": 4.0, "broken": math.nan}
FP32 = np.float32([[[[3, -4], [12, 0]]]])


@dataclass
class Network:
    """Adds to the logits of an expression what the layers in INT8 say. breaks: at which run it fails."""

    runs: list[tuple[float, frozenset[str]]] = field(default_factory=list)
    breaks: int | None = None

    def run(self, feeds: Feeds, int8: Collection[str]) -> dict[str, np.ndarray]:
        if len(self.runs) == self.breaks:
            raise RuntimeError("killed")
        self.runs.append((float(feeds["x"]), frozenset(int8)))
        return {LOGITS: feeds["x"] * FP32 + np.float32(sum(SHIFT[name] for name in int8))}


def judge(number: int, logits: np.ndarray) -> Score:
    """Intersection, union and, for the first two expressions, whether a wrong instance is covered."""
    total = float(np.nan_to_num(logits).sum())
    return Score(int(total) + 100, 200 * number, covers_wrong_instance=total > 14 if number < 3 else None)


class Expressions:
    """`count` of them; the feeds of number n are n times those of the first."""

    def __init__(self, count: int) -> None:
        self.count, self.read = count, 0

    def __iter__(self) -> Iterator[HeldOut]:
        for number in range(1, self.count + 1):
            self.read += 1
            yield HeldOut(partial(dict, x=np.float32(number)), partial(judge, number), f"expression {number}")


def test_numbers_by_hand() -> None:
    """FP32 gives sums of logits 11, 22, 33 and squares 169, 676, 1521; a shift of d adds 4 d and 4 d^2."""
    measured = Sensitivity(Network(), Expressions(3), Records(None, "")).measure(
        [[], ["a"], ["a", "b"]], title="by hand")
    reference, one, two = measured
    assert [found.layers for found in measured] == [frozenset(), {"a"}, {"a", "b"}]
    assert {found.samples for found in measured} == {3}
    assert reference.miou == pytest.approx((111 / 200 + 122 / 400 + 133 / 600) / 3)
    assert one.miou == pytest.approx((115 / 200 + 126 / 400 + 137 / 600) / 3)
    assert two.oiou == pytest.approx((123 + 134 + 145) / 1200)
    assert [found.nta_rate for found in measured] == [0.5, 1.0, 1.0]  # of two expressions: 11, 22 against 14
    assert reference.error == 0
    assert one.error == pytest.approx(math.sqrt(3 * 4 / (169 + 676 + 1521)))
    assert two.error == pytest.approx(3 * one.error)


def test_no_rate_where_no_picture_had_other_instances() -> None:
    class Alone(Expressions):
        def __iter__(self) -> Iterator[HeldOut]:
            return (held for held in super().__iter__() if held.feeds()["x"] > 2)

    assert Sensitivity(Network(), Alone(4), Records(None, "")).measure([["a"]], title="alone")[0].nta_rate is None


def test_sets_come_back_in_order_and_each_is_run_once() -> None:
    network = Network()
    sets = [["b", "a"], [], ("a", "b"), {"c"}, ["a", "b", "a"], ()]
    measured = Sensitivity(network, Expressions(2), Records(None, "")).measure(sets, title="order")
    assert [found.layers for found in measured] == [frozenset(layers) for layers in sets]
    assert measured[0] is measured[2] is measured[4] and measured[1] is measured[5]
    assert network.runs == [(number, layers) for number in (1, 2)
                            for layers in (frozenset(), frozenset("ab"), frozenset("c"))]


def test_what_is_in_the_records_is_not_run_again(tmp_path: Path) -> None:
    network, sets = Network(), [(), "a", "b"]
    before = Sensitivity(network, Expressions(2), Records(tmp_path, "net")).measure(sets, title="first")
    network.runs.clear()
    again = Sensitivity(network, Expressions(3), Records(tmp_path, "net"))
    assert again.measure(sets, samples=2, title="again") == before
    assert not network.runs
    assert again.measure(["b", "c"], samples=2, title="one more")[0] == before[2]
    assert network.runs == [(1, frozenset()), (1, frozenset("c")), (2, frozenset()), (2, frozenset("c"))]
    network.runs.clear()
    again.measure(["c"], title="one expression more")
    assert network.runs == [(3, frozenset()), (3, frozenset("c"))]
    Sensitivity(network, Expressions(1), Records(tmp_path, "another net")).measure(["c"], title="another")
    assert len(network.runs) == 4


def test_no_more_expressions_are_read_than_are_asked_for() -> None:
    held_out = Expressions(5)
    sensitivity = Sensitivity(Network(), held_out, Records(None, ""))
    assert sensitivity.measure(["a"], samples=2, title="two")[0].samples == held_out.read == 2
    assert sensitivity.measure(["a"], samples=9, title="all")[0].samples == 5
    assert sensitivity.measure(["a"], title="all")[0].samples == 5


@pytest.mark.parametrize("breaks", [0, 1, 4, 5])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, breaks: int) -> None:
    """Of a pair of expression and set none is run twice; FP32, which others are held against, once more at most."""
    network, sets = Network(breaks=breaks), ["a", "b"]
    with pytest.raises(RuntimeError, match="killed"):
        Sensitivity(network, Expressions(2), Records(tmp_path, "net")).measure(sets, title="killed")
    network.breaks = None
    resumed = Sensitivity(network, Expressions(2), Records(tmp_path, "net")).measure(sets, title="resumed")
    assert resumed == Sensitivity(Network(), Expressions(2), Records(None, "")).measure(sets, title="at once")
    int8 = [(number, layers) for number, layers in network.runs if layers]
    assert sorted(int8, key=str) == sorted({(number, frozenset(layers)) for number in (1, 2) for layers in sets},
                                           key=str)
    assert len(network.runs) - len(int8) <= 3


def test_logits_that_are_not_finite_are_an_infinite_error_here_and_in_the_file(tmp_path: Path) -> None:
    network = Network()
    for _ in range(2):
        broken, whole = Sensitivity(network, Expressions(2), Records(tmp_path, "net")).measure(
            [["broken"], "a"], title="broken")
        assert broken.error == math.inf and math.isfinite(broken.miou) and whole.error < 1
    assert len(network.runs) == 6


def test_without_expressions_there_is_nothing_to_measure() -> None:
    with pytest.raises(UserError, match="expected at least one"):
        Sensitivity(Network(), Expressions(0), Records(None, "")).measure([()], title="none")


def test_fp32_runs_once_for_all_measurements() -> None:
    network, held_out = Network(), Expressions(2)
    sensitivity = Sensitivity(network, held_out, Records(None, ""))
    for layers in (["a"], ["b"], [], ["a", "b"]):
        sensitivity.measure([layers], title="one at a time")
    assert [layers for _, layers in network.runs].count(frozenset()) == 2
    assert len(network.runs) == 2 + 3 * 2


def test_a_network_that_is_itself_not_finite_is_refused() -> None:
    class Broken(Network):
        def run(self, feeds: Feeds, int8: Collection[str]) -> dict[str, np.ndarray]:
            return {LOGITS: np.full_like(FP32, np.nan)}

    with pytest.raises(UserError, match="network itself gave logits that are not finite"):
        Sensitivity(Broken(), Expressions(1), Records(None, "")).measure([["a"]], title="broken")
