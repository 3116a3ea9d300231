"""Sources of pictures to calibrate on: RefCOCO's files and a .jsonl file, from their opening to a set read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from calibration.candidates import Candidates, Source, open_candidates
from calibration.samples import CalibrationSet, choose
from talent.errors import UserError
from talent.image import preprocess, read_image, save_image
from talent.tokenizer import Tokenizer, build_clip_tokenizer
from tests.talent.refcoco_files import SIZES, write_refcoco

pytestmark = pytest.mark.filterwarnings("ignore:.*as published, received:UserWarning")

SIZE = 56


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_clip_tokenizer(context_length=20, vocab_size=4096)


@pytest.fixture(scope="module")
def refcoco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refcoco(tmp_path_factory.mktemp("refcoco"))


def write_jsonl(folder: Path, *, split: str | None = "train") -> Path:
    """Four photos, one of which two lines are about."""
    lines = []
    for number, picture in enumerate((0, 1, 2, 2, 3)):
        image = np.random.default_rng(picture).integers(0, 256, (30 + picture, 40, 3), np.uint8)
        save_image(folder / f"{picture}.png", image)
        lines.append({"image": f"{picture}.png", "expression": f"the cup with number {number}",
                      "mask": [[0, 0, 9, 0, 9, 9]]} | ({"split": split} if split else {}))
    path = folder / "cups.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def every(candidates: Candidates) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
    """Shape of the picture and expressions of each."""
    return [(candidates[index].image.shape, candidates[index].expressions) for index in range(len(candidates))]


def test_refcoco_is_a_source(refcoco: Path) -> None:
    candidates = open_candidates("refcoco", size=SIZE, root=refcoco)
    assert candidates.source == Source("refcoco", "train", SIZE)
    assert every(candidates) == [((*SIZES[1], 3), ("left man", "man in blue")),
                                 ((*SIZES[1], 3), ("right man", "Left Man", "homme à droite")),
                                 ((*SIZES[1], 3), ("The BAG",))]
    picture = read_image(next(refcoco.glob("train2014/*000001.jpg")))
    np.testing.assert_array_equal(candidates[2].image, picture)
    assert every(open_candidates("refcoco", size=SIZE, split="val", root=refcoco)) == [
        ((*SIZES[2], 3), ("crowd at the top",))]
    names = [candidates[index].name for index in range(3)]
    assert len(set(names)) == 3 and not any(str(refcoco) in name for name in names)


def test_a_set_of_refcoco_is_chosen_written_and_read_back(refcoco: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """All objects are in one picture: each of its sentences comes once, whichever object it is about."""
    candidates = open_candidates("refcoco", size=SIZE, root=refcoco)
    samples = choose(candidates, count=16, tokenizer=tokenizer)
    said = sorted(entry.expression for entry in samples.entries)
    assert said == ["Left Man", "The BAG", "homme à droite", "left man", "man in blue", "right man"]
    assert len(samples.pictures) == 1
    image, tokens = next(iter(samples))
    np.testing.assert_array_equal(image, preprocess(candidates[0].image, SIZE)[0])
    np.testing.assert_array_equal(tokens, tokenizer([samples.entries[0].expression]))
    samples.save(tmp_path / "set.json")
    assert str(refcoco) not in (tmp_path / "set.json").read_text()
    again = CalibrationSet.load(tmp_path / "set.json", open_candidates("refcoco", size=SIZE, root=refcoco), tokenizer)
    assert again == samples and len(list(again)) == 6


def test_refcoco_without_its_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="refcoco needs the folder of its files: add --data_root DIR"):
        open_candidates("refcoco", size=SIZE)
    with pytest.raises(UserError, match=str(tmp_path)):
        open_candidates("refcoco", size=SIZE, root=tmp_path)


def test_a_set_of_a_jsonl_file_is_chosen_and_read_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path)
    candidates = open_candidates(path, size=SIZE)
    assert candidates.source == Source("cups.jsonl", "train", SIZE)
    assert [one[0] for one in every(candidates)] == [(30 + picture, 40, 3) for picture in (0, 1, 2, 2, 3)]
    samples = choose(candidates, count=4, tokenizer=tokenizer)
    assert len(samples) == len(samples.pictures) == 4
    for (image, tokens), entry in zip(samples, samples.entries, strict=True):
        np.testing.assert_array_equal(image, preprocess(candidates[entry.index].image, SIZE)[0])
        np.testing.assert_array_equal(tokens, tokenizer([entry.expression]))
        assert entry.expression == f"the cup with number {entry.index}"
        assert entry.name == f"cups.jsonl:{entry.index + 1}"
    samples.save(tmp_path / "set.json")
    assert CalibrationSet.load(tmp_path / "set.json", open_candidates(path, size=SIZE), tokenizer) == samples


def test_sentences_beside_a_jsonl_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="received sentences.txt beside .*cups.jsonl, which has its own sentences"):
        open_candidates(write_jsonl(tmp_path), size=SIZE, sentences="sentences.txt")


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(UserError, match=f"cannot list the pictures of {tmp_path}: Permission denied"):
        open_candidates(tmp_path, size=SIZE)
