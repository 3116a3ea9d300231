"""The network as one ONNX file, picture and words in, logits out: what torch.onnx.export gives whoever just calls it.

LoRA is merged, as one call of peft does it; nothing else of what talent-export does: no folding, no text apart from the
picture, no simplifying. Two forms of the same network: "official", computed as the official code does
(official_inference.py), and "talent", this project's PyTorch, whose projector has a quarter of the official arithmetic.
One picture and one sentence at a time. Exporting the base preset takes minutes, so that the result is kept
(plain_network.py says where). L words, S image size.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm

from benchmarks.official_inference import OfficialInference
from benchmarks.plain_network import FILE, OFFICIAL, SETTINGS, TALENT, TOKENIZER, place
from deploy.cost import count
from deploy.graphs import OPSET
from deploy.modelopt import quiet
from deploy.runtime.interface import IMAGE, LOGITS, TOKENS
from talent.checkpoint import Checkpoint, load_checkpoint
from talent.errors import UserError
from talent.files import atomic_directory
from talent.image_size import resized
from talent.model import TalentModel
from talent.model.lora import merge_lora
from talent.model.rca import rca_reference
from talent.require import require

SEED = 0
SENTENCE = "the thing on the left"


class TalentLogits(nn.Module):
    """A TalentModel that gives its logits alone: image [B, 3, S, S], tokens [B, L] -> [B, 1, 4 grid, 4 grid]."""

    def __init__(self, model: TalentModel):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        return self.model(image, tokens).logits


NETWORKS = {OFFICIAL: OfficialInference, TALENT: TalentLogits}


def export_plain(checkpoint: Checkpoint, directory: Path, *, form: str) -> None:
    """Write the files of a plain export into `directory`. The checkpoint's model has its LoRA merged afterwards.

    Raises RuntimeError (torch.onnx.OnnxExporterError is one) for a network that cannot be exported.
    """
    require("onnxscript", extra="export")
    config = checkpoint.config
    merge_lora(checkpoint.model)
    network = NETWORKS[form](checkpoint.model).eval()
    image = torch.randn(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(SEED))
    tokens = torch.from_numpy(checkpoint.tokenizer([SENTENCE]))
    with torch.no_grad(), quiet():
        program = torch.export.export(network, (image, tokens), strict=False)
        program = program.run_decompositions({torch.ops.talent.rca_cost_aggregation.default: rca_reference})
        onnx_program = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False,
                                         input_names=[IMAGE, TOKENS], output_names=[LOGITS])
    onnx_program.save(directory / FILE, external_data=True)
    checkpoint.tokenizer.save(directory / TOKENIZER)
    with FakeTensorMode(allow_non_fake_inputs=True):
        flop = count(lambda: network(image, tokens)).flop
    settings = {"image_size": config.image_size, "threshold": config.threshold, "gflop": flop / 1e9,
                "context_length": config.context_length}
    (directory / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def kept_export(checkpoint: Path, *, image_size: int, form: str, cache: Path) -> Path:
    """The directory of a plain export for pictures of `image_size` pixels, exported now unless `cache` has it.

    Raises UserError for what is no checkpoint, a size it cannot have, an unknown form, and a network that
    torch.onnx.export refuses.
    """
    directory = place(checkpoint, image_size=image_size, form=form, cache=cache)
    if (directory / FILE).is_file():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    with tqdm(total=2, desc=f"plain export ({form})", unit="step", leave=False, disable=None) as bar:
        loaded = resized(load_checkpoint(checkpoint), image_size)
        bar.update()
        with atomic_directory(directory, marker=FILE) as temporary:
            try:
                export_plain(loaded, temporary, form=form)
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                raise UserError(f"torch.onnx.export refuses {checkpoint} in the {form} form: {reason}; leave this row "
                                "out, or try another version of torch and onnxscript") from error
        bar.update()
    return directory
