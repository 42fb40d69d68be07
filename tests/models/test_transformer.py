from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from small_models import (
    CONFIGS,
    DECODER_LAYERS,
    DIM,
    ENCODER_LAYERS,
    LENGTHS,
    SOURCE,
    TARGET,
    build,
    transformer,
)
from torch import Tensor, nn

from regard.attention.observation import Observe
from regard.errors import ConfigError
from regard.inputs.embeddings import EmbeddingConfig
from regard.layers.norm import NormConfig
from regard.models.encoder_decoder import EncoderDecoder
from regard.models.transformer_decoder import TransformerDecoder, TransformerDecoderConfig, TransformerDecoderLayer
from regard.models.transformer_encoder import TransformerEncoderLayer

HEADS, WIDTH = 3, 23


def copy(theirs: nn.Module, ours: nn.Module) -> None:
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.data = mine.data


def peer(model: EncoderDecoder, placement: str) -> tuple[nn.TransformerEncoder, nn.TransformerDecoder]:
    """Torch's own stacks, holding our weights."""
    options = {"dropout": 0.0, "batch_first": True, "norm_first": placement == "pre", "dtype": torch.float64}
    final = [nn.LayerNorm(DIM, dtype=torch.float64) if placement == "pre" else None for _ in range(2)]
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(DIM, HEADS, WIDTH, **options), ENCODER_LAYERS, final[0], enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(DIM, HEADS, WIDTH, **options), DECODER_LAYERS, final[1])
    for ours, theirs in zip(model.encoder.layers, encoder.layers, strict=True):
        assert isinstance(ours, TransformerEncoderLayer)
        theirs.self_attn.in_proj_weight.data = ours.self_attention.query_key_value.weight.data
        theirs.self_attn.in_proj_bias.data = ours.self_attention.query_key_value.bias.data
        copy(theirs.self_attn.out_proj, ours.self_attention.output)
        copy(theirs.linear1, ours.feed_forward.inner)
        copy(theirs.linear2, ours.feed_forward.outer)
        copy(theirs.norm1, ours.attention_block.norm)
        copy(theirs.norm2, ours.feed_forward_block.norm)
    for ours, theirs in zip(model.decoder.layers, decoder.layers, strict=True):
        assert isinstance(ours, TransformerDecoderLayer)
        theirs.self_attn.in_proj_weight.data = ours.self_attention.query_key_value.weight.data
        theirs.self_attn.in_proj_bias.data = ours.self_attention.query_key_value.bias.data
        cross = ours.cross_attention
        theirs.multihead_attn.in_proj_weight.data = torch.cat([cross.query.weight, cross.key_value.weight]).detach()
        theirs.multihead_attn.in_proj_bias.data = torch.cat([cross.query.bias, cross.key_value.bias]).detach()
        copy(theirs.self_attn.out_proj, ours.self_attention.output)
        copy(theirs.multihead_attn.out_proj, cross.output)
        copy(theirs.linear1, ours.feed_forward.inner)
        copy(theirs.linear2, ours.feed_forward.outer)
        copy(theirs.norm1, ours.self_block.norm)
        copy(theirs.norm2, ours.cross_block.norm)
        copy(theirs.norm3, ours.feed_forward_block.norm)
    if placement == "pre":
        copy(encoder.norm, model.encoder.norm)
        copy(decoder.norm, model.decoder.norm)
    return encoder, decoder


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_outputs_and_gradients_are_torchs(placement: Literal["pre", "post"]) -> None:
    model = build(transformer(norm=NormConfig(placement=placement)))
    encoder, decoder = peer(model, placement)
    padded = torch.arange(SOURCE.shape[1]) >= LENGTHS[:, None]
    future = torch.ones(TARGET.shape[1], TARGET.shape[1], dtype=torch.bool).triu(1)

    memory = encoder(model.encoder.embedding(SOURCE), src_key_padding_mask=padded)
    wanted = decoder(model.decoder.embedding(TARGET), memory, tgt_mask=future, memory_key_padding_mask=padded)
    found = model(SOURCE, LENGTHS, TARGET)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
    ours = model.encode(SOURCE, LENGTHS)[0]["source"]
    torch.testing.assert_close(ours.vectors[~padded], memory[~padded], rtol=1e-9, atol=1e-10)

    goal = torch.randn(wanted.shape, dtype=torch.float64)
    (wanted * goal).sum().backward()
    embeddings = [model.encoder.embedding.weight, model.decoder.embedding.weight]
    of_embeddings = [weight.grad.clone() for weight in embeddings]
    model.zero_grad()
    (found * goal).sum().backward()
    torch.testing.assert_close([weight.grad for weight in embeddings], of_embeddings, rtol=1e-8, atol=1e-9)
    for ours_layer, theirs in zip(model.encoder.layers, encoder.layers, strict=True):
        assert isinstance(ours_layer, TransformerEncoderLayer)
        torch.testing.assert_close(
            ours_layer.self_attention.query_key_value.weight.grad,
            theirs.self_attn.in_proj_weight.grad,
            rtol=1e-8,
            atol=1e-9,
        )
    for ours_layer, theirs in zip(model.decoder.layers, decoder.layers, strict=True):
        assert isinstance(ours_layer, TransformerDecoderLayer)
        cross = ours_layer.cross_attention
        pairs = [
            (
                torch.cat([cross.query.weight.grad, cross.key_value.weight.grad]),
                theirs.multihead_attn.in_proj_weight.grad,
            ),
            (ours_layer.self_attention.output.weight.grad, theirs.self_attn.out_proj.weight.grad),
            (ours_layer.feed_forward.inner.weight.grad, theirs.linear1.weight.grad),
            (ours_layer.self_block.norm.weight.grad, theirs.norm1.weight.grad),
        ]
        for mine, other in pairs:
            torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-9)


def test_encoder_observations_are_the_softmax_by_hand() -> None:
    model = build(CONFIGS["pre-norm"])
    _, seen = model.encode(SOURCE, LENGTHS, Observe(rows="all", received=True))
    assert list(seen) == ["encoder.layers.0.self", "encoder.layers.1.self"]
    layer = model.encoder.layers[0]
    assert isinstance(layer, TransformerEncoderLayer)
    inputs = layer.attention_block.norm(model.encoder.embedding(SOURCE))
    query, key, _ = layer.self_attention.query_key_value(inputs).unflatten(-1, (3, HEADS, DIM // HEADS)).unbind(2)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(DIM // HEADS)
    padded = torch.arange(SOURCE.shape[1]) >= LENGTHS[:, None, None, None]
    wanted = scores.masked_fill(padded, float("-inf")).softmax(-1)
    wanted = wanted.masked_fill(padded.transpose(-2, -1), 0.0)  # padding is no query
    torch.testing.assert_close(seen["encoder.layers.0.self"].rows, wanted)
    assert model.encode(SOURCE, LENGTHS)[1] == {}


def test_padded_queries_are_no_part_of_what_a_source_word_receives() -> None:
    model = build(CONFIGS["pre-norm"])
    _, batched = model.encode(SOURCE, LENGTHS, Observe(received=True))
    for item, length in enumerate(LENGTHS.tolist()):
        one = slice(item, item + 1)
        _, alone = model.encode(SOURCE[one, :length], LENGTHS[one], Observe(received=True))
        for name, observation in alone.items():
            assert observation.received is not None
            assert not batched[name].received[one, :, length:].any()
            torch.testing.assert_close(batched[name].received[one, :, :length], observation.received)
            total = torch.full((1, HEADS), float(length), dtype=torch.float64)
            torch.testing.assert_close(batched[name].received[one].sum(-1), total)


def test_padded_positions_are_no_queries_whatever_is_asked() -> None:
    model = build(CONFIGS["grouped heads, learned positions"])
    asked = Observe(logsumexp=True, entropy=True, max_logit=True, top_k=2, pooled=(2, 3), columns=(0,))
    _, batched = model.encode(SOURCE, LENGTHS, asked)
    for item, length in enumerate(LENGTHS.tolist()):
        one = slice(item, item + 1)
        _, alone = model.encode(SOURCE[one, :length], LENGTHS[one], replace(asked, pooled=None))
        for name, observation in alone.items():
            for statistic, wanted in observation.tensors().items():
                found = batched[name].tensors()[statistic]
                if statistic == "column_index":
                    assert torch.equal(found, wanted)
                    continue
                torch.testing.assert_close(found[one, :, :length], wanted)
                nothing = {"logsumexp": float("-inf"), "max_logit": float("-inf"), "top_index": -1}.get(statistic, 0)
                assert (found[one, :, length:] == nothing).all()
            assert batched[name].pooled is not None
            assert batched[name].pooled[item].sum((-2, -1)).tolist() == pytest.approx([length] * 6)
    # Who asks for some of the queries alone gets those of them that are real.
    first = torch.zeros(SOURCE.shape, dtype=torch.bool)
    first[:, ::2] = True
    _, some = model.encode(SOURCE, LENGTHS, Observe(received=True, queries=first))
    mass = some["encoder.layers.0.self"].received.sum(-1)
    assert mass[:, 0].tolist() == pytest.approx([-(-length // 2) for length in LENGTHS.tolist()])


def test_a_decoder_is_told_which_targets_are_real() -> None:
    model = build(CONFIGS["pre-norm"])
    state = model.decoder.start(model.encode(SOURCE, LENGTHS)[0])
    real = torch.arange(TARGET.shape[1]) < torch.tensor([[11], [4], [7]])
    seen = model.decoder.advance(state, TARGET, Observe(received=True, entropy=True, queries=real))[0].attention
    for observation in seen.values():
        torch.testing.assert_close(observation.received.sum(-1)[:, 0], real.sum(-1).double())
        assert not observation.entropy[1, :, 4:].any()


def test_tied_matrices_are_counted_once() -> None:
    vocab = 19
    counts = {
        tie: build(transformer(tie=tie), source_vocab=vocab).num_parameters() for tie in ("all", "decoder", "none")
    }
    assert counts["decoder"] - counts["all"] == vocab * DIM
    assert counts["none"] - counts["decoder"] == vocab * DIM
    linear = DIM * DIM + DIM
    feed_forward, norm = DIM * WIDTH + WIDTH + WIDTH * DIM + DIM, 2 * DIM
    encoder = ENCODER_LAYERS * (4 * linear + feed_forward + 2 * norm) + norm
    decoder = DECODER_LAYERS * (8 * linear + feed_forward + 3 * norm) + norm
    assert counts["all"] == vocab * DIM + encoder + decoder
    tied = build(transformer(tie="all"), source_vocab=vocab)
    assert tied.encoder.embedding.weight is tied.decoder.embedding.weight is tied.decoder.head.weight
    loose = build(transformer(tie="none"))
    assert loose.decoder.head.weight is not loose.decoder.embedding.weight


def test_tying_all_wants_equal_matrices() -> None:
    with pytest.raises(ConfigError, match=r"got source \(17, 12\) and target \(19, 12\); use a joint vocabulary"):
        build(transformer(tie="all"))


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_positions_matter_and_their_absence_shows(positions: Literal["sinusoidal", "learned"]) -> None:
    def memory(kind: Literal["sinusoidal", "learned", "none"], ids: Tensor) -> Tensor:
        model = build(transformer(embedding=EmbeddingConfig(kind, 31)))
        return model.encode(ids, torch.full((3,), 7))[0]["source"].vectors

    assert (memory(positions, SOURCE.flip(1)).flip(1) - memory(positions, SOURCE)).abs().max() > 1e-3
    torch.testing.assert_close(memory("none", SOURCE.flip(1)).flip(1), memory("none", SOURCE))


def test_dropout_acts_in_training_only() -> None:
    model = build(transformer(dropout=0.3))
    once, twice = (model(SOURCE, LENGTHS, TARGET) for _ in range(2))
    assert torch.equal(once, twice)
    model.train()
    once, twice = (model(SOURCE, LENGTHS, TARGET) for _ in range(2))
    assert not torch.equal(once, twice)


def test_a_decoder_wants_a_layer() -> None:
    given = transformer().decoder
    assert isinstance(given, TransformerDecoderConfig)
    config = TransformerDecoderConfig(DIM, 0, given.attention, given.feed_forward)
    with pytest.raises(ConfigError, match="decoder: num_layers is 0, expected at least 1"):
        TransformerDecoder(5, config, memory_dim=DIM)
