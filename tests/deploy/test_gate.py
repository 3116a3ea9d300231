"""Calls that are under way when somebody closes."""

from __future__ import annotations

import threading

import pytest

from deploy.runtime.gate import Gate

PATIENCE = 10  # seconds, for what takes a moment


def test_many_are_inside_at_once():
    gate, meeting = Gate("the room"), threading.Barrier(4)

    def visit() -> None:
        with gate.inside():
            meeting.wait(PATIENCE)  # breaks unless all four are inside

    visitors = [threading.Thread(target=visit) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(PATIENCE)
    assert not meeting.broken


def test_closing_waits_for_those_inside_and_lets_nobody_in():
    gate, entered, may_leave, closed = Gate("the room"), *(threading.Event() for _ in range(3))

    def visit() -> None:
        with gate.inside():
            entered.set()
            may_leave.wait(PATIENCE)

    def close() -> None:
        gate.close()
        closed.set()

    visitor, closer = threading.Thread(target=visit), threading.Thread(target=close)
    visitor.start()
    assert entered.wait(PATIENCE)
    closer.start()
    while True:  # until the other thread has closed it
        try:
            with gate.inside():
                pass
        except RuntimeError as error:
            assert str(error) == "the room is closed"
            break
    assert not closed.is_set()
    may_leave.set()
    assert closed.wait(PATIENCE)
    visitor.join(PATIENCE)
    closer.join(PATIENCE)
    gate.close()  # once more does no harm


def test_an_error_inside_lets_out():
    gate = Gate("the room")
    with pytest.raises(ValueError), gate.inside():
        raise ValueError
    gate.close()
