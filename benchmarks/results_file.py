"""The JSON file that a benchmark leaves: one shape for all of them, so that two runs can be compared and reported.

    {"benchmark": "latency", "schema": 1, "title": ..., "created": ..., "commit": ..., "dirty": ..., "command": [...],
     "machine": {...}, "versions": {...}, "settings": {...}, "rows": [row, ...],
     "not_run": [{"name": ..., "reason": ...}, ...], "notes": [...]}

A row is something that was measured, such as a backend with a precision. Its `stages` are times by name, as
`benchmarks.intervals.summary` makes them; its `facts` are single numbers by name, None for one that is not known.
Names say the unit: `_ms`, `_seconds`, `_bytes`.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine as this_machine
from talent import provenance
from talent.errors import UserError
from talent.files import atomic_write

SCHEMA = 1
INNERMOST = re.compile(r"[\[{][^\[\]{}]*[\]}]")  # objects and lists with none in them are written as one line
LINE_ENDS = re.compile(r"\s*\n\s*")  # no text in JSON has one in it
DIRTY = "-dirty"  # how talent.provenance.commit ends where tracked files were changed
TIMES = ("p50_ms", "p90_ms", "p99_ms", "mean_ms")
INTERVAL = ("ci_low_ms", "ci_high_ms")  # None where one round says nothing of the others
_FIELDS = {"benchmark": str, "schema": int, "title": str, "created": str, "commit": str, "dirty": bool,
           "command": list, "machine": dict, "versions": dict, "settings": dict, "rows": list, "not_run": list,
           "notes": list}
_ROW = {"name": str, "backend": str, "precision": str, "device": str, "source": str, "emulated": bool, "stages": dict,
        "facts": dict}
_NOT_RUN = {"name": str, "reason": str}
_KINDS = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}


def row(name: str, *, backend: str, precision: str, device: str, source: str = "", emulated: bool = False,
        stages: Mapping[str, Mapping[str, Any]] | None = None,
        facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One row. name: of no other row of the file. device: "cpu" or "cuda". source: bundle or checkpoint. emulated: its
    time says nothing of the hardware that its precision is meant for."""
    return {"name": name, "backend": backend, "precision": precision, "device": device, "source": source,
            "emulated": emulated, "stages": {stage: dict(times) for stage, times in (stages or {}).items()},
            "facts": dict(facts or {})}


def new(benchmark: str, *, title: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any],
        command: Sequence[str], packages: Sequence[str] = (), not_run: Sequence[Mapping[str, Any]] = (),
        notes: Sequence[str] = (), machine: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A result of now, of this commit. packages: whose versions matter. machine: None to look at it now.

    Raises UserError as `check`.
    """
    commit = provenance.commit()
    result = {"benchmark": benchmark, "schema": SCHEMA, "title": title,
              "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
              "commit": commit.removesuffix(DIRTY), "dirty": commit.endswith(DIRTY), "command": list(command),
              "machine": dict(this_machine() if machine is None else machine),
              "versions": provenance.versions(*packages), "settings": dict(settings), "rows": list(map(dict, rows)),
              "not_run": list(map(dict, not_run)), "notes": list(notes)}
    check(result, f"the result of {benchmark}")
    return result


def write(path: str | Path, result: Mapping[str, Any]) -> None:
    """Write a result, whole or not at all. Raises UserError where it has another shape, or the file cannot be made."""
    check(result, str(path))
    with atomic_write(path) as temporary:
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        short = INNERMOST.sub(lambda found: LINE_ENDS.sub(" ", found[0]), text)
        temporary.write_text(short + "\n", encoding="utf-8")


def read(path: str | Path) -> dict[str, Any]:
    """A result that `write` wrote. Raises UserError for a file that is missing, is no JSON or has another shape."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; expected the JSON file that a benchmark wrote "
                        "(python benchmarks/latency.py BUNDLE --json FILE writes one)") from error
    except ValueError as error:
        raise UserError(f"{path}: expected the JSON file that a benchmark wrote, received something else ({error})"
                        ) from error
    check(result, str(path))
    return result


def check(result: Any, where: str) -> None:
    """Raise UserError, which begins with `where`, for a result of another shape than this module's docstring says."""
    _object(result, _FIELDS, where)
    for index, gpu in enumerate(result["machine"].get("gpus") or ()):
        _object(gpu, {"name": str}, f"{where}: machine.gpus[{index}]")
    if result["schema"] != SCHEMA:
        raise UserError(f"{where}: expected a result of schema {SCHEMA}, received {result['schema']}; measure again "
                        "with this version, or read it with the version that wrote it")
    for index, entry in enumerate(result["rows"]):
        place = f"{where}: rows[{index}]"
        _object(entry, _ROW, place)
        for stage, times in entry["stages"].items():
            _times(times, f"{place}.stages[{stage!r}]")
        if len(rounds := {len(times["samples_ms"]) for times in entry["stages"].values()}) > 1:
            raise UserError(f"{place}: expected as many rounds in every stage, received {sorted(rounds)}")
        for name, value in entry["facts"].items():
            if not (value is None or isinstance(value, (str, bool, dict, list)) or _number(value)):
                raise UserError(f"{place}.facts[{name!r}]: expected a number, received {_name(value)}")
    names = [entry["name"] for entry in result["rows"]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where}: expected rows of different names, received {twice[0]!r} twice")
    for index, entry in enumerate(result["not_run"]):
        _object(entry, _NOT_RUN, f"{where}: not_run[{index}]")


def _object(value: Any, fields: Mapping[str, type], where: str) -> None:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with {', '.join(fields)}, received {_name(value)}")
    for name, kind in fields.items():
        if name not in value:
            raise UserError(f"{where}: expected the field {name!r}, and it is missing; this is no result of a "
                            f"benchmark of schema {SCHEMA}")
        if not isinstance(value[name], kind) or kind is int and isinstance(value[name], bool):
            raise UserError(f"{where}: expected {name!r} to be {_KINDS[kind]}, received {_name(value[name])}")


def _times(times: Any, where: str) -> None:
    _object(times, {"samples_ms": list}, where)
    for name in (*TIMES, *INTERVAL):
        value = times.get(name)
        if not (_number(value) or name in INTERVAL and value is None):
            raise UserError(f"{where}: expected {name!r} to be a number of milliseconds, received {_name(value)}")
    for samples in times["samples_ms"]:
        if not isinstance(samples, list) or not samples or not all(_number(value) and value > 0 for value in samples):
            raise UserError(f"{where}: expected 'samples_ms' to be a list of numbers above 0 for each round, received "
                            f"{_name(samples)}")
    if times["samples_ms"]:
        median = statistics.median(itertools.chain(*times["samples_ms"]))
        if not math.isclose(times["p50_ms"], median, rel_tol=1e-6):
            raise UserError(f"{where}: expected 'p50_ms' to be the median of 'samples_ms', {median}, received "
                            f"{times['p50_ms']}; was it changed by hand?")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _name(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
