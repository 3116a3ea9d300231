"""How far a bundle's answers are from the network's, and whether that is little enough to ship it.

`measure_parity` compares logits, masks, mIoU and NTA on the same samples; `check_drop` is the gate. ONNX Runtime's CPU
kernels compute most of FP16 in FP32 and so show less of its rounding than a GPU; deploy/layer_losses.py shows it all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from deploy.runtime.segmenter import Segmenter
from talent.data.sample import Samples, evenly
from talent.errors import UserError
from talent.evaluate import Predict, Question, questions
from talent.metrics import SegmentationMetrics, iou, score

LIGHTER = {"fp16": "export with --fp32"}
"""What to try where a precision loses too much."""


class NotFiniteError(UserError):
    """A bundle gave logits that are not finite. image float32 [1, 3, S, S] and tokens int64 [1, L] are what it was
    asked, so that deploy.layer_losses can say which layers broke.
    """

    def __init__(self, message: str, *, image: np.ndarray, tokens: np.ndarray) -> None:
        super().__init__(message)
        self.image, self.tokens = image, tokens


@dataclass(frozen=True)
class Parity:
    """Differences on `samples` expressions about `pictures` pictures, masks at photo resolution.

    logits_max_abs: largest difference of a logit. logits_max_relative: the largest of an expression's largest
    difference over its largest reference logit. logits_rms_relative: root mean square of all differences over that of
    all reference logits. mask_agreement, mask_agreement_min: mean and smallest IoU of the two masks; worst: (number of
    the sample, number of its sentence) where it is smallest, with the picture's name and the sentence. miou, oiou,
    nta_ratio, nta_rate: of the bundle against the ground truth, as fractions, and the same with _reference of the
    PyTorch FP32 network; those of NTA are None where no picture had other instances (talent.metrics says what they
    mean).
    """

    samples: int
    pictures: int
    backend: str
    logits_max_abs: float
    logits_max_relative: float
    logits_rms_relative: float
    mask_agreement: float
    mask_agreement_min: float
    worst: tuple[int, int]
    worst_picture: str
    worst_expression: str
    miou_reference: float
    miou: float
    oiou_reference: float
    oiou: float
    nta_ratio_reference: float | None
    nta_ratio: float | None
    nta_rate_reference: float | None
    nta_rate: float | None

    @property
    def miou_drop(self) -> float:
        """mIoU lost; negative when the bundle does better."""
        return self.miou_reference - self.miou

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: a ratio that is infinite becomes None, for JSON has no word for it."""
        values = {**asdict(self), "worst": list(self.worst), "miou_drop": self.miou_drop}
        return {name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in values.items()}


def measure_parity(segmenter: Segmenter, reference: Predict, samples: Samples, *,
                   expressions: int | None = None) -> Parity:
    """Compare a bundle with the network it came from.

    expressions: at most so many sentences, None for all: pictures are then chosen evenly, one sentence each; where
    there are fewer pictures than that, every picture gives its first sentences, as many as the others leave it. One
    picture is in memory at a time and prepared once. Deterministic.

    Raises NotFiniteError for logits of the bundle that are not finite, UserError for such logits of the network itself,
    for no samples, and for less than one expression.
    """
    ours, theirs = SegmentationMetrics(), SegmentationMetrics()
    max_abs = max_relative = difference_sum = reference_sum = 0.0
    agreement: list[float] = []
    for question in chosen_questions(samples, expressions, image_size=segmenter.bundle.image_size, label="parity"):
        tokens = segmenter.tokenizer([question.expression])
        expected = reference(question.image, tokens)  # [1, 1, h, w]
        if not np.isfinite(expected).all():
            raise UserError(f"the PyTorch network itself gave logits that are not finite for {_where(question)}, as "
                            "training that diverged does; export another checkpoint")
        logits = segmenter.infer(question.image, segmenter.encode(question.expression))
        difference = logits.astype(np.float64) - expected
        try:
            answer = segmenter.postprocess(logits, question.box)
        except UserError as error:
            raise NotFiniteError(f"{_where(question)}: {error}", image=question.image, tokens=tokens) from error
        truth = segmenter.postprocess(expected, question.box)
        largest = float(np.abs(difference).max())
        max_abs = max(max_abs, largest)
        max_relative = max(max_relative, _ratio(largest, float(np.abs(expected).max())))
        difference_sum += float(np.square(difference).sum())
        reference_sum += float(np.square(expected, dtype=np.float64).sum())
        agreement.append(iou(answer.mask, truth.mask))
        for metrics, result in ((ours, answer), (theirs, truth)):
            metrics.add_score(score(result.probability, segmenter.threshold, question.sample.mask,
                                    question.sample.others, index=question.index, name=question.sample.name,
                                    expression=question.expression))
    mine, wanted = ours.result(), theirs.result()
    worst = ours.scores[int(np.argmin(agreement))]
    return Parity(
        samples=len(ours), pictures=len({one.index[0] for one in ours.scores}), backend=segmenter.backend.name,
        logits_max_abs=max_abs, logits_max_relative=max_relative,
        logits_rms_relative=math.sqrt(_ratio(difference_sum, reference_sum)),
        mask_agreement=float(np.mean(agreement)), mask_agreement_min=min(agreement),
        worst=worst.index, worst_picture=worst.name, worst_expression=worst.expression,
        miou_reference=wanted["mIoU"], miou=mine["mIoU"], oiou_reference=wanted["oIoU"], oiou=mine["oIoU"],
        nta_ratio_reference=wanted.get("NTA ratio"), nta_ratio=mine.get("NTA ratio"),
        nta_rate_reference=wanted.get("NTA rate"), nta_rate=mine.get("NTA rate"))


def check_drop(parity: Parity, *, precision: str, bound: float, allowed: bool, data: str, fallback: bool = False,
               layers: Callable[[], str] | None = None) -> dict[str, Any]:
    """The gate: what the manifest records of a bundle that may ship.

    bound: mIoU that it may lose. allowed: whether it ships all the same (--allow-drop); "allowed_drop" records that it
    took this. data: the data set's name. fallback: whether INT8 was asked for and this is not. layers: text about the
    layers that lost most, asked for when the gate closes.
    Raises UserError where more is lost than `bound` and that is not allowed, and for a bound that is no number.
    """
    check_bound(bound)
    passed = parity.miou_drop <= bound
    if not passed and not allowed:
        remedies = [LIGHTER[precision]] if precision in LIGHTER else []
        add = f"export with --{precision} and" if fallback else "add"
        remedies.append(f"{add} --allow-drop to ship it all the same")
        raise UserError(f"{precision} loses {parity.miou_drop:.4f} mIoU ({parity.miou_reference:.4f} -> "
                        f"{parity.miou:.4f} on {parity.samples} expressions of {data}), expected at most {bound:g}; no "
                        f"bundle was written; {', or '.join(remedies)}" + (f"\n{layers()}" if layers else ""))
    return {**parity.to_dict(), "data": data, "bound": bound, "allowed_drop": not passed}


def check_bound(bound: float) -> None:
    """Raise UserError for a --max-miou-drop that no drop can be held against, or that JSON cannot say."""
    if not math.isfinite(bound):
        raise UserError(f"--max-miou-drop: expected a number such as 0.01, received {bound}; to ship whatever is lost, "
                        "use --allow-drop")


def chosen_questions(samples: Samples, expressions: int | None, *, image_size: int,
                     label: str | None = None) -> Iterator[Question]:
    """The sentences that are compared, picture by picture. label: of a progress bar over the pictures, None for none.

    expressions: as `measure_parity` takes it. Raises UserError for less than one.
    """
    pictures = len(samples)
    if expressions is not None and expressions < 1:
        raise UserError(f"expected at least one expression to compare, received {expressions}")
    taken = pictures if expressions is None else min(expressions, pictures)
    left = expressions
    bar = tqdm(evenly(pictures, taken), desc=label, unit="picture", leave=False, disable=None if label else True)
    for turn, index in enumerate(bar):
        share = None if left is None else left // (taken - turn)
        asked = questions(samples, [index], image_size=image_size)
        for question in itertools.islice(asked, share):
            yield question
            left = None if left is None else left - 1


def _where(question: Question) -> str:
    return f"{question.expression!r} ({question.sample.name or f'sample {question.index[0]}'})"


def _ratio(difference: float, size: float) -> float:
    """Infinite where something differs from nothing."""
    return difference / size if size else math.inf if difference else 0.0
