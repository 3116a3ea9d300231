"""Measurements on the disk: what is read back, what a killed run leaves, and where they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.records import Records, cache_directory, digest
from talent.errors import UserError


def test_values_survive_in_the_file(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "there"
    records = Records(directory, "network")
    assert len(records) == 0 and "a" not in records
    values = {"a": [1, 0.1, None, True], "b": {"ä\n": 3e-17}, "c": [], "": "line\u2028separator\r\n"}
    for key, value in values.items():
        records.put(key, value)
    for kept in (records, Records(directory, "network")):
        assert len(kept) == len(values) and all(key in kept and kept[key] == values[key] for key in values)
    assert [path.name for path in directory.iterdir()] == ["network.jsonl"]
    assert len(Records(directory, "another network")) == 0
    with pytest.raises(KeyError, match="d"):
        records["d"]


def test_the_last_value_of_a_key_counts(tmp_path: Path) -> None:
    for value in (1, 2):
        Records(tmp_path, "network").put("a", value)
    kept = Records(tmp_path, "network")
    assert len(kept) == 1 and kept["a"] == 2


@pytest.mark.parametrize("cut", [1, 2, 8])
def test_a_line_that_was_cut_off_is_passed_over_and_the_file_goes_on(tmp_path: Path, cut: int) -> None:
    """Cut by one byte it lacks its end of line only, and is whole."""
    first = Records(tmp_path, "network")
    for key in "ab":
        first.put(key, [key, 0.25])
    content = first.path.read_bytes()
    first.path.write_bytes(content[:-cut])
    again = Records(tmp_path, "network")
    assert "a" in again and ("b" in again) == (cut == 1)
    again.put("c", 3)
    assert {key for key in "abc" if key in Records(tmp_path, "network")} == set("abc" if cut == 1 else "ac")


def test_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    lines = (b"\xff\xfe", b'{"a": 1}', b'["b"]', b"5", b"null", b'[["d"], 1]', b"", b'["c", 2]', b"\x00\x00\x00", b"")
    (tmp_path / "network.jsonl").write_bytes(b"\n".join(lines))
    kept = Records(tmp_path, "network")
    assert len(kept) == 1 and kept["c"] == 2


def test_without_a_directory_they_are_in_memory_only(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    records = Records(None, "network")
    records.put("a", 1)
    assert records.path is None and records["a"] == 1 and "a" not in Records(None, "network")
    assert not list(tmp_path.iterdir())


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    records = Records(tmp_path, "network")
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.put("a", float("inf"))
    assert len(Records(tmp_path, "network")) == 0


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(UserError, match=r"file/cache/network.jsonl \(Not a directory\); set TALENT_EDGE_CACHE to"):
        Records(tmp_path / "file" / "cache", "network")


def test_a_file_that_cannot_be_read_or_written_is_an_error(tmp_path: Path) -> None:
    records = Records(tmp_path, "network")
    records.path.mkdir()
    for use in (lambda: records.put("a", 1), lambda: Records(tmp_path, "network")):
        with pytest.raises(UserError, match=r"network.jsonl \(Is a directory\); set TALENT_EDGE_CACHE to"):
            use()


def test_no_two_lists_of_parts_have_one_digest() -> None:
    lists = [(), ("",), ("", ""), ("ab",), ("a", "b"), ("b", "a"), ("a", "b", ""), ("", "ab"), ("ab", ""), ("a\0b",),
             ("a" + "\x01" + "\0" * 7 + "b",)]  # the last one has a length in it
    assert len({digest(parts) for parts in lists}) == len(lists)
    assert digest(["ä", "b"]) == digest(iter(["ä".encode(), b"b"])) and len(digest([])) == 64


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("TALENT_EDGE_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.setenv("TALENT_EDGE_CACHE", "")
    assert cache_directory() == tmp_path / "xdg" / "talent-edge"
    monkeypatch.delenv("TALENT_EDGE_CACHE")
    assert cache_directory() == tmp_path / "xdg" / "talent-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_directory() == tmp_path / "home" / ".cache" / "talent-edge"
