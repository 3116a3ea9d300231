"""The published refs(...).p files, pickles of Python 2: an unpickler that builds plain values and runs nothing."""

from __future__ import annotations

import copyreg
import pickle
from pathlib import Path
from typing import BinaryIO

from talent.errors import UserError

NUMBERS = ("ref_id", "ann_id", "image_id", "category_id")
_DAMAGED = "expected a pickled list of refs as REFER publishes them"


def load_refs(path: str | Path) -> list[dict]:
    """The refs of a file: dicts with ref_id, ann_id, image_id and category_id (int), split (str) and sentences.

    A sentence is a dict with sent and raw (str, either may be empty). The other keys of the file are left out. Text
    that Python 2 stored as bytes is decoded as UTF-8, or as Latin-1 where it is not that. Raises UserError when the
    file is missing, damaged, holds something else, or asks for anything but plain containers, numbers and strings.
    """
    path = Path(path)
    copyreg.clear_extension_cache()  # what it holds would pass find_class by
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file, path).load()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # damaged files raise nearly anything, RecursionError and MemoryError among them
        raise UserError(f"{path}: {_DAMAGED}, received a damaged file ({type(error).__name__}: "
                        f"{' '.join(str(error).split())}); download it again") from error
    if not isinstance(content, list):
        raise UserError(f"{path}: {_DAMAGED}, received {type(content).__name__}")
    return [_ref(ref, f"{path}: ref number {number}") for number, ref in enumerate(content)]


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every class and function by name, so that nothing in the file can be called."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        # Strings of Python 2 stay bytes, which tells them from its unicode strings.
        super().__init__(file, fix_imports=False, encoding="bytes")
        self._path = path

    def find_class(self, module: str, name: str) -> object:
        raise UserError(f"{self._path} asks for {module}.{name}: expected a file of plain lists, dicts, numbers and "
                        "strings; nothing of it was run, download the file from a source you trust")

    def persistent_load(self, reference: object) -> object:
        raise UserError(f"{self._path} asks for an object of another program ({str(reference)[:60]!r}): expected a "
                        "file of plain lists, dicts, numbers and strings; nothing of it was run")


def _ref(value: object, where: str) -> dict:
    ref = _fields(value, where, (*NUMBERS, "split", "sentences"))
    for name in NUMBERS:
        if not isinstance(ref[name], int):
            raise UserError(f"{where}: expected {name} as a whole number, received {type(ref[name]).__name__}")
    if not isinstance(ref["sentences"], list):
        raise UserError(f"{where}: expected sentences as a list, received {type(ref['sentences']).__name__}")
    return {**{name: ref[name] for name in NUMBERS}, "split": _text(ref["split"], f"{where}: split"),
            "sentences": [_sentence(sentence, where) for sentence in ref["sentences"]]}


def _sentence(value: object, where: str) -> dict:
    sentence = _fields(value, f"{where}: a sentence", ("sent",))
    return {name: _text(sentence.get(name, ""), f"{where}: {name} of a sentence") for name in ("sent", "raw")}


def _fields(value: object, where: str, needed: tuple[str, ...]) -> dict:
    """A dict with its keys as text, after a look that all `needed` are there."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a dict with {', '.join(needed)}, received {type(value).__name__}")
    fields = {_text(key, f"{where}: a key"): item for key, item in value.items()}
    missing = [name for name in needed if name not in fields]
    if missing:
        raise UserError(f"{where}: expected the keys {', '.join(needed)}, without {', '.join(missing)} received only "
                        f"{', '.join(fields) or 'an empty dict'}")
    return fields


def _text(value: object, where: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    if not isinstance(value, str):
        raise UserError(f"{where}: expected text, received {type(value).__name__}")
    return value
