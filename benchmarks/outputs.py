"""The files that a benchmark is asked for: checked before the work, written and told after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from talent.files import check_writable
from talent.image import check_image_path


def check_outputs(data: Path | None, chart: Path | None) -> None:
    """Raise UserError where one of them cannot be written."""
    if chart:
        check_image_path(chart)
        check_writable(chart)
    if data:
        check_writable(data)


def write_outputs(data: Path | None, chart: Path | None, *, write: Callable[[Path], None],
                  draw: Callable[[Path], None], otherwise: str) -> None:
    """Write those that were asked for; the last line says what was made and where. otherwise: the option that keeps
    the numbers."""
    written = []
    if data:
        write(data)
        written.append(f"the numbers to {data}")
    if chart:
        draw(chart)
        written.append(f"the chart to {chart}")
    print(f"wrote {' and '.join(written)}" if written else f"wrote nothing; add {otherwise} to keep the numbers")
