"""Text on pictures: OpenCV 5 brings a font with the scripts of most languages; OpenCV 4 draws ASCII, ? for the rest."""

from __future__ import annotations

import cv2
import numpy as np

_FONT = cv2.FONT_HERSHEY_SIMPLEX


class Lettering:
    """One size of text. height: of a line in pixels. `put` and `width` may be called by one thread at a time."""

    def __init__(self, height: int) -> None:
        self.height = height
        self._face = cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None
        self._size = max(6, round(0.72 * height))  # of the letters, in pixels
        self._thickness = max(1, round(height / 18))
        self._scale = cv2.getFontScaleFromHeight(_FONT, max(7, round(0.54 * height)), self._thickness)

    @property
    def ellipsis(self) -> str:
        return "..." if self._face is None else "\N{HORIZONTAL ELLIPSIS}"

    def width(self, text: str) -> int:
        """Pixels from the first letter to the end of the last."""
        if self._face is None:
            return cv2.getTextSize(_ascii(text), _FONT, self._scale, self._thickness)[0][0]
        # Without an image's size; the rectangle begins where the ink does, a little right of the origin.
        x, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), self._face, self._size)
        return x + width

    def put(self, picture: np.ndarray, text: str, *, left: int, top: int, color: tuple[int, int, int]) -> None:
        """Draw into uint8 [H, W, 3] a line whose upper left corner is given."""
        baseline = top + round(0.74 * self.height)
        if self._face is None:
            cv2.putText(picture, _ascii(text), (left, baseline), _FONT, self._scale, color, self._thickness,
                        cv2.LINE_AA)
        else:
            cv2.putText(picture, text, (left, baseline), color, self._face, self._size)

    def fit(self, text: str, width: int, *, lines: int) -> list[str]:
        """At most so many lines of at most `width` pixels: broken between words where that can be, shortened at the
        end where it must. Empty where not even a shortened word has room.
        """
        rest, result = " ".join(text.split()), []
        while rest and len(result) < lines:
            last = len(result) == lines - 1
            line, rest = self._shortened(rest, width) if last else self._broken(rest, width)
            if not line:
                return []
            result.append(line)
        return result

    def _room(self, text: str, width: int, *, after: str = "") -> int:
        """How many of the first letters fit."""
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.width(text[:middle] + after) <= width else (low, middle - 1)
        return low

    def _broken(self, text: str, width: int) -> tuple[str, str]:
        room = self._room(text, width)
        if room < len(text) and text[room] != " ":
            room = text.rfind(" ", 0, room) if " " in text[:room] else room
        return text[:room].rstrip(), text[room:].lstrip()

    def _shortened(self, text: str, width: int) -> tuple[str, str]:
        if self.width(text) <= width:
            return text, ""
        room = self._room(text, width, after=self.ellipsis)
        return (text[:room].rstrip() + self.ellipsis if room else ""), ""


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()
