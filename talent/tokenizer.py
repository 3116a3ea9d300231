"""CLIP's byte-pair encoding: sentences in, token ids out. NumPy and the `tokenizers` library only."""

from __future__ import annotations

import gzip
import html
import importlib.util
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors

from talent.errors import UserError
from talent.files import atomic_write
from talent.require import require

START = "<start_of_text>"
END = "<end_of_text>"
VOCAB_SIZE = 49408  # 256 bytes, the same at the end of a word, 48894 merges, start and end
_BYTES = 512
_MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

# One character for several, or in another width: what CLIP's cleaning (ftfy) rewrites and the normaliser cannot.
_LIGATURES = "\u0132\u0133\u0149\u01f1\u01f2\u01f3\u01c4\u01c5\u01c6\u01c7\u01c8\u01c9\u01ca\u01cb\u01cc" \
             "\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06"
_WIDTHS = "".join(map(chr, [0x3000, *range(0xFF01, 0xFFF0)]))
_LONG_NUMBER = re.compile(r"(&#0*[1-9][0-9]{7})[0-9]+")  # no character, and more digits than Python reads as a number
_REWRITE = str.maketrans({c: unicodedata.normalize("NFKC", c) for c in _LIGATURES + _WIDTHS})


class Tokenizer:
    """Sentences -> int64 [B, L] token ids as CLIP expects them: start, ids, end, zeros.

    The ids equal those of `open_clip`, whose cleaning is ftfy, HTML entities, white space and lower case. What ftfy
    does to well-formed text is done here too: composed characters, straight quotes, split ligatures, plain widths, no
    control characters. What it does to mangled text (decoded wrongly, as "itâ€™s" for "it's", or with terminal
    colours) is not: such a sentence gets other ids. A literal "<end_of_text>" in a sentence is text here, not the end
    token.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, context_length: int) -> None:
        start, end = backend.token_to_id(START), backend.token_to_id(END)
        if start is None or end is None or end != backend.get_vocab_size() - 1:
            raise UserError(f"not a TALENT tokenizer: expected {END!r} as its last token, and {START!r} among them")
        if context_length < 3:
            raise UserError(f"expected a context length of at least 3 (start, word, end), received {context_length}")
        self.context_length = context_length
        self.start_id = start
        self.end_id = end
        self.vocab_size = backend.get_vocab_size()
        self._backend = backend
        # Cutting counts the start and end tokens in, so the last token of a long sentence is the end token.
        backend.enable_truncation(context_length)
        backend.enable_padding(length=context_length, pad_id=0, pad_token="!")

    @classmethod
    def load(cls, path: str | Path, context_length: int) -> Tokenizer:
        """Read a tokenizer.json. Raises UserError when it is missing or not one of ours."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no such tokenizer: {path}")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"not a tokenizer.json: {path} ({_one_line(error)}); export the bundle again") from error
        return cls(backend, context_length=context_length)

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json, whole or not at all. It pads and cuts by itself when another program loads it."""
        with atomic_write(path) as temporary:
            temporary.write_text(self._backend.to_str(pretty=False), encoding="utf-8")

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """One sentence or several -> int64 [B, L], zero padded; longer ones are cut and end with the end token.

        Raises UserError when a sentence is empty, blank or not a string, or when there is none.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise UserError("expected at least one sentence, received none")
        # One by one: the library's batch call starts threads, which then warn in every forked data loader worker.
        return np.array([self._encode(text) for text in texts], np.int64)

    def _encode(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise UserError(f"expected a sentence (str), received {type(text).__name__}")
        ids = self._backend.encode(_clean(text)).ids
        if ids[1] == self.end_id:
            raise UserError(f"expected a sentence that names an object, received {text!r}, which holds no words")
        return ids


def build_clip_tokenizer(*, context_length: int, vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """CLIP's tokenizer from the merges that ship with open_clip (which is found, not imported: that would load torch).

    A smaller `vocab_size` keeps the 512 byte tokens and the first merges; the start and end tokens are always the last
    two ids, so that the end token is the largest id, by which the network finds it.
    Raises UserError for a size out of range and when open_clip is not installed.
    """
    if not _BYTES + 2 <= vocab_size <= VOCAB_SIZE:
        raise UserError(f"expected a vocabulary of {_BYTES + 2} to {VOCAB_SIZE} tokens, received {vocab_size}")
    merges = [tuple(line.split()) for line in _merge_lines()[:vocab_size - _BYTES - 2]]
    symbols = _byte_symbols()
    names = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges), START, END]
    vocab = {name: index for index, name in enumerate(names)}
    assert len(vocab) == vocab_size

    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Sequence([
        normalizers.NFC(),
        normalizers.Replace(Regex("[\u02bc\u2018-\u201b]"), "'"),
        normalizers.Replace(Regex("[\u201c-\u201f]"), '"'),
        normalizers.Replace(Regex(r"[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Lowercase(),
    ])
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocab[START]), (END, vocab[END])])
    return Tokenizer(backend, context_length=context_length)


def _clean(text: str) -> str:
    """What the normaliser of tokenizer.json cannot do: entities, ligatures, widths, lone surrogates, final sigma."""
    for _ in range(2):
        text = html.unescape(_LONG_NUMBER.sub(r"\1", text))
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.translate(_REWRITE).lower()


def _byte_symbols() -> list[str]:
    """The printable character that stands for each byte, in the order of CLIP's vocabulary (printable bytes first)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [*map(chr, printable), *(chr(256 + n) for n in range(others))]


def _merge_lines() -> list[str]:
    """CLIP's merges, best first, without the version line and the tail that CLIP does not use."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        require("open_clip", extra="train")  # raises the error that names the extra
    path = Path(spec.origin).parent / _MERGES_FILE
    if not path.is_file():
        raise UserError(f"expected CLIP's merges at {path}; run: pip install --force-reinstall open_clip_torch")
    return gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1:VOCAB_SIZE - _BYTES - 2 + 1]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
