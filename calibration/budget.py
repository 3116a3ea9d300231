"""Which layers compute in INT8 when so much mIoU may be lost and no more.

Each block is measured by itself; blocks join in the order of what they cost for what they bring, as many as the budget
lets; of the blocks left out, single layers join in the same way.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx

from calibration.arithmetic import share
from calibration.sensitivity import Layers, Measured, Sensitivity

RANKING_SAMPLES = 8
"""On how many of the held-out expressions blocks and layers are ranked. What ships is measured on all of them."""
CURVE = (0.25, 0.5, 0.75, 1.0)
"""Parts of the order of blocks that are measured for the curve of mIoU over arithmetic."""
MORE_TRIES = 8
"""How many blocks are tried one by one after the longest beginning of the order that stays within the budget."""

_BLOCK = re.compile(r"vision\.blocks\.\d+|decoder\.layers\.\d+|[^./]+")


@dataclass(frozen=True)
class Block:
    """Layers that are measured together: "vision.blocks.3", "neck", or those of a block that read one tensor."""

    name: str
    layers: Layers


@dataclass(frozen=True)
class Ranked:
    """A block by itself in INT8. share: of all arithmetic. drop: mIoU lost. error: at the logits."""

    block: Block
    share: float
    drop: float
    error: float


@dataclass(frozen=True)
class Choice:
    """What the budget allows.

    layers: to compute in INT8, none where no set was within the budget. bound: mIoU that may be lost. reference and
    chosen: FP32 and the largest set within the budget, on all held-out expressions. shares: of all arithmetic, by layer
    that could be INT8. ranking: blocks, the one that loses most first, on `ranking_samples` expressions. tried: every
    set that was held against the budget, with its share, in the order of trying. curve: share and mIoU lost as the
    blocks join, from nothing to all, on `ranking_samples` expressions. order: the chosen blocks and layers, as they
    joined. fewer: how many of them were taken out of `chosen` again.
    """

    layers: Layers
    bound: float
    reference: Measured
    chosen: Measured
    shares: Mapping[str, float]
    ranking: tuple[Ranked, ...]
    ranking_samples: int
    tried: tuple[tuple[float, Measured], ...]
    curve: tuple[tuple[float, float], ...]
    order: tuple[Block, ...]
    fewer: int = 0

    @property
    def drop(self) -> float:
        """mIoU that the chosen set loses."""
        return self.reference.miou - self.chosen.miou

    def share(self, layers: Iterable[str] | None = None) -> float:
        """Which part of all arithmetic `layers` do, in whatever order; None for all that could be INT8."""
        return math.fsum(self.shares[name] for name in (self.shares if layers is None else layers))

    def smaller(self) -> Choice:
        """Without the blocks that joined last, a quarter of those that are left; in the end without any."""
        count = max(1, len(self.order) // 4)
        kept = self.order[:-count]
        return replace(self, layers=_union(kept), order=kept, fewer=self.fewer + count)

    def taken(self, block: Block) -> str:
        """Whether a block is in INT8: "yes", "no" or "partly"."""
        count = len(block.layers & self.layers)
        return "no" if not count else "yes" if count == len(block.layers) else "partly"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file; an error that is not finite is null."""
        return {
            "layers": sorted(self.layers), "bound": self.bound, "share": self.share(self.layers),
            "possible": self.share(), "blocks_taken_out": self.fewer, "measured_layers": len(self.chosen.layers),
            "samples": self.chosen.samples, "miou_reference": self.reference.miou, "miou": self.chosen.miou,
            "oiou_reference": self.reference.oiou, "oiou": self.chosen.oiou,
            "nta_rate_reference": self.reference.nta_rate, "nta_rate": self.chosen.nta_rate,
            "error": _json_number(self.chosen.error), "ranking_samples": self.ranking_samples,
            "ranking": [{"block": one.block.name, "layers": sorted(one.block.layers), "share": one.share,
                         "drop": one.drop, "error": _json_number(one.error), "in_int8": self.taken(one.block)}
                        for one in self.ranking],
            "tried": [{"share": part, "layers": len(one.layers), "drop": self.reference.miou - one.miou,
                       "error": _json_number(one.error)} for part, one in self.tried],
            "curve": [{"share": part, "drop": drop} for part, drop in self.curve]}


def blocks_of(layers: Iterable[str]) -> list[Block]:
    """Layers by the block of the network that they belong to, in their order."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in layers:
        block = _BLOCK.match(name)
        groups[block[0] if block else name].append(name)
    return [Block(name, frozenset(members)) for name, members in groups.items()]


def parts_of(model: onnx.ModelProto, layers: Iterable[str]) -> list[Block]:
    """Layers that read one tensor together, for they share its quantizer; named after the first of them."""
    groups: dict[str, list[str]] = defaultdict(list)
    wanted = set(layers)
    for node in model.graph.node:
        if node.name in wanted:
            groups[node.input[0]].append(node.name)
    return [Block(members[0], frozenset(members)) for members in groups.values()]


def choose_layers(model: onnx.ModelProto, layers: Sequence[str], sensitivity: Sensitivity, *, bound: float,
                  flop: Mapping[str, int]) -> Choice:
    """The largest set out of `layers` of a flat graph whose loss of mIoU stays within `bound`, as far as is looked.

    flop: of `arithmetic`. Noise of rounding adds up, so a block's price is its squared error at the logits per
    arithmetic; blocks are ordered by that, and the longest beginning of the order that stays within the budget is found
    by bisection, and up to MORE_TRIES of the others one by one. So are then layers of the blocks that were left out.
    """
    search = _Search(sensitivity, bound, flop)
    blocks = blocks_of(layers)
    ranked = search.rank(blocks, "INT8 sensitivity of blocks")
    curve = search.curve([one.block for one in ranked])
    search.extend([one.block for one in ranked])
    left = [part for block in blocks if not block.layers <= search.layers for part in parts_of(model, block.layers)]
    if len(left) > 1:
        search.extend([one.block for one in search.rank(left, "INT8 sensitivity of layers")])
    return Choice(
        layers=search.layers, bound=bound, reference=search.reference, chosen=search.chosen,
        shares={name: share(flop, [name]) for name in layers}, ranking_samples=search.ranking_samples,
        ranking=tuple(sorted(ranked, key=lambda one: -one.error)),
        tried=tuple((share(flop, one.layers), one) for one in search.tried), curve=curve, order=tuple(search.order))


class _Search:
    """What was chosen so far and what was tried."""

    def __init__(self, sensitivity: Sensitivity, bound: float, flop: Mapping[str, int]) -> None:
        self._sensitivity, self._bound, self._flop = sensitivity, bound, flop
        self.order: list[Block] = []
        self.tried: list[Measured] = []
        self.ranking_samples = 0
        self.reference, = sensitivity.measure([()], title="INT8 reference")
        self.chosen = self.reference

    @property
    def layers(self) -> Layers:
        return _union(self.order)

    def rank(self, blocks: Sequence[Block], title: str) -> list[Ranked]:
        """Each block alone, the cheapest for what it brings first."""
        measured = self._sensitivity.measure([(), *(block.layers for block in blocks)], samples=RANKING_SAMPLES,
                                             title=title)
        self.ranking_samples = measured[0].samples
        ranked = [Ranked(block, share(self._flop, block.layers), measured[0].miou - one.miou, one.error)
                  for block, one in zip(blocks, measured[1:], strict=True)]
        return sorted(ranked, key=lambda one: one.error**2 / max(one.share, 1e-12))

    def curve(self, blocks: Sequence[Block]) -> tuple[tuple[float, float], ...]:
        """Share and mIoU lost of beginnings of `blocks`."""
        sets = [_union(blocks[:round(part * len(blocks))]) for part in (0.0, *CURVE)]
        measured = self._sensitivity.measure(sets, samples=RANKING_SAMPLES, title="INT8 curve")
        return tuple((share(self._flop, one.layers), measured[0].miou - one.miou) for one in measured)

    def extend(self, blocks: Sequence[Block]) -> None:
        """Take the longest beginning of `blocks` that stays within the budget, then up to MORE_TRIES of the others."""
        start, fits, fails = list(self.order), 0, len(blocks) + 1
        while fails - fits > 1:
            count = len(blocks) if fails > len(blocks) else (fits + fails) // 2  # all of them first
            if self._fits([*start, *blocks[:count]]):
                fits = count
            else:
                fails = count
        for block in blocks[fits + 1:fits + 1 + MORE_TRIES]:  # the next one was tried
            self._fits([*self.order, block])

    def _fits(self, order: list[Block]) -> bool:
        """Measure the layers of `order`; where they stay within the budget they are what is chosen now."""
        layers = _union(order)
        measured, = self._sensitivity.measure([layers], title=f"INT8 in {len(order)} blocks")
        self.tried.append(measured)
        fits = self.reference.miou - measured.miou <= self._bound and math.isfinite(measured.error)
        if fits:
            self.order, self.chosen = order, measured
        return fits


def _union(blocks: Iterable[Block]) -> Layers:
    return frozenset().union(*(block.layers for block in blocks))


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def format_choice(choice: Choice) -> str:
    """A table for people: what was chosen, then the blocks, the most sensitive first."""
    what = (f"INT8: {len(choice.layers)} layers, {choice.share(choice.layers):.1%} of the arithmetic "
            f"({choice.share():.1%} could be)" if choice.layers else "INT8: nothing")
    lines = [what]
    if choice.chosen.layers:
        lines.append(f"  {len(choice.chosen.layers)} layers are within the budget of {choice.bound:g}: mIoU "
                     f"{choice.reference.miou:.4f} -> {choice.chosen.miou:.4f} on {choice.chosen.samples} held-out "
                     "expressions, INT8 emulated")
    else:
        lines.append(f"  no set of layers that was tried stays within the budget of {choice.bound:g} mIoU "
                     f"({choice.reference.miou:.4f} in FP32) on {choice.chosen.samples} held-out expressions, INT8 "
                     "emulated")
    if choice.fewer:
        lines.append(f"  {choice.fewer} blocks were taken out again, because the finished bundle lost more")
    lines.append(f"  {'block alone in INT8':22}{'layers':>7}{'arithmetic':>12}{'error at logits':>17}{'mIoU drop':>11}"
                 f"  INT8 (alone: {choice.ranking_samples} expressions)")
    for one in choice.ranking:
        lines.append(f"  {one.block.name:22}{len(one.block.layers):>7}{one.share:>12.1%}{one.error:>17.2%}"
                     f"{one.drop:>11.4f}  {choice.taken(one.block)}")
    return "\n".join(lines)
