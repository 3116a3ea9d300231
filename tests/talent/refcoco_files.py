"""RefCOCO's published files in small: pickles as Python 2 wrote them, instances.json and JPEGs of odd sizes."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pycocotools.mask as coco

from talent.image import save_image

SIZES = {1: (47, 61), 2: (52, 33), 3: (35, 35)}  # image id -> height, width


def python2_pickle(value: object, protocol: int) -> bytes:
    """Pickle as Python 2 did: bytes as its str, str as its unicode, an int beyond 31 bits as its long."""
    return (b"\x80\x02" if protocol == 2 else b"") + _opcodes(value, protocol) + b"."


def _opcodes(value: object, protocol: int) -> bytes:
    if isinstance(value, list):
        return b"(" + b"".join(_opcodes(item, protocol) for item in value) + b"l"
    if isinstance(value, dict):
        return b"(" + b"".join(_opcodes(item, protocol) for pair in value.items() for item in pair) + b"d"
    if isinstance(value, int):
        if abs(value) < 2**31:
            return f"I{value}\n".encode() if protocol == 0 else b"J" + struct.pack("<i", value)
        number = pickle.encode_long(value)
        return f"L{value}L\n".encode() if protocol == 0 else b"\x8a" + bytes([len(number)]) + number
    if isinstance(value, bytes):
        return b"S" + repr(value)[1:].encode() + b"\n" if protocol == 0 else b"U" + bytes([len(value)]) + value
    if protocol == 0:
        return b"V" + value.encode("raw-unicode-escape") + b"\n"
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def box(left: int, top: int, right: int, bottom: int) -> list[float]:
    """A polygon of whole pixels, right and bottom excluded."""
    return [left, top, right, top, right, bottom, left, bottom]


def rectangle(size: tuple[int, int], left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def compressed(mask: np.ndarray) -> dict:
    runs = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(runs["size"]), "counts": runs["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict:
    """Runs of 0, 1, 0, ... down the columns."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def ref(number: int, thing: dict, split: str, *sentences: str | bytes, raw: str | bytes = b"Raw") -> dict:
    """A ref with all the keys of a published one; its file_name has the suffix that theirs have."""
    return {b"ref_id": number, b"ann_id": thing["id"], b"image_id": thing["image_id"],
            b"category_id": thing["category_id"], b"split": split.encode(),
            b"file_name": b"COCO_train2014_%012d_%d.jpg" % (thing["image_id"], number),
            b"sent_ids": list(range(len(sentences))),
            b"sentences": [{b"sent": text, b"raw": raw, b"sent_id": place, b"tokens": text.split()}
                           for place, text in enumerate(sentences)]}


def things() -> dict[int, dict]:
    """The annotations by id."""
    crowd = uncompressed(rectangle(SIZES[1], 0, 40, 61, 47))
    shapes = {
        10: (1, 1, [box(5, 4, 20, 30)]),
        11: (1, 1, [box(30, 4, 40, 20), box(45, 4, 50, 20), [1, 1, 2, 2]]),
        12: (1, 1, crowd),
        13: (1, 2, compressed(rectangle(SIZES[1], 50, 25, 61, 33))),
        14: (1, 1, [[3, 3, 9, 9]]),
        20: (2, 2, uncompressed(rectangle(SIZES[2], 0, 0, 33, 9))),
        21: (2, 2, [box(3, 20, 30, 50)]),
        30: (3, 3, [box(1, 1, 9, 9)]),
        31: (3, 3, [box(20, 20, 33, 31)]),
    }
    return {number: {"id": number, "image_id": image, "category_id": category, "segmentation": shape,
                     "iscrowd": int(number in (12, 20)), "bbox": [0, 0, 1, 1], "area": 1.5}
            for number, (image, category, shape) in shapes.items()}


def refs_unc(thing: dict[int, dict]) -> list[dict]:
    return [
        ref(100, thing[10], "train", b"left man", b" man in blue ", b"left man"),
        ref(101, thing[11], "train", b"right man", b"Left Man", "homme à droite"),
        ref(102, thing[13], "train", b"", raw=b" The BAG "),
        ref(200, thing[20], "val", b"crowd at the top"),
        ref(201, thing[21], "testA", b"bag below"),
        ref(202, thing[21], "testB", b"bag below", b" "),
    ]


def refs_google(thing: dict[int, dict]) -> list[dict]:
    return [ref(300, thing[30], "train", b"upper left"), ref(301, thing[31], "val", b"lower right")]


def write_refcoco(root: Path, *, pictures: str = "train2014", protocol: int = 2) -> Path:
    """All four data sets below `root`."""
    thing = things()
    names = {image: f"COCO_train2014_{image:012d}.jpg" for image in SIZES}
    instances = {"info": {"year": 2014}, "licenses": [{"id": 1, "name": "a"}],
                 "images": [{"id": image, "file_name": names[image], "height": height, "width": width, "license": 1}
                            for image, (height, width) in SIZES.items()],
                 "annotations": list(thing.values()), "categories": [{"id": 1, "name": "person"}]}
    files = {"refcoco": {"unc": refs_unc(thing)}, "refcoco+": {"unc": refs_unc(thing)},
             "refcocog": {"umd": refs_unc(thing), "google": refs_google(thing)}}
    for folder, parts in files.items():
        (root / folder).mkdir(parents=True)
        (root / folder / "instances.json").write_text(json.dumps(instances))
        for part, refs in parts.items():
            (root / folder / f"refs({part}).p").write_bytes(python2_pickle(refs, protocol))
    (root / pictures).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for image, (height, width) in SIZES.items():
        save_image(root / pictures / names[image], rng.integers(0, 256, (height, width, 3), np.uint8))
    return root
