"""What a result says of the bundles and the checkpoint that it measured: two results are of the same weights where the
SHA-256 is the same, whatever their folders are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.bundle import Bundle
from talent import provenance


def networks(bundles: Sequence[Bundle], checkpoint: str | Path | None) -> dict[str, Any]:
    """For the settings of a result: {"bundles": [{"name": as rows have it in "source", "precision", "preset",
    "image_size", "commit", "sha256": of the weights it was exported from}, ...], "checkpoint": {"name", "preset",
    "image_size", "sha256"}, or None}. Raises UserError for a checkpoint that cannot be read."""
    return {"bundles": [{"name": str(bundle.directory), "precision": bundle.precision, "preset": bundle.preset,
                         "image_size": bundle.image_size, "commit": bundle.commit,
                         "sha256": bundle.source.get("sha256")} for bundle in bundles],
            "checkpoint": None if checkpoint is None else _checkpoint(Path(checkpoint))}


def network_of(result: Mapping[str, Any], row: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `networks` said of the bundle or checkpoint that a row comes from, a checkpoint with the input size of the
    run; {} for a row of neither."""
    settings = result["settings"]
    for bundle in settings.get("bundles", ()):
        if bundle["name"] == row["source"]:
            return bundle
    checkpoint = settings.get("checkpoint")
    if checkpoint and checkpoint["name"] == row["source"]:
        return {**checkpoint, "image_size": settings.get("image_size", checkpoint["image_size"])}
    return {}


def _checkpoint(path: Path) -> dict[str, Any]:
    from talent.checkpoint import WEIGHTS, load_config  # torch, which the bundles do not need

    config = load_config(path)
    return {"name": str(path), "preset": config.preset, "image_size": config.image_size,
            "sha256": provenance.sha256(path / WEIGHTS)}
