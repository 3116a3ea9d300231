"""One point of scaling.py: so many pictures together with so many prompts, and what that costs in a process of its own.

    python benchmarks/scaling_points.py < job    a Point as JSON; prints its memory as one line of JSON
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # a script: its own folder, which has a module `kernels` as another package has, gives way
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.memory import PeakGpuMemory, gpu_memory  # noqa: E402
from benchmarks.scaling_cost import BATCH  # noqa: E402
from deploy.build_memory import PeakMemory  # noqa: E402
from deploy.runtime.segmenter import Prompt, Segmenter  # noqa: E402
from talent.data.registry import open_dataset  # noqa: E402
from talent.data.sample import Samples  # noqa: E402
from talent.errors import UserError  # noqa: E402

DATA = "shapes"
PHOTO = 640  # side of the photos in pixels, as in latency.py
TEXT, PREPROCESS, VISION, POSTPROCESS, FRAME = "text", "preprocess", "vision", "postprocess", "frame"
ROOM = 8  # scenes for each picture or sentence: not every scene has a sentence of its own
RUNS = 2  # in a process of its own: both may take memory


@dataclass(frozen=True)
class Point:
    """One picture with any number of prompts, or as many pictures as prompts. series, value: of which curve, and where.

    bundle: a directory. backend: of the Segmenter.
    """

    series: str
    value: int
    bundle: str
    backend: str
    threads: int
    pictures: int = 1
    prompts: int = 1

    @property
    def name(self) -> str:
        return f"{self.series} {self.value}"

    def open(self) -> Segmenter:
        # no prompt is kept: the text is to be computed whenever it is timed
        return Segmenter(self.bundle, self.backend, threads=self.threads, prompts=0)


@dataclass(frozen=True)
class Memory:
    """peak_host_bytes: the most resident memory of the process, python_host_bytes of which it had before it opened
    anything. peak_gpu_bytes: of the GPU, as peak_gpu_source tells it. None for what is not known; failure says why
    there is nothing at all."""

    peak_host_bytes: int | None = None
    python_host_bytes: int | None = None
    peak_gpu_bytes: int | None = None
    peak_gpu_source: str | None = None
    peak_gpu_reason: str | None = None
    failure: str | None = None


class Questions:
    """The photos, uint8 [H, W, 3], and the different sentences that a point takes.

    together: whether its curve is of pictures together; then also the first point, of a single picture, goes their way.
    """

    def __init__(self, point: Point) -> None:
        self.together = point.series == BATCH
        scenes = open_dataset(DATA, split="test", size=PHOTO, length=ROOM * max(point.pictures, point.prompts))
        self.photos = [scenes[index].image for index in range(point.pictures)]
        self.sentences = different_sentences(scenes, point.prompts)


def different_sentences(scenes: Samples, count: int) -> list[str]:
    """The first `count` sentences of a data set that differ. Raises UserError where it has fewer."""
    found: dict[str, None] = {}
    for index in range(len(scenes)):
        found.update(dict.fromkeys(scenes[index].expressions))
        if len(found) >= count:
            return list(found)[:count]
    raise UserError(f"expected {count} different sentences in {len(scenes)} scenes of {DATA}, found {len(found)}; "
                    "measure fewer prompts")


def together(prompts: Sequence[Prompt]) -> Prompt:
    """Prompts of one expression each as one of all of them."""
    tensors = {name: np.concatenate([prompt.tensors[name] for prompt in prompts]) for name in prompts[0].tensors}
    return Prompt(sentence="; ".join(prompt.sentence for prompt in prompts), tensors=tensors)


def run_once(segmenter: Segmenter, questions: Questions) -> dict[str, float]:
    """Milliseconds of each stage. "text" encodes all sentences; "frame" is all but that, photos to masks.

    Where a backend takes pictures as they are, a frame is one call of `segment_many`, which has no stages. It takes one
    picture: pictures together are prepared on the CPU, with all stages, and so is the single one of their curve.
    Raises UserError for more prompts or pictures than the backend takes at once.
    """
    start = time.perf_counter()
    prompts = [segmenter.encode(sentence) for sentence in questions.sentences]
    encoded = time.perf_counter()
    most = segmenter.backend.most_expressions
    if len(prompts) > most:
        raise UserError(f"{segmenter.bundle.directory} takes at most {most} prompts at once in "
                        f"{segmenter.backend.name}, received {len(prompts)}; measure fewer")
    if segmenter.backend.takes_pictures and not questions.together:
        segmenter.segment_many(questions.photos[0], prompts)
        return _milliseconds({TEXT: encoded - start, FRAME: time.perf_counter() - encoded})
    inputs, boxes = zip(*(segmenter.preprocess(photo) for photo in questions.photos), strict=True)
    tensor = np.concatenate(inputs)  # [pictures, 3, S, S]
    preprocessed = time.perf_counter()
    logits = segmenter.infer(tensor, together(prompts))  # [prompts, 1, h, w]
    inferred = time.perf_counter()
    for index, row in enumerate(logits):
        segmenter.postprocess(row[None], boxes[index % len(boxes)])
    end = time.perf_counter()
    return _milliseconds({TEXT: encoded - start, PREPROCESS: preprocessed - encoded, VISION: inferred - preprocessed,
                          POSTPROCESS: end - inferred, FRAME: end - encoded})


def _milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    return {stage: 1000 * value for stage, value in seconds.items()}


def memory_alone(point: Point) -> Memory:
    """Open the bundle in a new process and run the point there: else the points' memory would add up."""
    done = subprocess.run([sys.executable, __file__], input=json.dumps(dataclasses.asdict(point)), text=True,
                          capture_output=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        words = done.stderr.strip().splitlines()
        return Memory(failure="its own process failed with exit code "
                              f"{done.returncode}: {words[-1] if words else 'it said nothing'}")
    return Memory(**json.loads(lines[-1]))


def work(point: Point) -> Memory:
    """In the new process: open, run, look at the memory."""
    cv2.setNumThreads(point.threads)
    questions = Questions(point)
    on_cpu = point.backend == "onnxruntime"
    host = PeakMemory()
    before = host.bytes()
    try:
        with PeakGpuMemory("it runs on the CPU" if on_cpu else gpu_memory()) as gpu, point.open() as segmenter:
            for _ in range(RUNS):
                run_once(segmenter, questions)
            peak = host.bytes()
    except UserError as error:
        return Memory(failure=str(error))
    return Memory(peak_host_bytes=peak, python_host_bytes=before, peak_gpu_bytes=gpu.bytes, peak_gpu_source=gpu.source,
                  peak_gpu_reason=gpu.reason)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(work(Point(**json.load(sys.stdin))))))
