"""A data set that tells what was asked of it."""

from __future__ import annotations

from talent.data.sample import Sample, Samples


class Recorded:
    """Samples that remember which of them were read."""

    def __init__(self, samples: Samples):
        self.samples, self.read = samples, []

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        return self.samples[index]
