"""The progress of a build: how far it is, and how it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploy.build_progress import Phases, run_with_bar

ROOT = Path(__file__).resolve().parents[2]


def run(work, phases: Phases | None = None, **options):
    return run_with_bar(work, phases or Phases(), title="build x", extra="rtx", **options)


def test_inner_phases_are_parts_of_a_step_and_it_never_goes_back():
    phases = Phases()
    seen = [phases.fraction]
    phases.start("whole", None, 4)
    for step in range(2):
        phases.step("whole", step)
        seen.append(phases.fraction)
    phases.start("part", "whole", 2)
    phases.start("detail", "part", 5)
    for step in range(5):
        phases.step("detail", step)
        seen.append(phases.fraction)
    phases.finish("detail")
    phases.step("part", 0)
    seen.append(phases.fraction)
    phases.start("part again", "whole", 10)  # of another thread
    phases.step("part again", 0)
    phases.finish("part")
    seen.append(phases.fraction)
    assert seen == pytest.approx([0, 0.25, 0.5, 0.525, 0.55, 0.575, 0.6, 0.625, 0.625, 0.625])
    phases.finish("whole")
    assert phases.fraction == 1


def test_phases_that_were_never_started_or_have_no_steps_do_no_harm():
    phases = Phases()
    assert phases.step("unknown", 0)
    phases.finish("unknown")
    phases.start("empty", None, 0)
    assert phases.step("empty", 0) and phases.fraction == 1


def test_the_result_and_the_errors_of_the_work_come_back():
    assert run(lambda: threading.current_thread() is not threading.main_thread()) is True
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


def test_ctrl_c_stops_the_work_at_its_next_step():
    phases, before = Phases(), signal.getsignal(signal.SIGINT)

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert phases.cancelled.wait(30)
        answers.append(phases.step("any", 0))

    answers = []
    with pytest.raises(KeyboardInterrupt):
        run(work, phases)
    assert answers == [False] and signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_the_process_however_long_a_step_takes(tmp_path):
    code = ("import os, signal, threading; from deploy.build_progress import Phases, run_with_bar\n"
            "def work():\n"
            "    for _ in range(2):\n"
            "        os.kill(os.getpid(), signal.SIGINT); phases.cancelled.wait(30)\n"
            "    threading.Event().wait(30)\n"
            "phases = Phases()\n"
            "run_with_bar(work, phases, title='x', extra='rtx')\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          check=False, timeout=60)
    assert done.returncode == -signal.SIGINT


def test_a_terminal_is_told_that_the_build_is_stopping(monkeypatch, capsys):
    phases = Phases()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with pytest.raises(KeyboardInterrupt):
        run(phases.cancelled.set, phases)
    assert "build x (stopping):   0%" in capsys.readouterr().err


def test_elsewhere_than_in_the_main_thread_no_handler_is_asked_for():
    found = []
    thread = threading.Thread(target=lambda: found.append(run(lambda: "plan")))
    thread.start()
    thread.join(30)
    assert found == ["plan"]


@pytest.mark.parametrize(("measured", "shown"), [(True, "build x: 100%|"), (False, "build x: 00:00")])
def test_a_terminal_sees_a_bar_or_a_clock(monkeypatch, capsys, measured, shown):
    phases = Phases()

    def work() -> None:
        phases.start("whole", None, 1)
        phases.step("whole", 0)

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run(work, phases, measured=measured)
    drawn = capsys.readouterr().err
    assert shown in drawn and ("%" in drawn) is measured
    run(work, phases, enabled=False)
    assert capsys.readouterr().err == ""
