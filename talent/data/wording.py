"""The words of the procedural scenes: two vocabularies, and sentences that are true of exactly one thing of a scene.

A sentence is a noun phrase ("small striped blue square") alone or with a position, a superlative or a relation to
another thing. Those are only said where the other things that fit the noun phrase miss them by a margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from talent.data.scene import Thing

MAX_WORDS = 12
# Margins, in sides of the picture (radii for RATIO): what holds holds by APART, and fails for all others by CLEAR.
APART = 0.12
CLEAR = 0.08
MIDDLE, OFF_MIDDLE = 0.17, 0.3  # greatest distance from the centre along x or y, and the least for all others
RATIO = 1.3
KINDS = {"attribute": 0.45, "position": 0.30, "relation": 0.15, "superlative": 0.10}

# Which adjectives a noun phrase has, and how often it is chosen where it is true of one thing only.
ATTRIBUTES = ((("colour",), 4.0), (("size",), 2.0), (("texture",), 1.5), (("size", "colour"), 2.0),
              (("texture", "colour"), 1.5), (("size", "texture"), 0.5), (("size", "texture", "colour"), 0.5))
SHORT = (((), 3.0), (("colour",), 2.0), (("size",), 1.0), (("texture",), 0.5))
UNSIZED = (((), 3.0), (("colour",), 2.0))


@dataclass(frozen=True)
class Vocabulary:
    """The words of one domain. Templates hold {one} for the thing meant and {other} for the thing it is related to."""

    openings: tuple[str, ...]
    colours: dict[str, tuple[int, int, int]]
    shapes: dict[str, str]  # word -> outline of talent.data.scene
    sizes: tuple[str, str]  # words for small and for big
    textures: dict[str, str]
    positions: dict[str, tuple[str, ...]]
    superlatives: dict[str, tuple[str, ...]]
    relations: dict[str, tuple[str, ...]]


SOURCE = Vocabulary(
    openings=("the ", "the ", "the ", ""),
    colours={"red": (214, 36, 40), "orange": (245, 134, 16), "yellow": (248, 222, 40), "green": (40, 158, 58),
             "blue": (38, 82, 214), "purple": (132, 50, 172), "white": (244, 244, 240), "black": (24, 24, 26)},
    shapes={word: word for word in ("circle", "square", "triangle", "star", "ring", "cross")},
    sizes=("small", "big"),
    textures={"plain": "plain", "striped": "striped", "dotted": "dotted"},
    positions={"left": ("{one} on the left", "{one} at the left side", "leftmost {one}", "left {one}"),
               "right": ("{one} on the right", "{one} at the right side", "rightmost {one}", "right {one}"),
               "top": ("{one} at the top", "topmost {one}", "top {one}"),
               "bottom": ("{one} at the bottom", "bottommost {one}", "bottom {one}"),
               "middle": ("{one} in the middle", "{one} in the center")},
    superlatives={"big": ("biggest {one}", "{one} that is biggest"),
                  "small": ("smallest {one}", "{one} that is smallest")},
    relations={"left": ("{one} left of the {other}", "{one} to the left of the {other}"),
               "right": ("{one} right of the {other}", "{one} to the right of the {other}"),
               "top": ("{one} above the {other}",),
               "bottom": ("{one} below the {other}", "{one} under the {other}")},
)

SHIFTED = Vocabulary(
    openings=("find the ", "pick up the ", "grab the "),
    colours={"crimson": (158, 14, 48), "teal": (0, 134, 132), "navy": (18, 26, 104), "lime": (172, 240, 36),
             "magenta": (236, 34, 196), "tan": (212, 174, 128)},
    shapes={"disc": "circle", "box": "square", "heart": "heart", "crescent": "crescent", "arrow": "arrow",
            "diamond": "diamond"},
    sizes=("tiny", "large"),
    textures={"plain": "solid", "striped": "banded", "dotted": "spotted"},
    positions={"left": ("{one} furthest to the left", "{one} nearest the left edge"),
               "right": ("{one} furthest to the right", "{one} nearest the right edge"),
               "top": ("uppermost {one}", "{one} nearest the upper edge"),
               "bottom": ("lowermost {one}", "{one} nearest the lower edge"),
               "middle": ("central {one}", "{one} closest to the centre")},
    superlatives={"big": ("largest {one}", "{one} that is largest"),
                  "small": ("tiniest {one}", "{one} that is tiniest")},
    relations={"left": ("{one} on the left side of the {other}",),
               "right": ("{one} on the right side of the {other}",),
               "top": ("{one} higher than the {other}",),
               "bottom": ("{one} beneath the {other}", "{one} lower than the {other}")},
)


def sentence(kind: str, target: Thing, things: Sequence[Thing], vocabulary: Vocabulary,
             rng: np.random.Generator) -> str | None:
    """A random sentence of this kind that is true of `target` and of no other thing; None where there is none.

    It comes without one of the vocabulary's openings, which may go before any sentence and change nothing.
    """
    build = {"attribute": _attribute, "position": _position, "superlative": _superlative, "relation": _relation}[kind]
    words = build(target, things, vocabulary, rng)
    return words if words is not None and len(words.split()) <= MAX_WORDS - 3 else None  # an opening has 3 at most


def towards(direction: str, thing: Thing) -> float:
    """How far the thing lies to the left, right, top or bottom: 0 at the centre of the picture, 0.5 at its edge."""
    return {"left": 0.5 - thing.x, "right": thing.x - 0.5, "top": 0.5 - thing.y, "bottom": thing.y - 0.5}[direction]


def _attribute(target: Thing, things: Sequence[Thing], vocabulary: Vocabulary, rng: np.random.Generator) -> str | None:
    return weighted([(_noun(target, adjectives, vocabulary), weight * _plainness(target, adjectives))
                      for adjectives, weight in ATTRIBUTES if not _rivals(target, adjectives, things)], rng)


def _position(target: Thing, things: Sequence[Thing], vocabulary: Vocabulary, rng: np.random.Generator) -> str | None:
    found = []
    for adjectives, weight in SHORT:
        rivals = _rivals(target, adjectives, things)
        if not rivals:
            continue
        for direction, templates in vocabulary.positions.items():
            if direction == "middle":
                said = _off_middle(target) <= MIDDLE and min(map(_off_middle, rivals)) >= OFF_MIDDLE
            else:
                lead = towards(direction, target)
                said = lead > 0 and lead - max(towards(direction, rival) for rival in rivals) >= APART
            if said:
                found.append(((adjectives, templates), weight * _plainness(target, adjectives)))
    return _filled(target, found, vocabulary, rng)


def _superlative(target: Thing, things: Sequence[Thing], vocabulary: Vocabulary,
                 rng: np.random.Generator) -> str | None:
    found = []
    for adjectives, weight in UNSIZED:
        radii = [rival.radius for rival in _rivals(target, adjectives, things)]
        if radii and target.radius >= RATIO * max(radii):
            found.append(((adjectives, vocabulary.superlatives["big"]), weight))
        if radii and target.radius * RATIO <= min(radii):
            found.append(((adjectives, vocabulary.superlatives["small"]), weight))
    return _filled(target, found, vocabulary, rng)


def _relation(target: Thing, things: Sequence[Thing], vocabulary: Vocabulary, rng: np.random.Generator) -> str | None:
    found = []
    for adjectives, weight in SHORT:
        rivals = _rivals(target, adjectives, things)
        if not rivals:
            continue
        for other in things:
            if other.shape == target.shape:
                continue
            for direction, templates in vocabulary.relations.items():
                at = towards(direction, other)
                ahead = towards(direction, target) - at
                aside = abs(target.y - other.y) if direction in ("left", "right") else abs(target.x - other.x)
                if (ahead >= APART and aside <= ahead
                        and max(towards(direction, rival) for rival in rivals) <= at - CLEAR):
                    found.append(((adjectives, templates, other), weight * _plainness(target, adjectives)))
    if not found:
        return None
    adjectives, templates, other = weighted(found, rng)
    name = weighted([(_noun(other, words, vocabulary), weight) for words, weight in SHORT + ATTRIBUTES[3:4]
                      if not _rivals(other, words, things)], rng)
    if name is None:
        return None
    return pick(templates, rng).format(one=_noun(target, adjectives, vocabulary), other=name)


def _rivals(target: Thing, adjectives: tuple[str, ...], things: Sequence[Thing]) -> list[Thing]:
    """The other things of which the target's noun phrase with these adjectives is true as well."""
    return [thing for thing in things if thing is not target and thing.shape == target.shape
            and ("colour" not in adjectives or thing.colour == target.colour)
            and ("size" not in adjectives or thing.big == target.big)
            and ("texture" not in adjectives or thing.texture == target.texture)]


def _noun(thing: Thing, adjectives: tuple[str, ...], vocabulary: Vocabulary) -> str:
    words = {"size": vocabulary.sizes[thing.big], "texture": vocabulary.textures[thing.texture], "colour": thing.colour}
    return " ".join([words[adjective] for adjective in adjectives] + [thing.shape])


def _plainness(thing: Thing, adjectives: tuple[str, ...]) -> float:
    """People seldom say that a thing has no pattern."""
    return 0.3 if "texture" in adjectives and thing.texture == "plain" else 1.0


def _off_middle(thing: Thing) -> float:
    return max(abs(thing.x - 0.5), abs(thing.y - 0.5))


def _filled(target: Thing, found: list, vocabulary: Vocabulary, rng: np.random.Generator) -> str | None:
    if not found:
        return None
    adjectives, templates = weighted(found, rng)
    return pick(templates, rng).format(one=_noun(target, adjectives, vocabulary))


def pick(choices: Sequence, rng: np.random.Generator):
    return choices[int(rng.random() * len(choices))]


def weighted(choices: list[tuple], rng: np.random.Generator):
    """One of (value, weight) pairs by weight; None of none."""
    if not choices:
        return None
    mark = rng.random() * sum(weight for _, weight in choices)
    for value, weight in choices:
        mark -= weight
        if mark < 0:
            return value
    return choices[-1][0]
