"""talent-predict: what it writes, and that bad input costs one line, exit code 2 and no file."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from deploy.predict import main
from deploy.runtime.segmenter import Segmenter
from talent.image import read_image, save_image


@pytest.fixture
def photo(tmp_path, picture):
    save_image(tmp_path / "photo.png", picture)
    return tmp_path / "photo.png"


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments] + ["--backend", "onnxruntime", "--threads", "1"])


def test_writes_overlay_and_mask(toy_bundle, photo, picture, tmp_path, capsys):
    assert run(toy_bundle.directory, photo, "g", "-o", tmp_path / "overlay.png", "--mask", tmp_path / "mask.png") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == ""
    assert lines[0] == "backend: onnxruntime"
    mask = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (90, 150) and set(np.unique(mask)) == {0, 255}
    rows, columns = np.nonzero(mask)
    assert lines[1] == f"box: {columns.min()} {rows.min()} {columns.max() + 1} {rows.max() + 1}"
    assert 0.5 < float(lines[2].removeprefix("score: ")) <= 1
    assert [word for word in lines[3].split() if word.isalpha()][1:] == ["text", "preprocess", "vision", "postprocess"]
    assert lines[-1] == f"wrote the overlay to {tmp_path / 'overlay.png'} and the mask to {tmp_path / 'mask.png'}"
    overlay = read_image(tmp_path / "overlay.png")
    assert overlay.shape == picture.shape
    assert np.any(overlay[50, 75] != picture[50, 75]) and np.array_equal(overlay[85, 5], picture[85, 5])


def test_nothing_to_write_and_nothing_found(toy_bundle, photo, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert run(toy_bundle.directory, photo, "z", "--threshold", "0.9") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["box: none", "score: 0.000"] and lines[-1].startswith("wrote nothing")
    assert sorted(tmp_path.rglob("*")) == before


def refused(capsys, tmp_path, *arguments) -> str:
    """Runs, checks that the refusal is one line and that no file appeared, and returns the line."""
    before = sorted(tmp_path.rglob("*"))
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    line, = printed.err.splitlines()
    assert sorted(tmp_path.rglob("*")) == before
    return line


def test_bad_sentence(toy_bundle, photo, tmp_path, capsys):
    for sentence in ("", "  ", "\u3000", "&nbsp;"):
        line = refused(capsys, tmp_path, toy_bundle.directory, photo, sentence, "-o", tmp_path / "o.png")
        assert line.startswith("talent-predict: error: expected a sentence")


def test_bad_picture(toy_bundle, photo, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    for name, message in {"none.png": "no such picture", "text.png": "not a picture"}.items():
        line = refused(capsys, tmp_path, toy_bundle.directory, tmp_path / name, "r", "-o", tmp_path / "o.png")
        assert message in line


def test_bad_bundle(toy_bundle, photo, tmp_path, capsys):
    assert "no such bundle" in refused(capsys, tmp_path, tmp_path / "none", photo, "r", "-o", tmp_path / "o.png")
    assert "has no bundle.json" in refused(capsys, tmp_path, tmp_path, photo, "r", "-o", tmp_path / "o.png")
    toy_bundle.text_onnx.write_bytes(b"damaged")
    assert "cannot load" in refused(capsys, tmp_path, toy_bundle.directory, photo, "r", "-o", tmp_path / "o.png")


def test_bad_output(toy_bundle, photo, picture, tmp_path, capsys):
    for options, message in [(("-o", tmp_path / "no" / "o.png"), "mkdir -p"),
                             (("-o", tmp_path / "o.xyz"), "unknown picture type"),
                             (("-o", tmp_path / "o.mp4"), f"{photo} was taken for one picture, expected .png or .jpg"),
                             (("--mask", tmp_path / "m.jpg"), "to end in .png"), (("-o", photo), "will not overwrite"),
                             (("-o", tmp_path / "o.png", "--mask", tmp_path / "o.png"), "two files")]:
        assert message in refused(capsys, tmp_path, toy_bundle.directory, photo, "r", *options)
    assert np.array_equal(read_image(photo), picture)


def test_a_fifo_is_no_output(toy_bundle, photo, tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo.png")
    for options in (("-o", tmp_path / "fifo.png"), ("--mask", tmp_path / "fifo.png")):
        line = refused(capsys, tmp_path, toy_bundle.directory, photo, "r", *options)
        assert "expected a file or a free name, received a FIFO" in line
    assert (tmp_path / "fifo.png").is_fifo()


def test_bad_threshold(toy_bundle, photo, tmp_path, capsys):
    assert "threshold" in refused(capsys, tmp_path, toy_bundle.directory, photo, "r", "--threshold", "1.5")


def test_options_of_a_video_are_refused_for_a_picture(toy_bundle, photo, tmp_path, capsys):
    for options in (("--smooth", "0.5"), ("--stride", "2"), ("--json", tmp_path / "a.jsonl"), ("--max-frames", "3"),
                    ("--sentences-from", "-"), ("--script", tmp_path / "s.txt"), ("--fps", "5"), ("--codec", "mp4v")):
        line = refused(capsys, tmp_path, toy_bundle.directory, photo, "r", *options)
        assert f"error: {options[0]}: expected a video, a folder, a camera or an address" in line


def test_options_of_the_segmenter_reach_it(toy_bundle, photo, tmp_path, capsys, monkeypatch):
    line = refused(capsys, tmp_path, toy_bundle.directory, photo, "r", "--precision", "int8")
    assert "expected an int8 bundle" in line and "which is fp32" in line
    assert "GPU" in refused(capsys, tmp_path, toy_bundle.directory, photo, "r", "--device", "-1")
    given = {}

    class Recorder(Segmenter):
        def __init__(self, *arguments, **options) -> None:
            given.update(options)
            super().__init__(*arguments, **options)

    monkeypatch.setattr("deploy.backend_options.Segmenter", Recorder)
    assert run(toy_bundle.directory, photo, "r", "--no-cuda-graphs", "--device", "3", "--precision", "fp32") == 0
    assert (given["cuda_graphs"], given["device"], given["precision"]) == (False, 3, "fp32")
    assert run(toy_bundle.directory, photo, "r") == 0
    assert (given["cuda_graphs"], given["device"], given["precision"]) == (True, 0, None)


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for source, output in (("kitchen.jpg", "overlay.png"), ("kitchen.mp4", "out.mp4"), ("0", "out.mp4")):
        assert f'talent-predict bundle/ {source} "the red mug on the left" -o {output}' in printed
