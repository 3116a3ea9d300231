"""The procedural scenes: repeatable, disjoint between splits, and every sentence true of exactly one thing.

Sentences are read back by a small grammar of this file's own, and judged by the places measured in the masks.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter

import numpy as np
import pytest

from talent.data.contact_sheet import contact_sheet
from talent.data.sample import Sample
from talent.data.scene import REACH, contours, coverage
from talent.data.shapes import BACKDROPS, SPLITS, Scene, ShapesDataset
from talent.data.wording import KINDS
from talent.errors import UserError

DOMAINS = ("source", "shifted")
SIZES = {"small": False, "tiny": False, "big": True, "large": True}
TEXTURES = {"plain": "plain", "solid": "plain", "striped": "striped", "banded": "striped", "dotted": "dotted",
            "spotted": "dotted"}
COLOURS = set("red orange yellow green blue purple white black crimson teal navy lime magenta tan".split())
SHAPES = set("circle square triangle star ring cross disc box heart crescent arrow diamond".split())
ONE, OTHER = r"(?P<one>(?:\w+ )*?\w+)", r"(?P<other>(?:\w+ )*?\w+)"
# meaning -> what it sounds like; relations first, since "circle left of the star" also begins like a position
GRAMMAR = [
    (("relation", "left"), rf"{ONE} (?:left of|to the left of|on the left side of) the {OTHER}"),
    (("relation", "right"), rf"{ONE} (?:right of|to the right of|on the right side of) the {OTHER}"),
    (("relation", "top"), rf"{ONE} (?:above|higher than) the {OTHER}"),
    (("relation", "bottom"), rf"{ONE} (?:below|under|beneath|lower than) the {OTHER}"),
    (("position", "left"), rf"{ONE} (?:on the left|at the left side|furthest to the left|nearest the left edge)"),
    (("position", "left"), rf"(?:leftmost|left) {ONE}"),
    (("position", "right"), rf"{ONE} (?:on the right|at the right side|furthest to the right|nearest the right edge)"),
    (("position", "right"), rf"(?:rightmost|right) {ONE}"),
    (("position", "top"), rf"{ONE} (?:at the top|nearest the upper edge)"),
    (("position", "top"), rf"(?:topmost|top|uppermost) {ONE}"),
    (("position", "bottom"), rf"{ONE} (?:at the bottom|nearest the lower edge)"),
    (("position", "bottom"), rf"(?:bottommost|bottom|lowermost) {ONE}"),
    (("position", "middle"), rf"{ONE} (?:in the middle|in the center|closest to the centre)"),
    (("position", "middle"), rf"central {ONE}"),
    (("superlative", "big"), rf"(?:biggest|largest) {ONE}|(?P<one2>[\w ]+) that is (?:biggest|largest)"),
    (("superlative", "small"), rf"(?:smallest|tiniest) {ONE}|(?P<one2>[\w ]+) that is (?:smallest|tiniest)"),
    (("attribute", ""), ONE),
]


def fitting(phrase: str, things: list) -> list[int]:
    """The numbers of the things that a noun phrase describes."""
    *adjectives, noun = phrase.split()
    assert noun in SHAPES, phrase
    found = [number for number, thing in enumerate(things) if thing.shape == noun]
    for word in adjectives:
        assert word in COLOURS or word in SIZES or word in TEXTURES, phrase
        found = [number for number in found if things[number].colour == word
                 or (word in SIZES and things[number].big == SIZES[word])
                 or (word in TEXTURES and things[number].texture == TEXTURES[word])]
    return found


def meant(text: str, things: list) -> tuple[str, list[int]]:
    """The kind of a sentence and the numbers of all things that it is true of."""
    text = re.sub(r"^(?:find the|pick up the|grab the|the) ", "", text)
    readings = [(rule, match) for rule, pattern in GRAMMAR if (match := re.fullmatch(pattern, text))]
    assert readings, f"not in the grammar: {text!r}"
    (kind, which), match = readings[0]
    words = match.groupdict()
    found = fitting(words["one"] or words["one2"], things)
    along = {"left": lambda thing: -thing.x, "right": lambda thing: thing.x, "top": lambda thing: -thing.y,
             "bottom": lambda thing: thing.y, "big": lambda thing: math.log(thing.radius),
             "small": lambda thing: -math.log(thing.radius),
             "middle": lambda thing: -max(abs(thing.x - 0.5), abs(thing.y - 0.5))}.get(which)
    if kind == "relation":
        others = fitting(words["other"], things)
        assert len(others) == 1, f"{text!r} is related to {len(others)} things"
        return kind, [number for number in found if along(things[number]) > along(things[others[0]])]
    if kind in ("position", "superlative"):
        assert len(found) >= 2, f"{text!r} compares nothing"
        scores = [along(things[number]) for number in found]
        tie = 0.02 if kind == "position" else 0.2
        return kind, [number for number, score in zip(found, scores, strict=True) if score > max(scores) - tie]
    return kind, found


def measured(scene: Scene, sample: Sample) -> list:
    """The scene's things, those of the target's category with the place that their masks have."""
    things = list(scene.things)
    category = things[scene.target].shape
    rest = [number for number, thing in enumerate(things) if thing.shape == category and number != scene.target]
    assert len(rest) == len(sample.others)
    for number, mask in zip([scene.target, *rest], [sample.mask, *sample.others], strict=True):
        y, x = np.argwhere(mask).mean(0) / len(mask)
        things[number] = dataclasses.replace(things[number], x=x, y=y)
    return things


def dataset(**changed) -> ShapesDataset:
    return ShapesDataset(**{"split": "train", "length": 400, **changed})


def same(one: Sample, other: Sample) -> bool:
    return (np.array_equal(one.image, other.image) and np.array_equal(one.mask, other.mask)
            and one.expressions == other.expressions and one.negatives == other.negatives
            and len(one.others) == len(other.others) and all(map(np.array_equal, one.others, other.others)))


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_same_index_gives_the_same_sample(domain):
    first, second = dataset(domain=domain), dataset(domain=domain, length=9)
    for index in (7, 0, 7, 3):
        assert same(first[index], second[index])
    assert not np.array_equal(first[0].image, first[1].image)
    assert not np.array_equal(first[0].image, dataset(domain=domain, seed=1)[0].image)


def test_splits_and_domains_are_disjoint():
    images = [dataset(domain=domain, split=split, size=64)[index].image.tobytes()
              for domain in DOMAINS for split in SPLITS for index in range(50)]
    assert len(set(images)) == len(images)
    scenes = [dataset(domain=domain, split=split).scene(index).things
              for domain in DOMAINS for split in SPLITS for index in range(50)]
    assert len(set(scenes)) == len(scenes)
    for (domain, split), backdrops in BACKDROPS.items():
        for (other_domain, other_split), others in BACKDROPS.items():
            if (domain, split) != (other_domain, other_split):
                assert not any(_overlap(one, other) for one in backdrops for other in others), (domain, split)


def _overlap(one, other) -> bool:
    left, top = max(one.region[0], other.region[0]), max(one.region[1], other.region[1])
    right, bottom = min(one.region[2], other.region[2]), min(one.region[3], other.region[3])
    return one.photo == other.photo and left < right and top < bottom


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_sentence_is_true_of_exactly_one_thing(domain, split):
    data = dataset(domain=domain, split=split)
    for index in range(120):
        scene, sample = data.scene(index), data[index]
        assert sample.expressions == scene.expressions
        things = measured(scene, sample)
        for text, kind in zip(scene.expressions, scene.kinds, strict=True):
            assert meant(text, things) == (kind, [scene.target]), (index, text)
        for text in scene.negatives:
            _, found = meant(text, scene.things)
            assert len(found) == 1 and found != [scene.target], (index, text)
        for text in scene.expressions + scene.negatives:
            assert text == text.lower() and len(text.split()) <= 12


@pytest.mark.parametrize("size", [224, 448])
@pytest.mark.parametrize("domain", DOMAINS)
def test_samples_are_whole(domain, size):
    data = dataset(domain=domain, size=size)
    for index in range(30):
        sample, scene = data[index], data.scene(index)
        assert sample.image.shape == (size, size, 3) and sample.image.dtype == np.uint8
        assert len(set(sample.expressions)) == len(sample.expressions) >= 2
        assert 1 <= len(sample.negatives) <= 3 and 3 <= len(scene.things) <= 6
        assert len(sample.others) >= 1
        masks = [sample.mask, *sample.others]
        assert all(mask.shape == (size, size) and mask.dtype == bool and mask.any() for mask in masks)
        assert np.sum(masks, axis=0).max() == 1, "masks of two things share a pixel"
        target = scene.things[scene.target]
        whole = (coverage(target, size)[0] >= 128).sum()
        assert 0.6 * whole <= sample.mask.sum() <= whole
        if target.texture == "plain":
            assert np.abs(np.median(sample.image[sample.mask], axis=0) - target.rgb).max() < 90


@pytest.mark.parametrize("domain", DOMAINS)
def test_kinds_of_sentences_have_their_shares(domain):
    data = dataset(domain=domain)
    kinds = Counter(kind for index in range(400) for kind in data.scene(index).kinds)
    for kind, share in KINDS.items():
        assert kinds[kind] / kinds.total() == pytest.approx(share, abs=0.06), kind


def test_a_scene_does_not_depend_on_the_size():
    small, large = dataset(size=112)[5], dataset(size=448)[5]
    assert small.expressions == large.expressions
    np.testing.assert_allclose(np.argwhere(small.mask).mean(0) / 112, np.argwhere(large.mask).mean(0) / 448, atol=0.01)


def test_the_shifted_domain_has_words_of_its_own():
    words = {domain: Counter(" ".join(text for index in range(200)
                                      for text in dataset(domain=domain).scene(index).expressions).split())
             for domain in DOMAINS}
    shared = {"the", "left", "right", "to", "on", "side", "of", "that", "is"}
    assert words["source"].keys() & words["shifted"].keys() <= shared
    assert len(words["shifted"].keys() & COLOURS) == 6 and len(words["shifted"].keys() & SHAPES) == 6


@pytest.mark.parametrize("outline", REACH)
def test_outlines_are_centred_and_of_one_reach(outline):
    points = contours(outline)[0]
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1)
    following = np.roll(points, -1, 0)
    cross = points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]
    np.testing.assert_allclose(((points + following) * cross[:, None]).sum(0), 0, atol=1e-9)


def test_bad_input_is_explained():
    with pytest.raises(UserError, match="did you mean 'train'"):
        dataset(split="trian")
    with pytest.raises(UserError, match="did you mean 'shifted'"):
        dataset(domain="shift")
    for changed in ({"size": 8}, {"length": 0}, {"seed": -1}):
        with pytest.raises(UserError, match=f"{next(iter(changed))} must be at least"):
            dataset(**changed)
    with pytest.raises(IndexError):
        dataset(length=3)[3]
    assert len(list(dataset(length=3, size=64))) == 3


def test_contact_sheet_shows_outline_and_sentence():
    data = dataset(size=96)
    sample = dataclasses.replace(data[0], expressions=("the " + "very " * 12 + "long words",))
    sheet = contact_sheet([sample, data[1], data[2]], columns=2)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3 and sheet.shape[0] > 2 * 240
    outlined = (sheet[..., :2].min(-1) > 200) & (sheet[..., 2] < 80)  # none of these scenes has anything yellow
    assert outlined[:240, :240].sum() > 50
    wide = contact_sheet([dataclasses.replace(sample, image=sample.image[:40], mask=sample.mask[:40])])
    assert wide.shape[1] < 300
    assert not np.array_equal(sheet, contact_sheet([data[0], data[1], data[2]], columns=2))
    with pytest.raises(ValueError, match="at least one sample"):
        contact_sheet([])
