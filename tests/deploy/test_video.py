"""talent-predict on videos, folders and live sources: answers, files, exit codes, and what it says."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from deploy.predict import main
from deploy.runtime.segmenter import Segmenter
from deploy.video import stream
from deploy.video.frames import Frame
from talent.errors import UserError
from talent.image import read_image, save_image

PATIENCE = 20  # seconds until a signal that is not heard fails the test


def scene(index: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """uint8 RGB, black with a red square that moves to the right and a green one that stays."""
    image = np.zeros((*size, 3), np.uint8)
    image[30:60, 4 + 4 * index:34 + 4 * index, 0] = 255
    image[64:90, 90:120, 1] = 255
    return image


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "in.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (128, 96))
    for index in range(15):
        writer.write(cv2.cvtColor(scene(index), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "photos"
    directory.mkdir()
    for index in (0, 5, 10):
        save_image(directory / f"p{index}.png", scene(index, (96, 128 + index)))
    return directory


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments] + ["--backend", "onnxruntime", "--threads", "1"])


def read_video(path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return frames


def records(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_video_gives_a_video_masks_and_answers(toy_bundle, video, tmp_path, capsys):
    out, masks, answers = tmp_path / "out.mp4", tmp_path / "masks", tmp_path / "answers.jsonl"
    assert run(toy_bundle.directory, video, "r", "-o", out, "--mask", masks, "--json", answers) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == "" and lines[:2] == ["backend: onnxruntime", "frames: 15 read, 15 answered, 0 dropped"]
    assert "FPS (15 frames in" in lines[2]
    assert lines[-1] == (f"15 frames of {video}: wrote the video to {out}, the masks to {masks} and the answers to "
                         f"{answers}")
    header, *given = records(answers)
    assert header["source"] == "in.avi" and header["bundle"]["preset"] == "toy" and header["backend"] == "onnxruntime"
    assert header["settings"]["threshold"] == toy_bundle.threshold and header["versions"]["numpy"] == np.__version__
    assert header["commit"]
    drawn = read_video(out)
    assert len(drawn) == 15 == len(given)
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        prompt = segmenter.encode("r")
        for index, (frame, record, picture) in enumerate(zip(read_video(video), given, drawn, strict=True)):
            expected = segmenter.segment(frame, prompt)
            mask = cv2.imread(str(masks / f"{index:06d}.png"), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(mask, expected.mask * np.uint8(255)) and expected.mask.any()
            assert record == {"frame": index, "seconds": index / 10, "sentence": "r", "box": list(expected.box),
                              "score": round(expected.score, 6)}
            y, x = (np.argwhere(expected.mask).mean(axis=0)).astype(int)
            assert picture[y, x, 2] > 20 > frame[y, x, 2]  # the tint has some blue
    assert cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FPS) == 10


def test_stride_and_max_frames_keep_the_time(toy_bundle, video, tmp_path, capsys):
    out, answers = tmp_path / "out.avi", tmp_path / "answers.jsonl"
    assert run(toy_bundle.directory, video, "r", "-o", out, "--json", answers, "--stride", 4, "--max-frames", 3) == 0
    assert "frames: 3 read, 3 answered, 0 dropped" in capsys.readouterr().out
    assert [(record["frame"], record["seconds"]) for record in records(answers)[1:]] == [(0, 0.0), (4, 0.4), (8, 0.8)]
    assert len(read_video(out)) == 3 and cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FPS) == 2.5
    assert run(toy_bundle.directory, video, "r", "-o", out, "--max-frames", 2, "--fps", 24) == 0
    assert cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FPS) == 24


def test_smoothing_reaches_the_answers(toy_bundle, video, tmp_path):
    plain, smooth = tmp_path / "plain.jsonl", tmp_path / "smooth.jsonl"
    assert run(toy_bundle.directory, video, "r", "--json", plain) == 0
    assert run(toy_bundle.directory, video, "r", "--json", smooth, "--smooth", 0.8) == 0
    first, last = records(plain)[1::14], records(smooth)[1::14]
    assert first[0] == last[0] and records(smooth)[0]["settings"]["smooth"] == 0.8
    assert last[1]["box"][0] < first[1]["box"][0]  # a square that moves to the right leaves a trail on its left


def test_a_script_changes_the_sentence_at_its_time(toy_bundle, video, tmp_path):
    script, answers, out = tmp_path / "script.txt", tmp_path / "answers.jsonl", tmp_path / "out.avi"
    script.write_text("0.5 g\n0.8\n1.2 b\n")
    assert run(toy_bundle.directory, video, "r", "--json", answers, "--script", script, "-o", out) == 0
    given = records(answers)[1:]
    assert [record["sentence"] for record in given] == ["r"] * 5 + ["g"] * 3 + [None] * 4 + ["b"] * 3
    assert given[5]["box"][0] > 80 and given[8]["box"] is None and given[8]["score"] is None
    difference = [np.abs(a.astype(int) - b).mean() for a, b in zip(read_video(out), read_video(video), strict=True)]
    assert max(difference[8:12]) < min(difference[:8])  # paused: the frame as it is


def test_a_typed_sentence_changes_the_answers(toy_bundle, video, tmp_path, monkeypatch, capsys):
    """Frames 3 and 6 are held up until a line that is refused and one that is not have been heard."""
    fifo, changed, heard = tmp_path / "fifo", threading.Event(), threading.Event()
    os.mkfifo(fifo)

    class Sentences(stream.Sentences):
        def change(self, sentence: str):
            try:
                return super().change(sentence)
            finally:
                (changed if sentence == "g" else heard).set()

    class Answerer(stream.Answerer):
        def __call__(self, frame: Frame):
            if frame.index == 3:
                fifo.write_text("&nbsp;\n")  # refused: no words are left of it
                assert heard.wait(PATIENCE)
            if frame.index == 6:
                fifo.write_text("g\n")
                assert changed.wait(PATIENCE)
            return super().__call__(frame)

    monkeypatch.setattr(stream, "Sentences", Sentences)
    monkeypatch.setattr(stream, "Answerer", Answerer)
    answers = tmp_path / "answers.jsonl"
    assert run(toy_bundle.directory, video, "r", "--json", answers, "--sentences-from", fifo) == 0
    assert [record["sentence"] for record in records(answers)[1:]] == ["r"] * 6 + ["g"] * 9
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and told[0].endswith("the sentence stays as it was") and told[1] == "now looking for: g"


def test_a_folder_gives_a_folder_or_a_video(toy_bundle, folder, tmp_path, capsys):
    out, masks, answers = tmp_path / "out", tmp_path / "masks", tmp_path / "answers.jsonl"
    assert run(toy_bundle.directory, folder, "r", "-o", out, "--mask", masks, "--json", answers) == 0
    assert "wrote the overlays to" in capsys.readouterr().out
    assert [record["picture"] for record in records(answers)[1:]] == ["p0.png", "p5.png", "p10.png"]
    for directory in (out, masks):
        assert sorted(path.name for path in directory.iterdir()) == ["p0.png", "p10.png", "p5.png"]
    for index in (0, 5, 10):
        assert read_image(out / f"p{index}.png").shape == (96, 128 + index, 3)
        assert cv2.imread(str(masks / f"p{index}.png"), cv2.IMREAD_UNCHANGED)[45, 19 + 4 * index] == 255
    again = tmp_path / "again"
    assert run(toy_bundle.directory, folder, "r", "-o", again) == 0
    for path in out.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()  # no clock on pictures
    assert run(toy_bundle.directory, folder, "r", "-o", tmp_path / "out.avi", "--fps", 2) == 0
    assert "2 frames had another size than the first" in capsys.readouterr().out
    assert [frame.shape for frame in read_video(tmp_path / "out.avi")] == [(96, 128, 3)] * 3


def test_a_picture_that_cannot_be_read_is_told_skipped_and_in_the_exit_code(toy_bundle, folder, tmp_path, capsys):
    (folder / "p7.png").write_text("no picture")
    assert run(toy_bundle.directory, folder, "r", "-o", tmp_path / "out") == stream.EXIT_INCOMPLETE == 1
    printed = capsys.readouterr()
    assert "left out: not a picture" in printed.err and "p7.png" in printed.err
    assert "not everything could be read" in printed.err and "frames: 3 read" in printed.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p0.png", "p10.png", "p5.png"]


def test_a_picture_that_cannot_be_used_costs_only_itself(toy_bundle, folder, tmp_path, capsys):
    save_image(folder / "p7.png", np.zeros((2, 33_000, 3), np.uint8))
    assert run(toy_bundle.directory, folder, "r", "-o", tmp_path / "out", "--mask", tmp_path / "masks") == 1
    assert "with sides from 1 to 32766 pixels, received [2, 33000, 3]" in capsys.readouterr().err
    for directory in ("out", "masks"):
        assert sorted(path.name for path in (tmp_path / directory).iterdir()) == ["p0.png", "p10.png", "p5.png"]


class FailsAt(stream.Answerer):
    """At frame 5."""

    error: Exception

    def __call__(self, frame: Frame):
        if frame.index == 5:
            raise self.error
        return super().__call__(frame)


def test_an_error_in_the_middle_keeps_what_was_answered(toy_bundle, video, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stream, "Answerer", FailsAt)
    out, masks, answers = tmp_path / "out.avi", tmp_path / "masks", tmp_path / "answers.jsonl"
    for error, said in ((UserError("the GPU is gone"), "whole: the GPU is gone"), (MemoryError("9 GB"), "MemoryError")):
        monkeypatch.setattr(FailsAt, "error", error, raising=False)
        arguments = (toy_bundle.directory, video, "r", "-o", out, "--mask", masks, "--json", answers)
        if isinstance(error, UserError):
            assert run(*arguments) == stream.EXIT_INCOMPLETE
        else:
            with pytest.raises(MemoryError):  # nobody foresaw it: with its traceback, and after the files
                run(*arguments)
        printed = capsys.readouterr()
        line, = printed.err.splitlines()
        assert line.startswith("talent-predict: error after 5 frames, ") and line.endswith(said)
        assert f"5 frames of {video}: wrote the video to {out}" in printed.out
        assert len(read_video(out)) == 5 == len(records(answers)) - 1 == len(list(masks.iterdir()))
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        for path in (out, answers, *masks.iterdir()):
            path.unlink()


def test_an_error_in_writing_leaves_nothing(toy_bundle, video, tmp_path, capsys, monkeypatch):
    real = stream.AnswerLines.write

    def write(self, answer) -> None:
        if answer.frame.index == 5:
            raise UserError("the disk is full")
        real(self, answer)

    monkeypatch.setattr(stream.AnswerLines, "write", write)
    line = refused(capsys, tmp_path, toy_bundle.directory, video, "r", "-o", tmp_path / "out.avi", "--json",
                   tmp_path / "answers.jsonl")
    assert line.endswith("the disk is full")


def test_a_video_that_ends_early_keeps_what_there_was(toy_bundle, video, tmp_path, capsys):
    video.write_bytes(video.read_bytes()[:int(video.stat().st_size * 0.6)])
    assert run(toy_bundle.directory, video, "r", "-o", tmp_path / "out.avi") == 1
    assert "of 15: what follows is damaged or missing" in capsys.readouterr().err
    assert 0 < len(read_video(tmp_path / "out.avi")) < 13


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_what_is_whole(toy_bundle, video, tmp_path, capsys, monkeypatch, number, code):
    stops, drawn, before = [], [], signal.getsignal(signal.SIGINT)

    class Pipeline(stream.FramePipeline):
        def __init__(self, *arguments, stop: threading.Event, **options) -> None:
            stops.append(stop)
            super().__init__(*arguments, stop=stop, **options)

    def draw(*arguments, **options) -> np.ndarray:
        drawn.append(1)
        if len(drawn) == 3:
            os.kill(os.getpid(), number)
            assert stops[0].wait(PATIENCE)
        return real(*arguments, **options)

    real = stream.draw
    monkeypatch.setattr(stream, "FramePipeline", Pipeline)
    monkeypatch.setattr(stream, "draw", draw)
    out, answers = tmp_path / "out.avi", tmp_path / "answers.jsonl"
    assert run(toy_bundle.directory, video, "r", "-o", out, "--json", answers, "--mask", tmp_path / "masks") == code
    printed = capsys.readouterr()
    count = len(read_video(out))
    assert 3 <= count <= 10 and count == len(records(answers)) - 1 == len(list((tmp_path / "masks").iterdir()))
    assert f"stopped after {count} frames; what was written of them is whole" in printed.err
    assert f"{count} frames of {video}: wrote the video to {out}" in printed.out
    assert signal.getsignal(signal.SIGINT) is before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


class FakeCamera:
    """A camera that gives ten frames, each late by one, and then is lost."""

    name, live, fps, length = "camera 0", True, 10.0, None

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.complete = True
        self.closed = False

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        for index in range(10):
            yield Frame(index=index, seconds=index / 5, image=scene(index))
        self.complete = False
        self.notes.append("camera 0 is lost")

    def close(self) -> None:
        self.closed = True


def test_a_live_source(toy_bundle, tmp_path, capsys, monkeypatch):
    camera = FakeCamera()
    monkeypatch.setattr(stream, "open_source", lambda *arguments, **options: camera)
    out, answers = tmp_path / "out.avi", tmp_path / "answers.jsonl"
    assert run(toy_bundle.directory, "0", "r", "-o", out, "--json", answers) == 1
    printed = capsys.readouterr()
    assert camera.closed and "camera 0 is lost" in printed.err
    numbers = [record["frame"] for record in records(answers)[1:]]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 9  # the latest, whatever was dropped
    assert f"frames: 10 read, {len(numbers)} answered, {10 - len(numbers)} dropped" in printed.out
    assert len(read_video(out)) == 2 * (numbers[-1] - numbers[0]) + 1  # a second takes a second


def refused(capsys, tmp_path, *arguments) -> str:
    """Runs, checks that the refusal is one line and that no file appeared, and returns the line."""
    before = sorted(tmp_path.rglob("*"))
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    line, = printed.err.splitlines()
    assert sorted(tmp_path.rglob("*")) == before
    return line


def test_bad_input_is_one_line_and_leaves_nothing(toy_bundle, video, folder, tmp_path, capsys):
    (tmp_path / "noise.mp4").write_bytes(b"noise" * 100)
    (tmp_path / "text.txt").write_text("the mug")
    bundle, out, answers = toy_bundle.directory, tmp_path / "out.mp4", tmp_path / "answers.jsonl"
    for arguments, message in [
            ((tmp_path / "none.mp4", "r", "-o", out), "no such picture or video"),
            ((tmp_path / "noise.mp4", "r", "-o", out), "expected a video file"),
            ((9731, "r", "-o", out), "cannot open camera 9731"),
            ((tmp_path, "r", "-o", out), "expected a folder with pictures"),
            ((video, " ", "-o", out), "expected a sentence"),
            ((video, "&nbsp;", "-o", out, "--json", answers, "--mask", tmp_path / "m"), "expected a sentence"),
            ((video, "r", "-o", tmp_path / "out.xyz"), "unknown video type"),
            ((video, "r", "-o", tmp_path / "out"), "unknown video type"),
            ((video, "r", "-o", video), "received that of the source"),
            ((video, "r", "-o", out, "--json", out), "received that of --output"),
            ((video, "r", "--mask", tmp_path / "mask.png"), "--mask"),
            ((video, "r", "--mask", folder), "is not empty"),
            ((video, "r", "--json", tmp_path / "no" / "a.jsonl"), "mkdir -p"),
            ((video, "r", "--codec", "mp4v"), "add -o out.mp4"),
            ((video, "r", "-o", out, "--codec", "WXYZ"), "leave --codec out"),
            ((video, "r", "--smooth", 1), "--smooth: expected"),
            ((video, "r", "--stride", 0), "--stride: expected at least 1"),
            ((video, "r", "--max-frames", 0), "--max-frames: expected at least 1"),
            ((video, "r", "--fps", 0), "--fps: expected"),
            ((video, "r", "--script", tmp_path / "text.txt"), "expected seconds and a sentence"),
            ((video, "r", "--sentences-from", tmp_path / "text.txt"), "expected a FIFO"),
            ((video, "r", "--threshold", 1.5, "-o", out), "threshold"),
            ((video, "r", "--precision", "fp16", "-o", out), "expected an fp16 bundle"),
            ((folder, "r", "-o", tmp_path / "overlay.png"), "because the source"),
            ((folder, "r", "-o", folder), "received that of the source")]:
        assert message in refused(capsys, tmp_path, bundle, *arguments), arguments
    assert "no such bundle" in refused(capsys, tmp_path, tmp_path / "none", video, "r", "-o", out, "--json", answers)


def test_a_folder_that_cannot_be_written_as_asked(toy_bundle, folder, tmp_path, capsys):
    save_image(folder / "p0.jpg", scene(0))
    line = refused(capsys, tmp_path, toy_bundle.directory, folder, "r", "--mask", tmp_path / "masks")
    assert "p0.jpg and p0.png would have the same mask file p0.png" in line
    (folder / "p3.pbm").write_bytes(b"P4\n8 8\n" + bytes(8))
    line = refused(capsys, tmp_path, toy_bundle.directory, folder, "r", "-o", tmp_path / "out")
    assert "out/p3.pbm: this OpenCV reads .pbm and does not write it in colour; write a video" in line
    (folder / "p3.pbm").unlink()
    for path in folder.iterdir():
        path.write_text("no picture")
    assert run(toy_bundle.directory, folder, "r", "-o", tmp_path / "out", "--json", tmp_path / "a.jsonl") == 2
    assert "no picture could be read; nothing was written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "photos"]


def test_a_network_that_overflows_leaves_nothing(make_bundle, video, tmp_path, capsys):
    bundle = make_bundle(scale=float("inf"))
    for smooth in (0, 0.5):
        assert run(bundle.directory, video, "r", "-o", tmp_path / "out.mp4", "--mask", tmp_path / "masks", "--smooth",
                   smooth) == 2
        assert "not finite" in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "in.avi"]


def test_nothing_to_write_says_how(toy_bundle, video, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert run(toy_bundle.directory, video, "r", "--max-frames", 2) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("wrote nothing; add -o out.mp4 to see the answers")
    assert sorted(tmp_path.rglob("*")) == before
