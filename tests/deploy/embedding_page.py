"""The programs of docs/embedding.md."""

from __future__ import annotations

import re

from tests.native_build import ROOT

PAGE = ROOT / "docs" / "embedding.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.+?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def programs(language: str, comment: str) -> dict[str, str]:
    """By file name, which the first line of each block says behind `comment`."""
    found = blocks(language)
    named = {re.match(rf"{comment} ([\w.]+): ", block): block for block in found}
    assert named and None not in named, f"a program in {language} without a name in its first line"
    return {match[1]: block for match, block in named.items()}
