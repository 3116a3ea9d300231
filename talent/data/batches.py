"""From samples to training batches. The order and the choice of sentences depend on the seed and the step alone.

B batch, S image size, L words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from talent.data.sample import Sample
from talent.image import letterbox_mask, preprocess
from talent.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pick:
    """A sample of an epoch: the epoch decides which of its sentences is used."""

    epoch: int
    index: int


class RunSampler:
    """The batches of one process for a whole run, each epoch in a new order; `start` batches are left out (resume).

    Batch b of all `processes` together are the same samples as batch b of one process with a batch as large.
    """

    def __init__(self, *, length: int, batch_size: int, batches: int, seed: int, start: int = 0, rank: int = 0,
                 processes: int = 1):
        self.length, self.batch_size, self.batches, self.seed, self.start = length, batch_size, batches, seed, start
        self.rank, self.processes = rank, processes

    def __len__(self) -> int:
        return self.batches - self.start

    def __iter__(self) -> Iterator[list[Pick]]:
        orders: dict[int, np.ndarray] = {}
        for batch in range(self.start, self.batches):
            picks = []
            first = (batch * self.processes + self.rank) * self.batch_size
            for position in range(first, first + self.batch_size):
                epoch, place = divmod(position, self.length)
                if epoch not in orders:
                    orders = {epoch: np.random.default_rng([self.seed, epoch]).permutation(self.length)}
                picks.append(Pick(epoch, int(orders[epoch][place])))
            yield picks


class TrainingSet(torch.utils.data.Dataset):
    """Samples as tensors: image [3, S, S], mask and others [1, S, S], tokens [3, L], valid, index.

    tokens: its own sentence, a positive and a negative one. The positive is another sentence of the object (or the same
    with a full stop), the negative one of another object of the picture; `valid` says whether there is a negative.
    others: the other objects of the target's category, together.
    """

    def __init__(self, samples, tokenizer: Tokenizer, *, image_size: int, seed: int):
        self.samples, self.tokenizer, self.image_size, self.seed = samples, tokenizer, image_size, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, pick: Pick) -> dict[str, Tensor]:
        sample: Sample = self.samples[pick.index]
        rng = np.random.default_rng([self.seed, pick.epoch, pick.index])
        own = rng.choice(sample.expressions)
        rest = [text for text in sample.expressions if text != own]
        positive = rng.choice(rest) if rest else f"{own}."
        negative = rng.choice(sample.negatives) if sample.negatives else own
        others = np.zeros_like(sample.mask)
        for mask in sample.others:
            others |= mask
        image, box = preprocess(sample.image, self.image_size)
        return {
            "image": torch.from_numpy(image[0]),
            "mask": torch.from_numpy(letterbox_mask(sample.mask, box))[None],
            "others": torch.from_numpy(letterbox_mask(others, box))[None],
            "tokens": torch.from_numpy(self.tokenizer([str(own), str(positive), str(negative)])),
            "valid": torch.tensor(bool(sample.negatives)),
            "index": torch.tensor(pick.index),
        }
