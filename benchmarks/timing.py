"""The times of opened contenders, stage by stage, in interleaved rounds.

All rows see the same pictures and sentences, one pass of each row per round, the order rotated, so that a clock that
drops or another program that starts hits all of them alike.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

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
    """Of one row. stages: milliseconds of each run, a list a round, by stage. spans: when the passes over STAGES ran.

    frames: photos that all these passes took to the mask. not_run: why a stage was not measured, by its name.
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


def further_stages(stages: Stages, questions: Sequence[Question], *, prompts: Sequence[int],
                   batches: Sequence[int]) -> dict[str, Callable[[int], object]]:
    """What else is timed of a row, by stage: functions of the number of the run in a pass.

    On the GPU from a photo to the mask where the backend can; with more than one prompt; with pictures together. The
    sentences are encoded and the pictures preprocessed here, once. Raises UserError for what it does not take.
    """
    photos = [read_image(question.picture) for question in questions]
    sentences = [question.sentence for question in questions]
    found: dict[str, Callable[[int], object]] = {}
    if stages.takes_pictures:
        prompt = stages.encode(sentences[0])
        found[ON_GPU] = lambda run: stages.segment(photos[run], prompt)
    for count in prompts:
        if count > 1:
            several = stages.encode_many([sentences[i % len(sentences)] for i in range(count)])
            found[several_prompts(count)] = lambda run, several=several: stages.segment_many(photos[run], several)
    for count in batches:
        if count > 1 and stages.together:
            several = stages.encode_many([sentences[i % len(sentences)] for i in range(count)])
            pictures = [photos[i % len(photos)] for i in range(count)]
            tensor = np.concatenate([stages.preprocess(photo)[0] for photo in pictures])
            found[batched(count)] = lambda run, tensor=tensor, several=several: stages.infer_batch(tensor, several)
    return found


def measure(rows: Mapping[Name, Stages], questions: Sequence[Question], *, rounds: int, prompts: Sequence[int] = (),
            batches: Sequence[int] = (), most_warm_up: int = MOST) -> dict[Name, Times]:
    """The times of every row, over rounds x questions runs of each stage, after a warm-up of each row.

    prompts, batches: how many to measure besides; 1 is what a frame is anyway. most_warm_up: runs.
    """
    found: dict[Name, Times] = {}
    further: dict[Name, dict[str, Callable[[int], object]]] = {}
    with tqdm(total=len(rows) * (rounds + 1), desc="latency", unit="pass", leave=False, disable=None) as bar:
        for name, stages in rows.items():
            found[name] = Times(warm_up=_warm_up(stages, questions, most_warm_up))
            further[name] = further_stages(stages, questions, prompts=prompts, batches=batches)
            _try_further(further[name], found[name])
            bar.update()
        for turn in rotations(rows, rounds):
            for name in turn:
                _pass(rows[name], questions, found[name])
                for stage, run in further[name].items():
                    found[name].stages[stage].append([_milliseconds(run, index) for index in range(len(questions))])
                bar.update()
    return found


def _warm_up(stages: Stages, questions: Sequence[Question], most: int) -> WarmUp:
    number = iter(range(most))
    return until_stable(lambda: run_once(stages, questions[next(number) % len(questions)])[WHOLE], most=most)


def _try_further(further: dict[str, Callable[[int], object]], times: Times) -> None:
    """Run each further stage twice, not counted, and leave out what refuses."""
    for stage, run in list(further.items()):
        try:
            run(0)
            run(0)
        except UserError as error:
            times.not_run[stage] = str(error)
            del further[stage]


def _pass(stages: Stages, questions: Sequence[Question], times: Times) -> None:
    start = time.perf_counter()
    runs = [run_once(stages, question) for question in questions]
    times.spans.append((start, time.perf_counter()))
    times.frames += len(runs)
    for stage in TIMED:
        times.stages[stage].append([1000 * run[stage] for run in runs])


def _milliseconds(run: Callable[[int], object], index: int) -> float:
    start = time.perf_counter()
    run(index)
    return 1000 * (time.perf_counter() - start)
