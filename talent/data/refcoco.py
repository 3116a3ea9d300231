"""RefCOCO, RefCOCO+ and RefCOCOg from the published files as they are: refs(...).p, instances.json, COCO's pictures."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from talent.data.annotations import decode_mask
from talent.data.refs_pickle import load_refs
from talent.data.registry import REFCOCO
from talent.data.sample import Sample
from talent.errors import UserError, suggest
from talent.image import read_image


@dataclass(frozen=True)
class Published:
    """Where a data set lies, relative to the root, and the splits that its refs have."""

    folder: str
    refs: str
    splits: tuple[str, ...]


PUBLISHED = {
    "refcoco": Published("refcoco", "refs(unc).p", ("train", "val", "testA", "testB")),
    "refcoco+": Published("refcoco+", "refs(unc).p", ("train", "val", "testA", "testB")),
    "refcocog": Published("refcocog", "refs(umd).p", ("train", "val", "test")),
    "refcocog-google": Published("refcocog", "refs(google).p", ("train", "val")),  # its test split is not published
}
# COCO's own zip unpacked in the root or in images/, and the layout of the REFER repository.
PICTURES = ("train2014", "images/train2014", "images/mscoco/images/train2014")

# Refs and their sentences in each split. Refs: TensorFlow Datasets' catalogue, "ref_coco". Sentences: of RefCOCO,
# FlagEval's page on it; of RefCOCO+, val and the tests from Huntersxsx/RIS-Learning-List, train what is left of the
# paper's 141,564 (arXiv 1608.00272); of RefCOCOg's test, the authors of the umd split
# (varun-nagaraja/referring-expressions, issue 2). None where no source was found.
SIZES = {
    ("refcoco", "train"): (42404, 120624), ("refcoco", "val"): (3811, 10834),
    ("refcoco", "testA"): (1975, 5657), ("refcoco", "testB"): (1810, 5095),
    ("refcoco+", "train"): (42278, 120191), ("refcoco+", "val"): (3805, 10758),
    ("refcoco+", "testA"): (1975, 5726), ("refcoco+", "testB"): (1798, 4889),
    ("refcocog", "train"): (42226, None), ("refcocog", "val"): (2573, None), ("refcocog", "test"): (5023, 9602),
    ("refcocog-google", "train"): (44822, None), ("refcocog-google", "val"): (5000, None),
}


@dataclass(frozen=True)
class _Picture:
    id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class _Thing:
    """An annotation. segmentation: JSON, which takes a fifth of the memory of Python's lists of numbers."""

    id: int
    image_id: int
    category_id: int
    crowd: bool
    segmentation: bytes


@dataclass(frozen=True)
class _Ref:
    ref_id: int
    thing: _Thing
    expressions: tuple[str, ...]


class RefCocoDataset:
    """One split of a data set of talent.data.registry.REFCOCO; a sample is a ref, that is an object.

    root: the folder with refcoco/, refcoco+/, refcocog/ (those that are asked for) and the pictures. expressions: the
    ref's sentences without repetitions. negatives: sentences of the split's other objects in the picture, without those
    that are said of the target too. others: masks of all objects of the target's category, referred to or not, without
    crowds. Pictures are read, and masks decoded, when a sample is asked for.
    Raises UserError for an unknown name or split, and for missing or broken files, which it names. Warns where the
    split has not the published size.
    """

    def __init__(self, root: str | Path, *, name: str, split: str) -> None:
        if name not in PUBLISHED:
            raise UserError(f"unknown data set {name!r}{suggest(name, REFCOCO)}")
        published = PUBLISHED[name]
        if split not in published.splits:
            raise UserError(f"{name} has the splits {', '.join(published.splits)}, received {split!r}"
                            f"{suggest(split, published.splits)}")
        self.name, self.split = name, split
        root = Path(root)
        refs_file = _existing(root, f"{published.folder}/{published.refs}", name)
        instances_file = _existing(root, f"{published.folder}/instances.json", name)
        self.pictures_folder = _pictures_folder(root, name)

        refs = [ref for ref in load_refs(refs_file) if ref["split"] == split]
        if not refs:
            raise UserError(f"{refs_file} has no ref of the split {split!r}; download it again")
        _compare_sizes(name, split, refs)
        self._pictures, things = _read_instances(instances_file, {ref["image_id"] for ref in refs})
        self._refs: list[_Ref] = []
        for ref in refs:
            where = f"{name} {split} ref {ref['ref_id']}"
            if ref["ann_id"] not in things or ref["image_id"] not in self._pictures:
                raise UserError(f"{where}: {instances_file} has no annotation {ref['ann_id']} in a picture "
                                f"{ref['image_id']}; it and {refs_file.name} must come from the same download")
            expressions = _expressions(ref["sentences"])
            if expressions:
                self._refs.append(_Ref(ref["ref_id"], things[ref["ann_id"]], expressions))
            else:
                warnings.warn(f"{where} is left out: it has no words", stacklevel=2)

        self._refs_in: dict[int, list[_Ref]] = defaultdict(list)
        for ref in self._refs:
            self._refs_in[ref.thing.image_id].append(ref)
        meant = {(ref.thing.image_id, ref.thing.category_id) for ref in self._refs}
        self._like: dict[tuple[int, int], list[_Thing]] = defaultdict(list)  # (picture, category) -> objects
        for thing in things.values():
            if (thing.image_id, thing.category_id) in meant and not thing.crowd and thing.segmentation != b"[]":
                self._like[thing.image_id, thing.category_id].append(thing)

    @property
    def expression_count(self) -> int:
        """Sentences in all samples together."""
        return sum(len(ref.expressions) for ref in self._refs)

    @property
    def picture_count(self) -> int:
        """Pictures that samples show."""
        return len(self._refs_in)

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, index: int) -> Sample:
        """The sample of this index (0 <= index < len). Raises UserError where the picture or a mask cannot be had."""
        if not 0 <= index < len(self._refs):
            raise IndexError(f"index {index} is outside 0..{len(self._refs) - 1}")
        ref = self._refs[index]
        where = f"{self.name} {self.split} ref {ref.ref_id}"
        try:
            picture = self._pictures[ref.thing.image_id]
            image = self._read_picture(picture)
            target, *others = (decode_mask(json.loads(thing.segmentation), picture.height, picture.width)
                               for thing in (ref.thing, *self._others(ref.thing)))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return Sample(image=image, mask=target, expressions=ref.expressions, negatives=self._negatives(ref),
                      others=tuple(others), name=where)

    def _read_picture(self, picture: _Picture) -> np.ndarray:
        path = self.pictures_folder / picture.file_name
        image = read_image(path)
        if image.shape[:2] != (picture.height, picture.width):
            raise UserError(f"expected a picture of {picture.width} x {picture.height} pixels, as instances.json says, "
                            f"received {image.shape[1]} x {image.shape[0]}: {path}; the masks fit only the pictures "
                            "as COCO publishes them")
        return image

    def _others(self, target: _Thing) -> list[_Thing]:
        return [thing for thing in self._like[target.image_id, target.category_id] if thing.id != target.id]

    def _negatives(self, ref: _Ref) -> tuple[str, ...]:
        own = {text.casefold() for text in ref.expressions}
        said = (text for other in self._refs_in[ref.thing.image_id] if other.thing.id != ref.thing.id
                for text in other.expressions)
        return tuple(dict.fromkeys(text for text in said if text.casefold() not in own))


def _contents(root: Path, name: str) -> str:
    published = PUBLISHED[name]
    return (f"{root} should hold {published.folder}/{published.refs}, {published.folder}/instances.json and COCO's "
            f"pictures in {PICTURES[0]}/ or {PICTURES[1]}/; docs/data.md says where they come from")


def _existing(root: Path, file: str, name: str) -> Path:
    if not (root / file).is_file():
        raise UserError(f"{name} needs the file {root / file}, which does not exist; {_contents(root, name)}")
    return root / file


def _pictures_folder(root: Path, name: str) -> Path:
    for folder in PICTURES:
        if (root / folder).is_dir():
            return root / folder
    raise UserError(f"{name} needs the folder {root / PICTURES[0]}, which does not exist; {_contents(root, name)}")


def _compare_sizes(name: str, split: str, refs: list[dict]) -> None:
    """Warn where the split is not as large as the published one."""
    refs_expected, sentences_expected = SIZES[name, split]
    sentences = sum(len(ref["sentences"]) for ref in refs)
    if len(refs) != refs_expected or sentences_expected not in (sentences, None):
        expected = f"{refs_expected} refs" + (f" and {sentences_expected} sentences" if sentences_expected else "")
        warnings.warn(f"{name} {split}: expected {expected}, as published, received {len(refs)} refs and {sentences} "
                      "sentences; results do not compare with published ones", stacklevel=3)


def _expressions(sentences: Iterable[dict]) -> tuple[str, ...]:
    texts = ((sentence["sent"].strip() or sentence["raw"].strip()) for sentence in sentences)
    return tuple(dict.fromkeys(text for text in texts if text))


def _read_instances(path: Path, image_ids: set[int]) -> tuple[dict[int, _Picture], dict[int, _Thing]]:
    """The pictures and the annotations by id, of these pictures only: the rest is dropped while the file is parsed."""

    def keep(item: dict) -> object:
        if "segmentation" in item:
            return _thing(item) if item["image_id"] in image_ids else None
        if "file_name" in item:
            return _picture(item) if item["id"] in image_ids else None
        return item

    try:
        content = json.loads(path.read_bytes(), object_hook=keep)
        return _by_id(content["images"], _Picture), _by_id(content["annotations"], _Thing)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except KeyError as error:
        raise UserError(f"{path}: expected COCO's instances (images with id, file_name, height, width; annotations "
                        f"with id, image_id, category_id, segmentation), missing {error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: expected COCO's instances as JSON ({' '.join(str(error).split())}); download it "
                        "again") from error


def _by_id(items: Iterable, kind: type) -> dict:
    """What `keep` made of a list of the file. Raises KeyError for items that lack what tells their kind."""
    kept = [item for item in items if item is not None]
    if not all(isinstance(item, kind) for item in kept):
        raise KeyError("segmentation" if kind is _Thing else "file_name")
    return {item.id: item for item in kept}


def _picture(item: dict) -> _Picture:
    return _Picture(item["id"], str(item["file_name"]), int(item["height"]), int(item["width"]))


def _thing(item: dict) -> _Thing:
    shape = item["segmentation"]
    if isinstance(shape, list):  # COCO has a few polygons of two corners, which cover nothing; Detectron skips them too
        shape = [polygon for polygon in shape if len(polygon) >= 6]
    return _Thing(item["id"], item["image_id"], item["category_id"], bool(item.get("iscrowd", 0)),
                  json.dumps(shape).encode())
