from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import DIM, LENGTHS, SOURCE, SOURCE_VOCAB, build, conformer
from torch import Tensor, nn

from regard.attention.observation import Observe
from regard.errors import ConfigError
from regard.inputs.embeddings import EmbeddingConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.layers.norm import NormConfig
from regard.models.conformer_encoder import ConformerEncoder, ConformerEncoderConfig, ConformerLayer
from regard.models.memory import Memory


def config(**parts: Any) -> ConformerEncoderConfig:
    given: dict[str, Any] = {
        "attention": AttentionConfig(3),
        "feed_forward": FeedForwardConfig(23, "silu"),
        "kernel": 5,
        "embedding": EmbeddingConfig("none"),
        "dropout": 0.0,
    }
    return ConformerEncoderConfig("conformer", DIM, 2, **(given | parts))


class NormOfChannels(nn.Module):
    """A norm over the last axis, for vectors with channels first."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, vectors: Tensor) -> Tensor:
        normalised: Tensor = self.norm(vectors.mT)
        return normalised.mT


def peer_with_weights_of(layer: ConformerLayer) -> nn.Module:
    """transformers' block with our weights, and our norm in place of its batch norm."""
    from transformers import Wav2Vec2ConformerConfig
    from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerEncoderLayer

    peer = Wav2Vec2ConformerEncoderLayer(
        Wav2Vec2ConformerConfig(
            hidden_size=DIM,
            num_attention_heads=3,
            intermediate_size=23,
            hidden_act="silu",
            conv_depthwise_kernel_size=5,
            position_embeddings_type=None,
            attn_implementation="eager",
        )
    )
    peer = peer.double().eval()
    query, key, value = layer.self_attention.query_key_value.weight.chunk(3)
    biases = layer.self_attention.query_key_value.bias.chunk(3)
    convolution = layer.convolution
    linears = {
        peer.self_attn.linear_q: (query, biases[0]),
        peer.self_attn.linear_k: (key, biases[1]),
        peer.self_attn.linear_v: (value, biases[2]),
        peer.self_attn.linear_out: (layer.self_attention.output.weight, layer.self_attention.output.bias),
        peer.ffn1.intermediate_dense: (layer.first_half.inner.weight, layer.first_half.inner.bias),
        peer.ffn1.output_dense: (layer.first_half.outer.weight, layer.first_half.outer.bias),
        peer.ffn2.intermediate_dense: (layer.second_half.inner.weight, layer.second_half.inner.bias),
        peer.ffn2.output_dense: (layer.second_half.outer.weight, layer.second_half.outer.bias),
        peer.conv_module.pointwise_conv1: (convolution.inner.weight[..., None], None),
        peer.conv_module.depthwise_conv: (convolution.depthwise.weight.T[:, None], None),
        peer.conv_module.pointwise_conv2: (convolution.outer.weight[..., None], None),
    }
    norms = {
        peer.ffn1_layer_norm: layer.first_block.norm,
        peer.self_attn_layer_norm: layer.attention_block.norm,
        peer.conv_module.layer_norm: layer.convolution_block.norm,
        peer.ffn2_layer_norm: layer.second_block.norm,
        peer.final_layer_norm: layer.norm,
    }
    with torch.no_grad():
        for theirs, (weight, bias) in linears.items():
            theirs.weight.copy_(weight)
            assert (theirs.bias is None) == (bias is None)
            if bias is not None:
                theirs.bias.copy_(bias)
        for theirs, mine in norms.items():
            theirs.load_state_dict(mine.state_dict())
    peer.conv_module.batch_norm = NormOfChannels(convolution.norm)
    return peer


def test_a_block_is_the_peers() -> None:
    """Output and gradient of the input, against transformers' Wav2Vec2-Conformer, whose convolutions have no bias."""
    torch.manual_seed(0)
    layer = ConformerLayer(config()).double().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    for part in (layer.convolution.inner, layer.convolution.depthwise, layer.convolution.outer):
        nn.init.zeros_(part.bias)
    vectors = torch.randn(2, 11, DIM, dtype=torch.float64, requires_grad=True)
    found = layer(vectors, Memory.of(vectors), None, None)[0]
    returned = peer_with_weights_of(layer)(vectors)
    wanted = returned if isinstance(returned, Tensor) else returned[0]  # with its weights, in some versions
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
    goal = torch.randn_like(wanted)
    mine, theirs = (torch.autograd.grad((output * goal).sum(), vectors)[0] for output in (found, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


def test_padding_gets_nothing_and_gives_nothing() -> None:
    """In value and gradient, wherever a short row stands; the convolution alone would reach past the end."""
    model = build(conformer(rotary_base=100.0))
    memory, _ = model.encoder(SOURCE, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        one = slice(row, row + 1)
        alone, _ = model.encoder(SOURCE[one, :length], LENGTHS[one])
        torch.testing.assert_close(memory.vectors[one, :length], alone.vectors, rtol=0, atol=1e-11)
    weight = model.encoder.embedding.weight
    real = torch.arange(7) < LENGTHS[:, None]
    (gradient,) = torch.autograd.grad(memory.vectors[real].sum(), weight)
    in_padding = set(SOURCE[~real].tolist()) - set(SOURCE[real].tolist())
    assert in_padding, "else this test would notice nothing"
    assert not gradient[sorted(in_padding)].any()


def test_observations_are_self_attention_of_real_positions() -> None:
    model = build(conformer(rotary_base=100.0))
    plain, nothing = model.encoder(SOURCE, LENGTHS)
    memory, observations = model.encoder(SOURCE, LENGTHS, Observe(rows="all"))
    assert nothing == {}
    assert torch.equal(plain.vectors, memory.vectors)
    assert list(observations) == ["encoder.layers.0.self", "encoder.layers.1.self"]
    for seen in observations.values():
        assert seen.rows.shape == (3, 3, 7, 7)
        real = (torch.arange(7) < LENGTHS[:, None]).double()
        torch.testing.assert_close(seen.rows.sum(-1), real[:, None].expand(-1, 3, -1))


def test_no_state_but_weights() -> None:
    """Checkpoints hold parameters alone."""
    encoder = ConformerEncoder(SOURCE_VOCAB, config())
    assert not list(encoder.buffers())
    assert set(encoder.state_dict()) == {name for name, _ in encoder.named_parameters()}


def test_dropout_acts_in_training_only() -> None:
    encoder = ConformerEncoder(SOURCE_VOCAB, config(dropout=0.3))
    once, twice = (encoder(SOURCE, LENGTHS)[0].vectors for _ in range(2))
    assert not torch.equal(once, twice)
    encoder.eval()
    once, twice = (encoder(SOURCE, LENGTHS)[0].vectors for _ in range(2))
    assert torch.equal(once, twice)


def test_norms_behind_the_parts_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"conformer: norm\.placement is `post`, but its norms stand before each part"
    ):
        ConformerEncoder(SOURCE_VOCAB, config(norm=NormConfig(placement="post")))
