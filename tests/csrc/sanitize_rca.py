"""Representative calls of the RCA kernels for the tools of compute-sanitizer; the results are checked, too.

Every tensor is an allocation of its own, exactly as large as it is and freed at once, so that memcheck sees an access
beside it: PyTorch's pool would hide that. Inputs are made on the host, so that few other kernels run under the tool.

    for tool in memcheck racecheck initcheck synccheck; do
      compute-sanitizer --tool $tool --error-exitcode 1 python tests/csrc/sanitize_rca.py || exit 1
    done
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # before PyTorch is loaded

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests are not installed

from talent.errors import UserError, command  # noqa: E402
from talent.model.rca import rca_reference  # noqa: E402
from talent.model.rca_kernels import ACTIVATIONS, METHODS, TYPES, installed_library  # noqa: E402
from talent.native import BUILD  # noqa: E402
from tests.talent.rca_inputs import arguments  # noqa: E402

# B, N, K, D: every width that has a kernel of its own, sizes that fill no block, and what only the last kernel takes
SIZES = ((1, 37, 17, 32), (2, 35, 22, 64), (1, 77, 1, 96), (3, 77, 17, 128), (2, 33, 40, 128), (1, 19, 64, 256),
         (2, 77, 1, 512), (1, 21, 17, 512), (2, 13, 5, 33), (1, 9, 300, 130), (1, 7, 17, 700), (1, 1, 1, 1))
# of the values, relative: the inputs and the result are rounded to the type, and in bfloat16 that leaves 8 bits
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
EXAMPLE = """example:
  compute-sanitizer --tool memcheck --error-exitcode 1 python tests/csrc/sanitize_rca.py
"""


def check(sizes: tuple[int, int, int, int], dtype: torch.dtype, activation: str, method: str, shared: bool) -> None:
    """One call. shared: one picture for all expressions. Raises UserError where the result is wrong."""
    visual, text, weight, bias = arguments(*sizes, dtype=dtype)
    if shared:
        visual = visual[:1]
    wanted = rca_reference(*(x.double() for x in (visual, text, weight, bias)), activation)
    given = [x.cuda() for x in (visual, text, weight, bias)]
    received = installed_library()(*given, activation, method=method,
                                   stream=torch.cuda.current_stream().cuda_stream).cpu().double()
    error = float((received - wanted).norm() / wanted.norm())
    if not error <= TOLERANCE[dtype]:
        raise UserError(f"wrong result at B, N, K, D = {sizes}, {dtype}, {activation}, {method}, visual of batch "
                        f"{len(visual)}: expected a relative error of at most {TOLERANCE[dtype]:.0e}, received "
                        f"{error:.1e}; run: pytest -m gpu tests/talent/test_rca_gpu.py")


@command("sanitize_rca.py")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sanitize_rca.py", description=__doc__.partition("\n")[0], epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError("expected a GPU that PyTorch can use, received none; run this on a machine that has one")
    if (library := installed_library()) is None:
        raise UserError(f"expected libtalent_kernels.so, received none; run: {BUILD}")
    calls = list(product(SIZES, TYPES, ACTIVATIONS, METHODS, (False, True)))
    for call in tqdm(calls, desc="RCA", unit="call", leave=False, disable=None):
        check(*call)
    print(f"{len(calls)} calls of {library.path} were right")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
