"""One sentence, and picture after picture that is searched for it: what a node computes, one step at a time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.ros.health import Health, Report
from deploy.ros.pictures import rgb_picture
from deploy.runtime.segmenter import Prompt, Segmentation, Segmenter
from talent.errors import UserError


@dataclass(frozen=True)
class Answer:
    """header: the picture message's own. sentence: what was looked for. picture: uint8 [H, W, 3] RGB, which may share
    the message's memory."""

    header: Any
    sentence: str
    picture: np.ndarray
    result: Segmentation


class Pipeline:
    """Answers pictures, one at a time, and counts what became of them in `health`.

    sentence: the first one, "" to begin paused. clock: seconds that never run backwards.
    Raises UserError for a sentence without words.
    """

    def __init__(self, segmenter: Segmenter, *, sentence: str = "",
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._segmenter = segmenter
        self._clock = clock
        self.health = Health(clock)
        self._prompt: Prompt | None = None
        self.change_sentence(sentence)

    @property
    def sentence(self) -> str:
        """What is being looked for; "" while paused."""
        prompt = self._prompt
        return prompt.sentence if prompt else ""

    def change_sentence(self, sentence: str) -> None:
        """Look for this from the next picture on; an empty or blank one pauses.

        Raises UserError for one without words, and whatever the backend raises. Then the old one stays, and `report`
        tells so until a sentence is taken.
        """
        try:
            prompt = self._segmenter.encode(sentence) if sentence.strip() else None
        except Exception as error:
            self.health.sentence_refused(reason(error))
            raise
        self._prompt = prompt
        self.health.sentence_taken()

    def answer(self, message: Any) -> Answer | None:
        """An Image or CompressedImage message -> where the object is; None while paused.

        Raises UserError for a picture that cannot be used, and whatever the backend raises; the next one may be fine.
        """
        prompt = self._prompt
        if prompt is None:
            self.health.paused()
            return None
        start = self._clock()
        try:
            picture = rgb_picture(message)
            result = self._segmenter.segment(picture, prompt)
        except Exception as error:
            self.health.refused(reason(error))
            raise
        self.health.answered(1000 * (self._clock() - start))
        return Answer(header=message.header, sentence=prompt.sentence, picture=picture, result=result)

    def report(self) -> Report:
        """How it went since the last report, with what runs it."""
        report = self.health.report(self.sentence)
        rate = self._segmenter.stats().prompt_hit_rate
        return dataclasses.replace(report, values={
            **report.values, "sentence": self.sentence, "backend": self._segmenter.backend.name,
            "precision": self._segmenter.bundle.precision,
            "prompt hit rate": "" if rate is None else f"{rate:.2f}"})


def reason(error: Exception) -> str:
    """An error in one line; its kind too where its message was not written for users."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
