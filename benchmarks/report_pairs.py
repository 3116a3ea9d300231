"""Times of latency.py and accuracy of parity.py of the very same networks, for the report's plot and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measured import network_of
from benchmarks.report_text import LATENCY, PARITY, Sentences
from benchmarks.timing import FRAME


@dataclass(frozen=True)
class Pair:
    """A row of a result of latency.py, and the mIoU that a result of parity.py has of the same network."""

    result: Mapping[str, Any]
    row: Mapping[str, Any]
    miou: float


def joined(results: Sequence[Mapping[str, Any]]) -> dict[Sentences, list[Pair]]:
    """Every timed row whose network was judged, by what it was asked; scores of different sentences never mix.

    The same network: backend, precision, device, SHA-256 of the weights, image size. Where that was judged with
    different scores, or a latency result has several such rows, it must be a bundle of the same name, too; what is not
    certain then is left out.
    """
    judged: dict[Sentences, dict[tuple, list[tuple[str, float]]]] = {}
    for result in results:
        for row in result["rows"] if result["benchmark"] == PARITY else ():
            if (network := _network(result, row)) and row["facts"].get("miou") is not None:
                found = judged.setdefault(Sentences.of(result), {})
                found.setdefault(network, []).append((row["source"], row["facts"]["miou"]))
    pairs: dict[Sentences, list[Pair]] = {}
    for sentences, scores in judged.items():
        for result in results:
            timed = [(row, _network(result, row)) for row in result["rows"] if FRAME in row["stages"]]
            rows = Counter(network for _, network in timed)
            for row, network in timed if result["benchmark"] == LATENCY else ():
                miou = _certain(scores.get(network, []), row["source"], alone=rows[network] == 1)
                if miou is not None:
                    pairs.setdefault(sentences, []).append(Pair(result, row, miou))
    return pairs


def _network(result: Mapping[str, Any], row: Mapping[str, Any]) -> tuple | None:
    """What tells a row's network from others; None where its weights are not known."""
    own = network_of(result, row)
    if not own.get("sha256"):
        return None
    return row["backend"], row["precision"], row["device"], own["sha256"], own["image_size"]


def _certain(scores: Sequence[tuple[str, float]], source: str, *, alone: bool) -> float | None:
    """The one score among (source, score) that is that of `source`. alone: its result has no other such network."""
    named = {miou for name, miou in scores if name == source}
    found = named or ({miou for _, miou in scores} if alone else set())
    return found.pop() if len(found) == 1 else None
