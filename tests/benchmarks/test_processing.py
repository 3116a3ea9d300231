"""benchmarks/processing.py: the straightforward version, what is asked, compared, measured and reported."""

from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import pytest

from benchmarks import processing
from benchmarks.processing import (
    GOAL,
    OBJECTS,
    OURS,
    STRAIGHTFORWARD,
    STYLES,
    benchmark,
    compare,
    main,
    make_logits,
    make_photo,
    measure,
    read_photo_size,
    straightforward_postprocess,
    straightforward_preprocess,
    table,
)
from talent.image import CLIP_MEAN, CLIP_STD, Letterbox

FEW = ["--photo", "96x54", "--image-size", "56", "--rounds", "3"]
BOX = Letterbox(height=54, width=96, size=56)


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.fixture(scope="module")
def report() -> dict:
    return benchmark(width=96, height=54, size=56, rounds=3)


def test_the_straightforward_input_is_the_normalised_letterbox(generator):
    photo = make_photo(96, 54, generator)
    planes, box = straightforward_preprocess(photo, 112)
    assert planes.shape == (1, 3, 112, 112) and planes.dtype == np.float32 and box.size == 112
    pixels = planes[0].transpose(1, 2, 0) * CLIP_STD + CLIP_MEAN  # 0 to 1
    assert np.abs(pixels[:20] - CLIP_MEAN).max() < 0.5 / 255 + 1e-6  # the border, rounded to bytes
    inside = cv2.resize(photo, (112, 63), interpolation=cv2.INTER_CUBIC)  # half a pixel off: see Letterbox
    assert np.corrcoef(255 * pixels[25:87].ravel(), inside[:62].ravel())[0, 1] > 0.95


def test_the_straightforward_answer_is_pytorchs(generator):
    torch = pytest.importorskip("torch")
    logits, box = generator.normal(0, 4, (16, 16)).astype(np.float32), Letterbox(height=90, width=160, size=112)
    grid = torch.sigmoid(torch.from_numpy(logits))[None, None]
    canvas = torch.nn.functional.interpolate(grid, (112, 112), mode="bicubic", align_corners=True)[0, 0].numpy()
    photo = cv2.warpAffine(canvas, cv2.invertAffineTransform(box.matrix), (160, 90), flags=cv2.INTER_CUBIC)
    mask, bounds, score = straightforward_postprocess(logits, box, 0.35)
    assert np.mean(mask != (photo > 0.35)) < 2e-3 and 0.1 < mask.mean() < 0.9
    y, x = np.nonzero(mask)
    assert bounds == (x.min(), y.min(), x.max() + 1, y.max() + 1)
    assert score == pytest.approx(float(photo[mask].clip(0, 1).mean()), abs=1e-3)
    assert straightforward_postprocess(np.full((4, 4), -9, np.float32), box, 0.35)[1:] == (None, 0.0)


def test_the_objects_cover_what_their_names_say(generator):
    box = Letterbox(height=720, width=1280, size=448)
    shares = {}
    for name, radius in OBJECTS.items():
        logits = make_logits(radius, box, generator)
        assert logits.shape == (128, 128) and logits.dtype == np.float32
        shares[name] = straightforward_postprocess(logits, box, 0.35)[0].mean()
    assert list(shares.values()) == sorted(shares.values())
    assert shares["nothing"] == 0 and shares["everything"] > 0.97
    assert shares["object"] == pytest.approx(np.pi / 4 * OBJECTS["object"] ** 2, rel=0.1)


def test_both_versions_agree(report):
    assert report["input_grey_levels"] <= 1e-3
    assert list(report["different_pixels"]) == list(OBJECTS) and max(report["different_pixels"].values()) <= 1e-3


@pytest.mark.parametrize(("change", "message"), [
    ({"preprocess": lambda photo, size: straightforward_preprocess(np.roll(photo, 1, axis=1), size)},
     "the inputs differ: expected at most 1 grey level, received"),
    ({"postprocess": lambda logits, box, threshold: straightforward_postprocess(logits, box, 0.6)},
     "the masks of 'small object' differ: expected at most 0.1% of the pixels, received")])
def test_a_version_that_computes_something_else_is_not_timed(monkeypatch, generator, change, message, capsys):
    monkeypatch.setitem(STYLES, OURS, dataclasses.replace(STYLES[OURS], **change))
    monkeypatch.setattr(processing, "measure", lambda *_, **__: pytest.fail("it was timed"))
    assert main(FEW) == 2
    assert message in capsys.readouterr().err


def test_an_input_that_is_no_number_is_something_else(monkeypatch, generator):
    def broken(photo, size):
        planes, box = straightforward_preprocess(photo, size)
        return planes * np.nan, box

    monkeypatch.setitem(STYLES, OURS, dataclasses.replace(STYLES[OURS], preprocess=broken))
    with pytest.raises(processing.UserError, match="the inputs differ"):
        compare(make_photo(96, 54, generator), {}, 56)


def test_rounds_are_interleaved_and_rotated_and_warm_up_is_not_counted():
    seen = []

    def run(name: str, values: list[float]):
        times = iter(values)

        def once() -> tuple[float, ...]:
            seen.append(name)
            return (next(times),)

        return once

    seconds = measure({("x", "a"): run("a", [9, 1, 2]), ("x", "b"): run("b", [9, 3, 4])}, rounds=2)
    assert seen == ["a", "b", "a", "b", "b", "a"]
    assert seconds == {("x", "a"): [(1,), (2,)], ("x", "b"): [(3,), (4,)]}


def test_medians_and_ratios_are_those_of_the_rounds(monkeypatch):
    """ours takes 1, 2, 9 ms before and 3, 4, 5 ms after the network; the straightforward version ten times as long."""
    before, after = np.array([1, 2, 9]) / 1000, np.array([3, 4, 5]) / 1000
    times = {OURS: np.stack([before, after, before + after], axis=1)}
    times[STRAIGHTFORWARD] = 10 * times[OURS]
    monkeypatch.setattr(processing, "measure", lambda runs, rounds: {key: times[key[1]].tolist() for key in runs})
    report = benchmark(width=96, height=54, size=56, rounds=3)
    rows = [row for row in report["rows"] if row["object"] == "object"]
    assert [row["stage"] for row in rows] == ["preprocess", "postprocess", "together"]
    assert [row["milliseconds"][OURS] for row in rows] == pytest.approx([2, 4, 6])
    assert [row["milliseconds"][STRAIGHTFORWARD] for row in rows] == pytest.approx([20, 40, 60])
    assert [row["ratio"] for row in rows] == pytest.approx([0.1] * 3)
    lines = table(report).splitlines()
    assert lines[-2] == f"goal: together at most {GOAL} of the straightforward version; worst: 0.10 (nothing)"
    assert any(line.split()[:-1] == ["object", "together", "60.00", "6.00", "0.10"] for line in lines)


def test_the_report_says_how_it_was_measured(report):
    assert [(row["object"], row["stage"]) for row in report["rows"]] == [
        (name, stage) for name in OBJECTS for stage in ("preprocess", "postprocess", "together")]
    for row in report["rows"]:
        assert all(len(row["rounds_milliseconds"][key]) == 3 and min(row["rounds_milliseconds"][key]) > 0
                   for key in STYLES)
    assert (report["photo"], report["image_size"], report["grid"], report["rounds"]) == ([96, 54], 56, [16, 16], 3)
    assert report["threads"]["opencv"] == 1 and {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"} < report["threads"].keys()
    assert report["device"]["cpu"] and report["commit"] and report["versions"]["numpy"] == np.__version__
    assert json.loads(json.dumps(report)) == report


def test_opencv_has_its_threads_back_even_after_a_failure(monkeypatch):
    before = cv2.getNumThreads()
    seen = []
    monkeypatch.setattr(processing, "compare", lambda *_: seen.append(cv2.getNumThreads()) or 1 / 0)
    cv2.setNumThreads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            benchmark(width=8, height=8, size=28, rounds=1)
        assert seen == [1] and cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def test_the_command_writes_the_numbers(tmp_path, capsys):
    path = tmp_path / "processing.json"
    assert main([*FEW, "-o", str(path)]) == 0
    assert json.loads(path.read_text())["rounds"] == 3
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == f"milliseconds {STRAIGHTFORWARD} {OURS} ratio pixels that differ".split()
    assert printed[-1] == f"wrote the numbers to {path}"


@pytest.mark.parametrize(("arguments", "message"), [
    (["--photo", "1280"], "--photo: expected width and height in pixels, as 1280x720, received '1280'"),
    (["--photo", "0x720"], "received '0x720'"), (["--photo", "axb"], "received 'axb'"),
    (["--image-size", "0"], "--image-size: expected at least 1, received 0"),
    (["--rounds", "0"], "--rounds: expected at least 1, received 0"),
    (["-o", "no-such-folder/processing.json"], "mkdir -p no-such-folder")])
def test_bad_input_is_refused(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(processing, "benchmark", lambda **_: pytest.fail("it was measured before the input was read"))
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_photo_sizes():
    assert read_photo_size("1280x720") == (1280, 720) and read_photo_size("3X4") == (3, 4)


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "python benchmarks/processing.py --photo 1280x720" in capsys.readouterr().out
