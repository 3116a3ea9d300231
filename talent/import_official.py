"""talent-import: an official TALENT checkpoint (.pth) becomes a checkpoint directory of this project."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from talent.checkpoint import Checkpoint, save_checkpoint
from talent.errors import UserError, command, suggest
from talent.model.lora import parameter_counts
from talent.official import PRESETS, KeyMismatch, convert_official, load_official_file
from talent.tokenizer import build_clip_tokenizer

SHOWN_KEYS = 3  # of a list that can have a thousand

EXAMPLE = """\
example:
  talent-import TALENT_base_refcoco.pth --preset base -o weights/base_refcoco
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="talent-import", description=__doc__, epilog=EXAMPLE, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("official", type=Path, metavar="OFFICIAL.pth", help="checkpoint that the official code saved")
    parser.add_argument("--preset", default="base", metavar="NAME",
                        help=f"{' or '.join(PRESETS)}: the network that was trained (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIRECTORY", help="checkpoint to write")
    return parser


@command("talent-import")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    if arguments.preset not in PRESETS:  # before the file is read, which takes seconds
        raise UserError(f"unknown preset {arguments.preset!r}{suggest(arguments.preset, PRESETS)}")
    with tqdm(total=3, unit="step", leave=False, disable=None) as bar:  # None: only on a terminal
        bar.set_description("read")
        state = load_official_file(arguments.official)
        bar.update()
        bar.set_description("convert")
        try:
            config, model = convert_official(state, preset=arguments.preset)
        except KeyMismatch as error:
            raise UserError(f"{arguments.official}: {error.message(SHOWN_KEYS)}; is --preset {arguments.preset} the "
                            "network that was trained?") from error
        bar.update()
        bar.set_description("write")
        tokenizer = build_clip_tokenizer(context_length=config.context_length, vocab_size=config.vocab_size)
        source = {"official": arguments.official.name}
        save_checkpoint(Checkpoint(model, config, tokenizer, training=source), arguments.output)
        bar.update()
    _, total = parameter_counts(model)
    print(f"{config.preset} with {total:,} parameters for sentences of {config.context_length} tokens: "
          f"checkpoint {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
