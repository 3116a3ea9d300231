"""talent-pack: a checkpoint as small as it ships, weights in half precision and no training state."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from talent.checkpoint import WEIGHTS, load_checkpoint, save_checkpoint
from talent.errors import command


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="talent-pack", description="Store a checkpoint with float16 weights and without training state.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  talent-pack runs/tiny-continue/best -o weights/tiny")
    result.add_argument("checkpoint", type=Path, help="checkpoint directory")
    result.add_argument("-o", "--output", type=Path, required=True, help="checkpoint directory to write")
    return result


@command("talent-pack")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    save_checkpoint(load_checkpoint(arguments.checkpoint), arguments.output, half=True)
    size = (arguments.output / WEIGHTS).stat().st_size
    print(f"wrote {arguments.output}, {size / 1e6:.1f} MB of weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
