"""The options of commands that run a bundle, and the segmenter that they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploy.bundle import Bundle
from deploy.manifest import PRECISIONS
from deploy.runtime.segmenter import BACKENDS, Segmenter


def add_backend_options(parser: argparse.ArgumentParser) -> None:
    """--threshold, --backend, --precision, --device, --no-cuda-graphs and --threads."""
    parser.add_argument("--threshold", type=float, help="probability above which a pixel belongs to the object "
                                                        "(default: the bundle's)")
    parser.add_argument("--backend", choices=BACKENDS, default="auto",
                        help="what runs the network (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, help="refuse a bundle that is in another one")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="number of the GPU (default: %(default)s)")
    parser.add_argument("--no-cuda-graphs", dest="cuda_graphs", action="store_false",
                        help="start the engine's kernels one by one")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for onnxruntime (default: one per core)")


def open_segmenter(bundle: Bundle | str | Path, arguments: argparse.Namespace) -> Segmenter:
    """As the options say. Raises UserError as Segmenter."""
    return Segmenter(bundle, arguments.backend, precision=arguments.precision, device=arguments.device,
                     threads=arguments.threads, threshold=arguments.threshold, cuda_graphs=arguments.cuda_graphs)
