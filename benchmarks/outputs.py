"""The files that a benchmark is asked for: checked before the work, written and told after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from talent.errors import UserError
from talent.files import check_writable
from talent.image import check_image_path
from talent.require import require


def check_outputs(data: Path | None, chart: Path | None, *, plotted: bool = True) -> None:
    """Raise UserError where one of them cannot be written. plotted: whether matplotlib draws the chart, which is then
    to be installed."""
    if data and chart and data.resolve() == chart.resolve():
        raise UserError(f"expected two files, received {data} for the numbers and for the chart; name another one")
    if chart:
        if plotted:
            require("matplotlib", extra="benchmarks")
        check_image_path(chart)
        check_writable(chart)
    if data:
        check_writable(data)


def write_outputs(data: Path | None, chart: Path | None, *, write: Callable[[Path], None],
                  draw: Callable[[Path], None], otherwise: str, table: str, what: str = "the chart") -> None:
    """Write those that were asked for, then print the table, and what was made and where. otherwise: the option that
    keeps the numbers. what: the chart is. Whoever stops reading what is printed has the files."""
    written = []
    if data:
        write(data)
        written.append(f"the numbers to {data}")
    if chart:
        draw(chart)
        written.append(f"{what} to {chart}")
    print(table)
    print(f"wrote {' and '.join(written)}" if written else f"wrote nothing; add {otherwise} to keep the numbers")
