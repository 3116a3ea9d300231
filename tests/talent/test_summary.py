"""The table of parameters adds up, and says of base what model.md says."""

from __future__ import annotations

import json

import pytest
import torch

from talent.config import preset
from talent.model import build_model
from talent.model.lora import LoraSettings, add_lora, parameter_counts, select_trainable
from talent.model.summary import PARTS, RCA, TOTAL, frozen_bytes, parameter_table, summarise
from tests.networks import CONFIGS, TINY, network

# model.md. Its total of 172,791,090 has 1537 numbers of the official file that this network does not hold: the logit
# scale, the mask token and the class position (added to the class token).
PUBLISHED = {"text adapters": 418_320, "image adapters": 1_914_912, RCA: 605_952, "neck": 7_753_728,
             "decoder": 7_899_136, "projector": 4_788_737}
PUBLISHED_TRAINABLE, PUBLISHED_TOTAL, NOT_HELD = 22_774_833, 172_791_090, 1 + 2 * 768


def rows(model) -> dict[str, tuple[int, int]]:
    return {row["module"]: (row["total"], row["trainable"]) for row in parameter_table(model)}


@pytest.fixture(scope="module")
def base():
    with torch.device("meta"):
        model = build_model(preset("base"))
    select_trainable(model, tune="adapters", train_heads=True)
    return model


def test_base_has_the_published_numbers(base):
    table = rows(base)
    for module, number in PUBLISHED.items():
        assert table[module] == (number, number), module
    assert table[TOTAL] == (PUBLISHED_TOTAL - NOT_HELD, PUBLISHED_TRAINABLE)
    assert table["text tower"][1] == table["vision tower"][1] == 0
    assert "LoRA text" not in table and "LoRA vision" not in table


def test_base_as_text(base):
    lines = summarise(base).splitlines()
    assert lines[0].split() == ["parameters", "trainable", "share"]
    assert lines[-2].split() == ["total", "172,789,553", "22,774,833", "13.2%"]
    assert any(line.split() == ["text", "adapters", "418,320", "418,320", "100.0%"] for line in lines)
    assert len({len(line) for line in lines[:-1]}) == 1, "columns are aligned"
    assert lines[-1] == f"frozen parameters: {4 * (172_789_553 - 22_774_833) / 1e6:.1f} MB"


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tune", ["full", "adapters", "lora", "lora+adapters"])
def test_rows_add_up(name, tune):
    model = network(CONFIGS[name])
    add_lora(model, LoraSettings(rank=2, text=("qkv",)))
    select_trainable(model, tune=tune, train_heads=False)
    table = rows(model)
    trainable, total = parameter_counts(model)
    assert table[TOTAL] == (total, trainable)
    assert tuple(sum(table.get(part, (0, 0))[i] for part in PARTS) for i in range(2)) == (total, trainable)
    assert table["LoRA text"][0] == 2 * CONFIGS[name].text_layers * 4 * CONFIGS[name].text_width
    assert (table["LoRA vision"][1] > 0) == (tune != "adapters")
    assert (table["image adapters"][1] > 0) == ("adapters" in tune or tune == "full")
    assert table[RCA][0] < table["image adapters"][0]
    assert ("text adapters" in table) == (CONFIGS[name].text_adapter == "dense")
    assert frozen_bytes(model) == 4 * (total - trainable)


def test_the_table_fits_into_json():
    table = parameter_table(network(TINY))
    assert json.loads(json.dumps(table)) == table


def test_frozen_bytes_knows_the_type():
    model = network(TINY)
    select_trainable(model, tune="adapters", train_heads=False)
    assert frozen_bytes(model.half()) * 2 == frozen_bytes(model.float())
