"""FP16 that does not collapse: networks whose residual stream passes 65504, where everything else stays as it was.

A pre-norm ViT reads its residual stream through layer normalisations only, which take out any scale, so a network may
hold numbers there that FP16 does not: trained ones do (massive activations, as in DINOv2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch

from deploy.fold import fold
from deploy.graphs import export_vision, flatten_prompt
from deploy.onnx_run import Feeds, run
from deploy.precision import Precisions, decide_precisions, format_precisions, simplify, to_fp16
from talent.model import TalentModel
from tests import networks
from tests.quantized import all_int8

CONFIG = networks.SMALL
STREAM_READERS = 2 * CONFIG.vision_depth + 1
"""Layer normalisations that read the image tower's residual stream: two per block and the last one."""
LARGEST = 65504
USUAL_ERROR = 1e-3
"""Of the logits in FP16, in units of the largest: the same network without the stress has 3.1e-4."""


def quiet(model: TalentModel) -> None:
    """The network as it is."""


@dataclass(frozen=True)
class Case:
    """logits: PyTorch's in FP32 on `unseen`. samples: for calibration. plain: the network that was not stressed, on
    `unseen`."""

    graph: onnx.ModelProto
    samples: list[Feeds]
    unseen: Feeds
    logits: np.ndarray
    plain: np.ndarray
    precisions: Precisions

    def error(self, graph: onnx.ModelProto) -> float:
        """Largest difference of a logit on the unseen sample, in units of the largest."""
        return worst(run(graph, feeds=self.unseen)["logits"], self.logits)


def worst(received: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(received - expected).max() / np.abs(expected).max())


def case(stress: Callable[[TalentModel], None]) -> Case:
    model = networks.network(CONFIG)
    image, tokens = networks.inputs(CONFIG, 5)
    with torch.no_grad():
        plain = model(image, tokens).logits
        stress(model)
        logits = model(image, tokens).logits
        fold(model)
        prompt = flatten_prompt(model.prompt(model.text(tokens)))
    feeds = [{"image": image[i:i + 1].numpy(), **{name: tensor[i:i + 1].numpy() for name, tensor in prompt.items()}}
             for i in range(5)]
    graph = export_vision(model, image[:2], {name: tensor[:2] for name, tensor in prompt.items()})
    graph = simplify(graph, feeds=feeds[0])
    return Case(graph, feeds[:4], feeds[4], logits[4:].numpy(), plain[4:].numpy(),
                decide_precisions(graph, calibration=feeds[:4]))


@pytest.fixture(scope="module", params=[networks.loud, networks.massive], ids=lambda stress: stress.__name__)
def stressed(request) -> Case:
    return case(request.param)


@pytest.fixture(scope="module")
def calm() -> Case:
    return case(quiet)


def peaks(case: Case, op_type: str) -> list[float]:
    return [node.measured.peak for node in case.precisions.nodes if node.measured.op_type == op_type]


def test_the_stress_is_real_and_changes_nothing_in_fp32(stressed: Case) -> None:
    # The last one reads patches alone, which massive tokens do not reach
    assert sum(peak > LARGEST for peak in peaks(stressed, "LayerNormalization")) >= STREAM_READERS - 1
    assert sum(peak > LARGEST for peak in peaks(stressed, "Add")) >= CONFIG.vision_depth
    assert worst(stressed.logits, stressed.plain) < 2e-4  # layer normalisation's epsilon weighs less at this scale
    assert stressed.error(stressed.graph) < 1e-4


def test_fp16_without_measuring_collapses(stressed: Case) -> None:
    naive = run(to_fp16(stressed.graph), feeds=stressed.unseen)["logits"]
    assert not worst(np.nan_to_num(naive), stressed.logits) < 0.5


def test_measured_fp16_is_right_within_the_usual_error(stressed: Case, calm: Case) -> None:
    error, usual = (one.error(to_fp16(one.graph, one.precisions)) for one in (stressed, calm))
    assert usual < USUAL_ERROR and error < USUAL_ERROR
    assert error < 2 * usual


def test_measured_int8_is_as_good_as_without_the_stress(stressed: Case, calm: Case) -> None:
    error, usual = (one.error(all_int8(one.graph, one.samples, precisions=one.precisions))
                    for one in (stressed, calm))
    assert usual < 0.05  # eight bits: a scale that saturates would make ten times this
    assert error < 2 * usual


def test_only_what_touches_the_stream_stays_in_fp32(stressed: Case, calm: Case) -> None:
    kept = [node for node in stressed.precisions.nodes if node.fp32 and node.reason != "operator"]
    assert {node.reason for node in kept} == {"range"}
    assert {node.reason for node in calm.precisions.nodes if node.fp32} == {"operator"}
    products = sum(node.measured.op_type == "MatMul" for node in kept)
    assert products < 0.1 * len(peaks(stressed, "MatMul"))  # where the time goes stays in FP16
    table = format_precisions(stressed.precisions, title="vision")
    assert "FP32 by range" in table and f"{len(stressed.precisions.fp32)} in FP32" in table.splitlines()[0]
