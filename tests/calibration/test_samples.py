"""The calibration set: where it comes from, what is chosen, what is written down, and when it warns."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.candidates import Candidate, Source, open_candidates
from calibration.samples import (
    FAR,
    CalibrationSet,
    choose,
    far_ratio,
    far_warning,
    few_warning,
    picture_digest,
)
from talent.errors import UserError
from talent.image import preprocess, save_image
from talent.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
SIZE = 112
TOKENIZER = Tokenizer.load(ROOT / "weights/tiny/tokenizer.json", 20)
TEXTS = ("mug", "the mug", "the red mug", "the red mug on the left", "the red mug on the left of the small box",
         "the red mug on the left of the small box beside the large blue lamp")


class Listed:
    """Candidates in memory that notice what is read."""

    def __init__(self, *candidates: Candidate) -> None:
        self.candidates, self.source, self.read = candidates, Source("listed", None, 32), []

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, index: int) -> Candidate:
        self.read.append(index)
        return self.candidates[index]


class Changed:
    """The same candidates with other pixels."""

    def __init__(self, candidates, change) -> None:
        self.candidates, self.source, self.change = candidates, candidates.source, change

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, index: int) -> Candidate:
        candidate = self.candidates[index]
        return dataclasses.replace(candidate, image=self.change(candidate.image))


def noise(seed: int, shape: tuple[int, int] = (20, 30)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def length(text: str) -> int:
    return int(TOKENIZER([text]).argmax()) + 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures, six sentences, and files that are no pictures."""
    folder = tmp_path / "photos"
    (folder / "more.png").mkdir(parents=True)
    for seed, name in enumerate(("c.png", "a.png", "B.BMP", "d.tiff", "e.webp")):
        save_image(folder / name, noise(seed))
    (folder / "notes.md").write_text("no picture")
    (folder / "._a.png").write_bytes(b"what another system leaves")
    (folder / "sentences.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(TEXTS).encode() + b"\r\n  \r\nmug\r\n")
    return folder


@pytest.fixture(scope="module")
def shapes():
    return open_candidates("shapes", size=SIZE)


@pytest.fixture(scope="module")
def chosen(shapes) -> CalibrationSet:
    return choose(shapes, count=32, pool=256, tokenizer=TOKENIZER)


def test_a_folder_is_read_by_name_and_every_picture_may_be_asked_every_sentence(folder) -> None:
    candidates = open_candidates(folder, size=32)
    assert [candidates[index].name for index in range(len(candidates))] == [
        "B.BMP", "a.png", "c.png", "d.tiff", "e.webp"]
    assert candidates[1].expressions == TEXTS and candidates.source == Source("photos", None, 32)
    np.testing.assert_array_equal(candidates[1].image, noise(1))
    (folder / "other.txt").write_text("grüne Tasse", encoding="utf-8")
    assert open_candidates(folder, sentences=folder / "other.txt", size=32)[0].expressions == ("grüne Tasse",)
    with pytest.raises(IndexError, match="index 5 is outside 0..4"):
        candidates[5]


def test_what_is_wrong_with_a_source_is_said(folder, tmp_path: Path) -> None:
    def opened(source=folder, content: bytes | None = None, **options):
        if content is not None:
            (folder / "sentences.txt").write_bytes(content)
        return open_candidates(source, size=32, **options)

    with pytest.raises(UserError, match="expected a folder of pictures, a .jsonl file or a data set, .*did you mean"):
        opened("shape")
    with pytest.raises(UserError, match=rf"received '{tmp_path}/none', which is none of them"):
        opened(tmp_path / "none")
    with pytest.raises(UserError, match="leave it out"):
        opened("shapes", sentences="sentences.txt")
    with pytest.raises(UserError, match="positive image size, received 0"):
        open_candidates("shapes", size=0)
    with pytest.raises(UserError, match=r"sentences.txt:2: expected text in UTF-8, received the byte 0xe9; save"):
        opened(content=b"mug\ncaf\xe9\n")
    with pytest.raises(UserError, match="sentences.txt holds no sentence; expected a text file"):
        opened(content=b" \r\n\n")
    with pytest.raises(UserError, match="cannot read .*more.png: Is a directory"):
        opened(sentences=folder / "more.png")
    (folder / "sentences.txt").unlink()
    with pytest.raises(UserError, match=f"no such file: {folder}/sentences.txt; expected a text file"):
        opened()
    with pytest.raises(UserError, match="more.png has no pictures; expected files that end with .bmp"):
        opened(folder / "more.png")


def test_a_picture_that_cannot_be_read_is_named(folder) -> None:
    (folder / "d.tiff").write_bytes(b"half")
    with pytest.raises(UserError, match="not a picture: .*d.tiff"):
        choose(open_candidates(folder, size=32), tokenizer=TOKENIZER)


def test_a_jsonl_file_is_a_source_and_its_place_is_not_written_down(tmp_path: Path) -> None:
    lines = []
    for seed in range(3):
        save_image(tmp_path / f"{seed}.png", noise(seed))
        lines.append(json.dumps({"image": f"{seed}.png", "expression": TEXTS[seed], "split": "val",
                                 "mask": [[0, 0, 9, 0, 9, 9]]}))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    samples = choose(open_candidates(tmp_path / "mine.jsonl", split="val", size=32), tokenizer=TOKENIZER)
    assert [entry.name for entry in samples.entries] == ["mine.jsonl:1", "mine.jsonl:2", "mine.jsonl:3"]
    assert samples.source == Source("mine.jsonl", "val", 32)
    assert str(tmp_path) not in json.dumps(samples.to_dict())


def test_the_pool_is_thinned_evenly_and_read_once(shapes) -> None:
    listed = Listed(*(Candidate(noise(seed), (TEXTS[seed % 6],), str(seed)) for seed in range(30)))
    samples = choose(listed, count=4, pool=10, tokenizer=TOKENIZER)
    assert listed.read == list(range(0, 30, 3)) and samples.pool == 10
    assert {entry.index for entry in samples.entries} < set(listed.read)
    listed.read.clear()
    assert len(choose(listed, count=12, pool=10, tokenizer=TOKENIZER)) == len(listed.read) == 12


def test_the_same_seed_gives_the_same_set_of_different_pictures(shapes, chosen) -> None:
    assert len(chosen) == len(chosen.pictures) == len({entry.index for entry in chosen.entries}) == 32
    first, again, other = (choose(shapes, count=16, pool=48, seed=seed, tokenizer=TOKENIZER) for seed in (0, 0, 1))
    assert first == again and first.digest == again.digest
    assert first.entries != other.entries and first.digest != other.digest
    for entry in chosen.entries:
        assert entry.expression in shapes[entry.index].expressions
        assert entry.sha256 == picture_digest(shapes[entry.index].image)


def test_lengths_are_spread_as_the_pools(shapes, chosen) -> None:
    pool = [length(text) for number in range(256) for text in shapes[number * 20000 // 256].expressions]
    ours = [length(entry.expression) for entry in chosen.entries]
    inner = np.linspace(0.1, 0.9, 9)
    assert np.abs(np.quantile(ours, inner) - np.quantile(pool, inner)).max() <= 1
    possible = [length(text) for entry in chosen.entries for text in shapes[entry.index].expressions]
    assert (min(ours), max(ours)) == (min(possible), max(possible))


def test_sentences_of_a_folder_come_in_all_lengths_and_turn_by_turn(folder) -> None:
    candidates = open_candidates(folder, size=32)
    samples = choose(candidates, count=3, tokenizer=TOKENIZER)
    lengths = sorted(length(text) for text in TEXTS)
    assert sorted(length(entry.expression) for entry in samples.entries)[::2] == [lengths[0], lengths[-1]]
    (folder / "sentences.txt").write_text("red mug\nold box\nbig cup\nnew pan\ntin can")
    samples = choose(open_candidates(folder, size=32), count=5, tokenizer=TOKENIZER)
    assert len({entry.expression for entry in samples.entries}) == 5


def test_pictures_come_again_with_other_sentences_and_no_pair_comes_twice(folder) -> None:
    candidates = open_candidates(folder, size=32)
    for count, expected in ((13, 13), (100, 30)):
        samples = choose(candidates, count=count, tokenizer=TOKENIZER)
        pairs = [(entry.sha256, entry.expression) for entry in samples.entries]
        assert len(pairs) == len(set(pairs)) == expected
        times = np.unique([pair[0] for pair in pairs], return_counts=True)[1]
        assert len(times) == 5 and times.max() - times.min() <= 1
    # Of one length; the other picture takes "old box" first, so that both are equally used when a third is wanted.
    listed = Listed(Candidate(noise(0), ("red box", "old box", TEXTS[4]), "a"), Candidate(noise(1), ("old box",), "b"))
    samples = choose(listed, count=4, tokenizer=TOKENIZER)
    assert sorted((entry.name, entry.expression) for entry in samples.entries) == [
        ("a", "old box"), ("a", "red box"), ("a", TEXTS[4]), ("b", "old box")]


def test_copies_of_a_picture_count_once_and_share_their_sentences() -> None:
    """RefCOCO has a picture once for every object in it."""
    same = noise(0)
    listed = Listed(Candidate(same, TEXTS[:2], "one"), Candidate(noise(1), TEXTS[2:3], "other"),
                    Candidate(same, TEXTS[1:4], "two"))
    samples = choose(listed, count=2, tokenizer=TOKENIZER)
    assert len(samples.pictures) == 2
    everything = choose(listed, count=9, tokenizer=TOKENIZER)
    assert {(entry.index, entry.name, entry.expression) for entry in everything.entries} == {
        (0, "one", TEXTS[0]), (0, "one", TEXTS[1]), (2, "two", TEXTS[2]), (2, "two", TEXTS[3]), (1, "other", TEXTS[2])}


def test_the_inputs_are_the_networks_and_are_read_when_their_turn_comes() -> None:
    listed = Listed(*(Candidate(noise(seed, (20 + seed, 30)), TEXTS, str(seed)) for seed in range(4)))
    samples = choose(listed, count=4, tokenizer=TOKENIZER)
    for _ in range(2):
        listed.read.clear()
        for number, (image, tokens) in enumerate(samples):
            entry = samples.entries[number]
            assert listed.read == [0, 1, 2, 3][:number + 1]
            np.testing.assert_array_equal(image, preprocess(listed.candidates[entry.index].image, 32)[0])
            np.testing.assert_array_equal(tokens, TOKENIZER(entry.expression))
            assert (image.dtype, image.shape, tokens.dtype, tokens.shape) == (
                np.float32, (1, 3, 32, 32), np.int64, (1, 20))
        assert number == 3


def test_requests_out_of_range_are_refused(shapes) -> None:
    for name, value in (("count", 0), ("pool", 0), ("seed", -1)):
        with pytest.raises(UserError, match=f"{name} must be at least .*received {value}"):
            choose(shapes, tokenizer=TOKENIZER, **{name: value})
    with pytest.raises(UserError, match="expected pictures to calibrate on, received none: listed is empty"):
        choose(Listed(), tokenizer=TOKENIZER)


def test_a_set_is_written_down_and_read_back(shapes, chosen, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    chosen.save(path)
    loaded = CalibrationSet.load(path, shapes, TOKENIZER)
    assert loaded == chosen and loaded.digest == chosen.digest
    for (image, tokens), (expected, words) in zip(loaded, chosen, strict=True):
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(tokens, words)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="mkdir -p"):
        chosen.save(tmp_path / "none" / "calibration.json")


def test_the_digest_is_of_contents_not_of_places(chosen) -> None:
    def digest(**changes) -> str:
        first, *others = chosen.entries
        return dataclasses.replace(chosen, entries=(dataclasses.replace(first, **changes), *others)).digest

    assert re.fullmatch("[0-9a-f]{64}", chosen.digest) and digest(name="moved", index=7) == chosen.digest
    assert len({chosen.digest, digest(expression="the mug"), digest(sha256="0" * 64)}) == 3


def test_the_identity_is_of_what_the_network_is_fed(chosen) -> None:
    def identity(**changes) -> str:
        first, *others = chosen.entries
        return dataclasses.replace(chosen, entries=(dataclasses.replace(first, **changes), *others)).identity

    larger = dataclasses.replace(chosen, source=dataclasses.replace(chosen.source, size=SIZE + 14))
    shorter = dataclasses.replace(chosen, tokenizer=Tokenizer.load(ROOT / "weights/tiny/tokenizer.json", 16))
    assert larger.digest == shorter.digest == chosen.digest
    different = {chosen.identity, larger.identity, shorter.identity, identity(expression="the mug"),
                 identity(sha256="0" * 64), dataclasses.replace(chosen, entries=chosen.entries[::-1]).identity}
    assert len(different) == 6 and identity(name="moved", index=7) == chosen.identity


def test_a_thinned_set_has_its_samples_evenly(chosen) -> None:
    for count, numbers in ((8, range(0, 32, 4)), (1, [0]), (3, [0, 10, 21]), (32, range(32)), (99, range(32))):
        thinned = chosen.thinned(count)
        assert thinned.entries == tuple(chosen.entries[number] for number in numbers)
        assert (thinned.source, thinned.space, thinned.pool) == (chosen.source, chosen.space, chosen.pool)
    (image, tokens), entry = next(iter(chosen.thinned(8))), chosen.entries[0]
    np.testing.assert_array_equal(image, preprocess(chosen.picture(entry), SIZE)[0])
    np.testing.assert_array_equal(tokens, TOKENIZER(entry.expression))


def test_a_picture_that_changed_since_is_named(folder, tmp_path: Path) -> None:
    choose(open_candidates(folder, size=32), count=5, tokenizer=TOKENIZER).save(tmp_path / "set.json")
    image = noise(1)
    image[3, 4, 0] ^= 1
    save_image(folder / "a.png", image)
    loaded = CalibrationSet.load(tmp_path / "set.json", open_candidates(folder, size=32), TOKENIZER)
    with pytest.raises(UserError, match=f"a.png .*expected the picture with SHA-256 {picture_digest(noise(1))}, "
                                        f"received {picture_digest(image)} .*bring back the picture"):
        list(loaded)
    assert picture_digest(image) != picture_digest(image.reshape(30, 20, 3))
    for name in ("d.tiff", "e.webp"):
        (folder / name).unlink()
    save_image(folder / "a.png", noise(1))
    loaded = CalibrationSet.load(tmp_path / "set.json", open_candidates(folder, size=32), TOKENIZER)
    with pytest.raises(UserError, match="d.tiff .*expected at least 4 pictures in the source, received 3; bring back"):
        list(loaded)


@pytest.mark.parametrize("change, said", [
    (lambda content: content["samples"][0].update(expression="another"), "the file was changed"),
    (lambda content: content["space"]["mean"].pop(), "the file was changed"),
    (lambda content: content.update(format=2), "format 1, received 2"),
    (lambda content: content.pop("source"), "not a calibration set .*source"),
    (lambda content: content["samples"][0].update(index="3"), "index is '3'"),
    (lambda content: content["samples"][0].update(index=-1), "index is -1"),
    (lambda content: content["samples"][0].update(extra=1), "extra"),
    (lambda content: content["source"].update(size=224), "image size of 224, received 112; open them with that size"),
])
def test_a_damaged_list_is_refused(shapes, chosen, tmp_path: Path, change, said: str) -> None:
    content = chosen.to_dict()
    content = json.loads(json.dumps(content))
    change(content)
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"set.json: .*{said}"):
        CalibrationSet.load(path, shapes, TOKENIZER)


def test_a_list_that_is_none_is_refused(shapes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such calibration set: .*set.json"):
        CalibrationSet.load(tmp_path / "set.json", shapes, TOKENIZER)
    for content, said in (("{", "as JSON, received something else"), ("[]", "not a calibration set")):
        (tmp_path / "set.json").write_text(content)
        with pytest.raises(UserError, match=said):
            CalibrationSet.load(tmp_path / "set.json", shapes, TOKENIZER)


def test_few_pictures_warn_however_many_samples_they_give(folder, chosen) -> None:
    assert few_warning(chosen) is None
    fewer = dataclasses.replace(chosen, entries=chosen.entries[1:])
    assert "31 samples of 31 pictures, expected at least 32" in few_warning(fewer)
    (folder / "sentences.txt").write_text("\n".join(f"mug number {number}" for number in range(20)))
    many = choose(open_candidates(folder, size=32), count=64, tokenizer=TOKENIZER)
    assert "64 samples of 5 pictures" in few_warning(many)


@pytest.mark.parametrize("count", [32, 128])
def test_the_same_kind_of_pictures_does_not_warn(shapes, count: int) -> None:
    samples = choose(shapes, count=count, pool=256, tokenizer=TOKENIZER)
    val = open_candidates("shapes", split="val", size=SIZE)
    assert 0.9 < far_ratio(samples, val, pictures=48) < FAR - 0.15
    assert far_warning(samples, val, pictures=48) is None


@pytest.mark.parametrize("kind", ["shifted", "inverted", "dark", "blurred", "noise"])
def test_other_kinds_of_pictures_warn(chosen, kind: str) -> None:
    changes = {"inverted": lambda image: 255 - image, "dark": lambda image: image // 4,
               "blurred": lambda image: cv2.GaussianBlur(image, (0, 0), SIZE / 25),
               "noise": lambda image: noise(0, image.shape[:2])}
    name = "shapes-shifted" if kind == "shifted" else "shapes"
    other = open_candidates(name, split="val", size=SIZE)
    warned = far_warning(chosen, Changed(other, changes[kind]) if kind in changes else other, pictures=48)
    ratio = re.match(rf"pictures of {name} lie (.*) times as far from the calibration set", warned)[1]
    assert float(ratio) >= FAR + 0.1


def test_one_picture_does_not_tell_what_is_far(tmp_path: Path) -> None:
    alone = choose(Listed(Candidate(noise(0), TEXTS, "a")), tokenizer=TOKENIZER)
    assert len(alone) == 6 and far_warning(alone, Listed(Candidate(noise(1) // 8, TEXTS, "b"))) is None
    pair = choose(Listed(*(Candidate(noise(seed), TEXTS, "a") for seed in range(2))), tokenizer=TOKENIZER)
    assert far_ratio(pair, Listed(Candidate(noise(3), TEXTS, "b"))) < 1.4
    assert far_warning(pair, Listed(Candidate(noise(3) // 8, TEXTS, "b"))) is not None


def test_nothing_here_needs_torch() -> None:
    code = ("import sys, calibration.samples; "
            "print(sorted({'torch', 'onnx', 'tqdm', 'modelopt'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
