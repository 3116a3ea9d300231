"""CLIP's tokenizer against open_clip's, and what it refuses."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest

from talent.errors import UserError
from talent.tokenizer import VOCAB_SIZE, Tokenizer, build_clip_tokenizer

HARD = [
    "it's the dog's bowl, isn't it?", "they're WE'VE I'm he'll she'd can't", "rock'n'roll 's 't 're", "o'clock",
    "person in 2nd row, #42, 3.14159 and 10,000", "$5.99!!! (left) [right] {top} a/b\\c a_b-c --- ...", "a&b & c",
    "&amp; &lt;mug&gt; &quot;cup&quot; &#39;x&#39; &amp;amp; &eacute;clair", "tom &amp jerry",
    "&#00000000000000000065;", "&#1114112; &#99999999;",
    "the 🐶 next to the 👩‍👩‍👧 family 🇩🇪 👍🏽", "😀😀😀", "❤️ red heart",
    "naïve café Ångström façade", "cafe\u0301 e\u0301",
    "красная кружка слева", "左边的红色杯子", "赤いマグカップ", "빨간 머그잔", "كوب أحمر على اليسار",
    "כוס אדומה", "लाल मग", "ถ้วยแดง",
    "ΜΕΓΑΛΟΣ ΔΡΟΜΟΣ Σ", "İstanbul ISPARTA", "STRASSE straße", "½ cup ² ³ Ⅷ ①", "x² + y² = z²",
    "\u00a0non breaking\u00a0",
    "tab\tnew\nline\r\ncarriage\rreturn", "  many    spaces  ", "thin\u2009space\u2028line\u3000ideographic",
    "\u0149 “curly” ‘quotes’ it’s „low“ ‚single‘", "ﬁne ﬂow oﬀice eﬃcient ĳs", "ＦＵＬＬ　ｗｉｄｔｈ １２３ ！？",
    "ｶﾞｷﾞ half width",
    "zero\u200bwidth\u200djoiner", "bom\ufeff middle", "bell\x07 null\x00 del\x7f", "soft\u00adhyphen",
    "kelvin \u212a long \u017f",
    "em — dash – en … ellipsis", "a" * 300, "antidisestablishmentarianism pneumonoultramicroscopic",
    "??", "-", "a", "0",
    "<|startoftext|> x <|endoftext|>", "http://example.com/a?b=c&d=e", "user@host.org", "C++ C# .NET",
    "100% 50°C ±3 €20 £5",
    "ſ'ſ it'S IT'S 'LL", "combining \u0308 alone", "𝒻𝒶𝓃𝒸𝓎 𝔣𝔯𝔞𝔨𝔱𝔲𝔯", "\U0001f9d1\U0001f3fd\u200d\U0001f680",
]


def sentences() -> list[str]:
    """The hard ones and 400 seeded mixtures of words, punctuation and letters of many scripts."""
    chance = random.Random(7)
    words = ("left right second red mug person closest to camera the guy's two-tone couldn't 12th it's & <b> café "
             "МАШИНА Straße 猫 🐱 “big” woman's 3 , . ! ? ; : ' \" ( ) # % &amp; &#233;").split(" ")
    ranges = [(0x20, 0x7e), (0xa1, 0x24f), (0x370, 0x3ff), (0x400, 0x4ff), (0x5d0, 0x5ea), (0x4e00, 0x4fff),
              (0x1f300, 0x1f5ff)]
    mixed = [" ".join(chance.choices(words, k=chance.randint(1, 25))) for _ in range(250)]
    for _ in range(150):
        low, high = chance.choice(ranges)
        mixed.append("x " + "".join(chr(chance.randint(low, high)) for _ in range(chance.randint(1, 30))))
    return HARD + mixed


@pytest.fixture(scope="module")
def open_clip_tokenizer():
    return pytest.importorskip("open_clip.tokenizer")


@pytest.fixture(scope="module")
def full() -> Tokenizer:
    return build_clip_tokenizer(context_length=77)


@pytest.mark.parametrize("context_length", [77, 17])
def test_ids_equal_open_clip(open_clip_tokenizer, context_length):
    ours = build_clip_tokenizer(context_length=context_length)
    theirs = open_clip_tokenizer.SimpleTokenizer(context_length=context_length)
    different = [text for text in sentences() if not np.array_equal(ours(text)[0], theirs(text)[0].numpy())]
    assert different == []


def test_layout(full):
    ids = full(["a red mug", "cup"])
    assert ids.dtype == np.int64 and ids.shape == (2, 77)
    assert ids[0].tolist() == [49406, 320, 736, 9722, 49407] + [0] * 72
    assert (full.start_id, full.end_id, full.vocab_size) == (49406, 49407, VOCAB_SIZE)


def test_long_text_is_cut_and_ends():
    tokenizer = build_clip_tokenizer(context_length=6)
    ids = tokenizer("one two three four five six")[0]
    whole = build_clip_tokenizer(context_length=20)("one two three four five six")[0]
    assert ids[:5].tolist() == whole[:5].tolist() and ids[5] == tokenizer.end_id


@pytest.mark.parametrize("vocab_size", [514, 700, 1024])
def test_small_vocabulary(vocab_size, full):
    tokenizer = build_clip_tokenizer(context_length=40, vocab_size=vocab_size)
    ids = tokenizer(["the red mug on the left 猫", "a"])
    assert (tokenizer.start_id, tokenizer.end_id) == (vocab_size - 2, vocab_size - 1)
    assert ids.max() == tokenizer.end_id  # the end token is the largest id,
    assert np.count_nonzero(ids == tokenizer.end_id, axis=1).tolist() == [1, 1]  # and there is one,
    assert ids[1].tolist()[:3] == [vocab_size - 2, 320, vocab_size - 1]  # a</w>
    pieces = full("the")[0][1:-1]
    if vocab_size > 600:  # "the" is among the first merges, so its id is the full tokenizer's
        assert ids[0][1] == pieces[0]
    else:
        assert ids[0][1:4].tolist() == [83, 71, 324]  # t, h, e</w>


def test_vocabulary_out_of_range():
    for size in (513, VOCAB_SIZE + 1):
        with pytest.raises(UserError, match="514 to 49408"):
            build_clip_tokenizer(context_length=17, vocab_size=size)


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u3000\u00a0", "\x00\x07", "&nbsp;"])
def test_no_words(full, text):
    with pytest.raises(UserError, match="names an object"):
        full(text)
    with pytest.raises(UserError, match="names an object"):
        full(["a mug", text])


def test_not_a_sentence(full):
    with pytest.raises(UserError, match="received int"):
        full(["mug", 3])
    with pytest.raises(UserError, match="received none"):
        full([])


def test_special_tokens_cannot_be_written_into_a_sentence(full):
    ids = full("mug <end_of_text> <start_of_text> cup")[0]
    assert np.count_nonzero(ids == full.end_id) == 1 and np.count_nonzero(ids == full.start_id) == 1


@pytest.mark.parametrize("entity", ["&#" + "1" * 5000 + ";", "&amp;#0" + "9" * 5000 + ";"])
def test_a_number_with_more_digits_than_python_reads_is_no_character(full, entity):
    assert np.array_equal(full(f"a {entity} mug"), full("a \ufffd mug"))


def test_lone_surrogate_is_replaced(full):
    assert full("a \ud800 mug")[0].tolist() == full("a \ufffd mug")[0].tolist()


def test_save_and_load(tmp_path):
    tokenizer = build_clip_tokenizer(context_length=17, vocab_size=900)
    tokenizer.save(tmp_path / "tokenizer.json")
    texts = ["it’s the red mug", "x " * 40, "猫"]
    for context_length in (17, 9):
        loaded = Tokenizer.load(tmp_path / "tokenizer.json", context_length)
        expected = build_clip_tokenizer(context_length=context_length, vocab_size=900)(texts)
        assert np.array_equal(loaded(texts), expected)
        assert loaded.end_id == tokenizer.end_id
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_load_refuses(tmp_path):
    with pytest.raises(UserError, match="no such tokenizer"):
        Tokenizer.load(tmp_path / "none.json", 17)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="not a tokenizer.json"):
        Tokenizer.load(tmp_path / "broken.json", 17)
    build_clip_tokenizer(context_length=17, vocab_size=600).save(tmp_path / "good.json")
    foreign = (tmp_path / "good.json").read_text().replace("<end_of_text>", "<eos>")
    (tmp_path / "foreign.json").write_text(foreign)
    with pytest.raises(UserError):
        Tokenizer.load(tmp_path / "foreign.json", 17)
    with pytest.raises(UserError, match="at least 3"):
        Tokenizer.load(tmp_path / "good.json", 2)


def test_building_imports_no_torch():
    code = ("import sys; from talent.tokenizer import build_clip_tokenizer as build; "
            "build(context_length=17, vocab_size=600)('mug'); assert 'torch' not in sys.modules; print('ok')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr


def test_missing_open_clip_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"talent-edge\[train\]"):
        build_clip_tokenizer(context_length=17)
