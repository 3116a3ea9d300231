"""talent-predict on a folder, a recording, a camera or a stream: what it checks, runs, writes and says."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deploy.backend_options import open_segmenter
from deploy.runtime.segmenter import Segmenter
from deploy.video.answering import Answer, Answerer
from deploy.video.drawing import draw
from deploy.video.folder import PICTURES, Folder
from deploy.video.frames import Source
from deploy.video.outputs import AnswerLines, PictureFolder, answer_lines, picture_folder
from deploy.video.pipeline import FramePipeline, Progress
from deploy.video.sentences import Sentences, check_listening, listening, read_script
from deploy.video.smoothing import Smoother
from deploy.video.sources import open_source
from deploy.video.video_file import CODECS, VideoFile, check_video, is_video_path, video_file
from talent import provenance
from talent.errors import UserError
from talent.files import check_writable
from talent.require import require
from talent.stopping import StopRequest

EXIT_INCOMPLETE = 1  # not all could be read or answered; what could is written
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "numpy", "opencv-python-headless")


class Delivery:
    """Draws and writes answers; the parts that nobody asked for are None."""

    def __init__(self, *, video: VideoFile | None, overlays: PictureFolder | None, masks: PictureFolder | None,
                 lines: AnswerLines | None) -> None:
        self._video, self._overlays, self._masks, self._lines = video, overlays, masks, lines
        self._lately: deque[float] = deque(maxlen=30)  # when the latest answers came

    def __call__(self, answer: Answer) -> None:
        frame = answer.frame
        if self._video is not None:
            self._lately.append(time.perf_counter())
            span = self._lately[-1] - self._lately[0]
            rate = (len(self._lately) - 1) / span if span else None
            self._video.write(draw(frame.image, answer.sentence, answer.result, fps=rate), frame.seconds)
        if self._overlays is not None:  # without a rate: the same pictures give the same files
            self._overlays.write(frame.name, draw(frame.image, answer.sentence, answer.result))
        if self._masks is not None:
            mask = np.zeros(frame.image.shape[:2], bool) if answer.result is None else answer.result.mask
            self._masks.write(_mask_name(frame.name, frame.index), mask.astype(np.uint8) * 255)
        if self._lines is not None:
            self._lines.write(answer)


def _mask_name(picture: str, index: int) -> str:
    return f"{Path(picture).stem}.png" if picture else f"{index:06d}.png"


def predict_stream(arguments: argparse.Namespace) -> int:
    """Answer a source of many pictures as the arguments of talent-predict say. Returns the exit code."""
    _check(arguments)
    smoother = Smoother(arguments.smooth)
    script = read_script(arguments.script) if arguments.script else []
    with contextlib.ExitStack() as stack:
        source = open_source(arguments.source, stride=arguments.stride, fps=arguments.fps)
        stack.callback(source.close)
        _check_outputs(arguments, source)
        folders = stack.enter_context(contextlib.ExitStack())
        overlays = _folder(folders, arguments.output if not _writes_video(arguments) else None)
        masks = _folder(folders, arguments.mask)
        segmenter = stack.enter_context(
            open_segmenter(arguments.bundle, arguments))
        sentences = Sentences(segmenter.encode, arguments.sentence, script)
        reasons = f" ({'; '.join(segmenter.auto_report)})" if segmenter.auto_report else ""
        print(f"backend: {segmenter.backend.name}{reasons}")
        # From here on Ctrl-C ends the run and keeps what it made, until the last file is in its place.
        with StopRequest() as request, contextlib.ExitStack() as files:
            files.push(folders.pop_all())
            video = files.enter_context(
                video_file(arguments.output, fps=_output_fps(arguments, source), codec=arguments.codec,
                           live=source.live)) if _writes_video(arguments) else None
            lines = files.enter_context(answer_lines(arguments.json, _header(arguments, source, segmenter))) \
                if arguments.json else None
            pipeline = FramePipeline(source, Answerer(segmenter, sentences, smoother),
                                     Delivery(video=video, overlays=overlays, masks=masks, lines=lines),
                                     stop=threading.Event(), most=arguments.max_frames)
            with _bar(source, arguments.max_frames) as (tell, show), \
                    listening(arguments.sentences_from, sentences, tell=tell):
                progress = pipeline.run(show, stopped=lambda: bool(request.signal))
            signal = request.signal
            if not progress.written:
                if signal:
                    raise KeyboardInterrupt
                if progress.failure is not None:
                    raise progress.failure
                raise UserError(f"{source.name}: no picture could be read; nothing was written")
        fitted = video.fitted if video is not None else 0
    return _report(arguments, source, progress, signal=signal, fitted=fitted)


def _folder(stack: contextlib.ExitStack, path: Path | None) -> PictureFolder | None:
    return stack.enter_context(picture_folder(path)) if path is not None else None


@contextlib.contextmanager
def _bar(source: Source, most: int | None) -> Iterator[tuple[Callable[[str], None], Callable[[Progress], None]]]:
    """A progress bar: (what prints a line above it, what moves it and prints what the source noted)."""
    tqdm = require("tqdm", extra="cpu").tqdm
    totals = [count for count in (source.length, most) if count is not None]
    told = 0

    def tell(line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    def tick(progress: Progress) -> None:
        nonlocal told
        for note in source.notes[told:]:
            tell(note)
            told += 1
        if source.live:
            bar.set_postfix(dropped=progress.dropped, refresh=False)
        bar.update(progress.written - bar.n)
        bar.refresh()

    with tqdm(total=min(totals, default=None), desc=Path(source.name).name or source.name, unit="frame", leave=False,
              disable=None) as bar:
        yield tell, tick


def _report(arguments: argparse.Namespace, source: Source, progress: Progress, *, signal: int, fitted: int) -> int:
    """Print what the run was and made. signal: that ended it, or 0. fitted: frames of another size than the first.

    Raises what ended the run where that is no UserError: what was made is in its place by then.
    """
    failure = progress.failure
    print("\n".join(progress.summary()))
    if fitted:
        print(f"{fitted} frames had another size than the first and were fitted into it")
    written = []
    if arguments.output:
        written.append(f"the {'video' if _writes_video(arguments) else 'overlays'} to {arguments.output}")
    if arguments.mask:
        written.append(f"the masks to {arguments.mask}")
    if arguments.json:
        written.append(f"the answers to {arguments.json}")
    made = f"wrote {_and(written)}" if written else "wrote nothing; add -o out.mp4 to see the answers"
    if failure is not None:
        print(f"talent-predict: error after {progress.written} frames, of which what was written is whole: "
              + (str(failure) if isinstance(failure, UserError) else type(failure).__name__), file=sys.stderr)
    elif signal:
        print(f"talent-predict: stopped after {progress.written} frames; what was written of them is whole",
              file=sys.stderr)
    elif not source.complete:
        print("talent-predict: not everything could be read, see above", file=sys.stderr)
    print(f"{progress.written} frames of {source.name}: {made}")
    if failure is not None and not isinstance(failure, UserError):
        raise failure
    return 128 + signal if signal else 0 if source.complete and failure is None else EXIT_INCOMPLETE


def _and(parts: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _header(arguments: argparse.Namespace, source: Source, segmenter: Segmenter) -> dict[str, Any]:
    """The first line of --json: what was asked, and what answered."""
    bundle = segmenter.bundle
    return {"source": source.name if source.live else Path(source.name).name, "live": source.live, "fps": source.fps,
            "bundle": {"name": bundle.directory.resolve().name, "preset": bundle.preset, "precision": bundle.precision,
                       "sha256": dict(bundle.files), "exported_at_commit": bundle.commit},
            "backend": segmenter.backend.name, "commit": provenance.commit(),
            "versions": provenance.versions(*PACKAGES),
            "settings": {"sentence": arguments.sentence, "threshold": segmenter.threshold, "smooth": arguments.smooth,
                         "stride": arguments.stride, "max_frames": arguments.max_frames,
                         "script": arguments.script.name if arguments.script else None}}


def _writes_video(arguments: argparse.Namespace) -> bool:
    return arguments.output is not None and is_video_path(arguments.output)


def _output_fps(arguments: argparse.Namespace, source: Source) -> float:
    return arguments.fps or (source.fps if source.live else source.fps / arguments.stride)


def _check(arguments: argparse.Namespace) -> None:
    """What can be refused without looking at the source. Raises UserError."""
    for name in ("max_frames", "stride"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected at least 1, received {value}")
    if arguments.fps is not None and not 0 < arguments.fps <= 240:
        raise UserError(f"--fps: expected frames per second above 0 and at most 240, received {arguments.fps:g}")
    check_listening(arguments.sentences_from)
    if arguments.codec and not _writes_video(arguments):
        raise UserError(f"--codec {arguments.codec}: expected a video to write; add -o out.mp4")


def _check_outputs(arguments: argparse.Namespace, source: Source) -> None:
    """Ask before the network is loaded whether everything can be written. Raises UserError."""
    output, mask = arguments.output, arguments.mask
    taken = {Path(arguments.source).resolve(): "the source"}
    for option, path in (("--output", output), ("--mask", mask), ("--json", arguments.json)):
        if path is not None:
            if (other := taken.setdefault(path.resolve(), option)) != option:
                raise UserError(f"{option} {path}: expected a place of its own, received that of {other}; name another")
    if mask is not None and mask.suffix.lower() in PICTURES:
        raise UserError(f"--mask {mask}: expected a folder, with a mask for every picture of {source.name}, received "
                        "the name of one picture")
    if arguments.json:
        check_writable(arguments.json)
    if isinstance(source, Folder):
        _check_folder(arguments, source)
    if output is not None and (_writes_video(arguments) or not isinstance(source, Folder)):
        check_video(output, arguments.codec)


def _check_folder(arguments: argparse.Namespace, source: Folder) -> None:
    output = arguments.output
    if output is not None and not _writes_video(arguments):
        if output.suffix.lower() in PICTURES:
            raise UserError(f"--output {output}: expected a folder or a video ({', '.join(CODECS)}), because the "
                            f"source {source.name} is a folder, received the name of one picture")
        written = {Path(name).suffix: name for name in reversed(source.names)}
        for suffix, name in written.items():
            if not (cv2.haveImageWriter(name) and cv2.imencode(suffix, np.zeros((64, 64, 3), np.uint8))[0]):
                raise UserError(f"cannot write {output / name}: this OpenCV reads {suffix} and does not write it in "
                                "colour; write a video instead: -o out.mp4")
    if arguments.mask is not None:
        names: dict[str, str] = {}
        for name in source.names:
            if (other := names.setdefault(_mask_name(name, 0), name)) != name:
                raise UserError(f"--mask {arguments.mask}: {other} and {name} would have the same mask file "
                                f"{_mask_name(name, 0)}; rename one of them")
