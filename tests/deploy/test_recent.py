"""What is kept of what was asked for lately."""

from __future__ import annotations

import threading

from deploy.runtime.recent import Recent


def test_the_one_that_was_not_asked_for_longest_goes():
    recent, made = Recent(2), []

    def ask(key: str) -> str:
        return recent.get(key, lambda: made.append(key) or key.upper())

    assert [ask(key) for key in "abacab"] == list("ABACAB")
    assert made == ["a", "b", "c", "b"]  # b went when c came, since a had been asked for again
    assert (recent.hits, recent.misses) == (2, 4)


def test_nothing_is_kept_with_no_room():
    recent = Recent(0)
    assert [recent.get("a", lambda number=number: number) for number in (1, 2)] == [1, 2]
    assert (recent.hits, recent.misses) == (0, 2)


def test_an_error_is_not_kept():
    recent = Recent(1)
    try:
        recent.get("a", lambda: 1 // 0)
    except ZeroDivisionError:
        assert recent.get("a", lambda: 3) == 3


def test_making_one_does_not_hold_up_another():
    recent, meeting = Recent(4), threading.Barrier(2)
    threads = [threading.Thread(target=recent.get, args=(key, lambda: meeting.wait(10))) for key in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not meeting.broken and recent.misses == 2
