"""The times of opened contenders, stage by stage, in interleaved rounds.

All rows see the same pictures and sentences, one pass of each row per round, the order rotated, so that a clock that
drops or another program that starts hits all of them alike.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from benchmarks.contenders import Stages
from benchmarks.power import Span
from benchmarks.rounds import rotations
from benchmarks.warm_up import MOST, WarmUp, until_stable
from talent.errors import UserError
from talent.image import read_image

STAGES = ("read", "preprocess", "text", "vision", "postprocess")
FRAME = "frame"  # what a frame of a camera costs while the expression stays: all but reading a file and the text
WHOLE = "whole"
TIMED = (*STAGES, FRAME, WHOLE)
ON_GPU = "frame on GPU"

Name = TypeVar("Name")


@dataclass(frozen=True)
class Question:
    """A picture's file and a sentence about it."""

    picture: Path
    sentence: str


@dataclass
class Times:
    """Of one row. stages: milliseconds of each run, a list a round, by stage. not_run: why a stage was not measured.

    spans: when passes of frames alone ran, for the meters, and frames: how many there were in all of these passes.
    """

    warm_up: WarmUp
    stages: dict[str, list[list[float]]] = field(default_factory=lambda: defaultdict(list))
    spans: list[Span] = field(default_factory=list)
    frames: int = 0
    not_run: dict[str, str] = field(default_factory=dict)


def run_once(stages: Stages, question: Question) -> dict[str, float]:
    """Seconds of TIMED, once from the picture's file to the mask."""
    start = time.perf_counter()
    image = read_image(question.picture)
    decoded = time.perf_counter()
    tensor, box = stages.preprocess(image)
    preprocessed = time.perf_counter()
    prompt = stages.encode(question.sentence)
    encoded = time.perf_counter()
    logits = stages.infer(tensor, prompt)
    inferred = time.perf_counter()
    stages.postprocess(logits, box)
    end = time.perf_counter()
    text = encoded - preprocessed
    return {"read": decoded - start, "preprocess": preprocessed - decoded, "text": text, "vision": inferred - encoded,
            "postprocess": end - inferred, FRAME: end - decoded - text, WHOLE: end - start}


def several_prompts(count: int) -> str:
    """The name of the stage for a photo with so many cached sentences."""
    return f"frame, {count} prompts"


def batched(count: int) -> str:
    """The name of the stage for the network alone on so many pictures at once."""
    return f"vision, batch of {count}"


Run = Callable[[int], object]
"""Of the number of a run in a pass."""


def further_stages(stages: Stages, questions: Sequence[Question], *, prompts: Sequence[int],
                   batches: Sequence[int]) -> tuple[dict[str, Run], dict[str, str]]:
    """(what else is timed of a row, by stage; why a stage cannot be, by stage).

    On the GPU from a photo to the mask where the backend can; with more than one prompt; with pictures together. The
    sentences are encoded and the pictures preprocessed here, once, and every stage runs twice, not counted.
    """
    photos = [read_image(question.picture) for question in questions]
    sentences = [question.sentence for question in questions]

    def encoded(count: int) -> Any:
        return stages.encode_many([sentences[i % len(sentences)] for i in range(count)])

    def on_gpu() -> Run:
        prompt = stages.encode(sentences[0])
        return lambda run: stages.segment(photos[run], prompt)

    def with_prompts(count: int) -> Run:
        several = encoded(count)
        return lambda run: stages.segment_many(photos[run], several)

    def together(count: int) -> Run:
        if not stages.together:
            raise UserError("this row takes one picture at a time")
        several = encoded(count)
        tensor = np.concatenate([stages.preprocess(photos[i % len(photos)])[0] for i in range(count)])
        return lambda run: stages.infer_batch(tensor, several)

    makers = {ON_GPU: on_gpu} if stages.takes_pictures else {}
    makers |= {several_prompts(count): partial(with_prompts, count) for count in prompts if count > 1}
    makers |= {batched(count): partial(together, count) for count in batches if count > 1}
    found: dict[str, Run] = {}
    not_run: dict[str, str] = {}
    for stage, make in makers.items():
        try:
            run = make()
            run(0)
            run(0)
        except (UserError, RuntimeError, MemoryError) as error:  # PyTorch and ONNX Runtime without memory: RuntimeError
            not_run[stage] = str(error).strip().partition("\n")[0] or type(error).__name__
        else:
            found[stage] = run
    return found, not_run


def measure(rows: Mapping[Name, Stages], questions: Sequence[Question], *, rounds: int, prompts: Sequence[int] = (),
            batches: Sequence[int] = (), most_warm_up: int = MOST, metered: bool = False) -> dict[Name, Times]:
    """The times of every row, over rounds x questions runs of each stage, after a warm-up of each row.

    prompts, batches: how many to measure besides; 1 is what a frame is anyway. most_warm_up: runs. metered: in every
    round also run frames alone, one after the other, for meters of power.
    """
    found: dict[Name, Times] = {}
    further: dict[Name, dict[str, Run]] = {}
    with tqdm(total=len(rows) * (rounds + 1), desc="latency", unit="pass", leave=False, disable=None) as bar:
        for name, stages in rows.items():
            found[name] = Times(warm_up=_warm_up(stages, questions, most_warm_up))
            further[name], found[name].not_run = further_stages(stages, questions, prompts=prompts, batches=batches)
            bar.update()
        for turn in rotations(rows, rounds):
            for name in turn:
                _pass(rows[name], questions, found[name])
                if metered:
                    _frames(rows[name], questions, found[name])
                for stage, run in further[name].items():
                    found[name].stages[stage].append([_milliseconds(run, index) for index in range(len(questions))])
                bar.update()
    return found


def _warm_up(stages: Stages, questions: Sequence[Question], most: int) -> WarmUp:
    number = iter(range(most))
    return until_stable(lambda: run_once(stages, questions[next(number) % len(questions)])[WHOLE], most=most)


def _pass(stages: Stages, questions: Sequence[Question], times: Times) -> None:
    runs = [run_once(stages, question) for question in questions]
    for stage in TIMED:
        times.stages[stage].append([1000 * run[stage] for run in runs])


def _frames(stages: Stages, questions: Sequence[Question], times: Times) -> None:
    """What FRAME times, with nothing between one frame and the next."""
    inputs = [(read_image(question.picture), stages.encode(question.sentence)) for question in questions]
    start = time.perf_counter()
    for image, prompt in inputs:
        tensor, box = stages.preprocess(image)
        stages.postprocess(stages.infer(tensor, prompt), box)
    times.spans.append((start, time.perf_counter()))
    times.frames += len(inputs)


def _milliseconds(run: Run, index: int) -> float:
    start = time.perf_counter()
    run(index)
    return 1000 * (time.perf_counter() - start)
