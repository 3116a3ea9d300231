"""What to look for, while it changes: by a script with times, or by lines that somebody types meanwhile."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deploy.runtime.segmenter import Prompt
from talent.errors import UserError

_TICK = 0.2  # seconds after which a listener looks whether it should stop


class Sentences:
    """The sentence that holds, encoded; None while nothing is looked for. Threads may share it.

    encode: Segmenter.encode. first: the one that holds from the start. script: (second, sentence) by time, where an
    empty sentence looks for nothing. Raises UserError for a sentence that `encode` refuses.
    """

    def __init__(self, encode: Callable[[str], Prompt], first: str,
                 script: Sequence[tuple[float, str]] = ()) -> None:
        self._encode = encode
        self._prompt: Prompt | None = encode(first)
        self._script = deque((seconds, encode(sentence) if sentence else None) for seconds, sentence in script)

    def change(self, sentence: str) -> Prompt | None:
        """From the next frame on look for this, or for nothing where it is empty. Returns its prompt.

        Encoded by the thread that calls, so frames do not wait for it. Raises UserError for a bad sentence; then the
        old one stays.
        """
        sentence = sentence.strip()
        self._prompt = prompt = self._encode(sentence) if sentence else None
        return prompt

    def prompt_at(self, seconds: float) -> Prompt | None:
        """What holds at a time. Asked by one thread, with times that never fall."""
        while self._script and self._script[0][0] <= seconds:
            self._prompt = self._script.popleft()[1]
        return self._prompt


def read_script(path: str | Path) -> list[tuple[float, str]]:
    """Lines such as `12.5 the red mug`: from second 12.5 on look for the red mug; `20` alone: for nothing.

    Blank lines and those that start with # are passed over. Raises UserError for a file that cannot be read, a line
    without a time, and times that fall.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()  # some editors begin with a mark
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot read the script {path}: {reason}") from error
    script: list[tuple[float, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        time, *sentence = line.split(None, 1)
        try:
            seconds = float(time)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            raise UserError(f"{path}:{number}: expected seconds and a sentence, such as `12.5 the red mug`, received "
                            f"{line.strip()!r}")
        if script and seconds < script[-1][0]:
            raise UserError(f"{path}:{number}: expected a time of at least {script[-1][0]:g}, that of the line before, "
                            f"received {seconds:g}")
        script.append((seconds, sentence[0].strip() if sentence else ""))
    return script


def check_listening(where: str | None) -> None:
    """Raise UserError where `listening(where, ...)` would have nothing to listen to."""
    if where in (None, "-"):
        return
    try:
        mode = os.stat(where).st_mode
    except OSError as error:
        raise UserError(f"--sentences-from {where}: {error.strerror}; make a FIFO: mkfifo {where}") from error
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        raise UserError(f"--sentences-from {where}: expected a FIFO (mkfifo NAME) or - for what is typed, received "
                        "another kind of file; sentences with times are read by --script FILE")
    if not os.access(where, os.R_OK | os.W_OK):
        raise UserError(f"--sentences-from {where}: no permission to read and write it; run: chmod u+rw {where}")


@contextlib.contextmanager
def listening(where: str | None, sentences: Sentences, *, tell: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile every line that comes changes the sentence; an empty one pauses.

    where: a FIFO, "-" for standard input, None for standard input where somebody types there. tell: told of every
    change and of what was refused. Raises UserError for another kind of file.
    """
    check_listening(where)
    if where is None and not (sys.stdin is not None and sys.stdin.isatty()):
        yield
        return
    # Read and write: a FIFO then opens at once, and does not end when a writer leaves.
    descriptor = sys.stdin.fileno() if where in (None, "-") else os.open(where, os.O_RDWR)
    stop = threading.Event()
    thread = threading.Thread(target=_listen, args=(descriptor, sentences, stop, tell), name="sentences", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if where not in (None, "-"):
            os.close(descriptor)


def _listen(descriptor: int, sentences: Sentences, stop: threading.Event, tell: Callable[[str], None]) -> None:
    for line in _lines(descriptor, stop):
        try:
            prompt = sentences.change(line)
        except UserError as error:
            tell(f"{error}; the sentence stays as it was")
        else:
            tell(f"now looking for: {prompt.sentence}" if prompt else "paused; a sentence goes on")


def _lines(descriptor: int, stop: threading.Event) -> Iterator[str]:
    """Lines, until the other end closes or `stop` is set, which it notices soon. The last may lack its end."""
    begun = b""
    while not stop.is_set():
        if not select.select([descriptor], [], [], _TICK)[0]:
            continue
        if _in_background(descriptor):  # a program in the background that reads from a terminal is halted
            stop.wait(_TICK)
            continue
        piece = os.read(descriptor, 4096)
        if not piece:
            if begun:
                yield begun.decode(errors="replace")
            return
        *lines, begun = (begun + piece).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")


def _in_background(descriptor: int) -> bool:
    return os.isatty(descriptor) and os.tcgetpgrp(descriptor) != os.getpgrp()
