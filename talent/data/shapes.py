"""Procedural referring scenes: coloured shapes on photographs, with sentences that are true of exactly one of them.

They need no download (the photographs ship inside the scikit-image wheel), and every scene has at least two things of
the target's category, so that a model that reads only the noun lights up the wrong one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from talent.data.sample import Sample
from talent.data.scene import REACH, Backdrop, Thing, draw, visible_fractions
from talent.data.wording import KINDS, SHIFTED, SOURCE, Vocabulary, pick, sentence, weighted
from talent.errors import UserError, suggest

SPLITS = ("train", "val", "test")
VOCABULARIES = {"source": SOURCE, "shifted": SHIFTED}
_TOP, _BOTTOM_LEFT, _BOTTOM_RIGHT = (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0)
_TEXTURES = ("brick.png", "grass.png", "gravel.png")
# The splits of the source domain share no photograph, those of the shifted domain no part of one.
BACKDROPS = {
    ("source", "train"): tuple(map(Backdrop, ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png"))),
    ("source", "val"): (Backdrop("rocket.jpg"), Backdrop("ihc.png")),
    ("source", "test"): (Backdrop("camera.png"), Backdrop("retina.jpg", (0.15, 0.15, 0.85, 0.85))),
    ("shifted", "train"): tuple(Backdrop(name, _TOP) for name in _TEXTURES),
    ("shifted", "val"): tuple(Backdrop(name, _BOTTOM_LEFT) for name in _TEXTURES),
    ("shifted", "test"): tuple(Backdrop(name, _BOTTOM_RIGHT) for name in _TEXTURES),
}

SMALL, BIG = (16 / 224, 22 / 224), (30 / 224, 42 / 224)  # radii, in sides of the picture
CLOSEST = 0.82  # least distance of two centres, in the sum of their reaches: below 1 a thing may hide a part of another
VISIBLE = 0.65  # least visible part; the margin above 0.6 is for the coarse grid on which it is measured
ATTEMPTS = 20_000  # an attempt takes about 0.1 ms and most scenes need a few; running out means a broken vocabulary

# How a thing of the target's category differs from the target.
DISTRACTORS = (("colour", 0.5), ("size", 0.25), ("texture", 0.1), ("nothing", 0.15))


@dataclass(frozen=True)
class Scene:
    """What is in a picture, and what is said about it.

    things: from back to front. target: the index of the one that is meant. expressions: sentences that are true of the
    target only, with their kinds (attribute, position, relation, superlative). negatives: each true of one other thing.
    """

    things: tuple[Thing, ...]
    target: int
    expressions: tuple[str, ...]
    kinds: tuple[str, ...]
    negatives: tuple[str, ...]


class ShapesDataset:
    """`length` referring samples of size x size pixels, made when asked for: the same index gives the same sample.

    split: train, val or test; they differ in their random streams and in their backgrounds. domain: source, or shifted,
    which has other colours, shapes, words and backgrounds to adapt to. A scene does not depend on size or length.
    Raises UserError for an unknown split or domain, or a size, length or seed out of range.
    """

    def __init__(self, *, split: str, domain: str = "source", size: int = 224, length: int, seed: int = 0) -> None:
        if split not in SPLITS:
            raise UserError(f"split must be train, val or test, received {split!r}{suggest(split, SPLITS)}")
        if domain not in VOCABULARIES:
            raise UserError(f"domain must be source or shifted, received {domain!r}{suggest(domain, VOCABULARIES)}")
        for name, value, least in (("size", size, 64), ("length", length, 1), ("seed", seed, 0)):
            if value < least:
                raise UserError(f"{name} must be at least {least}, received {value}")
        self.split, self.domain, self.size, self.length, self.seed = split, domain, size, length, seed
        self._stream = (seed, list(VOCABULARIES).index(domain), SPLITS.index(split))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """The sample of this index (0 <= index < len)."""
        rng = self._generator(index)
        scene = _compose(rng, VOCABULARIES[self.domain])
        image, labels = draw(scene.things, backdrops=BACKDROPS[self.domain, self.split], size=self.size, rng=rng)
        category = scene.things[scene.target].shape
        return Sample(image=image, mask=labels == scene.target + 1, expressions=scene.expressions,
                      negatives=scene.negatives,
                      others=tuple(labels == number + 1 for number, thing in enumerate(scene.things)
                                   if thing.shape == category and number != scene.target))

    def scene(self, index: int) -> Scene:
        """What `self[index]` shows, as words and numbers."""
        return _compose(self._generator(index), VOCABULARIES[self.domain])

    def _generator(self, index: int) -> np.random.Generator:
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is outside 0..{self.length - 1}")
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence((*self._stream, int(index)))))


def _compose(rng: np.random.Generator, vocabulary: Vocabulary) -> Scene:
    """A scene with expressions of kinds drawn beforehand, so that hard kinds are not rarer than KINDS says."""
    kinds = tuple(weighted(list(KINDS.items()), rng) for _ in range(2 + int(rng.random() * 2)))
    for _ in range(ATTEMPTS):
        things = _arrange(rng, vocabulary)
        if things is None:
            continue
        target = things[0]
        said = _expressions(kinds, target, things, vocabulary, rng)
        if said is None:
            continue
        order = [things[number] for number in rng.permutation(len(things))]
        if _touching(order) and min(visible_fractions(order)) < VISIBLE:
            continue
        negatives = _negatives(target, things, vocabulary, rng)
        if negatives:
            number = next(number for number, thing in enumerate(order) if thing is target)
            return Scene(things=tuple(order), target=number, expressions=said, kinds=kinds, negatives=negatives)
    raise RuntimeError(f"no scene has sentences of the kinds {kinds} in {ATTEMPTS} attempts")


def _arrange(rng: np.random.Generator, vocabulary: Vocabulary) -> list[Thing] | None:
    """3 to 6 things that leave each other room; the target is the first. None where they do not fit."""
    colours, shapes = list(vocabulary.colours), list(vocabulary.shapes)
    count = 3 + int(rng.random() * 4)
    same = min(2 + int(rng.random() * 3), count)
    shape, colour, big, texture = pick(shapes, rng), pick(colours, rng), rng.random() < 0.5, _texture(rng)
    things = [_place(shape, colour, big, texture, [], vocabulary, rng)]
    elsewhere = [word for word in shapes if word != shape]
    for number in range(1, count):
        if number < same:
            differs = weighted(DISTRACTORS, rng)
            words = (shape,
                     pick([word for word in colours if word != colour], rng) if differs == "colour" else colour,
                     not big if differs == "size" or (differs == "colour" and rng.random() < 0.4) else big,
                     _texture(rng) if differs in ("colour", "texture") else texture)
        else:
            words = (pick(elsewhere, rng), colour if rng.random() < 0.35 else pick(colours, rng),
                     rng.random() < 0.4, _texture(rng))
        thing = _place(*words, things, vocabulary, rng)
        if thing is None:
            return None
        things.append(thing)
    return things


def _texture(rng: np.random.Generator) -> str:
    at = rng.random()
    return "plain" if at < 0.6 else "striped" if at < 0.8 else "dotted"


def _place(shape: str, colour: str, big: bool, texture: str, placed: list[Thing], vocabulary: Vocabulary,
           rng: np.random.Generator) -> Thing | None:
    """A thing within the picture that keeps its distance from those placed; None where 12 tries found no place."""
    outline = vocabulary.shapes[shape]
    least, most = BIG if big else SMALL
    radius = least + (most - least) * rng.random()
    turn = (rng.random() - 0.5) * math.pi / 6
    reach = radius * REACH[outline]
    edge = reach + 0.005
    for _ in range(12):
        x, y = edge + (1 - 2 * edge) * rng.random(), edge + (1 - 2 * edge) * rng.random()
        if all(math.hypot(x - other.x, y - other.y) >= CLOSEST * (reach + other.reach) for other in placed):
            return Thing(shape=shape, colour=colour, texture=texture, big=big, outline=outline,
                         rgb=vocabulary.colours[colour], x=x, y=y, radius=radius, turn=turn)
    return None


def _touching(things: list[Thing]) -> bool:
    return any(math.hypot(one.x - other.x, one.y - other.y) < one.reach + other.reach
               for number, one in enumerate(things) for other in things[:number])


def _expressions(kinds: tuple[str, ...], target: Thing, things: list[Thing], vocabulary: Vocabulary,
                 rng: np.random.Generator) -> tuple[str, ...] | None:
    """One sentence of each kind, all different; None where the target has none of a kind."""
    said: list[str] = []
    for kind in kinds:
        words = sentence(kind, target, things, vocabulary, rng)
        if words in said:
            words = sentence(kind, target, things, vocabulary, rng)  # another draw may say it otherwise
        if words is None or words in said:
            return None
        said.append(words)
    return tuple(pick(vocabulary.openings, rng) + words for words in said)


def _negatives(target: Thing, things: list[Thing], vocabulary: Vocabulary,
               rng: np.random.Generator) -> tuple[str, ...]:
    """Up to 3 sentences, each true of exactly one thing other than the target; the target's category goes first."""
    wanted = 1 + int(rng.random() * 3)
    others = [things[number] for number in rng.permutation(len(things)) if things[number] is not target]
    others.sort(key=lambda thing: thing.shape != target.shape)
    negatives: list[str] = []
    for thing in others:
        first = weighted(list(KINDS.items()), rng)
        for kind in (first, *(kind for kind in KINDS if kind != first)):
            words = sentence(kind, thing, things, vocabulary, rng)
            if words is not None:
                negatives.append(pick(vocabulary.openings, rng) + words)
                break
        if len(negatives) == wanted:
            break
    return tuple(negatives)
