"""benchmarks/fresh_process.py: what a contender costs alone, and what happens when its process ends badly."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from benchmarks import fresh_process
from benchmarks.contenders import Contender, Stages
from benchmarks.fresh_process import RUNS, Job, alone, work
from talent.errors import UserError

MEGABYTE = 2**20


class Heavy(Stages):
    """Holds so many bytes. clock: goes on by 5 s at its first sentence, by 1 s at the others."""

    clock = [0.0]

    def __init__(self, megabytes: int, threads: int) -> None:
        self.held = np.ones(megabytes * MEGABYTE, np.uint8)
        self.threads, self.runs = threads, 0

    def preprocess(self, image):
        assert image.shape == (24, 32, 3) and image.dtype == np.uint8
        return np.zeros((1, 3, 4, 4), np.float32), None

    def encode(self, sentence):
        self.runs += 1
        self.clock[0] += 5 if self.runs == 1 else 1
        return sentence

    def infer(self, tensor, prompt):
        assert (prompt, os.environ["OMP_NUM_THREADS"]) == ("the cup", str(self.threads))
        return np.zeros((1, 1, 2, 2), np.float32)

    def postprocess(self, logits, letterbox):
        pass


@dataclass(frozen=True, kw_only=True)
class HeavyContender(Contender):
    """fails: what happens when it is opened."""

    megabytes: int = 0
    fails: str = ""

    def open(self, *, image_size: int, threads: int) -> Stages:
        if self.fails == "bad input":
            raise UserError(f"needs another size than {image_size}")
        if self.fails == "error":
            raise RuntimeError("a driver is missing")
        if self.fails == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        print("a library may print this")
        return Heavy(self.megabytes, threads)


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.zeros((24, 32, 3), np.uint8))

    def make(**changes) -> Job:
        contender = HeavyContender(name="heavy", precision="fp32", **changes)
        return Job(contender, image_size=64, threads=1, picture=str(path), sentence="the cup")

    return make


def test_memory_is_that_of_the_process_alone(job, monkeypatch):
    """What this process holds is not counted, nor what another row took before."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # of this process; the other one gets what its job says
    ballast = np.ones(300 * MEGABYTE, np.uint8)
    small, large = alone(job(megabytes=1)), alone(job(megabytes=101))
    assert small.failure is None and large.failure is None
    assert large.peak_host_bytes - small.peak_host_bytes == pytest.approx(100 * MEGABYTE, rel=0.1)
    assert large.peak_host_bytes - large.python_host_bytes >= 100 * MEGABYTE
    assert small.peak_host_bytes < ballast.nbytes
    assert (small.peak_gpu_bytes, small.peak_gpu_reason) == (None, "it runs on the CPU")
    assert small.first_inference_ms > 0 and small.load_seconds > 0


def test_the_first_run_is_the_one_that_is_timed(job, monkeypatch):
    opened = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(fresh_process, "time", SimpleNamespace(perf_counter=lambda: Heavy.clock[0]))
    monkeypatch.setattr(HeavyContender, "open", lambda self, **arguments: opened.append(Heavy(0, 1)) or opened[0])
    assert work(job()).first_inference_ms == 5000 and opened[0].runs == RUNS


@pytest.mark.parametrize(("fails", "failure"), [
    ("bad input", "needs another size than 64"), ("error", "its own process failed: RuntimeError: a driver is missing"),
    ("killed", "its own process was killed by SIGKILL")])
def test_a_process_that_fails_says_why(job, fails, failure):
    found = alone(job(fails=fails))
    assert found.failure == failure and found.peak_host_bytes is None and found.load_seconds is None


def test_patience(job, monkeypatch):
    monkeypatch.setattr(fresh_process.subprocess, "run", _hangs)
    assert alone(job(), patience=7).failure == "it took longer than 7 s in a process of its own"


def _hangs(command, **options):
    raise fresh_process.subprocess.TimeoutExpired(command, options["timeout"])
