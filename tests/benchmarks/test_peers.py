"""benchmarks/peers.py on small networks: each peer is the same network, counts what it says, and says why it cannot."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from benchmarks import clipseg
from benchmarks.contenders import Opened
from benchmarks.fresh_process import Job
from benchmarks.peers import PEERS, peer_contenders, prepare
from talent.checkpoint import load_checkpoint
from talent.errors import UserError
from tests.benchmarks.peer_answers import LORA, PHOTO, SENTENCES, assert_same_network, logits, opened, saved
from tests.networks import DENSE, TINY


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny network with LoRA."""
    return saved(tmp_path_factory.mktemp("tiny"), TINY)


@pytest.mark.parametrize("name", ["official", "official-kept"])
@pytest.mark.parametrize("config", [TINY, DENSE], ids=lambda config: config.preset)
@pytest.mark.parametrize("lora", [None, LORA], ids=["plain", "lora"])
def test_official_style_is_the_same_network(tmp_path, name, config, lora):
    path = saved(tmp_path, config, lora)
    assert_same_network(opened(path, name, config, tmp_path), path, config)


def test_official_style_counts_the_text_where_it_runs(tmp_path):
    path = saved(tmp_path, DENSE)
    every, kept = (opened(path, name, DENSE, tmp_path).facts() for name in ("official", "official-kept"))
    assert every["text_gflop"] == 0 < kept["text_gflop"] < kept["gflop"]
    assert every["gflop"] == pytest.approx(kept["gflop"] + kept["text_gflop"])


def test_several_sentences_are_several_runs(checkpoint, tmp_path):
    stages = opened(checkpoint, "official", TINY, tmp_path)
    seen = []
    run = stages.network.segment
    stages.network.segment = lambda image, text: (seen.append(len(image)), run(image, text))[1]
    stages.segment_many(PHOTO, stages.encode_many(SENTENCES))
    assert seen == [1, 1] and not stages.together


def test_the_official_style_has_no_lora(checkpoint, tmp_path):
    stages = opened(checkpoint, "official", TINY, tmp_path)
    assert load_checkpoint(checkpoint).lora and not any("lora" in name for name, _ in stages.network.named_parameters())


def test_preparing_leaves_the_reason_to_opening(tmp_path):
    contenders = prepare(peer_contenders(None, names=["plain"], cache=tmp_path), image_size=224)
    with Opened(contenders, image_size=224, threads=1) as ready:
        assert [entry.reason for entry in ready.not_run] == ["pass --checkpoint"]


FEW = {"vision_config": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
                         "image_size": 64, "patch_size": 16},
       "text_config": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
       "projection_dim": 16, "reduce_dim": 16, "extract_layers": [0, 1, 2], "decoder_intermediate_size": 16,
       "use_complex_transposed_convolution": True}


def test_clipseg_with_a_kept_sentence_is_clipseg():
    pytest.importorskip("transformers")
    stages = clipseg.ClipSeg(device="cpu", config=FEW, image_size=96)
    tensor, _ = stages.preprocess(PHOTO)
    for sentence in SENTENCES:
        with torch.inference_mode():
            wanted = stages.network(input_ids=stages.tokens(sentence), pixel_values=torch.from_numpy(tensor)).logits
        np.testing.assert_allclose(logits(stages, sentence)[0, 0], wanted.squeeze().numpy(), atol=1e-6)
    assert abs(logits(stages, SENTENCES[0]) - logits(stages, SENTENCES[1])).max() > 1e-4, "the words matter"
    again = clipseg.ClipSeg(device="cpu", config=FEW, image_size=96)
    np.testing.assert_array_equal(logits(again, "a cup"), logits(stages, "a cup"))
    assert 0 < stages.facts()["text_gflop"] < stages.facts()["gflop"]


def test_clipseg_has_the_published_size():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        network = transformers.CLIPSegForImageSegmentation(transformers.CLIPSegConfig(**clipseg.PUBLISHED))
    megabytes = 4 * sum(parameter.numel() for parameter in network.parameters()) / 2**20
    assert megabytes == pytest.approx(575.1, abs=0.1), "the file of CIDAS/clipseg-rd64-refined"
    assert network.config.vision_config.patch_size == 16


def test_without_transformers_clipseg_is_not_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with Opened(peer_contenders(None, names=["clipseg"]), image_size=224, threads=1) as ready:
        entry, = ready.not_run
    assert entry.name == "CLIPSeg FP32" and "pip install 'talent-edge[peers]'" in entry.reason


def test_contenders_are_plain_data_with_names_of_their_own(checkpoint, tmp_path):
    contenders = peer_contenders(checkpoint, cache=tmp_path)
    for contender in contenders:
        job = Job(contender, image_size=224, threads=1, picture="p.jpg", sentence="the cup")
        assert Job.from_json(job.to_json()) == job  # a process of its own can open it
    assert len({contender.name for contender in contenders}) == len(PEERS) == 6
    assert [contender.backend for contender in contenders] == list(PEERS.values())
    assert {contender.device for contender in contenders} == {"cpu"}


def test_without_a_checkpoint_its_peers_say_so():
    names = [name for name in PEERS if name != "clipseg"]
    with Opened(peer_contenders(None, names=names), image_size=224, threads=1) as ready:
        assert not ready.stages
        assert [entry.reason for entry in ready.not_run] == ["pass --checkpoint"] * 5


def test_without_torch_every_peer_that_needs_it_says_so(monkeypatch, checkpoint):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with Opened(peer_contenders(checkpoint, names=["official", "compile"]), image_size=224, threads=1) as ready:
        assert not ready.stages
        assert all("pip install 'talent-edge[train]'" in entry.reason for entry in ready.not_run)


def test_a_peer_twice_is_one_row():
    assert len(peer_contenders(None, names=["official", "official"])) == 1


def test_unknown_peer():
    with pytest.raises(UserError, match="unknown peer 'offical'; did you mean 'official'"):
        peer_contenders(None, names=["offical"])
