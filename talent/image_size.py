"""A trained network for another input size: the same weights, everything that depends on the size anew."""

from __future__ import annotations

import dataclasses

from talent.checkpoint import Checkpoint, network_of
from talent.errors import UserError
from talent.model.vision import PATCH

SIZES = range(224, 518 + 1, PATCH)  # pixels: those at which the published backbones are at home


def resized(checkpoint: Checkpoint, image_size: int) -> Checkpoint:
    """The network of `checkpoint` for square pictures of `image_size` pixels, in eval mode; LoRA factors stay unmerged.

    The position table is interpolated when the network runs. No weight is copied: both networks share every tensor, so
    that a change in place (training, folding) is one to both. Metrics are left out: they were measured at the old size.
    For its own size the checkpoint itself comes back. Raises UserError for a size that is not in SIZES.
    """
    if image_size == checkpoint.config.image_size:
        return checkpoint
    if image_size not in SIZES:
        nearest = min(SIZES, key=lambda size: abs(size - image_size))
        raise UserError(f"--image-size: expected {SIZES[0]} to {SIZES[-1]} pixels in steps of {SIZES.step}, or the "
                        f"checkpoint's own {checkpoint.config.image_size}, received {image_size}; {nearest} is nearest")
    config = dataclasses.replace(checkpoint.config, image_size=image_size)
    model = network_of(config, checkpoint.lora, checkpoint.model.state_dict())
    device = next(checkpoint.model.parameters()).device
    return dataclasses.replace(checkpoint, model=model.to(device), config=config, metrics={})
