"""refs(...).p: what Python 2 wrote is read exactly, and nothing in a hostile file is run."""

from __future__ import annotations

import copyreg
import os
import pickle
import struct

import pytest

from talent.data.refs_pickle import load_refs
from talent.errors import UserError
from tests.talent.refcoco_files import python2_pickle

LONG = 2**40
REF = {b"ref_id": 7, b"ann_id": LONG, b"image_id": 3, b"category_id": 1, b"split": b"train", b"file_name": b"a_7.jpg",
       b"sent_ids": [0, 1],
       b"sentences": [{b"sent": b"caf\xc3\xa9 table", b"raw": "Café Ã©", b"sent_id": 0, b"tokens": [b"caf\xc3\xa9"]},
                      {b"sent": b"caf\xe9 left", b"raw": b"it's \\ \"so\"", b"sent_id": 1, b"tokens": []}]}
READ = {"ref_id": 7, "ann_id": LONG, "image_id": 3, "category_id": 1, "split": "train",
        "sentences": [{"sent": "café table", "raw": "Café Ã©"}, {"sent": "café left", "raw": "it's \\ \"so\""}]}


def write(tmp_path, content: bytes):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    return path


def refused(tmp_path, content: bytes) -> str:
    path = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        load_refs(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("protocol", [0, 2])
def test_python_2_files_are_read(tmp_path, protocol):
    assert load_refs(write(tmp_path, python2_pickle([REF, REF], protocol))) == [READ, READ]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_files_pickled_anew_are_read(tmp_path, protocol):
    assert load_refs(write(tmp_path, pickle.dumps([READ], protocol))) == [READ]


def test_a_sentence_needs_no_raw_text(tmp_path):
    ref = {**READ, "sentences": [{"sent": "left"}]}
    assert load_refs(write(tmp_path, pickle.dumps([ref])))[0]["sentences"] == [{"sent": "left", "raw": ""}]


class Touch:
    """Pickles to a call of os.system."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def call(marker, module: bytes = b"posix", function: bytes = b"system") -> dict[str, bytes]:
    """Ways to have `function` called, each a pickle that does it when it is loaded as usual."""
    command = f"touch '{marker}'".encode()
    argument, name = b"U" + bytes([len(command)]) + command, module + b"\n" + function + b"\n"
    return {
        "GLOBAL": b"c" + name + argument + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(function)]) + function
                        + b"\x93" + argument + b"\x85R.",
        "INST": b"(" + argument + b"i" + name + b".",
        "OBJ": b"(c" + name + argument + b"o.",
    }


@pytest.mark.parametrize("opcode", ["GLOBAL", "STACK_GLOBAL", "INST", "OBJ"])
def test_no_function_is_called(tmp_path, opcode):
    marker = tmp_path / "marker"
    hostile = call(marker)[opcode]
    pickle.loads(hostile)
    assert marker.exists(), "the file is not hostile at all"
    marker.unlink()
    assert "asks for posix.system" in refused(tmp_path, hostile)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_object_reduces(tmp_path, protocol):
    marker = tmp_path / "marker"
    message = refused(tmp_path, pickle.dumps([READ, Touch(marker)], protocol))
    assert "nothing of it was run" in message and "posix.system" in message
    assert not marker.exists()


@pytest.mark.parametrize(("content", "asked"), [
    (b"cbuiltins\neval\nU\x031+1\x85R.", "builtins.eval"),
    (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93U\x031+1\x85R.", "builtins.eval"),
    (b"c__builtin__\neval\nU\x031+1\x85R.", "__builtin__.eval"),
    (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "collections.OrderedDict"),
    (b"\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93)}\x92.", "collections.OrderedDict"),
    (b"\x80\x02ctypes\nSimpleNamespace\n)\x81}U\x01aK\x01sb.", "types.SimpleNamespace"),
    (pickle.dumps({1, 2}, 2), "__builtin__.set"),
], ids=["GLOBAL", "STACK_GLOBAL", "GLOBAL of Python 2", "NEWOBJ", "NEWOBJ_EX", "BUILD", "set of Python 2"])
def test_no_class_is_found(tmp_path, content, asked):
    assert f"asks for {asked}:" in refused(tmp_path, content)


@pytest.mark.parametrize("content", [b"\x80\x02}}U\x01aK\x01sb.", b"\x80\x02U\x01a)R.", b"\x80\x02U\x01a)\x81.",
                                     b"(U\x01ao."], ids=["BUILD", "REDUCE", "NEWOBJ", "OBJ"])
def test_plain_values_are_not_called_or_filled(tmp_path, content):
    assert "damaged file" in refused(tmp_path, content)


def test_extension_codes_are_not_looked_up(tmp_path):
    assert "damaged file" in refused(tmp_path, b"\x80\x02\x82\x01.")
    marker = tmp_path / "marker"
    hostile = b"\x80\x02\x82\x01U" + bytes([len(str(marker)) + 6]) + f"touch {marker}".encode() + b"\x85R."
    copyreg.add_extension("posix", "system", 1)
    try:
        pickle.loads(hostile)  # also leaves the function in copyreg's cache, which find_class does not see
        assert marker.exists()
        marker.unlink()
        for code in (b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"):
            assert "posix.system" in refused(tmp_path, hostile.replace(b"\x82\x01", code))
        assert not marker.exists()
    finally:
        copyreg.remove_extension("posix", "system", 1)


@pytest.mark.parametrize("content", [b"Psecret\n.", b"\x80\x02U\x06secretQ."], ids=["PERSID", "BINPERSID"])
def test_objects_of_other_programs_are_refused(tmp_path, content):
    message = refused(tmp_path, content)
    assert "object of another program" in message and "secret" in message


def test_damaged_files_are_refused(tmp_path):
    whole = python2_pickle([REF], 2)
    for content in (b"", b"\n", b"garbage", b"PK\x03\x04" + bytes(20), b"version https://git-lfs\n", b"\xff" * 30,
                    b"\x80\x09.", whole[:-1], whole[:40], b"\x80\x02}]K\x01s.", b"l.",
                    b"\x8e" + struct.pack("<Q", 2**62) + b"abc", b"\x8b" + struct.pack("<i", -5) + b"."):
        assert "damaged file" in refused(tmp_path, content), content
    with pytest.raises(UserError, match="cannot read .*No such file"):
        load_refs(tmp_path / "missing.p")
    with pytest.raises(UserError, match="cannot read .*directory"):
        load_refs(tmp_path)


def test_every_beginning_of_a_file_is_refused(tmp_path):
    for protocol in (0, 2):
        whole = python2_pickle([REF], protocol)
        for length in range(len(whole)):
            refused(tmp_path, whole[:length])


@pytest.mark.parametrize(("content", "message"), [
    ({"refs": []}, "received dict"),
    ([READ, 5], "ref number 1: expected a dict .*received int"),
    ([{"ref_id": 1}], "ref number 0: expected the keys .*without ann_id, image_id.*received only ref_id"),
    ([{}], "received only an empty dict"),
    ([{**READ, "ann_id": "7"}], "ann_id as a whole number, received str"),
    ([{**READ, "split": 1}], "split: expected text, received int"),
    ([{**READ, "sentences": "left"}], "sentences as a list, received str"),
    ([{**READ, "sentences": ["left"]}], "a sentence: expected a dict with sent, received str"),
    ([{**READ, "sentences": [{"raw": "left"}]}], "without sent received only raw"),
    ([{**READ, "sentences": [{"sent": None}]}], "sent of a sentence: expected text, received NoneType"),
    ([{**READ, 5: 6}], "a key: expected text, received int"),
])
def test_other_content_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        load_refs(write(tmp_path, pickle.dumps(content)))


def test_deep_and_looped_files_end(tmp_path):
    assert load_refs(write(tmp_path, b"\x80\x02]q\x00.")) == []
    assert "received list" in refused(tmp_path, b"\x80\x02]q\x00h\x00a.")  # a list that holds itself
    assert "received list" in refused(tmp_path, b"]" * 50_000 + b"a" * 49_999 + b".")
    assert "object of another program" in refused(tmp_path, b"]q\x00h\x00aQ.")
