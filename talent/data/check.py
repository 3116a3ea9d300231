"""talent-data: a look at a data set before training on it: what is wrong, how much there is, a contact sheet."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from talent.config import PRESETS
from talent.data.contact_sheet import contact_sheet
from talent.data.jsonl import Line, load, read_lines
from talent.data.refcoco import PUBLISHED, RefCocoDataset
from talent.data.registry import REFCOCO, check_name
from talent.data.sample import Sample
from talent.errors import EXIT_BAD_INPUT, UserError, command, suggest
from talent.image import check_image_path, save_image
from talent.tokenizer import Tokenizer, build_clip_tokenizer

TOKENS = PRESETS["base"].context_length
LONGEST = PRESETS["base"].text_positions  # tokens that are counted at all
SPLITS = ("train", "val", "test", "testA", "testB")


@dataclass
class Counted:
    """What there is of one split."""

    samples: int = 0
    pictures: int = 0
    expressions: int = 0


@dataclass
class Report:
    """errors, warnings: what was found, each with its place. splits: what is there. good: calls that make the samples
    without errors, in order.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    splits: dict[str, Counted] = field(default_factory=lambda: defaultdict(Counted))
    good: list[Callable[[], Sample]] = field(default_factory=list)


def check_jsonl(path: str | Path, *, split: str | None = None) -> Report:
    """Read every line, picture and mask of a .jsonl file (of one split, if it is given).

    Raises UserError when there is no such file, or no line of that split.
    """
    lines, problems = read_lines(path)
    report = Report(errors=problems)
    if split is not None:
        known = {line.split for line in lines}
        lines = [line for line in lines if line.split == split]
        if not lines:
            raise UserError(f"{path}: no line has the split {split!r}{suggest(split, known)}")
    together: dict[tuple[str, str], list[Line]] = defaultdict(list)  # (split, picture) -> lines
    for line in lines:
        together[line.split, line.image].append(line)
        counted = report.splits[line.split]
        counted.samples += 1
        counted.expressions += len(line.expressions)
    for name, _ in together:
        report.splits[name].pictures += 1
    report.warnings += _split_warnings(report.splits, together, path) if split is None else []

    tokenizer = build_clip_tokenizer(context_length=LONGEST)
    sizes: dict[str, tuple[int, int] | str] = {}
    for line in tqdm(lines, desc="check", unit="line", leave=False, disable=None):
        if line.image not in sizes:
            sizes[line.image] = _size(line)
        same_picture = together[line.split, line.image]
        errors = [*_mask_errors(line, sizes[line.image], report), *_word_errors(line, tokenizer, report)]
        report.warnings += _clashes(line, same_picture)
        report.errors += errors
        if not errors:
            report.good.append(partial(load, line, same_picture))
    for messages in (report.errors, report.warnings):
        messages.sort(key=lambda message: _line_number(message, path))
    return report


def check_refcoco(root: str | Path, *, name: str, split: str | None = None) -> Report:
    """Read every ref, picture and mask of a published data set (of one split, if it is given).

    Raises UserError when its files are missing or cannot be read at all.
    """
    report = Report()
    tokenizer = build_clip_tokenizer(context_length=LONGEST)
    for part in (split,) if split else PUBLISHED[name].splits:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", UserWarning)
            samples = RefCocoDataset(root, name=name, split=part)
        report.warnings += [f"warning: {warning.message}" for warning in found]
        report.splits[part] = Counted(len(samples), samples.picture_count, samples.expression_count)
        too_long = 0
        for index in tqdm(range(len(samples)), desc=f"check {part}", unit="ref", leave=False, disable=None):
            try:
                sample = samples[index]
            except UserError as error:
                report.errors.append(str(error))
                continue
            if not sample.mask.any():
                report.errors.append(f"{sample.name}: the mask is empty")
                continue
            too_long += sum(_tokens(text, tokenizer) > TOKENS for text in sample.expressions)
            report.good.append(partial(samples.__getitem__, index))
        if too_long:
            report.warnings.append(f"warning: {too_long} expressions of {part} have more than {TOKENS} tokens; base "
                                   "cuts the rest")
    return report


def _line_number(message: str, path: str | Path) -> int:
    """The line that a message is about, 0 where it is about the whole file."""
    number = message.removeprefix(f"{Path(path)}:").partition(":")[0]
    return int(number) if number.isdecimal() else 0


def _size(line: Line) -> tuple[int, int] | str:
    """(height, width) of a line's picture, or why it cannot be read."""
    try:
        return line.read_image().shape[:2]
    except UserError as error:
        return str(error).removeprefix(f"{line.where}: ")


def _mask_errors(line: Line, size: tuple[int, int] | str, report: Report) -> list[str]:
    """What is wrong with the picture and the masks of a line."""
    errors = []
    if isinstance(size, str):
        errors.append(f"{line.where}: {size}")
        size = None
    for number, mask in enumerate((line.mask, *line.others)):
        what = "the mask" if number == 0 else f"mask {number} of 'others'"
        try:
            pixels = line.read_mask(mask, size)
        except UserError as error:
            errors.append(str(error))
            continue
        if pixels is not None and not pixels.any():
            hint = "" if isinstance(mask, str) else "; corners are in pixels of the picture"
            errors.append(f"{line.where}: {what} is empty{hint}")
        elif pixels is not None and pixels.all():
            report.warnings.append(f"{line.where}: warning: {what} covers the whole picture; the background must be 0")
    return errors


def _word_errors(line: Line, tokenizer: Tokenizer, report: Report) -> list[str]:
    """What is wrong with the sentences of a line; those that will be cut are warnings."""
    errors = []
    for text in line.expressions:
        try:
            tokens = _tokens(text, tokenizer)
        except UserError as error:
            errors.append(f"{line.where}: {error}")
            continue
        if tokens > TOKENS:
            report.warnings.append(f"{line.where}: warning: {text[:60]!r} has {'more than ' * (tokens == LONGEST)}"
                                   f"{tokens} tokens; base reads {TOKENS} and cuts the rest")
    return errors


def _tokens(text: str, tokenizer: Tokenizer) -> int:
    return int(np.argmax(tokenizer(text)[0] == tokenizer.end_id)) + 1


def _clashes(line: Line, same_picture: list[Line]) -> list[str]:
    """Warnings about earlier lines of the same picture and split."""
    found = []
    own = {text.casefold() for text in line.expressions}
    for other in same_picture[:same_picture.index(line)]:
        number = other.where.rpartition(":")[2]
        if other.mask == line.mask:
            found.append(f"{line.where}: warning: the same object as line {number}; write its sentences into one line, "
                         "as \"expressions\"")
            continue
        for text in other.expressions:
            if text.casefold() in own:
                found.append(f"{line.where}: warning: {text!r} is ambiguous: line {number} means another object by it")
    return found


def _split_warnings(splits: dict[str, Counted], together: dict[tuple[str, str], list[Line]],
                    path: str | Path) -> list[str]:
    """Warnings about splits that are missing, unknown, out of proportion or not apart."""
    found = []
    for name in splits:
        if name not in SPLITS:
            found.append(f"{path}: warning: unusual split {name!r}{suggest(name, SPLITS)}")
    for name, use in (("train", "talent-train learns from it"), ("val", "talent-train chooses the best weights by it")):
        if name not in splits:
            found.append(f"{path}: warning: no line has the split {name!r}; {use}")
    if "train" in splits and "val" in splits and splits["train"].pictures < splits["val"].pictures:
        found.append(f"{path}: warning: train has fewer pictures ({splits['train'].pictures}) than val "
                     f"({splits['val'].pictures})")
    first: dict[str, Line] = {}
    for (name, image), lines in together.items():
        other = first.setdefault(image, lines[0])
        if other.split != name:
            found.append(f"{lines[0].where}: warning: {image} is in {name} here and in {other.split} in line "
                         f"{other.where.rpartition(':')[2]}; a picture that was trained on tests nothing")
    return found


def _evenly(good: list[Callable[[], Sample]], count: int) -> list[Sample]:
    """At most `count` samples at even distances."""
    count = min(count, len(good))
    return [good[number * len(good) // count]() for number in range(count)]


def _table(splits: dict[str, Counted]) -> str:
    rows = [("split", "samples", "pictures", "expressions")]
    rows += [(name, *map(str, (row.samples, row.pictures, row.expressions))) for name, row in splits.items()]
    first = max(len(row[0]) for row in rows)
    return "\n".join(f"{row[0]:{first}}{row[1]:>10}{row[2]:>10}{row[3]:>13}" for row in rows)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="talent-data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  talent-data check mine.jsonl --sheet mine.png")
    commands = result.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check", description="Read everything, say what is wrong (exit code 2 if anything is), count, draw.",
        help="say what is wrong, count, draw a contact sheet", formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  talent-data check mine.jsonl --sheet mine.png\n"
               "  talent-data check refcoco --data-root data --split val --sheet refcoco.png")
    check.add_argument("data", help=f"a .jsonl file of your own, or {', '.join(REFCOCO)}")
    check.add_argument("--data-root", type=Path, help="folder of RefCOCO's files (docs/data.md)")
    check.add_argument("--split", help="only this split (default: all)")
    check.add_argument("--sheet", type=Path, help="picture to draw samples into, such as sheet.png")
    check.add_argument("--samples", type=int, default=16, help="samples in the sheet (default: 16)")
    return result


@command("talent-data")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.samples < 1:
        raise UserError(f"--samples: expected at least 1, received {arguments.samples}")
    if arguments.sheet:
        check_image_path(arguments.sheet)
    check_name(arguments.data)
    if arguments.data in REFCOCO:
        if arguments.data_root is None:
            raise UserError(f"{arguments.data} needs the folder of its files: add --data-root DIR; docs/data.md says "
                            "what is in it")
        report = check_refcoco(arguments.data_root, name=arguments.data, split=arguments.split)
    elif arguments.data.endswith(".jsonl"):
        report = check_jsonl(arguments.data, split=arguments.split)
    else:
        raise UserError(f"{arguments.data} is drawn when it is used and has nothing to check; expected a .jsonl file "
                        f"or one of {', '.join(REFCOCO)}")

    for message in (*report.errors, *report.warnings):
        print(message)
    print(_table(report.splits))
    made = ""
    if arguments.sheet and report.good:
        samples = _evenly(report.good, arguments.samples)
        save_image(arguments.sheet, contact_sheet(samples, columns=4))
        made = f"; wrote {arguments.sheet} with {len(samples)} of them"
    elif arguments.sheet:
        made = f"; did not write {arguments.sheet}, since no sample is good"
    count = sum(row.samples for row in report.splits.values())
    print(f"checked {count} samples of {arguments.data}: {len(report.errors)} errors, {len(report.warnings)} "
          f"warnings{made}")
    return EXIT_BAD_INPUT if report.errors else 0


if __name__ == "__main__":
    sys.exit(main())
