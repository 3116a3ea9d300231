"""Ctrl-C and SIGTERM: the run saves at the end of its step, and goes on later as if nothing had been."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from talent.checkpoint import load_checkpoint
from talent.run_directory import LAST
from talent.stopping import StopRequest, leave_signals_to_the_run
from tests.talent import processes, runs
from tests.talent.processes import Signal
from tests.talent.runs import assert_same_run, assert_whole, log

ARGUMENTS = ["--tune", "full", "--steps", "4", "--batch_size", "2", "--train_samples", "6", "--val_samples", "2",
             "--validate_every", "2", "--save_every", "9", "--log_every", "1", "--cpu", "true"]
STEP, VALIDATION = "talent.train.talent_losses", "talent.train.torch_predictor"


def test_the_first_signal_is_a_request_and_the_second_ctrl_c_interrupts(capfd):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.signal == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)  # whoever ends jobs may say it twice
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert capfd.readouterr().err.splitlines() == ["", "SIGTERM: saving at the end of this step ..."]


class Interrupted(io.RawIOBase):
    """A file into whose first writing a Ctrl-C comes."""

    written = 0

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:
        self.written += 1
        if self.written == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return len(content)


def test_a_signal_in_the_middle_of_a_print(monkeypatch):
    """Python refuses to enter a buffer that is being written, which would end the run; the request must come through.
    """
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Interrupted()), line_buffering=True))
    with StopRequest() as stop:
        print("a progress bar", file=sys.stderr)
        assert stop.signal == signal.SIGINT


class Slow(torch.utils.data.Dataset):
    """Every item asks for signals to the worker that makes it before it is there."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return index


def test_workers_leave_signals_to_the_run():
    """But they end with the loader, and nothing of them is left."""
    loader = torch.utils.data.DataLoader(Slow(), num_workers=1, worker_init_fn=leave_signals_to_the_run)
    batches = iter(loader)
    worker, = batches._workers
    assert [int(batch) for batch in batches] == [0, 1, 2]
    del batches
    worker.join(processes.LIMIT)
    assert worker.exitcode == 0


def test_a_worker_ends_when_the_run_says_so():
    """No other SIGTERM is on its way here: two that wait for the same process are delivered as one."""
    batches = iter(torch.utils.data.DataLoader(range(3), num_workers=1, worker_init_fn=leave_signals_to_the_run))
    next(batches)
    worker, = batches._workers
    worker.terminate()
    worker.join(processes.LIMIT)
    assert worker.exitcode == 0


@pytest.fixture(scope="module")
def whole(initial, tmp_path_factory) -> Path:
    """The run that nobody stopped."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    code, output = train(initial, path)
    assert code == 0, output
    return path


def train(initial: Path, run: Path, *prepare, resume: bool = False, workers: int = 0) -> tuple[int, str]:
    return runs.train(initial, run, *prepare, arguments=[*ARGUMENTS, "--workers", str(workers)], resume=resume)


@pytest.mark.parametrize(("number", "where", "call", "workers", "step"), [
    (signal.SIGTERM, STEP, 3, 0, 3), (signal.SIGINT, STEP, 3, 0, 3), (signal.SIGTERM, STEP, 3, 2, 3),
    (signal.SIGINT, STEP, 1, 2, 1), (signal.SIGTERM, STEP, 2, 0, 2), (signal.SIGTERM, STEP, 4, 0, 4),
    (signal.SIGTERM, VALIDATION, 1, 0, 2), (signal.SIGINT, VALIDATION, 2, 1, 4)],
    ids=["SIGTERM", "Ctrl-C", "SIGTERM with workers", "Ctrl-C with workers", "SIGTERM in a step before a validation",
         "SIGTERM in the last step", "SIGTERM in a validation", "Ctrl-C in the last validation"])
def test_stopped_run_saves_and_goes_on(tmp_path, initial, whole, number, where, call, workers, step):
    run = tmp_path / "run"
    stopped = Signal(where, call, signals=(number,), group=True)
    code, output = train(initial, run, stopped, workers=workers)
    assert code == 128 + number, output
    assert f"{signal.Signals(number).name}: saving at the end of this step" in output
    assert output.splitlines()[-1] == (f"stopped at step {step} of 4; saved: {run / LAST}; go on with the same command "
                                       "and --resume true")
    assert_whole(run)
    assert load_checkpoint(run / LAST).metrics["step"] == step
    assert [line["step"] for line in log(run, "train")] == list(range(1, step + 1))
    assert [line["step"] for line in log(run, "validation")] == [due for due in (2, 4) if due < step], \
        "a validation that was not ended has no line"
    assert train(initial, run, resume=True, workers=workers)[0] == 0
    assert_same_run(run, whole)


def test_second_ctrl_c_interrupts_at_once(tmp_path, initial, whole):
    run = tmp_path / "run"
    code, output = train(initial, run, Signal(STEP, 4, signals=(signal.SIGINT,) * 2, group=True), workers=1)
    assert code == 128 + signal.SIGINT, output
    assert output.splitlines()[-1] == "talent-train: interrupted"
    assert_whole(run)
    assert load_checkpoint(run / LAST).metrics["step"] == 2
    assert train(initial, run, resume=True)[0] == 0
    assert_same_run(run, whole)
