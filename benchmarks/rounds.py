"""Measuring in interleaved rounds, and the table of what came out, for all benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from tqdm import tqdm

Name = TypeVar("Name")
Result = TypeVar("Result")


def rotations(names: Iterable[Name], rounds: int) -> Iterator[list[Name]]:
    """The names in the order of each round: every one comes first in turn."""
    names = list(names)
    for number in range(rounds):
        first = number % len(names)
        yield names[first:] + names[:first]


def measure(runs: Mapping[Name, Callable[[], Result]], *, rounds: int, progress: str = "") -> dict[Name, list[Result]]:
    """What every run returned in every round; each runs once before that is not counted, the order rotates.

    progress: the title of a bar over the rounds, empty for none.
    """
    found: dict[Name, list[Result]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for names in tqdm(rotations(runs, rounds), total=rounds, desc=progress, unit="round", leave=False,
                      disable=None if progress else True):
        for name in names:
            found[name].append(runs[name]())
    return found


def aligned(lines: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Lines of cells as text in columns: the first `left` begin together, the others end together."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) if i < left else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in lines]
