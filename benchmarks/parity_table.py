"""The result of parity.py as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.parity_rows import STEPS
from benchmarks.rounds import aligned
from talent.metrics import PRECISION_AT

SHOWN = {"p0": "worst", "p1": "1 %", "p5": "5 %", "p50": "median", "p95": "95 %", "p100": "best", "mean": "mean"}


def table(result: Mapping[str, Any]) -> str:
    """A line per row, then how the sentences of each row changed, then what was not run and why."""
    settings, rows = result["settings"], result["rows"]
    head = ["", "device", "from", "mIoU", "oIoU", *(f"Pr@{at}" for at in PRECISION_AT), "NTA ratio", "NTA rate",
            "masks agree", "least"]
    text = aligned([head, *map(_accuracy, rows)], left=3)
    text.append(f"{settings['expressions']} sentences about {settings['samples']} samples of {settings['data']}, split "
                f"{settings['split']}; masks agree: mean and least IoU with the masks of {settings['reference']}; NTA: "
                "what other instances of the target's category got, lower is better")
    if len(rows) > 1:
        text += ["", *aligned([[f"IoU less that of {settings['reference']}", *SHOWN.values(),
                                *(f"lost > {step}" for step in STEPS), *(f"won > {step}" for step in STEPS)],
                               *map(_changes, rows[1:])], left=1)]
    text += result["notes"]
    text += [f"not run: {entry['name']}: {entry['reason']}" for entry in result["not_run"]]
    return "\n".join(text)


def _accuracy(row: Mapping[str, Any]) -> list[str]:
    facts = row["facts"]
    shares = [facts[name] for name in ("miou", "oiou", *(f"pr@{at}" for at in PRECISION_AT), "nta", "nta_rate",
                                       "masks_agree", "masks_agree_min")]
    return [row["name"], row["device"], row["source"], *("-" if share is None else f"{share:.4f}" for share in shares)]


def _changes(row: Mapping[str, Any]) -> list[str]:
    delta = row["facts"]["delta"]
    return [row["name"], *(f"{delta[name]:+.4f}" for name in SHOWN),
            *(f"{delta[f'{way}_{step}']:.1%}" for way in ("worse", "better") for step in STEPS)]
