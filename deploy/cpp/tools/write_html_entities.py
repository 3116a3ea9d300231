"""Write src/html_entities.inc: what the C++ tokenizer's html_unescape knows, from Python's `html`.

    python deploy/cpp/tools/write_html_entities.py
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Sequence
from html.entities import html5
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # where talent-edge is not installed

from talent.files import atomic_write  # noqa: E402

TABLE = Path(__file__).resolve().parents[1] / "src" / "html_entities.inc"
_SURROGATES = range(0xD800, 0xE000)
_HEAD = """\
// Written by deploy/cpp/tools/write_html_entities.py from Python's `html`: change that, and run it again.

"""


def content() -> str:
    """The text of html_entities.inc: named entities in order of their bytes, then numbers that are not themselves."""
    return "".join([
        _HEAD, "// HTML's named characters, one or two code points each; some also without their semicolon.\n",
        "constexpr NamedEntity kNamedEntities[] = {\n", *map(_named, sorted(html5)), "};\n\n",
        "// What a number stands for where that is not the code point of this number; 0 for nothing at all.\n",
        "constexpr NumericEntity kNumericEntities[] = {\n", *_numeric(), "};\n"])


def _named(name: str) -> str:
    first, second, *more = [*map(ord, html5[name]), 0]
    assert not any(more), f"{name} stands for more than two code points"
    return f'    {{"{name}", 0x{first:x}, 0x{second:x}}},\n'


def _numeric() -> list[str]:
    rows = []
    for number in range(sys.maxunicode + 1):
        character = html.unescape(f"&#{number};")
        if character != chr(number) and number not in _SURROGATES:
            assert len(character) < 2
            rows.append(f"    {{0x{number:x}, 0x{ord(character) if character else 0:x}}},\n")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    with atomic_write(TABLE) as temporary:
        temporary.write_text(content(), encoding="utf-8")
    print(f"wrote {len(html5)} named entities to {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
