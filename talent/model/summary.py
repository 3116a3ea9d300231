"""What a network is made of: parameters by module, how many of them are trained, and what the frozen ones weigh."""

from __future__ import annotations

import re

from torch import nn

# Parts in the order of the table, and the names of their parameters; a parameter counts for the first that it fits.
PARTS = {
    "text adapters": r"text\..*\.adapter\.",
    "LoRA text": r"text\..*\.lora_",
    "text tower": r"text\.",
    "image adapters": r"vision\..*\.adapter\.",
    "LoRA vision": r"vision\..*\.lora_",
    "vision tower": r"vision\.",
    "neck": r"neck\.",
    "decoder": r"decoder\.",
    "projector": r"projector\.",
}
RCA, RCA_NAMES = "image adapters: RCA", r"vision\..*\.adapter\.rca\."  # a part of a part: counted twice, added once
TOTAL = "total"


def parameter_table(model: nn.Module) -> list[dict[str, str | int]]:
    """A row {"module", "total", "trainable"} (numbers of parameters) per part of the network, then their sum.

    The towers are their backbones alone: adapters and LoRA have rows of their own. "image adapters: RCA" is also
    counted in "image adapters". Parts without parameters are left out.
    """
    rows = {}
    for part in PARTS:
        rows[part] = {"module": part, "total": 0, "trainable": 0}
        if part == "image adapters":
            rows[RCA] = {"module": RCA, "total": 0, "trainable": 0}
    rows[TOTAL] = {"module": TOTAL, "total": 0, "trainable": 0}
    for name, parameter in model.named_parameters():
        part = next(part for part, pattern in PARTS.items() if re.match(pattern, name))
        for row in (part, TOTAL, *([RCA] if re.match(RCA_NAMES, name) else [])):
            rows[row]["total"] += parameter.numel()
            rows[row]["trainable"] += parameter.numel() * parameter.requires_grad
    return [row for row in rows.values() if row["total"]]


def frozen_bytes(model: nn.Module) -> int:
    """Memory of the parameters that are not trained, in bytes."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)


def summarise(model: nn.Module) -> str:
    """The table as text: parameters by module, the trainable share, the memory of what is frozen."""
    lines = [("", "parameters", "trainable", "share")]
    lines += [(row["module"], f"{row['total']:,}", f"{row['trainable']:,}", f"{row['trainable'] / row['total']:.1%}")
              for row in parameter_table(model)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.rjust(width) if i else cell.ljust(width)
                      for i, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in lines]
    return "\n".join([*text, f"frozen parameters: {frozen_bytes(model) / 1e6:.1f} MB"])
