"""Answers that do not flicker: an average over the frames so far, at the network's grid."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from talent.errors import UserError

SMALLEST = 1e-6  # a probability's distance from 0 and 1, so that its logit is finite


class Smoother:
    """s[t] = A s[t-1] + (1 - A) p[t], the exponential average of the probability p = sigmoid(logits).

    Of the probability, not of the logits: those have no bounds, so one frame about which the network is very sure, and
    wrong, would outweigh many others, and how long an object that has gone lingers would depend on how sure the network
    had been. Of the probability every frame has the weight (1 - A) A^k after k more, whatever it says, and one that was
    at 1 and has gone is below the threshold t after log(t) / log(A) frames. On the grid [h, w] of the logits, which is
    where the mask is made from, this costs next to nothing.

    amount: A, from 0 (nothing is smoothed) to below 1. Raises UserError for another one.
    """

    def __init__(self, amount: float) -> None:
        if not 0 <= amount < 1:
            raise UserError(f"--smooth: expected a number from 0 (off) to below 1, received {amount:g}")
        self.amount = amount
        self._average: np.ndarray | None = None
        self._about: Hashable = None

    def reset(self) -> None:
        """Forget the frames so far."""
        self._average = None

    def __call__(self, logits: np.ndarray, about: Hashable) -> np.ndarray:
        """Logits of a frame -> logits of the average, both float32 [1, 1, h, w].

        about: what the frames of an average have in common, the sentence and the size of the picture. Another one
        starts a new average, whose first frame comes back as it is; so do logits that are not finite, which are an
        error that the average must not hide.
        """
        if not np.isfinite(logits).all():
            return logits
        probability = 0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float32))  # [1, 1, h, w]
        if self._average is None or self._about != about:
            self._average, self._about = probability, about
            return logits
        self._average = self.amount * self._average + (1 - self.amount) * probability
        bounded = np.clip(self._average, SMALLEST, 1 - SMALLEST)
        return np.log(bounded / (1 - bounded)).astype(np.float32)
