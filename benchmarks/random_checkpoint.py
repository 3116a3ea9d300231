"""A checkpoint of a preset with random weights: right for times and memory, useless for accuracy.

So everybody can measure the large presets, whose trained weights are not in this repository; the same seed gives the
same weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

if __name__ == "__main__":  # a script: its own folder, which has a module `kernels` as another package has, gives way
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from talent.checkpoint import CONFIG, Checkpoint, new_checkpoint, write_checkpoint  # noqa: E402
from talent.config import PRESETS, preset  # noqa: E402
from talent.errors import command  # noqa: E402
from talent.files import atomic_directory  # noqa: E402
from talent.model.lora import LoraSettings, add_lora  # noqa: E402

LORA_SCALE = 0.002  # of the second factors, which are zero before training: merging is to change something
EXAMPLE = """example:
  python benchmarks/random_checkpoint.py base --lora -o base/
"""


def random_checkpoint(name: str, *, lora: bool = False, seed: int = 0) -> Checkpoint:
    """A preset's network as it is before training, without pretrained backbones. lora: with factors in both towers,
    not merged. Raises UserError for an unknown preset."""
    torch.manual_seed(seed)
    checkpoint = new_checkpoint(preset(name))
    if lora:
        checkpoint.lora = LoraSettings()
        add_lora(checkpoint.model, checkpoint.lora)
        with torch.no_grad():
            for key, parameter in checkpoint.model.named_parameters():
                if ".lora_B." in key:
                    parameter.normal_(0, LORA_SCALE)
    checkpoint.model.eval()
    checkpoint.training = {"seed": seed, "data": "none: random weights"}
    return checkpoint


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="random_checkpoint.py", description=__doc__.partition("\n")[0],
                                     epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("preset", metavar="PRESET", help=f"one of {', '.join(PRESETS)}")
    result.add_argument("--lora", action="store_true", help="with LoRA factors in both towers, not merged")
    result.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights (default: %(default)s)")
    result.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="checkpoint directory to write")
    return result


@command("random_checkpoint.py")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    with atomic_directory(arguments.output, marker=CONFIG) as directory:
        checkpoint = random_checkpoint(arguments.preset, lora=arguments.lora, seed=arguments.seed)
        write_checkpoint(checkpoint, directory)
    print(f"wrote {arguments.output}: {arguments.preset} with random weights, seed {arguments.seed}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
