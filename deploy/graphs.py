"""The two halves of a folded network as ONNX sees them: flat tensors in, flat tensors out.

text: tokens [B, L] int64 -> the prompt tensors. vision: image [B, 3, S, S] and the prompt tensors -> logits.
The prompt tensors travel by name (`prompt_names`), so that a runtime passes them on without knowing them.
"""

from __future__ import annotations

import io

import onnx
import torch
from torch import Tensor, nn

from deploy.runtime.interface import IMAGE, LOGITS, TOKENS
from talent.model import Prompt, TalentModel
from talent.model.rca import rca_reference

OPSET = 20  # 18 - 20: newer ones bring operators that TensorRT-RTX does not read (design.md)
MAX_BATCH = 64
GROUPS = ("adapters", "neck", "keys", "values")
SINGLES = ("kernel", "kernel_bias")


def flatten_prompt(prompt: Prompt) -> dict[str, Tensor]:
    """Name -> tensor, in the order in which both graphs list them: adapter_0, ..., neck_0, ..., kernel, kernel_bias."""
    flat = {f"{group.removesuffix('s')}_{i}": tensor
            for group in GROUPS for i, tensor in enumerate(getattr(prompt, group))}
    return flat | {name: getattr(prompt, name) for name in SINGLES}


def unflatten_prompt(tensors: dict[str, Tensor]) -> Prompt:
    """The inverse of `flatten_prompt`."""
    groups = {group: tuple(tensor for name, tensor in tensors.items()
                           if name.rpartition("_")[0] == group.removesuffix("s")) for group in GROUPS}
    return Prompt(**groups, **{name: tensors[name] for name in SINGLES})


class TextGraph(nn.Module):
    """tokens [B, L] -> prompt tensors, in the order of `flatten_prompt`."""

    def __init__(self, model: TalentModel):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return tuple(flatten_prompt(self.model.prompt(self.model.text(tokens))).values())


class VisionGraph(nn.Module):
    """image [B, 3, S, S] and the prompt tensors -> logits [B, 1, 4 grid, 4 grid]. names: of the prompt tensors."""

    def __init__(self, model: TalentModel, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, image: Tensor, *prompt: Tensor) -> Tensor:
        logits, _ = self.model.segment(image, unflatten_prompt(dict(zip(self.names, prompt, strict=True))))
        return logits


def export_text(model: TalentModel, tokens: Tensor) -> onnx.ModelProto:
    """The text graph with a dynamic batch; tokens [B, L] is an example of at least two sentences."""
    with torch.no_grad():
        names = list(flatten_prompt(model.prompt(model.text(tokens))))
    return _export(TextGraph(model), (tokens,), [TOKENS], names)


def export_vision(model: TalentModel, image: Tensor, prompt: dict[str, Tensor]) -> onnx.ModelProto:
    """The vision graph with a dynamic batch; image [B, 3, S, S] and prompt are an example with a batch of at least two.

    RCA is written out in standard operators: `fuse_rca` gathers them again as the last pass over the file.
    """
    return _export(VisionGraph(model, tuple(prompt)), (image, *prompt.values()), [IMAGE, *prompt], [LOGITS])


def _export(graph: nn.Module, inputs: tuple[Tensor, ...], names: list[str], outputs: list[str]) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    shapes = tuple({0: batch} for _ in inputs)
    variadic = isinstance(graph, VisionGraph)
    program = torch.export.export(graph.eval(), inputs, strict=False,
                                  dynamic_shapes=(shapes[0], shapes[1:]) if variadic else shapes)
    program = program.run_decompositions({torch.ops.talent.rca_cost_aggregation.default: rca_reference})
    onnx_program = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, external_data=False,
                                     input_names=names, output_names=outputs)
    buffer = io.BytesIO()
    onnx_program.save(buffer)
    return onnx.load_from_string(buffer.getvalue())
