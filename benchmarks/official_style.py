"""A training step of TALENT as the official code computes it: the yardstick of training.py.

The formulas are those of the published repository (Kimsure/TALENT), written afresh over this project's weights, so that
both compute the same numbers from the same parameters. What is kept of the original: backbones frozen (requires_grad
False), adapters and heads trained, so that autograd records from the first adapter on; plain Adam; attention of the
image tower and the decoder as an explicit softmax of every score, whose mean over heads the decoder computes and drops;
norm2 of an adapted block computed twice; RCA as separate operations; maps as [B, C, H, W]; the projector's enlarging
before its convolutions and one grouped convolution at the end; the pixel affinities of CPCL as whole matrices; ReLU in
place; three sentences in one pass. The text tower's attention takes PyTorch's fused kernel there (need_weights=False),
so it does here. Left out: float16 (the official code trains on GPUs only) and what concerns several GPUs.

B batch, L words, N image tokens, C width of neck and decoder, D width of the image tower.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from talent.losses import PAIR_THRESHOLD, Losses, LossWeights, segmentation_loss, target_centric_contrast
from talent.model.adapters import DenseBranches, DenseImageAdapter, RcaImageAdapter, TextAdapter
from talent.model.decoder import DecoderLayer
from talent.model.neck import LinearBatchNorm, NeckOutput
from talent.model.projector import TAPS, Projector
from talent.model.rca import RectifiedCostAggregator
from talent.model.talent import TalentModel, TalentOutput
from talent.model.text import TextBlock, TextFeatures
from talent.model.vision import PREFIX, AdaptedBlock


def explicit_attention(x: Tensor, attention: nn.Module) -> Tensor:
    """The image tower's self-attention with every score in memory: x [B, N, D] -> [B, N, D]."""
    batch, length, width = x.shape
    heads = attention.num_heads
    q, k, v = attention.qkv(x).reshape(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    scores = (q * (width // heads) ** -0.5) @ k.transpose(-2, -1)  # [B, heads, N, N]
    return attention.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width))


def multihead(query: Tensor, key: Tensor, value: Tensor, attention: nn.Module, *, need_weights: bool,
              mask: Tensor | None = None) -> Tensor:
    """nn.MultiheadAttention's function, length first: query [Nq, B, C], key and value [Nk, B, C] -> [Nq, B, C]."""
    if hasattr(attention, "qkv"):
        weights = attention.qkv.weight.chunk(3)
        bias = attention.qkv.bias
    else:
        weights = [getattr(attention, name).weight for name in "qkv"]
        bias = torch.cat([getattr(attention, name).bias for name in "qkv"])
    attended, _ = F.multi_head_attention_forward(
        query, key, value, query.shape[2], attention.heads, None, bias, None, None, False, 0.0, attention.proj.weight,
        attention.proj.bias, need_weights=need_weights, attn_mask=mask, use_separate_proj_weight=True,
        q_proj_weight=weights[0], k_proj_weight=weights[1], v_proj_weight=weights[2])
    return attended


def _stage(block: nn.Sequential, x: Tensor) -> Tensor:
    """Convolution, BatchNorm, ReLU in place."""
    convolution, norm, _ = block
    return F.relu(norm(convolution(x)), inplace=True)


def _branches(branches: DenseBranches, x: Tensor) -> Tensor:
    b1 = _stage(branches.branch1, x)
    b2 = _stage(branches.branch2[1], _stage(branches.branch2[0], torch.cat([x, b1], 1)))
    b3 = _stage(branches.branch3[1], _stage(branches.branch3[0], torch.cat([x, b1, b2], 1)))
    return torch.cat([b1, b2, b3], 1)


def text_adapter(adapter: TextAdapter, x: Tensor) -> Tensor:
    """x [B, L, W] -> [B, L, W]."""
    z = F.relu(adapter.fc1(x), inplace=True)
    dense = _branches(adapter.branches, z[:, 1:].permute(0, 2, 1)).permute(0, 2, 1)
    return adapter.fc2(torch.cat([z[:, :1], dense], 1) + z)


def cost_volume(rca: RectifiedCostAggregator, image: Tensor, words: Tensor) -> Tensor:
    """RCA in separate operations: image [B, N, A], words [B, L, W] -> [B, N, A]."""
    visual, text = rca.image_proj(image), rca.text_proj(words)
    cost = rca.cost_proj(torch.einsum("bdn,bkd->bnk", visual.permute(0, 2, 1), text))
    return rca.back_proj(cost * visual)


def image_adapter(adapter: DenseImageAdapter | RcaImageAdapter, x: Tensor, words: Tensor) -> Tensor:
    """x [B, P+N, D] -> [B, P+N, D]. The light adapter of the small presets has no official form; it is done alike."""
    z = F.relu(adapter.fc1(x), inplace=True)
    if isinstance(adapter, RcaImageAdapter):
        return adapter.fc2(cost_volume(adapter.rca, z, words) + z)
    body = z[:, adapter.prefix:]
    grid = body.reshape(x.shape[0], adapter.grid, adapter.grid, -1).permute(0, 3, 1, 2)  # [B, A, grid, grid]
    dense = (_branches(adapter.branches, grid) + grid).reshape(x.shape[0], grid.shape[1], -1).permute(0, 2, 1)
    out = torch.cat([z[:, :adapter.prefix], cost_volume(adapter.rca, dense, words)], 1)
    out += z
    return adapter.fc2(out)


def text_block(block: TextBlock, x: Tensor, mask: Tensor) -> Tensor:
    """x [L, B, W] -> [L, B, W]."""
    n = block.norm1(x)
    x = x + multihead(n, n, n, block.attn, need_weights=False, mask=mask)
    if block.adapter is None:
        return x + block.mlp(block.norm2(x))
    adapted = text_adapter(block.adapter, x.clone().transpose(0, 1)).transpose(0, 1)
    return x + block.mlp(block.norm2(x)) + block.adapter_scale * adapted


def image_block(block: nn.Module, x: Tensor, words: Tensor) -> Tensor:
    """x [B, P+N, D] -> [B, P+N, D]."""
    x = x + block.ls1(explicit_attention(block.norm1(x), block.attn))
    if not isinstance(block, AdaptedBlock):
        return x + block.ls2(block.mlp(block.norm2(x)))
    adapted = image_adapter(block.adapter, block.norm2(x), words)
    return x + block.ls2(block.mlp(block.norm2(x)) + adapted * block.ls_gate)


def conv_norm_relu(module: LinearBatchNorm, x: Tensor, *, transposed: bool = False) -> Tensor:
    """A 1x1 (transposed) convolution of maps [B, C, H, W], BatchNorm, ReLU in place."""
    weight = module.linear.weight
    y = (F.conv_transpose2d(x, weight.t()[:, :, None, None]) if transposed else F.conv2d(x, weight[:, :, None, None]))
    norm = module.norm
    if norm.training:
        norm.num_batches_tracked += 1
    y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, norm.momentum,
                     norm.eps)
    return F.relu(y, inplace=True)


def decoder_layer(layer: DecoderLayer, x: Tensor, words: Tensor, positions: Tensor, word_positions: Tensor) -> Tensor:
    """x [N, B, C], words [L, B, W] -> [N, B, C]."""
    n = layer.norm1(x)
    placed = n + positions
    x = x + layer.dropout(layer.self_attn_norm(multihead(placed, placed, n, layer.self_attn, need_weights=True)))
    attended = multihead(layer.norm2(x) + positions, words + word_positions, words, layer.cross_attn, need_weights=True)
    x = x + layer.dropout(layer.cross_attn_norm(attended))
    first, _, dropout, norm, second = layer.ffn
    return x + layer.dropout(second(norm(dropout(F.relu(first(layer.norm3(x)), inplace=True)))))


class OfficialStyle(nn.Module):
    """The forward pass over the parameters of a TalentModel: same inputs, same outputs, same BatchNorm statistics."""

    def __init__(self, model: TalentModel):
        super().__init__()
        self.model = model

    def encode(self, tokens: Tensor) -> TextFeatures:
        """tokens [B, L] -> TextFeatures."""
        text = self.model.text
        length = tokens.shape[1]
        x = (text.token_embedding(tokens) + text.positional_embedding[:length]).permute(1, 0, 2)  # [L, B, W]
        for block in text.blocks:
            x = text_block(block, x, text.mask[:length, :length])
        words = text.ln_final(x.permute(1, 0, 2))
        return TextFeatures(words, words[torch.arange(len(tokens)), tokens.argmax(-1)] @ text.text_projection)

    def taps(self, image: Tensor, words: Tensor) -> list[Tensor]:
        """Three maps [B, D, grid, grid]."""
        vision = self.model.vision
        x = vision.embed(image.clone())
        maps = []
        for number, block in enumerate(vision.blocks):
            x = image_block(block, x, words)
            if number in vision.taps[:2]:
                maps.append(x)
        maps.append(vision.norm(x))
        grid = vision.grid
        return [tap[:, PREFIX:].reshape(len(image), grid, grid, -1).permute(0, 3, 1, 2) for tap in maps]

    def neck(self, taps: list[Tensor], state: Tensor) -> tuple[NeckOutput, Tensor, Tensor]:
        """NeckOutput (its maps as tokens), the result as a map [B, C, grid, grid] and the sentence [B, C]."""
        neck = self.model.neck
        sentence = neck.txt_proj(state.unsqueeze(0))  # [1, B, C]
        scales = []
        for number, (tap, projection, fusion) in enumerate(zip(taps, neck.projections, neck.fusions, strict=True)):
            visual = conv_norm_relu(projection, tap, transposed=number == 2)
            text = F.relu(fusion.text(sentence.permute(1, 0, 2)), inplace=True)  # [B, 1, C]
            cost = torch.einsum("bchw,blc->blhw", visual, text)  # [B, 1, grid, grid]
            scales.append(conv_norm_relu(fusion.gate, cost) * visual)
        aggregated = conv_norm_relu(neck.aggregation, torch.cat(scales, 1))
        coordinates = neck.coord_conv[0].coordinates.expand(len(state), -1, -1, -1)
        located = _stage(neck.coord_conv[0], torch.cat([aggregated, coordinates], 1))
        features = _stage(neck.coord_conv[1], located) + aggregated
        tokens = [x.flatten(2).transpose(1, 2) for x in (*scales, aggregated, features)]
        return NeckOutput(tuple(tokens[:3]), tokens[3], tokens[4]), features, sentence[0]

    def decode(self, maps: Tensor, words: Tensor) -> Tensor:
        """maps [B, C, grid, grid], words [B, L, W] -> [B, C, grid, grid]."""
        decoder = self.model.decoder
        batch, width, height, _ = maps.shape
        x = maps.reshape(batch, width, -1).permute(2, 0, 1)  # [N, B, C]
        words = words.permute(1, 0, 2)
        for layer in decoder.layers:
            x = decoder_layer(layer, x, words, decoder.image_positions[:, None],
                              decoder.word_positions[:words.shape[0], None])
        return decoder.norm(x).permute(1, 2, 0).reshape(batch, width, height, -1)

    def project(self, maps: Tensor, state: Tensor) -> Tensor:
        """maps [B, C, grid, grid] -> logits [B, 1, 4 grid, 4 grid]."""
        projector: Projector = self.model.projector
        x = maps
        for block in (projector.conv1, projector.conv2):
            x = _stage(block, F.interpolate(x, scale_factor=2, mode="bilinear"))
        x = projector.conv3(x)
        batch, channels, height, width = x.shape
        numbers = projector.txt(state)
        kernels = numbers[:, :-1].reshape(batch, channels, 3, 3)
        assert numbers.shape[1] == TAPS * channels + 1
        out = F.conv2d(x.reshape(1, batch * channels, height, width), kernels, numbers[:, -1], padding=1, groups=batch)
        return out.transpose(0, 1)

    def forward(self, image: Tensor, tokens: Tensor, contrast: Tensor) -> TalentOutput:
        """image [B, 3, S, S], tokens [B, L], contrast [B, R, L], all sentences in one pass through the text tower."""
        batch = len(tokens)
        encoded = self.encode(torch.cat([tokens, contrast.flatten(0, 1)]))
        text = TextFeatures(encoded.words[:batch], encoded.state[:batch])
        neck, features, sentence = self.neck(self.taps(image, text.words), text.state)
        logits = self.project(self.decode(features, text.words), text.state)
        states = encoded.state[batch:].unflatten(0, contrast.shape[:2])
        if states.shape[2] != sentence.shape[1]:  # never in the official sizes
            states = self.model.neck.txt_proj(states)
        return TalentOutput(logits=logits, neck=neck, text=text, sentence=sentence, contrast=states)


def pairwise_consistency(features: Tensor, sentence: Tensor) -> Tensor:
    """CPCL of one scale with its N x N matrices written out: features [B, N, C], sentence [B, C]."""
    maps = features.transpose(1, 2)  # [B, C, N]
    normal = F.normalize(maps, p=2, dim=1)
    affinity = F.softmax(torch.einsum("bcn,bcm->bnm", normal, normal), -1)
    score = torch.einsum("bcn,bcl->bnl", maps, sentence.unsqueeze(2))
    pairs = F.softmax(torch.einsum("bnl,bml->bnm", score, score), -1)
    pairs = (pairs > PAIR_THRESHOLD).float()
    return (torch.mul(affinity, pairs) - pairs).norm(p=2, dim=-1).mean()


def official_losses(output: TalentOutput, batch: dict[str, Tensor], weights: LossWeights) -> Losses:
    """`talent_losses` of kind official, with CPCL written out. batch: "mask" [B, 1, S, S] and "valid" bool [B]."""
    segmentation = segmentation_loss(output.logits, batch["mask"])
    scales = output.neck.scales
    cpcl = sum(pairwise_consistency(scale, output.sentence) for scale in scales) / len(scales)
    tccl = target_centric_contrast(output.neck.aggregated.mean(1), output.contrast[:, 0], output.contrast[:, 1],
                                   batch["valid"])
    cpcl_weight, tccl_weight = weights.resolved()
    return Losses(segmentation, cpcl, tccl, segmentation + cpcl_weight * cpcl + tccl_weight * tccl)
