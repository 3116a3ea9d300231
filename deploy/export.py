"""talent-export: from a checkpoint to a bundle that any runtime reads, with TensorRT engines where one is installed."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from calibration.candidates import SENTENCES
from calibration.plan import format_plan
from calibration.ranges import METHODS
from calibration.records import cache_directory
from deploy.build import check_batch
from deploy.builders import choose_runtime, usable_runtimes
from deploy.bundle import CALIBRATION_LIST, PRECISIONS, REPORT
from deploy.cost import format_costs
from deploy.engine_notes import EngineNotes
from deploy.onnx_files import RANGES
from deploy.parity import check_bound
from deploy.pipeline import (
    CALIBRATION,
    HELD_OUT,
    MAX_MIOU_DROP,
    PARITY,
    Exported,
    ExportOptions,
    Shrinking,
    export_bundle,
)
from deploy.plugin_choice import AUTO, ON, REQUESTS, check_library, describe_choice
from deploy.precision import FP32_OPS, format_precisions
from deploy.targets import build_command
from talent.data.registry import HELP
from talent.errors import UserError, command
from talent.image_size import SIZES

WIDTH = 100
EXAMPLE = """\
examples:
  talent-export weights/tiny --int8 -o bundle/
  talent-export runs/mine/best --fp16 --no-engine -o bundle/
  talent-export runs/mine/best --int8 --calibration-data kitchen/ --max-miou-drop 0.005 -o bundle/
  talent-export runs/mine/best --image-size 336 --data data.jsonl -o bundle/
  talent-export runs/mine/best --fp32-nodes 'vision.blocks.11.*' -o bundle/

Two exports of one checkpoint with the same settings on the same machine give the same ONNX files, byte for byte.
"""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="talent-export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLE)
    result.add_argument("checkpoint", type=Path, help="checkpoint directory (talent-train, talent-import)")
    precision = result.add_mutually_exclusive_group()
    for name in PRECISIONS:
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name)
    result.set_defaults(precision="fp16")
    result.add_argument("-o", "--output", type=Path, required=True, help="bundle directory to write")
    result.add_argument("--image-size", type=int, metavar="PIXELS",
                        help=f"side of the network's input: {SIZES[0]} to {SIZES[-1]} in steps of {SIZES.step} "
                             "(default: the checkpoint's)")
    result.add_argument("--data", help=f"samples for calibration and parity: {HELP} (default: what the checkpoint was "
                                       "trained on, else shapes)")
    result.add_argument("--data-root", "--data_root", type=Path, help="folder of RefCOCO's files (docs/data.md)")
    result.add_argument("--calibration", type=int, metavar="N",
                        help="samples that set ranges and scales (default: "
                             + ", ".join(f"{number} for {name}" for name, number in CALIBRATION.items()) + ")")
    result.add_argument("--calibration-data", metavar="SOURCE",
                        help=f"what they are chosen from: {HELP}, or a folder of pictures (default: the train split of "
                             "--data)")
    result.add_argument("--sentences", type=Path, metavar="FILE",
                        help="what the pictures of such a folder may be asked, one sentence a line (default: its "
                             f"{SENTENCES})")
    result.add_argument("--calibration-list", type=Path, metavar="FILE",
                        help=f"take the very samples of another export: its {CALIBRATION_LIST}")
    result.add_argument("--int8-ranges", choices=METHODS,
                        help="percentile clips an activation where that makes less error, max never, entropy as "
                             f"ModelOpt does (default {RANGES})")
    result.add_argument("--held-out", type=int, metavar="N",
                        help="expressions on which INT8 layers are chosen, apart from those of --parity (default "
                             f"{HELD_OUT})")
    result.add_argument("--parity", type=int, default=PARITY, metavar="N",
                        help="expressions that are compared (default %(default)s)")
    result.add_argument("--max-miou-drop", type=float, help=f"mIoU that may be lost (default {MAX_MIOU_DROP})")
    result.add_argument("--allow-drop", action="store_true",
                        help="write the bundle however much mIoU is lost, and record that (not one with infinities); "
                             "with --int8 every layer that can be is quantized, without choosing")
    result.add_argument("--fp32-ops", nargs="*", default=list(FP32_OPS), metavar="OPERATOR",
                        help="operators that stay in FP32 whatever is measured; none after the flag for none (default "
                             f"{' '.join(FP32_OPS)})")
    result.add_argument("--fp32-nodes", nargs="+", default=[], metavar="NODE",
                        help=f"nodes that stay in FP32, by name or pattern (their names: {REPORT} in a bundle); with "
                             "--int8 they are not quantized")
    result.add_argument("--fp16-nodes", nargs="+", default=[], metavar="NODE",
                        help="nodes that go to FP16 whatever is measured; with --int8 they are not quantized")
    result.add_argument("--no-engine", action="store_true", help="stop at ONNX")
    result.add_argument("--batch", type=int, default=4, help="largest batch of the engines (default 4)")
    result.add_argument("--plugin", choices=REQUESTS, default=AUTO,
                        help="whether engines compute RCA with the TensorRT plugin, as talent-build takes it (default "
                             "%(default)s)")
    return result


@command("talent-export")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    for name, least in (("calibration", 2), ("held_out", 1), ("parity", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')}: expected at least {least}, received {value}")
    if arguments.calibration_list is not None and arguments.calibration is not None:
        raise UserError(f"expected --calibration or --calibration-list, received both; {arguments.calibration_list} "
                        "says how many samples there are: leave --calibration out")
    for name in ("int8_ranges", "held_out"):
        if getattr(arguments, name) is not None and arguments.precision != "int8":
            raise UserError(f"--{name.replace('_', '-')} is for --int8, received --{arguments.precision}: leave it out")
    check_batch(arguments.batch)
    options = ExportOptions(
        precision=arguments.precision, data=arguments.data, data_root=arguments.data_root,
        image_size=arguments.image_size, calibration=arguments.calibration,
        calibration_data=arguments.calibration_data, sentences=arguments.sentences,
        calibration_list=arguments.calibration_list, int8_ranges=arguments.int8_ranges or RANGES,
        cache=cache_directory() / "int8" if arguments.precision == "int8" else None,
        held_out=arguments.held_out or HELD_OUT, parity=arguments.parity,
        max_miou_drop=arguments.max_miou_drop, allow_drop=arguments.allow_drop, fp32_ops=tuple(arguments.fp32_ops),
        fp32_nodes=tuple(arguments.fp32_nodes), fp16_nodes=tuple(arguments.fp16_nodes),
        engines=not arguments.no_engine, batch=arguments.batch, plugin=arguments.plugin)
    check_bound(options.bound)
    if options.precision == "fp32" and (options.fp32_nodes or options.fp16_nodes or options.fp32_ops != FP32_OPS):
        raise UserError("--fp32-ops, --fp32-nodes and --fp16-nodes choose what stays more precise in --fp16 and "
                        "--int8; with --fp32 everything does: leave them out")
    if options.engines:
        if options.plugin == ON:
            check_library()
        try:
            choose_runtime()
        except UserError as error:
            raise UserError(f"{error}; or add --no-engine to stop at ONNX, and run talent-build later") from error
    print_summary(export_bundle(arguments.checkpoint, arguments.output, options))
    return 0


def print_summary(exported: Exported) -> None:
    """What was made, what was saved, and what was lost."""
    bundle = exported.bundle
    print_shrinking(exported.shrinking)
    if exported.int8 is not None:
        print(format_plan(exported.int8))
    for name, precisions in exported.precisions.items():
        print(format_precisions(precisions, title=f"{name}.onnx"))
    parity = bundle.parity
    print(f"parity on {parity['samples']} expressions of {parity['data']} ({parity['backend']}, CPU): mIoU "
          f"{parity['miou_reference']:.4f} -> {parity['miou']:.4f}, masks agree {parity['mask_agreement']:.4f}, "
          f"logits differ by {parity['logits_max_abs']:.2e} at most"
          + (f", NTA rate {parity['nta_rate_reference']:.4f} -> {parity['nta_rate']:.4f}"
             if parity["nta_rate"] is not None else ""))
    if parity["allowed_drop"]:
        print(f"this is more than the {parity['bound']:g} mIoU that may be lost; --allow-drop let it through")
    for engine in bundle.engines:
        print(f"engine {engine.graph} {engine.precision}: {engine.runtime} {engine.version} for {engine.arch}, "
              f"{engine.bytes / 1e6:.1f} MB in {engine.seconds:.1f} s")
        notes = EngineNotes.read(bundle.directory / engine.path)
        if notes is not None and notes.plugin_choice is not None:
            print(describe_choice(notes))
    if not bundle.engines:
        print(f"engines: none; build them where they are to run: {build_command(bundle.directory)}")
    for runtime in usable_runtimes() if bundle.engines else ():
        if all(engine.runtime != runtime.name for engine in bundle.engines):
            print(f"{runtime.name} is installed too; for its engines, run: "
                  + build_command(bundle.directory, runtime=runtime.name))
    if exported.int8 is not None and not exported.int8.layers:
        print(f"INT8 was asked for, but no set of layers stayed within {exported.int8.choice.bound:g} mIoU: this "
              "bundle is FP16; allow more (--max-miou-drop), or finish the training with talent-train --qat")
    print(f"wrote the {bundle.precision} bundle {bundle.directory}")


def print_shrinking(shrinking: Shrinking) -> None:
    """What was merged and folded, and what that saved."""
    if shrinking.merged:
        print(f"LoRA: {shrinking.merged} layers merged, logits changed by {shrinking.merge_max_abs:.1e} at most")
    folds = ", ".join(f"{name} {places}".replace(" ", "\0") for name, places in shrinking.folds.items())
    print(textwrap.fill(f"folded: {folds}", WIDTH, subsequent_indent=" " * 8).replace("\0", " "))
    print(format_costs(shrinking.before, shrinking.after))


if __name__ == "__main__":
    sys.exit(main())
