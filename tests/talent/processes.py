"""talent-train in processes of its own, forked from a server that has imported everything: a start takes no time."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

import accelerate  # noqa: F401  (imported for the forked processes, like everything below)
import jsonargparse  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import open_clip  # noqa: F401
import peft  # noqa: F401
import timm  # noqa: F401
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

from talent import train

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60  # seconds until a process that hangs fails its test
CONTEXT = multiprocessing.get_context("forkserver")


def start(argv: Sequence[str], *, log: Path, prepare: Sequence[Callable[[], None]] = (),
          environment: dict[str, str] | None = None) -> Command:
    """talent-train in the background. prepare: called in the new process first. log: where its output goes."""
    return Command(start_function(_main, list(argv), str(log), list(prepare), environment or {}), log)


def start_function(function: Callable, *arguments: object) -> multiprocessing.Process:
    """Any function of a module in the background."""
    before = dict(os.environ)
    os.environ.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    try:
        CONTEXT.set_forkserver_preload([__name__])
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def _main(argv: list[str], log: str, prepare: list[Callable[[], None]], environment: dict[str, str]) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of DataLoader workers, as in a process of its own
    os.setsid()  # signals to the process group must not reach the tests
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    torch.set_num_threads(1)
    for change in prepare:
        change()
    sys.exit(train.main(argv))


@dataclass
class Command:
    """A process that was started."""

    process: multiprocessing.Process
    log: Path

    @property
    def output(self) -> str:
        """What it printed so far, to stdout and stderr."""
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, limit: float = LIMIT) -> int:
        """Its exit code, negative for a signal that killed it. Fails where it takes longer than `limit` seconds."""
        self.process.join(limit)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {limit} s: {self.output}")
        return self.process.exitcode


def run(argv: Sequence[str], *, log: Path, prepare: Sequence[Callable[[], None]] = ()) -> tuple[int, str]:
    """Exit code and output of talent-train."""
    command = start(argv, log=log, prepare=prepare)
    return command.wait(), command.output


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_together(argv: Sequence[str], *, log: Path, count: int = 2,
                   prepare: Sequence[Callable[[], None]] = ()) -> list[Command]:
    """`count` processes of one run, with the environment that torchrun gives them."""
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(free_port())}
    return [start(argv, log=log.with_suffix(f".{rank}{log.suffix}"), prepare=prepare,
                  environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)]


def no_pictures() -> None:
    """They take longer than the few steps of a test."""
    train.Run.show = lambda self: None


@dataclass(frozen=True)
class At:
    """Do something at the `call`th call (from 1) of what `where` names, such as talent.files._move_into_place.

    after: when it has returned rather than before it starts.
    """

    where: str
    call: int = 1
    after: bool = False

    def happen(self) -> None:
        raise NotImplementedError

    def __call__(self) -> None:
        path, name = self.where.rsplit(".", 1)
        owner = _find(path)
        original, calls = getattr(owner, name), []

        def watched(*arguments, **named):
            calls.append(1)
            if len(calls) == self.call and not self.after:
                self.happen()
            result = original(*arguments, **named)
            if len(calls) == self.call and self.after:
                self.happen()
            return result

        setattr(owner, name, watched)


def _find(path: str) -> object:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        parent, name = path.rsplit(".", 1)
        return getattr(importlib.import_module(parent), name)


@dataclass(frozen=True)
class Signal(At):
    """The process sends itself signals at that moment. group: to its DataLoader workers too, as a terminal does."""

    signals: tuple[int, ...] = (signal.SIGKILL,)
    group: bool = False

    def happen(self) -> None:
        for number in self.signals:
            (os.killpg if self.group else os.kill)(os.getpid(), number)
