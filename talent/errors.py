"""Errors a user can mend, and the one place where commands turn them into exit codes."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable, Sequence

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Bad input: the message says what was expected, what was received and what to do next."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` when a known name is near `name`, else the list of known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def refuse_unknown(names: Iterable[str], known: Iterable[str], *, what: str) -> None:
    """Raise a UserError for the first of `names` that is not in `known`. what: "model setting", say."""
    known = set(known)
    for name in names:
        if name not in known:
            raise UserError(f"unknown {what} {name!r}{suggest(name, known)}")


def command(name: str) -> Callable:
    """Wrap `main(argv=None) -> int` so that a UserError becomes one line on stderr and exit code 2."""

    def decorate(main: Callable[[Sequence[str] | None], int]) -> Callable[[Sequence[str] | None], int]:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            try:
                return main(argv)
            except UserError as error:
                print(f"{name}: error: {error}", file=sys.stderr)
                return EXIT_BAD_INPUT
            except KeyboardInterrupt:
                print(f"{name}: interrupted", file=sys.stderr)
                return EXIT_INTERRUPTED

        return run

    return decorate
