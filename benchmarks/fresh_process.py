"""What a contender costs in a process of its own: until it is ready, until its first answer, in memory.

In one process the memory of all contenders would add up, and whoever comes second would find libraries loaded that the
first one loaded. The files of the network may be in the system's cache, as after a program's restart.

    python benchmarks/fresh_process.py < job    a Job as JSON; prints the answer as one line of JSON
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[:] = [str(Path(__file__).resolve().parent.parent), *sys.path[1:]]  # benchmarks are scripts, not installed

import cv2  # noqa: E402

from benchmarks.contenders import Contender  # noqa: E402
from benchmarks.memory import PeakGpuMemory, gpu_memory  # noqa: E402
from deploy.build_memory import PeakMemory  # noqa: E402
from talent.errors import UserError  # noqa: E402
from talent.image import read_image  # noqa: E402

RUNS = 3  # the first one is timed, all of them may take memory


@dataclass(frozen=True)
class Job:
    """What the other process is to do. picture: a file. sentence: about it."""

    contender: Contender
    image_size: int
    threads: int
    picture: str
    sentence: str

    def to_json(self) -> str:
        """For `from_json` in another process. A contender's fields are what JSON has, or paths."""
        kind, fields = type(self.contender), dataclasses.asdict(self.contender)
        paths = [name for name, value in fields.items() if isinstance(value, Path)]
        return json.dumps({**{name: getattr(self, name) for name in ("image_size", "threads", "picture", "sentence")},
                           "kind": [kind.__module__, kind.__qualname__], "paths": paths,
                           "contender": fields | {name: str(fields[name]) for name in paths}})

    @classmethod
    def from_json(cls, text: str) -> Job:
        said = json.loads(text)
        (module, name), fields, paths = said.pop("kind"), said.pop("contender"), said.pop("paths")
        kind = getattr(importlib.import_module(module), name)
        return cls(contender=kind(**fields | {name: Path(fields[name]) for name in paths}), **said)


@dataclass(frozen=True)
class Alone:
    """What it took; None for what is not known.

    load_seconds: from a process that has NumPy, OpenCV and the project's own modules to an opened contender.
    first_inference_ms: from the picture's file and the sentence to the mask, for the first time. peak_host_bytes: the
    most resident memory of the process, python_host_bytes of which it had before it opened anything. peak_gpu_bytes: of
    the GPU, as peak_gpu_source tells it, and peak_gpu_reason why that is not known. failure: why there is nothing.
    """

    load_seconds: float | None = None
    first_inference_ms: float | None = None
    peak_host_bytes: int | None = None
    python_host_bytes: int | None = None
    peak_gpu_bytes: int | None = None
    peak_gpu_source: str | None = None
    peak_gpu_reason: str | None = None
    failure: str | None = None


def alone(job: Job, *, patience: float | None = None) -> Alone:
    """Open a contender in a new process, run it a few times, and say what that took.

    patience: seconds after which it is given up, None for never.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run([sys.executable, __file__], input=job.to_json().encode(), env=environment,
                              timeout=patience, capture_output=True, check=False)
    except subprocess.TimeoutExpired:
        return Alone(failure=f"it took longer than {patience:.0f} s in a process of its own")
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    if done.returncode < 0:
        return Alone(failure=f"its own process was killed by {signal.Signals(-done.returncode).name}")
    if done.returncode or not lines:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        return Alone(failure=f"its own process failed: {words[-1] if words else f'exit code {done.returncode}'}")
    return Alone(**json.loads(lines[-1]))


def work(job: Job) -> Alone:
    """In the new process: open, run, look at the memory."""
    cv2.setNumThreads(job.threads)
    memory = gpu_memory() if job.contender.device == "cuda" else "it runs on the CPU"
    host = PeakMemory()
    before = host.bytes()
    start = time.perf_counter()
    try:
        with PeakGpuMemory(memory) as gpu:
            stages = job.contender.open(image_size=job.image_size, threads=job.threads)
            loaded = time.perf_counter()
            first = None
            for _ in range(RUNS):
                begin = time.perf_counter()
                tensor, box = stages.preprocess(read_image(job.picture))
                stages.postprocess(stages.infer(tensor, stages.encode(job.sentence)), box)
                first = first or 1000 * (time.perf_counter() - begin)
            peak = host.bytes()
    except UserError as error:
        return Alone(failure=str(error))
    stages.close()
    return Alone(load_seconds=loaded - start, first_inference_ms=first, peak_host_bytes=peak, python_host_bytes=before,
                 peak_gpu_bytes=gpu.bytes, peak_gpu_source=gpu.source, peak_gpu_reason=gpu.reason)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(work(Job.from_json(sys.stdin.read())))))
