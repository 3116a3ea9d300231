"""libtalent's tokenizer against talent/tokenizer.py: the same ids and the same refusals, text by text."""

from __future__ import annotations

import importlib.util
import random
import sys
import unicodedata
from collections.abc import Callable
from html.entities import html5
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, pre_tokenizers

from talent.errors import UserError
from talent.tokenizer import Tokenizer, build_clip_tokenizer
from tests.deploy.cpp_programs import answers, build_programs
from tests.native_build import ROOT, run
from tests.talent.test_tokenizer import HARD

CONTEXT_LENGTH = 77
COUNT = 20_000
LONG = 100_000
WORDS = (
    "left right second red mug person closest to camera the guy's two-tone couldn't 12th it's they're I'LL & <b> café "
    "CAFÉ cafe\u0301 МАШИНА Straße STRASSE ΔΡΟΜΟΣ Σ ΑΣ' İstanbul ISPARTA 猫 “big” woman's 's '\u017f 'S ''t 're, . ! "
    "? ; : ' \" ( ) # % &amp; &amp;amp; &#233; &#x1F436; &eacute &notit; &NotEqualTilde; &; &# &#0; &#128; \ufb01ne "
    "\ufb03 \u0133 \u01c4 ＦＵＬＬ\u3000１２３ ｶﾞ ½ ² Ⅷ ① ١٢٣ १२३ 👩\u200d👩\u200d👧 👍🏽 🇩🇪 ❤\ufe0f 한국어 각 "
    "\u1100\u1161 <end_of_text> a\u00adb zero\u200bwidth bell\x07 nul\x00 \ufeff \u2028 \u3000 \t \r\n").split(" ")
RANGES = ((0x20, 0x7e), (0x20, 0x7e), (0, 0x3f), (0xa0, 0x24f), (0x250, 0x36f), (0x370, 0x3ff), (0x400, 0x52f),
          (0x530, 0x6ff), (0x900, 0xdff), (0xe00, 0xeff), (0x10a0, 0x11ff), (0x1e00, 0x1fff), (0x2000, 0x206f),
          (0x2070, 0x2bff), (0x3000, 0x33ff), (0x4e00, 0x4fff), (0xa640, 0xab6f), (0xac00, 0xafff), (0xf900, 0xfaff),
          (0xfb00, 0xfdff), (0xfe00, 0xffff), (0x10000, 0x1018f), (0x10400, 0x104ff), (0x1d400, 0x1d7ff),
          (0x1f300, 0x1faff), (0, 0x10ffff))


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    return build_programs(tmp_path_factory)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """CLIP's tokenizer.json."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    build_clip_tokenizer(context_length=CONTEXT_LENGTH).save(path)
    return path


@pytest.fixture(scope="module")
def known(programs) -> frozenset[str]:
    """The characters that Python, the tokenizers library and libtalent know: their Unicode versions differ."""
    ranges = [line.split() for line in answers(programs / "assigned").splitlines()]
    ours = {chr(code) for first, last in ranges for code in range(int(first, 16), int(last, 16) + 1)
            if not 0xD800 <= code < 0xE000 and unicodedata.category(chr(code)) != "Cn"}
    split = pre_tokenizers.Split(Regex(r"[\P{Cn}]+"), behavior="removed", invert=True)
    return frozenset(ours & set("".join(piece for piece, _ in split.pre_tokenize_str("".join(sorted(ours))))))


@pytest.fixture
def compare(programs, tmp_path) -> Callable[..., int]:
    """compare(tokenizer.json, texts, context_length=): both on every text; how many were refused.

    What is not the same fails the test. A text that is bytes is what Python makes of them.
    """

    def run_both(path: Path, texts: list[bytes], *, context_length: int = CONTEXT_LENGTH) -> int:
        (tmp_path / "texts").write_bytes(b"".join(len(text).to_bytes(4, sys.byteorder) + text for text in texts))
        files = [tmp_path / name for name in ("texts", "ids", "errors")]
        answers(programs / "encode_texts", path, str(context_length), *files)
        ids = np.fromfile(tmp_path / "ids", np.int64).reshape(len(texts), context_length)
        errors = (tmp_path / "errors").read_bytes().decode().split("\n")[:-1]
        expected_ids, expected_errors = in_python(Tokenizer.load(path, context_length), texts)
        different = [text for text, one, other in zip(texts, errors, expected_errors, strict=True) if one != other]
        assert different == []
        different = [texts[index] for index in np.flatnonzero((ids != expected_ids).any(axis=1))]
        assert different == [], f"{len(different)} of {len(texts)} have other ids"
        return sum(error != "" for error in errors)

    return run_both


def in_python(tokenizer: Tokenizer, texts: list[bytes]) -> tuple[np.ndarray, list[str]]:
    """int64 [texts, L] ids, rows of -1 for the refused ones; and why each was refused, or nothing."""
    ids = np.full((len(texts), tokenizer.context_length), -1, np.int64)
    errors = [""] * len(texts)
    for index, text in enumerate(texts):
        try:
            ids[index] = tokenizer(text.decode("utf-8", "replace"))[0]
        except UserError as error:
            errors[index] = str(error)
    return ids, errors


def texts_of_all_kinds(known: frozenset[str]) -> list[bytes]:
    """COUNT seeded texts: words, characters of every script, marks, entities, damaged UTF-8, and the hard ones."""
    chance = random.Random(7)
    by_range = [[chr(code) for code in range(low, high + 1) if chr(code) in known] for low, high in RANGES]
    characters = sorted(known)
    marks = [character for character in characters if unicodedata.combining(character)]
    digits = [character for character in characters if unicodedata.category(character) == "Nd"]
    entities = [f"&{name}" for name in sorted(html5)]
    sigmas = "Σς\u0345'.:\u00b7\u00ad\u0301ʰAaß1 -"

    def words() -> str:
        return chance.choice((" ", "  ", "", "\n")).join(chance.choices(WORDS, k=chance.randint(1, 12)))

    def script() -> str:
        return "".join(chance.choices(chance.choice(by_range), k=chance.randint(1, 30)))

    def mixed() -> str:
        return "".join(chance.choice(chance.choice(by_range)) for _ in range(chance.randint(1, 30)))

    def marked() -> str:
        return "".join(chance.choice(chance.choice(by_range)) + "".join(chance.choices(marks, k=chance.randint(0, 4)))
                       for _ in range(chance.randint(1, 8)))

    def entity() -> str:
        name = chance.choice((chance.choice(entities), chance.choice(entities).replace("&", "&amp;"),
                              f"&#{ord(chance.choice(characters))};", f"&#x{ord(chance.choice(characters)):x}",
                              f"&#{chance.randint(0, 300)}", f"&#x{chance.randint(0xd800, 0xdfff):X};",
                              f"&#{chance.randint(0x110000, 2**40)};"))
        cut = name[:chance.randint(1, len(name))] if chance.random() < 0.2 else name
        return f"{chance.choice(WORDS)}{cut}{chance.choice((*WORDS, ';', ' '))}"

    def numbers() -> str:
        return "".join(chance.choices([*digits, *"0123456789.,- "], k=chance.randint(1, 20)))

    def cased() -> str:
        return "".join(chance.choices(sigmas, k=chance.randint(1, 8)))

    def damaged() -> bytes:
        text = bytearray(chance.choice((words, script, mixed))().encode())
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(text) + 1)
            text[place:place + chance.randint(0, 2)] = chance.choice(
                (chance.randbytes(chance.randint(1, 4)), b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xe2\x82",
                 b"\xf0\x9f\x98", b"\x80", b"\xff"))
        return bytes(text)

    kinds = (words, words, script, script, mixed, marked, entity, entity, numbers, cased, damaged)
    texts = [text if isinstance(text := chance.choice(kinds)(), bytes) else text.encode() for _ in range(COUNT)]
    fixed = [*HARD, *WORDS, "", " ", "&nbsp;", "\x00", "\u2028\u3000", "'\u017f", "\ufb05s"]
    texts[:len(fixed)] = [text.encode() for text in fixed]
    return texts


def test_ids_are_the_same_for_texts_of_all_kinds(compare, full, known):
    texts = texts_of_all_kinds(known)
    assert len(texts) == COUNT and len(set(texts)) > 0.9 * COUNT
    refused = compare(full, texts)
    assert 20 < refused < 0.1 * COUNT  # the blank ones


@pytest.mark.parametrize("pattern", ["{} ", "A{}Σ", "x\u0301{}\u0323"])
def test_every_character_is_the_same(compare, full, known, pattern):
    """Alone, between letters, and between marks; the digit after each ends its word. Without those for private use."""
    characters = sorted(character for character in known if unicodedata.category(character) != "Co")
    assert len(characters) > 140_000
    of_line = 256
    lines = ["1".join(map(pattern.format, characters[start:start + of_line]))
             for start in range(0, len(characters), of_line)]
    compare(full, [line.encode() for line in lines], context_length=of_line * 12)


def test_long_texts_are_the_same(compare, full):
    texts = ["a" * LONG, "abcdefghij" * (LONG // 10), "ab " * (LONG // 3), "7" * LONG, "!?" * (LONG // 2), "&" * LONG,
             "&amp;" * (LONG // 5), "&#" + "0" * 4000 + "65;" + "x" * LONG, "e" + "\u0308\u0323" * (LONG // 2),
             "Σ" * LONG, "Σ" + "'" * LONG + "Σ", "İ" * LONG, "猫" * LONG, "👩‍👩‍👧" * (LONG // 5), " " * LONG + "mug",
             "가" * LONG]
    assert compare(full, [text.encode() for text in texts], context_length=LONG + 2) == 0
    assert compare(full, [(" " * LONG).encode(), b"\x00" * LONG]) == 2


@pytest.mark.parametrize("vocab_size, context_length", [(514, 40), (700, 5), (1024, 3)])
def test_other_vocabularies_and_lengths(compare, tmp_path, vocab_size, context_length):
    path = tmp_path / "tokenizer.json"
    build_clip_tokenizer(context_length=9, vocab_size=vocab_size).save(path)
    compare(path, [text.encode() for text in HARD], context_length=context_length)


def test_files_are_refused_alike(programs, tmp_path, full):
    """What libtalent alone refuses, tests/cpp/test_tokenizer.cpp looks at."""
    text = full.read_text(encoding="utf-8")
    (tmp_path / "foreign.json").write_text(text.replace("<end_of_text>", "<eos>"), encoding="utf-8")
    (tmp_path / "broken.json").write_text(text[:-9], encoding="utf-8")
    (tmp_path / "texts").write_bytes(b"")
    for path, context_length in ((tmp_path / "none.json", 17), (tmp_path, 17), (tmp_path / "foreign.json", 17),
                                 (tmp_path / "broken.json", 17), (full, 2)):
        with pytest.raises(UserError) as caught:
            Tokenizer.load(path, context_length)
        said = run(str(programs / "encode_texts"), str(path), str(context_length),
                   *(str(tmp_path / name) for name in ("texts", "ids", "errors")), code=2)
        reason = " (" if path.name == "broken.json" else None  # each library has its own words
        assert said.strip().split(reason)[0] == str(caught.value).split(reason)[0] and "\n" not in said.strip()


def test_the_table_of_entities_is_what_its_script_writes():
    path = ROOT / "deploy" / "cpp" / "tools" / "write_html_entities.py"
    spec = importlib.util.spec_from_file_location("write_html_entities", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TABLE.read_text(encoding="utf-8") == script.content()
