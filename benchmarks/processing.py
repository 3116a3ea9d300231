"""Time around the network on one CPU core, photo to input and logits to mask, beside a straightforward version.

The straightforward version takes the published network's steps one after the other, each with the call of OpenCV or
NumPy that does it: letterbox (cubic warpAffine with CLIP's mean as border), normalise in float, sigmoid, bicubic with
corners aligned to the input's size (two matrix products, because neither library has it), cubic warpAffine back to the
photo, compare, bounding box, mean probability inside.

Objects of several sizes are asked for, because ours computes only where a mask can be. Before anything is timed, both
versions are compared: a mask or an input that differs by more than rounding fails the run. All of them are measured in
rounds, the order rotated, so that a clock that drops or another program that starts hits all of them alike; figures are
the medians.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
if __name__ == "__main__":  # one core, said before NumPy loads its linear algebra; a test keeps its own threads
    os.environ.update(dict.fromkeys(THREADS, "1"))

import cv2  # noqa: E402
import numpy as np  # noqa: E402

if __name__ == "__main__":  # a script: its own folder, which has a module `kernels` as another package has, gives way
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import rounds as interleaved  # noqa: E402
from benchmarks.latency import describe_device  # noqa: E402
from benchmarks.rounds import aligned  # noqa: E402
from talent import provenance  # noqa: E402
from talent.errors import UserError, command  # noqa: E402
from talent.files import atomic_write, check_writable  # noqa: E402
from talent.image import (  # noqa: E402
    CLIP_MEAN,
    CLIP_STD,
    THRESHOLD,
    Letterbox,
    letterbox_mask,
    mask_on_photo,
    preprocess,
    upsample_bicubic,
)

Answer = tuple[np.ndarray, tuple[int, int, int, int] | None, float]  # mask, bounding box, score

STRAIGHTFORWARD, OURS = "straightforward", "TALENT Edge"
PREPROCESS, POSTPROCESS, TOGETHER = "preprocess", "postprocess", "together"
# Ellipses in the middle: radii as shares of half the photo's sides, so that 1.5 covers its corners, too.
OBJECTS = {"nothing": 0.0, "small object": 0.2, "object": 0.45, "large object": 0.8, "everything": 1.5}
GRID = 128 / 448  # cells of the logits per pixel of the input
GOAL = 0.4  # of the straightforward version's time, together
DIFFERENT = 1e-3  # share of the mask's pixels that may differ
GREY_LEVELS = 1.0  # of 255, that an input may differ
SEED = 0
PACKAGES = ("numpy", "opencv-python-headless", "opencv-python")
EXAMPLE = """example:
  python benchmarks/processing.py --photo 1280x720 --rounds 100 -o processing.json
"""


def straightforward_preprocess(photo: np.ndarray, size: int) -> tuple[np.ndarray, Letterbox]:
    """uint8 [H, W, 3] RGB -> float32 [1, 3, S, S] and where the photo lies in it."""
    box = Letterbox(height=photo.shape[0], width=photo.shape[1], size=size)
    canvas = cv2.warpAffine(photo, box.matrix, (size, size), flags=cv2.INTER_CUBIC,
                            borderValue=[255 * mean for mean in CLIP_MEAN])
    planes = np.ascontiguousarray(canvas.transpose(2, 0, 1), dtype=np.float32)  # [3, S, S]
    planes /= 255
    planes -= np.array(CLIP_MEAN, np.float32)[:, None, None]
    planes /= np.array(CLIP_STD, np.float32)[:, None, None]
    return planes[None], box


def straightforward_postprocess(logits: np.ndarray, box: Letterbox, threshold: float) -> Answer:
    """float32 [h, w] -> (mask bool [H, W], its bounding box or None, mean probability inside it)."""
    probability = 1 / (1 + np.exp(-logits))  # [h, w]
    canvas = upsample_bicubic(probability, box.size)  # [S, S]
    photo = cv2.warpAffine(canvas, box.matrix, (box.width, box.height),
                           flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderValue=0)  # [H, W]
    mask = photo > threshold
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return mask, None, 0.0
    bounds = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return mask, bounds, float(np.minimum(photo[mask], 1).mean())  # cubic interpolation overshoots


@dataclass(frozen=True)
class Style:
    """A way to do both halves."""

    preprocess: Callable[[np.ndarray, int], tuple[np.ndarray, Letterbox]]
    postprocess: Callable[[np.ndarray, Letterbox, float], Answer]


STYLES = {STRAIGHTFORWARD: Style(straightforward_preprocess, straightforward_postprocess),
          OURS: Style(preprocess, mask_on_photo)}


def make_photo(width: int, height: int, generator: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3]: soft shapes with the grain of a camera."""
    shapes = generator.integers(0, 256, (9, 16, 3), np.uint8)
    soft = cv2.resize(shapes, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(soft + generator.normal(0, 6, soft.shape), 0, 255).astype(np.uint8)


def make_logits(radius: float, box: Letterbox, generator: np.random.Generator) -> np.ndarray:
    """float32 [h, w]: about 7 on the object and -7 beside it, soft at the edge, with some noise, as networks give."""
    mask = np.zeros((box.height, box.width), np.uint8)
    if radius:
        centre = box.width // 2, box.height // 2
        axes = round(radius * box.width / 2), round(radius * box.height / 2)
        cv2.ellipse(mask, centre, axes, 0, 0, 360, 1, thickness=cv2.FILLED)
    canvas = letterbox_mask(mask, box)  # [S, S]
    cells = max(1, round(GRID * box.size))
    grid = cv2.GaussianBlur(cv2.resize(canvas, (cells, cells), interpolation=cv2.INTER_AREA), (0, 0), 1.0)  # [h, w]
    return (14 * grid - 7 + generator.normal(0, 0.3, grid.shape)).astype(np.float32)


def compare(photo: np.ndarray, logits: dict[str, np.ndarray], size: int) -> tuple[float, dict[str, float]]:
    """(largest difference of the inputs in grey levels, share of pixels that differ for every object's mask).

    Raises UserError when ours is something else than the straightforward version.
    """
    (expected, box), (received, _) = (style.preprocess(photo, size) for style in STYLES.values())
    std = np.array(CLIP_STD)[:, None, None]
    levels = float(np.abs((received - expected) * (255 * std)).max())
    if not levels <= GREY_LEVELS:
        raise UserError(f"the inputs differ: expected at most {GREY_LEVELS:.0f} grey level, received {levels:.2f}; "
                        "find out more with: pytest tests/talent/test_image.py")
    shares = {}
    for name, grid in logits.items():
        (expected, *_), (received, *_) = (style.postprocess(grid, box, THRESHOLD) for style in STYLES.values())
        shares[name] = float(np.mean(received != expected))
        if not shares[name] <= DIFFERENT:
            raise UserError(f"the masks of {name!r} differ: expected at most {DIFFERENT:.1%} of the pixels, received "
                            f"{shares[name]:.2%}; find out more with: pytest tests/talent/test_photo_mask.py")
    return levels, shares


def run_once(style: Style, photo: np.ndarray, logits: np.ndarray, size: int) -> tuple[float, float, float]:
    """Seconds of preprocess, postprocess and together."""
    start = time.perf_counter()
    _, box = style.preprocess(photo, size)
    between = time.perf_counter()
    style.postprocess(logits, box, THRESHOLD)
    end = time.perf_counter()
    return between - start, end - between, end - start


measure = functools.partial(interleaved.measure, progress="processing")


def benchmark(*, width: int, height: int, size: int, rounds: int) -> dict[str, Any]:
    """The whole report, as `--output` writes it."""
    generator = np.random.default_rng(SEED)
    photo = make_photo(width, height, generator)
    box = Letterbox(height=height, width=width, size=size)
    logits = {name: make_logits(radius, box, generator) for name, radius in OBJECTS.items()}
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        levels, shares = compare(photo, logits, size)
        runs = {(name, key): lambda style=style, grid=grid: run_once(style, photo, grid, size)
                for name, grid in logits.items() for key, style in STYLES.items()}
        seconds = measure(runs, rounds=rounds)
    finally:
        cv2.setNumThreads(threads)
    rows = []
    for name in OBJECTS:
        times = {key: 1000 * np.array(seconds[name, key]).T for key in STYLES}  # [stage, round]
        for i, stage in enumerate((PREPROCESS, POSTPROCESS, TOGETHER)):
            medians = {key: statistics.median(times[key][i].tolist()) for key in STYLES}
            rows.append({"object": name, "stage": stage, "milliseconds": medians,
                         "ratio": medians[OURS] / medians[STRAIGHTFORWARD],
                         "rounds_milliseconds": {key: times[key][i].tolist() for key in STYLES}})
    return {"rows": rows, "goal": GOAL, "different_pixels": shares, "input_grey_levels": levels,
            "photo": [width, height], "image_size": size, "grid": list(next(iter(logits.values())).shape),
            "threshold": THRESHOLD, "rounds": rounds, "seed": SEED,
            "threads": {"opencv": 1, **{name: os.environ.get(name) for name in THREADS}},
            "device": describe_device(), "commit": provenance.commit(), "versions": provenance.versions(*PACKAGES)}


def table(report: dict[str, Any]) -> str:
    """The report as text: a line per object and stage."""
    lines = [["milliseconds", "", STRAIGHTFORWARD, OURS, "ratio", "pixels that differ"]]
    for row in report["rows"]:
        differ = f"{report['different_pixels'][row['object']]:.4%}" if row["stage"] == TOGETHER else ""
        times = (f"{row['milliseconds'][key]:.2f}" for key in STYLES)
        lines.append([row["object"], row["stage"], *times, f"{row['ratio']:.2f}", differ])
    text = [line.rstrip() for line in aligned(lines, left=2)]
    worst = max((row for row in report["rows"] if row["stage"] == TOGETHER), key=lambda row: row["ratio"])
    text.append(f"goal: together at most {report['goal']} of the straightforward version; worst: {worst['ratio']:.2f} "
                f"({worst['object']})")
    width, height = report["photo"]
    text.append(f"medians of {report['rounds']} interleaved rounds, a photo of {width}x{height}, input of "
                f"{report['image_size']} px, one core of {report['device']['cpu']}")
    return "\n".join(text)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="processing.py", description=__doc__.partition("\n")[0], epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--photo", default="1280x720", metavar="WxH", help="pixels (default: %(default)s)")
    result.add_argument("--image-size", type=int, default=448, metavar="S",
                        help="side of the network's input in pixels (default: %(default)s)")
    result.add_argument("--rounds", type=int, default=100, metavar="N", help="rounds (default: %(default)s)")
    result.add_argument("-o", "--output", type=Path, metavar="FILE", help="write everything measured, as JSON")
    return result


def read_photo_size(text: str) -> tuple[int, int]:
    """"1280x720" -> (1280, 720). Raises UserError."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise UserError(f"--photo: expected width and height in pixels, as 1280x720, received {text!r}")
    return int(sides[0]), int(sides[1])


@command("processing.py")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    width, height = read_photo_size(arguments.photo)
    for name, value in (("image-size", arguments.image_size), ("rounds", arguments.rounds)):
        if value < 1:
            raise UserError(f"--{name}: expected at least 1, received {value}")
    if arguments.output:
        check_writable(arguments.output)
    report = benchmark(width=width, height=height, size=arguments.image_size, rounds=arguments.rounds)
    print(table(report))
    if arguments.output:
        with atomic_write(arguments.output) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote the numbers to {arguments.output}" if arguments.output
          else "wrote nothing; add -o processing.json to keep the numbers")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
