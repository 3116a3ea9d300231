"""The two halves of a folded network as ONNX sees them: flat tensors in, flat tensors out.

text: tokens [B, L] int64 -> the prompt tensors. vision: image [B or 1, 3, S, S] and the prompt tensors -> logits. With
one picture, what comes before the first words is computed once for all expressions. The prompt tensors travel by name,
so that a runtime passes them on without knowing them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import groupby

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from deploy.runtime.interface import IMAGE, LOGITS, MOST_EXPRESSIONS, TOKENS
from talent.model import Prompt, TalentModel
from talent.model.rca import rca_reference
from talent.require import require

OPSET = 20  # 18 - 20: newer ones bring operators that TensorRT-RTX does not read (design.md)
PICTURES, EXPRESSIONS = "pictures", "expressions"  # names of the two sizes that vary; as many pictures, or one


def flatten_prompt(prompt: Prompt) -> dict[str, Tensor]:
    """Name -> tensor, in the order in which both graphs list them: adapter_0, ..., neck_0, ..., attention_0_0, ...,
    kernel, kernel_bias."""
    flat = {f"{group}_{i}": tensor for group, tensors in (("adapter", prompt.adapters), ("neck", prompt.neck))
            for i, tensor in enumerate(tensors)}
    flat |= {f"attention_{i}_{j}": tensor for i, layer in enumerate(prompt.attention) for j, tensor in enumerate(layer)}
    return flat | {"kernel": prompt.kernel, "kernel_bias": prompt.kernel_bias}


def unflatten_prompt(tensors: dict[str, Tensor]) -> Prompt:
    """The inverse of `flatten_prompt`."""
    def group(name: str) -> tuple[Tensor, ...]:
        return tuple(tensor for key, tensor in tensors.items() if key.rpartition("_")[0] == name)

    layers = [layer for layer, _ in groupby(key.rpartition("_")[0] for key in tensors if key.startswith("attention_"))]
    return Prompt(adapters=group("adapter"), neck=group("neck"), attention=tuple(group(layer) for layer in layers),
                  kernel=tensors["kernel"], kernel_bias=tensors["kernel_bias"])


def prompt_tensors(model: TalentModel, tokens: Tensor) -> dict[str, Tensor]:
    """The text half of a network: tokens [B, L] int64 -> the prompt tensors by name."""
    return flatten_prompt(model.prompt(model.text(tokens)))


class TextGraph(nn.Module):
    """tokens [B, L] -> prompt tensors, in the order of `flatten_prompt`."""

    def __init__(self, model: TalentModel):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return tuple(prompt_tensors(self.model, tokens).values())


def vision_inputs(model: TalentModel, image: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of the vision graph for image [1, 3, S, S] and tokens [1, L]."""
    with torch.inference_mode():
        prompt = prompt_tensors(model, torch.from_numpy(tokens))
    return {IMAGE: image, **{name: tensor.numpy() for name, tensor in prompt.items()}}


class VisionGraph(nn.Module):
    """image [B or 1, 3, S, S] and the prompt tensors -> logits [B, 1, 4 grid, 4 grid]. names: of the prompt tensors."""

    def __init__(self, model: TalentModel, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, image: Tensor, *prompt: Tensor) -> Tensor:
        for tensor in prompt[1:]:  # so that torch.export knows that the batch is one, and broadcasts the picture once
            torch._check(tensor.shape[0] == prompt[0].shape[0])
        logits, _ = self.model.segment(image, unflatten_prompt(dict(zip(self.names, prompt, strict=True))))
        return logits


def export_text(model: TalentModel, tokens: Tensor) -> onnx.ModelProto:
    """The text graph with a dynamic batch; tokens [B, L] is an example of at least two sentences."""
    with torch.no_grad():
        names = list(prompt_tensors(model, tokens))
    batch = torch.export.Dim(EXPRESSIONS, min=1, max=MOST_EXPRESSIONS)
    return _export(TextGraph(model), (tokens,), ({0: batch},), {TOKENS: EXPRESSIONS}, dict.fromkeys(names, EXPRESSIONS))


def export_vision(model: TalentModel, image: Tensor, prompt: dict[str, Tensor]) -> onnx.ModelProto:
    """The vision graph with a dynamic batch of pictures and of expressions.

    image [P, 3, S, S] and prompt [B, ...] are examples of at least two each, P unlike B. RCA is written out in standard
    operators: `fuse_rca` gathers them again as the last pass over the file.
    """
    pictures, expressions = (torch.export.Dim(name, min=1, max=MOST_EXPRESSIONS) for name in (PICTURES, EXPRESSIONS))
    return _export(VisionGraph(model, tuple(prompt)), (image, *prompt.values()),
                   ({0: pictures}, tuple({0: expressions} for _ in prompt)),
                   {IMAGE: PICTURES, **dict.fromkeys(prompt, EXPRESSIONS)}, {LOGITS: EXPRESSIONS})


def _export(graph: nn.Module, arguments: tuple[Tensor, ...], shapes: tuple, inputs: dict[str, str],
            outputs: dict[str, str]) -> onnx.ModelProto:
    """inputs, outputs: by name, the name of their first size."""
    program = torch.export.export(graph.eval(), arguments, strict=False, dynamic_shapes=shapes)
    program = program.run_decompositions({torch.ops.talent.rca_cost_aggregation.default: rca_reference})
    onnx_program = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, verbose=False, external_data=False, input_names=list(inputs),
        output_names=list(outputs), custom_translation_table={torch.ops.talent.broadcast_batch.default: _broadcast()})
    model = onnx_program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = (inputs | outputs)[value.name]
    del model.graph.value_info[:]  # they have the exporter's names of the sizes, and every reader infers them
    return model


def name_nodes(model: onnx.ModelProto, modules: Mapping[str, str]) -> None:
    """Name every node after its module, in place: "vision.blocks.3.mlp.fc1/MatMul", a second one "..._2".

    modules: module by tensor (deploy.layer_losses.layer_names). What belongs to none keeps its name.
    """
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        module = modules.get(node.output[0])
        name = f"{module}/{node.op_type}" if module else node.name or node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def _broadcast():
    """`talent::broadcast_batch` in ONNX: Expand takes both, one picture and as many as expressions."""
    op = require("onnxscript", extra="export").opset20

    def broadcast_batch(x, like):
        size = op.Concat(op.Shape(like, start=0, end=1), op.Constant(value_ints=[1, 1]), axis=0)
        return op.Expand(x, size)

    return broadcast_batch
