"""How numbers of result files are written for people: in pages, in Markdown tables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.intervals import CONFIDENCE
from benchmarks.latency_view import MEBI
from benchmarks.machine import describe
from talent.errors import UserError

LATENCY, PARITY = "latency", "parity"
"""Benchmarks whose results are told from others here."""
Format = Callable[[Any], str]


def milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def mebibytes(value: float) -> str:
    return f"{value / MEBI:.1f}" if value < 100 * MEBI else f"{value / MEBI:.0f}"


def score(value: float) -> str:
    return f"{value:.4f}"


def change(value: float) -> str:
    """Of a score."""
    return f"{round(value, 4) + 0.0:+.4f}"  # + 0.0: nothing is written as -0.0


def signed(value: float) -> str:
    """"+1.2 %", of a fraction."""
    return f"{round(100 * value, 1) + 0.0:+.1f} %"


def share(value: float) -> str:
    """"1.2 %", of a fraction."""
    return f"{100 * value:.1f} %"


def interval(low: float | None, high: float | None, form: Format) -> str:
    """"1.2 - 1.4"; empty where one round tells nothing of the others."""
    return "" if low is None or high is None else f"{form(low)} – {form(high)}"


FACTS: dict[str, tuple[str, Format]] = {
    "miou": ("mIoU", score), "oiou": ("oIoU", score), **{f"pr@{at}": (f"Pr@{at}", score) for at in
                                                        ("0.5", "0.6", "0.7", "0.8", "0.9")},
    "nta": ("NTA ratio", score), "nta_rate": ("NTA rate", score), "masks_agree": ("masks agree", score),
    "masks_agree_min": ("least", score), "worst_delta": ("worst change", change),
    "delta/p50": ("median change", change), **{f"delta/worse_{step}": (f"lost >\N{NO-BREAK SPACE}{step}", share)
                                               for step in ("0.01", "0.05", "0.1")},
    "gflop": ("GFLOP", "{:.2f}".format), "gflop_per_second": ("GFLOP/s", "{:.0f}".format),
    "peak_share": ("of peak", share), "predicted_ms": ("predicted ms", milliseconds),
    "deviation": ("deviation", signed), "load_seconds": ("load s", "{:.2f}".format),
    "first_inference_ms": ("first answer ms", milliseconds), "peak_host_bytes": ("host memory MiB", mebibytes),
    "peak_gpu_bytes": ("GPU memory MiB", mebibytes), "onnx_bytes": ("ONNX MiB", mebibytes),
    "weights_bytes": ("weights MiB", mebibytes), "engine_bytes": ("engines MiB", mebibytes),
    "energy_mj_per_frame": ("mJ a frame", "{:.0f}".format)}
"""Facts of rows that people look at, in this order: the head of their column and how they are written. A name with a
slash is that of a number within a fact."""


def fact(row: Mapping[str, Any], name: str) -> Any:
    """What a row knows by a name of FACTS, None where it does not."""
    outer, _, inner = name.partition("/")
    value = row["facts"].get(outer)
    return value[inner] if inner and value is not None else value


def facts_known(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of FACTS that at least one row knows."""
    return [name for name in FACTS if any(fact(row, name) is not None for row in rows)]


def coverage(rounds: int) -> str:
    """"95 %": how often an interval of a median over so many rounds holds the true one, at most (intervals.py); empty
    where a single round has no interval."""
    covered = min(CONFIDENCE, 1 - 2.0 ** (1 - rounds))
    return "" if rounds < 2 else f"{100 * covered:.{0 if covered == CONFIDENCE else 1}f} %"


def rounds_of(result: Mapping[str, Any]) -> int:
    """The fewest rounds that a stage of a result was timed in, 0 where nothing was timed."""
    return min((len(times["samples_ms"]) for row in result["rows"] for times in row["stages"].values()), default=0)


@dataclass(frozen=True)
class Sentences:
    """What the networks of a result of parity.py were asked: only scores of the same sentences can be compared.

    threshold: None where every network has its own.
    """

    data: str
    split: str
    samples: int
    expressions: int
    threshold: float | None

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Sentences:
        settings = result["settings"]
        return cls(settings["data"], settings["split"], settings["samples"], settings["expressions"],
                   settings["threshold"])

    def __str__(self) -> str:
        threshold = "" if self.threshold is None else f", threshold {self.threshold:g}"
        return (f"{self.expressions} sentences about {self.samples} samples of {self.data}, split {self.split}"
                f"{threshold}")


def asked_about(result: Mapping[str, Any]) -> str:
    """What the networks of a result of parity.py were asked, as one line; empty for another benchmark."""
    if result["benchmark"] != PARITY:
        return ""
    return f"{Sentences.of(result)}; changes against {result['settings']['reference']}"


@contextlib.contextmanager
def as_written(where: str) -> Iterator[None]:
    """While something is made of a result: what its content causes becomes a UserError that begins with `where`.

    results_file.check knows the shape of every result, but not what each benchmark writes into it.
    """
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{where} is not as this version writes it ({reason}); measure again with this version, or "
                        "read it with the version that wrote it") from error


def place_of(result: Mapping[str, Any]) -> str:
    """The machine in a line: "AMD EPYC, 2 cores, 2 threads"."""
    facts = describe(result["machine"])
    threads = result["settings"].get("threads")
    parts = [facts["board"], facts["power_mode"], facts["gpu"], facts["cpu"],
             f"{facts['cores']} cores", threads and f"{threads} thread{'' if threads == 1 else 's'}",
             facts["cpu_governor"] and f"governor {facts['cpu_governor']}"]
    return ", ".join(str(part) for part in parts if part)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings and machine as lines: {"before: load_average": "0.1, 0.2, 0.3", ...}; what is not known is left out."""
    lines: dict[str, str] = {}
    for name, item in value.items():
        label = f"{prefix}{name}"
        if isinstance(item, Mapping):
            lines |= flat(item, f"{label}: ")
        elif isinstance(item, list) and any(isinstance(one, Mapping) for one in item):
            for number, one in enumerate(item, 1):
                lines |= flat(one, f"{label} {number}: ")
        elif isinstance(item, list) and item:
            lines[label] = ", ".join(map(str, item))
        elif item is not None and item != []:
            lines[label] = (f"{item:,}" if name.endswith("_bytes") and isinstance(item, int)
                            else f"{item:.6g}" if isinstance(item, float) else str(item))
    return lines
