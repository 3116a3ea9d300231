"""benchmarks/plain_export.py on a small network: one graph that computes what PyTorch does, kept until it changes."""

from __future__ import annotations

import dataclasses

import onnx
import pytest
import torch

from benchmarks import plain_export, plain_network
from benchmarks.peers import peer_contenders, prepare
from benchmarks.plain_export import kept_export
from benchmarks.plain_network import FILE, FORMS, OFFICIAL, TALENT, PlainNetwork, place
from talent.checkpoint import load_checkpoint
from talent.errors import UserError
from tests import networks
from tests.benchmarks.peer_answers import LORA, assert_same_network, saved
from tests.networks import SMALL, inputs

SIZE = SMALL.image_size


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """With LoRA factors far from zero, unmerged."""
    return saved(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache") / "plain"


@pytest.fixture(scope="module")
def exports(checkpoint, cache):
    """Form -> the directory of its export."""
    return {form: kept_export(checkpoint, image_size=SIZE, form=form, cache=cache) for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_it_computes_what_pytorch_does(exports, checkpoint, form):
    network, model = PlainNetwork(exports[form], threads=1), load_checkpoint(checkpoint).model
    for seed in (0, 1):
        image, tokens = inputs(SMALL, 1, seed=seed)
        with torch.inference_mode():
            wanted = model(image, tokens).logits.numpy()
        received = network(image.numpy(), tokens.numpy())
        assert received.shape == wanted.shape and abs(wanted).max() > 0.1
        assert abs(received - wanted).max() < 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_it_is_one_graph_of_picture_and_words(exports, form):
    graph = onnx.load(exports[form] / FILE, load_external_data=False).graph
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.input}
    assert shapes == {"image": [1, 3, SIZE, SIZE], "tokens": [1, SMALL.context_length]}
    assert [value.name for value in graph.output] == ["logits"]
    assert not any(node.domain == "talent" for node in graph.node), "standard operators alone"


def test_lora_is_merged(exports):
    graph = onnx.load(exports[OFFICIAL] / FILE, load_external_data=False).graph
    names = [value.name for value in graph.initializer]
    assert any("blocks.0.attn.qkv" in name for name in names) and not any("lora" in name for name in names)


def test_settings_lie_beside_the_graph(exports):
    opened = {form: PlainNetwork(exports[form], threads=1) for form in FORMS}
    for network in opened.values():
        assert (network.image_size, network.threshold) == (SIZE, SMALL.threshold)
        assert network.tokenizer(["a cup"]).shape == (1, SMALL.context_length)
    assert opened[OFFICIAL].gflop > 1.2 * opened[TALENT].gflop > 0, "the projector's enlarging"
    weights = sum(parameter.numel() for parameter in networks.network(SMALL).parameters())
    assert opened[TALENT].onnx_bytes > 0.8 * 4 * weights


def test_it_is_exported_once(exports, checkpoint, cache, monkeypatch):
    monkeypatch.setattr(plain_export, "export_plain", lambda *_, **__: pytest.fail("exported again"))
    for form in FORMS:
        assert kept_export(checkpoint, image_size=SIZE, form=form, cache=cache) == exports[form]


def test_as_a_peer_it_is_opened_without_exporting(exports, checkpoint, cache, monkeypatch):
    monkeypatch.setattr(plain_export, "export_plain", lambda *_, **__: pytest.fail("exported again"))
    contenders = peer_contenders(checkpoint, names=["plain", "plain-talent"], cache=cache)
    prepare(contenders, image_size=SIZE)
    for contender in contenders:
        stages = contender.open(image_size=SIZE, threads=1)
        assert_same_network(stages, checkpoint, SMALL)
    assert stages.encode("a cup").dtype.name == "int64"
    assert stages.facts()["gflop"] > 0 == stages.facts()["text_gflop"] and stages.facts()["onnx_bytes"] > 0


def test_whatever_it_depends_on_changes_its_place(checkpoint, cache, tmp_path, monkeypatch):
    def found(path=checkpoint, *, image_size=SIZE, form=OFFICIAL):
        return place(path, image_size=image_size, form=form, cache=cache)

    other = saved(tmp_path, SMALL, dataclasses.replace(LORA, rank=3))
    places = [found(), found(form=TALENT), found(image_size=224), found(other)]
    monkeypatch.setattr(plain_network, "SOURCES", ("official_style.py",))
    places.append(found())
    monkeypatch.setattr(plain_network.provenance, "versions", lambda *names: dict.fromkeys(("python", *names), "0"))
    places.append(found())
    assert len(set(places)) == len(places)
    assert found() == places[-1]


def test_an_exporter_that_refuses_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no such operator\nand a long story")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(UserError, match="in the talent form: no such operator; leave this row out"):
        kept_export(checkpoint, image_size=SIZE, form=TALENT, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(("path", "form", "message"), [
    ("nothing", OFFICIAL, "no checkpoint at .*nothing"), (None, "offical", "did you mean 'official'")])
def test_bad_input(checkpoint, tmp_path, path, form, message):
    with pytest.raises(UserError, match=message):
        kept_export(tmp_path / path if path else checkpoint, image_size=SIZE, form=form, cache=tmp_path)
