"""From a frame to an answer, about the sentence that holds at the time."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.runtime.segmenter import Segmentation, Segmenter
from deploy.video.frames import Frame
from deploy.video.sentences import Sentences
from deploy.video.smoothing import Smoother


@dataclass(frozen=True)
class Answer:
    """A frame and what was found in it; sentence and result are None while nothing is looked for."""

    frame: Frame
    sentence: str | None
    result: Segmentation | None


class Answerer:
    """Asks a segmenter about frame after frame. With a smoother of amount 0 the results are those of `segment`.

    Raises, when called, what the segmenter raises.
    """

    def __init__(self, segmenter: Segmenter, sentences: Sentences, smoother: Smoother) -> None:
        self._segmenter, self._sentences, self._smoother = segmenter, sentences, smoother

    def __call__(self, frame: Frame) -> Answer:
        prompt = self._sentences.prompt_at(frame.seconds)
        if prompt is None:
            self._smoother.reset()
            return Answer(frame=frame, sentence=None, result=None)
        if self._smoother.amount == 0:
            result = self._segmenter.segment(frame.image, prompt)
        else:
            tensor, letterbox = self._segmenter.preprocess(frame.image)
            logits = self._smoother(self._segmenter.infer(tensor, prompt), about=(prompt.sentence, letterbox))
            result = self._segmenter.postprocess(logits, letterbox)
        return Answer(frame=frame, sentence=prompt.sentence, result=result)
