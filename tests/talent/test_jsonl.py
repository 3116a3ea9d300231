"""data.jsonl: every way to write a mask, negatives and others, splits, and errors that name file and line."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from talent.data.jsonl import KEYS, JsonlDataset, read_lines, split_of
from talent.data.registry import open_dataset
from talent.errors import UserError
from talent.image import save_image
from tests.talent.refcoco_files import box, compressed, rectangle, uncompressed

SIZE = (23, 31)  # height, width
LEFT, RIGHT = rectangle(SIZE, 2, 3, 9, 20), rectangle(SIZE, 15, 3, 30, 20)


@pytest.fixture
def folder(tmp_path):
    """Two pictures and two masks, in folders of their own."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    (tmp_path / "masks").mkdir()
    for name in ("a.png", "b.png"):
        save_image(tmp_path / "photos" / name, rng.integers(0, 256, (*SIZE, 3), np.uint8))
    for name, mask in (("left.png", LEFT), ("right.png", RIGHT)):
        save_image(tmp_path / "masks" / name, mask * np.uint8(255))
    return tmp_path


def line(**changed) -> dict:
    """A right line; None leaves a key out."""
    values = {"image": "photos/a.png", "expression": "left mug", "mask": "masks/left.png", "split": "train", **changed}
    return {key: value for key, value in values.items() if value is not None}


def write(folder, *lines: dict | str):
    path = folder / "data.jsonl"
    path.write_text("\n".join(text if isinstance(text, str) else json.dumps(text) for text in lines), "utf-8")
    return path


def train(folder, *lines) -> JsonlDataset:
    return JsonlDataset(write(folder, *lines), split="train")


@pytest.mark.parametrize("mask", [
    "masks/left.png", "./photos/../masks/left.png", [box(2, 3, 9, 20)], [box(2, 3, 9, 10), box(2, 10, 9, 20)],
    compressed(LEFT), uncompressed(LEFT)],
    ids=["file", "file with detours", "polygon", "polygons", "compressed", "run lengths"])
def test_every_kind_of_mask(folder, mask):
    sample, = train(folder, line(mask=mask))
    np.testing.assert_array_equal(sample.mask, LEFT)
    np.testing.assert_array_equal(sample.image[..., ::-1], cv2.imread(str(folder / "photos" / "a.png")))
    assert sample.expressions == ("left mug",) and sample.negatives == () and sample.others == ()
    assert sample.name == "data.jsonl:1"


def test_paths_are_relative_to_the_file_or_absolute(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    data = train(folder, line(), line(image=str(folder / "photos" / "b.png"), mask=str(folder / "masks" / "right.png")))
    assert [sample.mask.sum() for sample in data] == [LEFT.sum(), RIGHT.sum()]
    assert len(open_dataset(str(folder / "data.jsonl"), split="train", size=1, length=1)) == 1


def test_expressions_are_stripped_and_said_once(folder):
    data = train(folder, line(expression=None, expressions=[" left mug ", "mug", "left mug"]), "", "  ")
    assert data[0].expressions == ("left mug", "mug")
    assert len(data) == 1 and data.expression_count == 2 and data.picture_count == 1


def test_negatives_are_of_the_same_picture_and_split_and_of_other_objects(folder):
    data = train(folder, line(expression=None, expressions=["left mug", "mug"]),
                 line(expression=None, expressions=["right mug", "Mug"], mask="masks/right.png"),
                 line(expression="mug with a handle", mask="./masks/left.png"),
                 line(image="photos/b.png", expression="plate"),
                 line(expression="cup", mask="masks/right.png", split="test"))
    assert [sample.negatives for sample in data] == [("right mug",), ("left mug", "mug with a handle"),
                                                     ("right mug", "Mug"), ()]
    assert JsonlDataset(folder / "data.jsonl", split="test")[0].negatives == ()


def test_others_have_the_category(folder):
    middle = [box(10, 3, 14, 20)]
    data = train(folder, line(category="mug"), line(mask="masks/right.png", category="mug"),
                 line(mask=middle, category="cup"), line(mask=middle), line(mask="./masks/left.png", category="mug"),
                 line(image="photos/b.png", category="mug"), line(mask=middle, category="mug", split="test"))
    others = [[mask.sum() for mask in sample.others] for sample in data]
    left, right = LEFT.sum(), RIGHT.sum()
    assert others == [[right], [left], [], [], [right], []]


def test_others_can_be_listed(folder):
    middle = [box(10, 3, 14, 20)]
    data = train(folder, line(others=["masks/right.png", middle, "masks/left.png", "masks/right.png"], category="mug"),
                 line(mask="masks/right.png", category="mug"), line(image="photos/b.png", others=[]))
    # Neither the target nor anything twice.
    np.testing.assert_array_equal(data[0].others, [RIGHT, rectangle(SIZE, 10, 3, 14, 20)])
    np.testing.assert_array_equal(data[1].others, [LEFT])
    assert data[2].others == ()


def test_splits_of_any_name(folder):
    path = write(folder, line(), line(split="robot 2"))
    assert len(JsonlDataset(path, split="robot 2")) == 1
    with pytest.raises(UserError, match=r"data.jsonl: no line has the split 'trian'; did you mean 'train'\?$"):
        JsonlDataset(path, split="trian")
    with pytest.raises(UserError, match="no line has the split 'x'; known: robot 2, train$"):
        JsonlDataset(path, split="x")


def test_without_splits_pictures_are_shared_out(folder):
    lines = [line(image=f"photos/{number}.png", mask=mask, split=None)
             for number in range(300) for mask in ("masks/left.png", "masks/right.png")]
    path = write(folder, *lines)
    data = {split: JsonlDataset(path, split=split) for split in ("train", "val", "test")}
    pictures = {split: {line.image for line in samples.lines} for split, samples in data.items()}
    assert sum(map(len, pictures.values())) == 300, "a picture is in two splits"
    assert len(set.union(*pictures.values())) == 300
    assert 0.74 < len(pictures["train"]) / 300 < 0.86
    assert min(len(pictures["val"]), len(pictures["test"])) > 15
    assert all(len(samples) == 2 * len(pictures[split]) for split, samples in data.items())
    # These must not change from one version to the next: what was trained on would become a test.
    assert [split_of(f"photos/{number}.png") for number in range(7)] == ["train", "train", "val", "train", "train",
                                                                         "train", "test"]


def test_too_few_pictures_to_share_out(folder):
    path = write(folder, line(split=None))
    with pytest.raises(UserError, match=r"no line has the split 'val'; known: train; .*write \"split\" in every line"):
        JsonlDataset(path, split="val")


def test_a_split_in_some_lines_only_is_refused(folder):
    path = write(folder, line(split=None), line(), line(split=None))
    with pytest.raises(UserError, match=r"data.jsonl:1: expected 'split' in every line or in none, received none here "
                                        r"and 'train' in line 2 \(and 1 more; talent-data check .*data.jsonl lists"):
        JsonlDataset(path, split="train")


def test_pictures_and_masks_are_read_late(folder):
    data = train(folder, line(image="photos/missing.png"), line(mask="masks/missing.png"),
                 line(mask=[[1, 1, 5, 5]]), line(mask=compressed(LEFT.T)), line(others=["masks/missing.png"]),
                 line(image="masks"), line())
    assert len(data) == 7 and data.expression_count == 7
    for index, message in enumerate([
            r"data.jsonl:1: no such picture: .*photos/missing.png", r"data.jsonl:2: no such mask: .*masks/missing.png",
            r"data.jsonl:3: expected polygons .*three corners", r"data.jsonl:4: expected run lengths of .*\[23, 31\]",
            r"data.jsonl:5: no such mask: .*masks/missing.png", r"data.jsonl:6: cannot read the picture"]):
        with pytest.raises(UserError, match=message):
            data[index]
    assert data[6].mask.any()
    for index in (-1, 7):
        with pytest.raises(IndexError):
            data[index]


def test_masks_of_another_size(folder):
    save_image(folder / "masks" / "small.png", np.ones((22, 31), np.uint8))
    save_image(folder / "masks" / "turned.png", np.ones(SIZE[::-1], np.uint8))
    data = train(folder, line(mask="masks/small.png"), line(mask="masks/turned.png"))
    with pytest.raises(UserError, match="jsonl:1: expected a mask of 31 x 23 pixels, .*received 31 x 22: .*small.png$"):
        data[0]
    with pytest.raises(UserError, match="jsonl:2: .*received 23 x 31: .*turned by its EXIF orientation, the mask is"):
        data[1]


def test_workers_can_have_it(folder):
    data = train(folder, line(mask=compressed(LEFT)), line(mask="masks/right.png"))
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy[0].mask, LEFT)
    assert copy[1].negatives == data[1].negatives == ()


def test_words_of_any_language(folder):
    path = folder / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(line(expression="la tasse à gauche"), ensure_ascii=False).encode()
                     + b"\r\n" + json.dumps(line(expression="左の\u2028カップ"), ensure_ascii=False).encode() + b"\r\n")
    said = [sample.expressions[0] for sample in JsonlDataset(path, split="train")]
    assert said == ["la tasse à gauche", "左の\u2028カップ"]


@pytest.mark.parametrize(("wrong", "message"), [
    ("{", r"data.jsonl:2: expected a JSON object on one line, received something else \(.* at column 2\)"),
    ("left mug", "expected a JSON object on one line"),
    ("[" * 100_000, "too deep"),
    ('{"image": ' + "9" * 5000 + "}", "too deep or with a number too long"),
    ("[]", "expected a JSON object .*received list"),
    ("null", "received NoneType"),
    (line(expresion="left"), r"data.jsonl:2: unknown key 'expresion'; did you mean 'expression'\?"),
    (line(Image="a.png"), r"unknown key 'Image'; did you mean 'image'\?"),
    (line(id=7), "unknown key 'id'; known: category, expression, expressions, image, mask, others, split"),
    (line(image=None), "expected 'image' as text, received nothing"),
    (line(image=" "), "expected 'image' as text, received ' '"),
    (line(image=["a.png"]), r"expected 'image' as text, received \['a.png'\]"),
    (line(image="a\0.png"), "expected a path, received"),
    (line(image="a\ud800.png"), "expected a path, received"),
    (line(expression=None), "expected either 'expression' .* or 'expressions' .*received none"),
    (line(expressions=["mug"]), "expected either 'expression' .* or 'expressions' .*received both"),
    (line(expression=""), "expected an expression that has words, .*received ''"),
    (line(expression=5), "expected an expression that has words, .*received 5"),
    (line(expression=["mug"]), r"expected an expression that has words, .*received \['mug'\]"),
    (line(expression=None, expressions=[]), r"expected an expression .*received \[\]"),
    (line(expression=None, expressions="mug"), "expected an expression .*received 'mug'"),
    (line(expression=None, expressions=["mug", "\t"]), "expected an expression that has words"),
    (line(mask=None), "expected 'mask' as the path of a PNG file, COCO polygons or COCO run lengths, received nothing"),
    (line(mask=""), "expected 'mask' as the path .*received ''"),
    (line(mask=[]), r"expected 'mask' as the path .*received \[\]"),
    (line(mask=7), "expected 'mask' as the path .*received 7"),
    (line(mask="a\0.png"), "expected a path, received"),
    (line(split=""), "expected 'split' as text, received ''"),
    (line(split=1), "expected 'split' as text, received 1"),
    (line(category=3), "expected 'category' as text, received 3"),
    (line(others="masks/left.png"), "expected 'others' as a list of masks, received 'masks/left.png'"),
    (line(others=[7]), "expected 'others' as the path .*received 7"),
])
def test_wrong_lines_are_explained(folder, wrong, message):
    path = write(folder, line(), wrong)
    with pytest.raises(UserError, match=message) as caught:
        JsonlDataset(path, split="train")
    assert str(caught.value).startswith(f"{path}:2: ") and "\n" not in str(caught.value)
    lines, problems = read_lines(path)
    assert len(lines) == len(problems) == 1


def test_null_is_as_good_as_nothing(folder):
    nothing = dict.fromkeys(("split", "category", "others", "expressions"))
    data = train(folder, json.dumps({**line(image="photos/0.png"), **nothing}))
    assert len(data) == 1 and data.lines[0].category is None


def test_all_wrong_lines_are_found(folder):
    path = write(folder, "{", line(), "", line(image=None), "[]", line(split=None))
    lines, problems = read_lines(path)
    assert [problem.removeprefix(f"{path}:")[0] for problem in problems] == ["1", "4", "5", "6"]
    assert [found.where for found in lines] == [f"{path}:2"]
    with pytest.raises(UserError, match=r"data.jsonl:1: .*\(and 3 more; talent-data check .*data.jsonl lists them\)$"):
        JsonlDataset(path, split="train")


@pytest.mark.parametrize(("content", "message"), [
    (b"", "data.jsonl is empty; expected a JSON object a line, as docs/data.md"),
    (b"\n \n", "data.jsonl is empty"),
    (b'{"image": "\xe9"}', "data.jsonl:1: expected text in UTF-8, received the byte 0xe9"),
    ('{"image": "a"}'.encode("utf-16"), "data.jsonl:1: expected text in UTF-8, received the byte 0xff"),
])
def test_other_files_are_explained(folder, content, message):
    path = folder / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        JsonlDataset(path, split="train")


def test_missing_files_are_explained(tmp_path):
    with pytest.raises(UserError, match="no such file: .*data.jsonl"):
        JsonlDataset(tmp_path / "data.jsonl", split="train")
    with pytest.raises(UserError, match="cannot read .*directory"):
        JsonlDataset(tmp_path, split="train")


def test_shares_of_many_pictures():
    counts = Counter(split_of(f"{number:05}.jpg") for number in range(20_000))
    assert counts["train"] / 20_000 == pytest.approx(0.8, abs=0.01)
    assert counts["val"] / 20_000 == pytest.approx(0.1, abs=0.01)


def test_the_documentation_is_right(folder):
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    lines, problems = read_lines(write(folder, *text.partition("```json\n")[2].partition("\n```")[0].splitlines()))
    assert [type(example.mask) for example in lines] == [str, list, dict] and not problems
    table = [row for row in text.splitlines() if row.startswith("| `")]
    assert {key for row in table for key in re.findall("`([a-z]+)`", row.split("|")[1])} >= set(KEYS)
