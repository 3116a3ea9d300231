"""What the pictures of the benchmarks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from talent.files import atomic_write


def titled(figure: str) -> str:
    """The title of a panel: the name of a figure of merit, and which way it is better."""
    return f"{figure} ({'lower' if figure.startswith('NTA') else 'higher'} is better)"


def finish(figure: Any, panels: Any, path: Path) -> None:
    """The first panel's legend below all of them; write the matplotlib figure whole or not at all, and close it."""
    from matplotlib import pyplot

    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
