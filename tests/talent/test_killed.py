"""Never lose a run: killed at any moment, it goes on as if it had not been. Real processes, real SIGKILL."""

from __future__ import annotations

import functools
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from talent import files
from talent.checkpoint import load_checkpoint
from talent.run_directory import ABOUT, BEST, LAST, LOG, RunDirectory
from tests.talent import processes, runs
from tests.talent.processes import Signal
from tests.talent.runs import assert_same_run, assert_whole, log

# Its checkpoints, in order: last/ of step 0; last/ and best/ of 2; last/ of 3; last/ and best/ of 4; the same of 6.
ARGUMENTS = ["--tune", "full", "--steps", "6", "--batch_size", "2", "--train_samples", "8", "--val_samples", "3",
             "--validate_every", "2", "--save_every", "3", "--log_every", "1", "--warmup_steps", "6", "--ema", "0.9",
             "--workers", "0", "--cpu", "true"]
train = functools.partial(runs.train, arguments=ARGUMENTS)


@pytest.fixture(scope="module")
def whole(initial, tmp_path_factory) -> Path:
    """The run that nobody killed."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    code, output = train(initial, path)
    assert code == 0, output
    assert [line["step"] for line in log(path, "train")] == [1, 2, 3, 4, 5, 6]
    validations = [line["mIoU"] for line in log(path, "validation")]
    assert validations == sorted(set(validations)) and len(validations) == 3, "best/ is written three times"
    return path


def step(checkpoint: Path) -> int | None:
    return load_checkpoint(checkpoint).metrics["step"] if checkpoint.exists() else None


@dataclass(frozen=True)
class WithoutExchange:
    """A file system that cannot swap two names in one step."""

    def __call__(self) -> None:
        files._exchange = lambda a, b: False


@dataclass(frozen=True)
class TornLine:
    """Killed when half of a line of the log is written."""

    call: int

    def __call__(self) -> None:
        append, calls = RunDirectory.append, []

        def torn(run: RunDirectory, line: dict) -> None:
            calls.append(1)
            append(run, line)
            if len(calls) == self.call:
                os.truncate(run.log, os.path.getsize(run.log) - 20)
                os.kill(os.getpid(), signal.SIGKILL)

        RunDirectory.append = torn


WRITE, MOVE = "talent.checkpoint.write_checkpoint", "talent.files._move_into_place"
APPEND = "talent.run_directory.RunDirectory.append"
# Where it is killed: the steps of last/ and best/ at that moment (None: there is none), and how.
POINTS = {
    "before the first checkpoint": (None, None, [Signal(WRITE, 1)]),
    "in the first step": (0, None, [Signal("talent.train.talent_losses", 1)]),
    "in the backward pass of step 5": (4, 4, [Signal("accelerate.Accelerator.backward", 5)]),
    "between the weights and their average": (4, 4, [Signal("talent.train.MovingAverage.update", 5)]),
    "in a save of last, nothing written": (0, None, [Signal(WRITE, 2)]),
    "in a save of last, only weights": (0, None, [Signal("safetensors.torch.save_file", 2, after=True)]),
    "in a save of last, no state": (2, 2, [Signal(WRITE, 4, after=True)]),
    "in a save of last, before the swap": (3, 2, [Signal(MOVE, 5)]),
    "in a save of last, before the old one is removed": (3, 2, [Signal(MOVE, 4, after=True)]),
    "in a validation": (4, 2, [Signal("talent.train.SegmentationMetrics.from_scores", 2)]),
    "in the first save of best": (2, None, [Signal("safetensors.torch.save_file", 3, after=True)]),
    "in the second save of best": (4, 2, [Signal(WRITE, 6, after=True)]),
    "in a save of best, before the old one is removed": (4, 4, [Signal(MOVE, 6, after=True)]),
    "between best and its line": (4, 4, [Signal(APPEND, 6)]),
    "in a line of the log": (2, 2, [TornLine(4)]),
    "in the line of a validation": (4, 4, [TornLine(6)]),
    "after the last line": (6, 6, [Signal(APPEND, 9, after=True)]),
    "names cannot be swapped, last put aside": (None, None, [WithoutExchange(), Signal("os.rename", 2, after=True)]),
    "names cannot be swapped, best put aside": (4, None, [WithoutExchange(), Signal("os.rename", 9, after=True)]),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_run_goes_on_as_if_it_had_not_been(tmp_path, initial, whole, point):
    run = tmp_path / "run"
    last, best, how = POINTS[point]
    code, output = train(initial, run, *how)
    assert code == -signal.SIGKILL, output
    assert_whole(run)
    assert (step(run / LAST), step(run / BEST)) == (last, best), "killed at another moment than meant"
    code, output = train(initial, run, resume=True)
    assert code == 0, output
    assert_whole(run)
    assert_same_run(run, whole)


def test_killed_again_and_again(tmp_path, initial, whole):
    """Also while it is taken up again, and while it cleans up."""
    run = tmp_path / "run"
    for number, how in enumerate([
            Signal(MOVE, 4, after=True), Signal("talent.run_directory.atomic_write", 1), Signal("os.replace", 2),
            Signal(MOVE, 1, after=True), Signal("shutil.rmtree", 1), Signal("talent.train.talent_losses", 2)]):
        code, output = train(initial, run, how, resume=number > 0)
        assert code == -signal.SIGKILL, output
        assert_whole(run)
    assert train(initial, run, resume=True)[0] == 0
    assert_same_run(run, whole)


def test_killed_before_it_said_what_it_is(tmp_path, initial, whole):
    """There is nothing to resume, and nothing that could be overwritten."""
    run = tmp_path / "run"
    assert train(initial, run, Signal("talent.run_directory.atomic_write", 1))[0] == -signal.SIGKILL
    assert not (run / ABOUT).exists()
    code, output = train(initial, run, resume=True)
    assert code == 2 and "nothing to resume" in output and "leave --resume out" in output
    assert train(initial, run)[0] == 0
    assert_same_run(run, whole)


@pytest.mark.parametrize("seed", [0])
def test_killed_at_any_time(tmp_path, initial, whole, seed):
    """By the clock: a run with a worker that loads data, killed a moment after a line or two of its log, four times."""
    run, rng = tmp_path / "run", random.Random(seed)
    for number in range(5):
        argv = ["--init", str(initial), *ARGUMENTS, "--workers", "1", "-o", str(run),
                "--resume", str((run / ABOUT).exists()).lower()]
        command = processes.start(argv, log=run.with_suffix(".txt"), prepare=[processes.no_pictures])
        if number == 4:
            break
        wanted = lines(run) + rng.choice((0, 1, 1, 2))
        while command.process.exitcode is None and lines(run) < wanted:
            command.process.join(0.005)
        command.process.join(rng.uniform(0, 0.2))
        command.process.kill()
        assert command.wait() in (-signal.SIGKILL, 0), command.output
        assert_whole(run)
    assert command.wait() == 0, command.output
    assert_same_run(run, whole)


def lines(run: Path) -> int:
    return (run / LOG).read_text().count("\n") if (run / LOG).exists() else 0
