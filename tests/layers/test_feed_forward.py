from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import nn

from regard.layers.feed_forward import FeedForward, FeedForwardConfig
from regard.layers.head import HeadConfig, OutputHead
from regard.layers.norm import NormConfig

DIM, WIDTH, VOCAB = 5, 7, 11
FORMULAS = {
    "relu": lambda x: x.clamp_min(0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", list(FORMULAS))
def test_feed_forward_is_its_formula(activation: Literal["relu", "gelu", "silu"], gated: bool, bias: bool) -> None:
    torch.manual_seed(0)
    block = FeedForward(DIM, FeedForwardConfig(WIDTH, activation, gated, bias)).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    vectors = torch.randn(2, 3, DIM, dtype=torch.float64)
    inner = vectors @ block.inner.weight.T + (block.inner.bias if bias else 0)
    wanted = FORMULAS[activation](inner[..., :WIDTH])
    if gated:
        wanted = wanted * inner[..., WIDTH:]
    wanted = wanted @ block.outer.weight.T + (block.outer.bias if bias else 0)
    torch.testing.assert_close(block(vectors), wanted)


def test_feed_forward_drops_the_inner_activation() -> None:
    torch.manual_seed(0)
    block = FeedForward(DIM, FeedForwardConfig(WIDTH, dropout=0.5))
    vectors = torch.randn(2, 3, DIM)
    assert not torch.equal(block(vectors), block(vectors))
    block.eval()
    assert torch.equal(block(vectors), block(vectors))


def test_norms_are_their_formulas() -> None:
    vectors = torch.randn(2, 3, DIM, dtype=torch.float64) * 3 + 1
    layer = NormConfig("layer", eps=0.1).build(DIM).double()
    mean, variance = vectors.mean(-1, keepdim=True), vectors.var(-1, keepdim=True, correction=0)
    torch.testing.assert_close(layer(vectors), (vectors - mean) / torch.sqrt(variance + 0.1))
    rms = NormConfig("rms", eps=0.1).build(DIM).double()
    torch.testing.assert_close(rms(vectors), vectors / torch.sqrt(vectors.square().mean(-1, keepdim=True) + 0.1))
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert [name for name, _ in rms.named_parameters()] == ["weight"]


@pytest.mark.parametrize("bias", [True, False])
def test_the_head(bias: bool) -> None:
    weight = nn.Parameter(torch.randn(VOCAB, DIM))
    head = OutputHead(weight, HeadConfig(bias))
    assert head.weight is weight
    assert (head.bias is not None) == bias
    if head.bias is not None:
        assert not head.bias.any()
        nn.init.normal_(head.bias)
    hidden = torch.randn(2, 3, DIM)
    logits = hidden @ weight.T + (head.bias if bias else 0)
    torch.testing.assert_close(head(hidden), logits)
    torch.testing.assert_close(head.log_probs(hidden), logits.log_softmax(-1))
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert head.to(dtype).log_probs(hidden.to(dtype)).dtype == wide
