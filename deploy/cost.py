"""What a network costs before an engine is made of it: its operations and its floating-point arithmetic.

An operation is what PyTorch dispatches to compute or copy numbers: on a GPU a kernel, as a rule. The arithmetic is that
of matrix products, convolutions and attention, as `torch.utils.flop_counter` counts it; norms, activations and sums,
under a hundredth of it, are left out. An engine joins operations of its own accord, so that it has fewer kernels.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from talent.model import Prompt, TalentModel

PYTORCH = ("aten", "prims")  # namespaces of operators whose names say whether they multiply
QUERIES = "prim"  # namespace of operators that ask a tensor for its device or layout
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
# Names of operators that multiply and add. Enlarging (upsample_bilinear2d) has "linear" in its name and does not.
PRODUCT = re.compile(r"mm(_|$)|mv(_|$)|matmul|einsum|conv(\d|_|$|olution)|attention|dot|addr|cdist|lstm|gru|rnn"
                     r"|^(?!.*upsample).*linear")
# Operators that compute nothing although they are no views by their schema: they rename a tensor or allocate one.
IDLE = re.compile(r"_unsafe_view|empty|empty_like|empty_strided|new_empty|new_empty_strided")


@dataclass(frozen=True)
class Cost:
    """operations: dispatched operators that compute or copy. flop: floating-point operations, 2 a multiply-add."""

    operations: int
    flop: int


def _rca_flop(visual: Tensor, text: Tensor, *args: object, **kwargs: object) -> int:
    """visual [B, N, D], text [B, K, D]: a product for the cost [B, N, K] and one for the gate [B, N, D]."""
    return 2 * 2 * visual.numel() * text.shape[1]


def _linear_flop(x: Tensor, weight: Tensor, *args: object, **kwargs: object) -> int:
    """x [..., in], weight [out, in]."""
    return 2 * x.numel() * weight.shape[0]


def _vector_flop(matrix: Tensor, *args: object, **kwargs: object) -> int:
    """matrix [..., in], times a vector [in]."""
    return 2 * matrix.numel()


# What PyTorch's table does not know, by name, because not every build has all of these operators. The last is in the
# tables of newer releases only; its first arguments are those of the attention on a GPU.
FORMULAS: dict[str, Callable[..., int]] = {
    "aten::mv": _vector_flop,
    "aten::dot": _vector_flop,
    "talent::rca_cost_aggregation": _rca_flop,
    "mkldnn::_linear_pointwise": _linear_flop,
    "aten::_scaled_dot_product_flash_attention_for_cpu":
        flop_registry[torch.ops.aten._scaled_dot_product_flash_attention],
}


def _formula(operator: OpOverload) -> Callable[..., int] | None:
    """The floating-point operations of one call, from its arguments and out_val, its result; None where not known."""
    if operator.name() in FORMULAS:
        return FORMULAS[operator.name()]
    packet = operator.overloadpacket
    if packet not in flop_registry:  # an operator in place counts as the one of that name that is not
        packet = getattr(getattr(torch.ops, operator.namespace), packet.__name__.removesuffix("_"), None)
    return flop_registry.get(packet)


def _idle(operator: OpOverload) -> bool:
    name = operator.overloadpacket.__name__
    return operator.is_view or torch.Tag.inplace_view in operator.tags or bool(IDLE.fullmatch(name))


class _Counter(TorchDispatchMode):
    """Runs every operator as it came and counts it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.flop = 0

    def __torch_dispatch__(self, operator: OpOverload, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operator.namespace == QUERIES:
            return operator(*args, **kwargs)
        formula = _formula(operator)
        if formula is None and torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), COMPOSITE):
            # In inference mode an operator that PyTorch makes of others arrives whole: count those others. Not by
            # `operator.decompose`, which prefers a compiler's rules and makes 130 operators of a bicubic enlarging.
            with self:
                return operator._op_dk(COMPOSITE, *args, **kwargs)
        if formula is None and (operator.namespace not in PYTORCH or PRODUCT.search(operator.overloadpacket.__name__)):
            raise NotImplementedError(f"the arithmetic of {operator.name()} is not known and would count as none; add "
                                      "its formula to FORMULAS in deploy/cost.py")
        result = operator(*args, **kwargs)
        self.operations += not _idle(operator)
        if formula is not None:
            self.flop += formula(*args, **kwargs, out_val=result)
        return result


def count(run: Callable[[], object]) -> Cost:
    """The cost of all that PyTorch computes in one call of `run`, in inference mode.

    Raises NotImplementedError at a product, convolution or attention, or an operator from outside of PyTorch, whose
    arithmetic has no formula.
    """
    counter = _Counter()
    with torch.inference_mode(), counter:
        run()
    return Cost(counter.operations, counter.flop)


def network_cost(model: TalentModel, image: Tensor, tokens: Tensor) -> dict[str, Cost]:
    """{"text": a new expression, tokens [B, L] to the prompt; "vision": image [B, 3, S, S] and the prompt to logits}.

    Only shapes are computed, no numbers: one to two seconds for any network. Where PyTorch would lay a result out in
    memory in another way when it computes, the count of operations may be off by a few copies or additions.
    Raises ValueError for a network in training mode; else as `count`.
    """
    if model.training:
        raise ValueError("expected a network in eval mode, received one in training mode: call model.eval() first")
    prompts: list[Prompt] = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        text = count(lambda: prompts.append(model.prompt(model.text(tokens))))
        vision = count(lambda: model.segment(image, prompts[0]))
    return {"text": text, "vision": vision}


def format_costs(before: dict[str, Cost], after: dict[str, Cost]) -> str:
    """Aligned lines, one for each part of `network_cost`: its operations and GFLOP before and after.

    Raises ValueError where the two do not have the same parts.
    """
    if list(before) != list(after):
        raise ValueError(f"expected the costs of the same parts, received {list(before)} and {list(after)}")
    pairs = [(before[part], after[part]) for part in before]
    columns = [["", *before],
               ["operations", *_arrows([(str(old.operations), str(new.operations)) for old, new in pairs])],
               ["GFLOP", *_arrows([(f"{old.flop / 1e9:.2f}", f"{new.flop / 1e9:.2f}") for old, new in pairs])]]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join("   ".join(cell.rjust(width) if i else cell.ljust(width)
                                for i, (cell, width) in enumerate(zip(line, widths, strict=True)))
                     for line in zip(*columns, strict=True))


def _arrows(pairs: list[tuple[str, str]]) -> list[str]:
    """"old -> new" for each pair, the numbers one below the other."""
    left, right = (max(map(len, column)) for column in zip(*pairs, strict=True))
    return [f"{old:>{left}} -> {new:>{right}}" for old, new in pairs]
