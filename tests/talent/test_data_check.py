"""talent-data check: every problem with its place, the table, the sheet, the exit code."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from talent.data.check import main
from talent.data.contact_sheet import SIDE
from talent.image import read_image, save_image
from tests.talent.refcoco_files import box, compressed, rectangle, write_refcoco

SIZE = (23, 31)  # height, width
LEFT, RIGHT = rectangle(SIZE, 2, 3, 9, 20), rectangle(SIZE, 15, 3, 30, 20)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pictures and masks, and the working directory beside them."""
    for name in ("a.png", "b.png", "c.png"):
        save_image(tmp_path / name, np.full((*SIZE, 3), 90, np.uint8))
    for name, mask in {"left": LEFT, "right": RIGHT, "empty": LEFT & RIGHT, "full": LEFT | ~LEFT}.items():
        save_image(tmp_path / f"{name}.png", mask * np.uint8(255))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def line(**changed) -> dict:
    """A right line; None leaves a key out."""
    values = {"image": "a.png", "expression": "left mug", "mask": "left.png", "split": "train", **changed}
    return {key: value for key, value in values.items() if value is not None}


RIGHT_LINES = [line(), line(mask="right.png", expression="right mug"), line(image="b.png", split="val"),
               line(image="c.png", expression=None, expressions=["mug", "cup"], split="test", mask=[box(2, 3, 9, 20)])]


def check(capsys, *lines: dict | str, arguments: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    """Exit code and lines on stdout of a check of these lines."""
    with open("data.jsonl", "w") as file:
        file.writelines((text if isinstance(text, str) else json.dumps(text)) + "\n" for text in lines)
    code = main(["check", "data.jsonl", *arguments])
    output = capsys.readouterr()
    assert output.err == ""
    return code, output.out.splitlines()


def test_a_good_file(folder, capsys):
    code, output = check(capsys, *RIGHT_LINES, arguments=("--sheet", "sheet.png"))
    assert code == 0
    assert [row.split() for row in output[:4]] == [["split", "samples", "pictures", "expressions"],
                                                   ["train", "2", "1", "2"], ["val", "1", "1", "1"],
                                                   ["test", "1", "1", "2"]]
    assert output[4:] == ["checked 4 samples of data.jsonl: 0 errors, 0 warnings; wrote sheet.png with 4 of them"]
    sheet = read_image("sheet.png")
    assert sheet.shape[0] > SIDE and sheet.shape[1] > 4 * SIDE
    yellow = (sheet[..., :2].min(-1) > 200) & (sheet[..., 2] < 80)
    for column in range(4):
        assert yellow[:, column * sheet.shape[1] // 4:(column + 1) * sheet.shape[1] // 4].any()


def test_no_sheet_is_made_unasked(folder, capsys):
    before = set(folder.iterdir())
    code, output = check(capsys, *RIGHT_LINES)
    assert code == 0 and output[-1] == "checked 4 samples of data.jsonl: 0 errors, 0 warnings"
    assert set(folder.iterdir()) - before == {folder / "data.jsonl"}


def test_samples_of_the_sheet_are_chosen_evenly(folder, capsys, monkeypatch):
    chosen = []
    monkeypatch.setattr("talent.data.check.contact_sheet",
                        lambda samples, columns: chosen.extend(samples) or np.zeros((9, 9, 3), np.uint8))
    lines = [line(expression=f"mug {number}", mask=[box(number, 1, 20, 20)]) for number in range(10)]
    lines[3] = line(mask="missing.png")
    check(capsys, *lines, arguments=("--sheet", "sheet.png", "--samples", "3"))
    assert [sample.name for sample in chosen] == ["data.jsonl:1", "data.jsonl:5", "data.jsonl:8"]
    assert chosen[0].negatives == tuple("left mug" if number == 3 else f"mug {number}" for number in range(1, 10))


def test_every_problem_is_told_in_order_and_the_rest_is_drawn(folder, capsys):
    code, output = check(
        capsys, *RIGHT_LINES, "{", line(image="missing.png", mask="missing.png"), line(image="broken.png"),
        line(image="b.png", mask=compressed(LEFT.T), split="val", expression="cup"), line(expression=" "),
        line(image="missing.png", mask=compressed(LEFT)), line(mask="empty.png", others=["broken.png", "empty.png"]),
        line(mask=[box(1, 1, 1, 1)], expression="dot"), line(colour="red"),
        line(mask=[box(3, 3, 8, 8)], expression="\x07"),
        arguments=("--sheet", "sheet.png"))
    assert code == 2
    expected = [
        "5: expected a JSON object on one line, received something else (Expecting property name enclosed in double",
        "6: no such picture: missing.png", "6: no such mask: missing.png",
        "7: not a picture: broken.png; expected a file",
        "8: expected run lengths of a picture of [height, width] = [23, 31], received size [31, 23]",
        "9: expected an expression that has words, or a list of such, received ' '",
        "10: no such picture: missing.png",
        "11: the mask is empty", "11: not a picture: broken.png; expected a mask", "11: mask 2 of 'others' is empty",
        "12: the mask is empty; corners are in pixels of the picture", "13: unknown key 'colour'",
        "14: expected a sentence that names an object"]
    errors = [text for text in output if text.startswith("data.jsonl:") and ": warning: " not in text]
    assert len(errors) == len(expected)
    for error, beginning in zip(errors, expected, strict=True):
        assert error.startswith(f"data.jsonl:{beginning}"), error
    assert output[-1].startswith("checked 11 samples of data.jsonl: 13 errors, ")
    assert output[-1].endswith("; wrote sheet.png with 4 of them")
    assert read_image("sheet.png").shape[1] > 4 * SIDE


def warned(output: list[str]) -> list[str]:
    return [text.removeprefix("data.jsonl").replace("warning: ", "") for text in output if ": warning: " in text]


def test_long_sentences_are_warned_of(folder, capsys):
    fits, long, endless = " ".join(["mug"] * 15), " ".join(["mug"] * 16), " ".join(["mug"] * 99)
    code, output = check(capsys, *RIGHT_LINES[2:], line(expression=fits), line(expression=long, mask="right.png"),
                         line(expression=endless, mask=[box(1, 1, 3, 9)]))
    assert code == 0
    assert warned(output) == [f":4: {long[:60]!r} has 18 tokens; base reads 17 and cuts the rest",
                              f":5: {endless[:60]!r} has more than 77 tokens; base reads 17 and cuts the rest"]


def test_sentences_that_mean_two_objects_are_warned_of(folder, capsys):
    code, output = check(capsys, *RIGHT_LINES, line(expression="Left mug", mask=[box(1, 1, 3, 9)]),
                         line(expression="left mug", image="c.png", split="test"), line(expression="the left one"))
    assert code == 0
    assert warned(output) == [
        ":5: 'left mug' is ambiguous: line 1 means another object by it",
        ":7: the same object as line 1; write its sentences into one line, as \"expressions\""]


def test_a_mask_of_everything_is_warned_of(folder, capsys):
    code, output = check(capsys, *RIGHT_LINES, line(expression="table", mask="full.png"))
    assert code == 0 and warned(output) == [":5: the mask covers the whole picture; the background must be 0"]


def test_splits_out_of_order_are_warned_of(folder, capsys):
    code, output = check(capsys, line(split="trian"), line(split="robot"), line(image="b.png", split="robot"))
    assert code == 0
    assert warned(output) == [
        ": unusual split 'trian'; did you mean 'train'?",
        ": unusual split 'robot'; known: test, testA, testB, train, val",
        ": no line has the split 'train'; talent-train learns from it",
        ": no line has the split 'val'; talent-train chooses the best weights by it",
        ":2: a.png is in robot here and in trian in line 1; a picture that was trained on tests nothing"]
    _, output = check(capsys, line(), line(image="b.png", split="val"), line(image="c.png", split="val"))
    assert warned(output) == [": train has fewer pictures (1) than val (2)"]


def test_one_split_only(folder, capsys):
    code, output = check(capsys, *RIGHT_LINES, line(image="missing.png"), arguments=("--split", "val"))
    assert code == 0
    assert [row.split() for row in output[1:-1]] == [["val", "1", "1", "1"]]
    assert output[-1] == "checked 1 samples of data.jsonl: 0 errors, 0 warnings"
    assert main(["check", "data.jsonl", "--split", "vall"]) == 2
    assert "no line has the split 'vall'; did you mean 'val'?" in capsys.readouterr().err


def test_nothing_good_draws_nothing(folder, capsys):
    code, output = check(capsys, line(mask="missing.png"), arguments=("--sheet", "sheet.png"))
    assert code == 2 and not (folder / "sheet.png").exists()
    assert output[-1].endswith("; did not write sheet.png, since no sample is good")


def test_refcoco(tmp_path, capsys):
    root = write_refcoco(tmp_path / "data")
    sheet = tmp_path / "sheet.png"
    assert main(["check", "refcoco", "--data-root", str(root), "--sheet", str(sheet)]) == 0
    output = capsys.readouterr().out.splitlines()
    assert [text.partition(": expected")[0] for text in output[:4]] == [
        f"warning: refcoco {split}" for split in ("train", "val", "testA", "testB")]
    assert [row.split() for row in output[4:9]] == [
        ["split", "samples", "pictures", "expressions"], ["train", "3", "1", "6"], ["val", "1", "1", "1"],
        ["testA", "1", "1", "1"], ["testB", "1", "1", "2"]]
    assert output[9:] == [f"checked 6 samples of refcoco: 0 errors, 4 warnings; wrote {sheet} with 6 of them"]
    assert read_image(sheet).shape[0] > 2 * SIDE


def test_refcoco_with_a_missing_picture_and_a_long_sentence(tmp_path, capsys):
    root = write_refcoco(tmp_path)
    instances = root / "refcoco" / "instances.json"
    content = json.loads(instances.read_text())
    content["annotations"][1]["segmentation"] = [[3, 3, 3, 3, 3, 3]]
    instances.write_text(json.dumps(content))
    refs = root / "refcoco" / "refs(unc).p"
    long = b"left man who is in a a a a a a a a a a a"
    refs.write_bytes(refs.read_bytes().replace(b"U\x08left man", b"U" + bytes([len(long)]) + long))
    (root / "train2014" / "COCO_train2014_000000000002.jpg").unlink()
    assert main(["check", "refcoco", "--data-root", str(root), "--split", "train"]) == 2
    output = capsys.readouterr().out.splitlines()
    assert output[0] == "refcoco train ref 101: the mask is empty"
    assert output[2] == "warning: 1 expressions of train have more than 17 tokens; base cuts the rest"
    assert main(["check", "refcoco", "--data-root", str(root), "--split", "val"]) == 2
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith("refcoco val ref 200: no such picture: ")
    assert output[-1] == "checked 1 samples of refcoco: 1 errors, 1 warnings"


@pytest.mark.parametrize(("arguments", "message"), [
    (["check", "missing.jsonl"], "no such file: missing.jsonl"),
    (["check", "data.json"], "unknown data set 'data.json'.*name a .jsonl file"),
    (["check", "shapes"], "shapes is drawn when it is used .*expected a .jsonl file or one of refcoco, "),
    (["check", "refcoco"], "refcoco needs the folder of its files: add --data-root DIR; docs/data.md"),
    (["check", "refcoco", "--data-root", "nowhere"], r"refcoco needs the file nowhere/refcoco/refs\(unc\).p"),
    (["check", "refcoco", "--data-root", "x", "--split", "test"], "refcoco has the splits train, val, testA, testB"),
    (["check", "missing.jsonl", "--samples", "0"], "--samples: expected at least 1, received 0"),
    (["check", "missing.jsonl", "--sheet", "sheet.txt"], "cannot write sheet.txt: unknown picture type"),
    (["check", "missing.jsonl", "--sheet", "nowhere/sheet.png"], "cannot write .*the folder nowhere does not exist"),
])
def test_bad_arguments(folder, capsys, arguments, message):
    before = set(folder.iterdir())
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("talent-data: error: ") and "\n" not in error
    assert re.search(message, error), error
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"]])
def test_help_has_an_example(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert "example:\n  talent-data check mine.jsonl --sheet mine.png" in capsys.readouterr().out
