"""Models small enough for float64, and the ids they read: what every test of this folder starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from regard.inputs.embeddings import EmbeddingConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.layers.norm import NormConfig
from regard.models.attention_rnn import AttentionRNNConfig
from regard.models.conformer_encoder import ConformerEncoderConfig
from regard.models.ctc import CTCConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.luong_rnn import LuongRNNConfig
from regard.models.recurrent_encoder import RecurrentEncoderConfig
from regard.models.show_attend_tell import ShowAttendTellConfig
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoderConfig

SOURCE_VOCAB, TARGET_VOCAB, DIM, ENCODER_LAYERS, DECODER_LAYERS = 17, 19, 12, 2, 3
LENGTHS = torch.tensor([7, 3, 5])
SOURCE = torch.randint(1, SOURCE_VOCAB, (3, 7), generator=torch.Generator().manual_seed(1))
TARGET = torch.randint(1, TARGET_VOCAB, (3, 11), generator=torch.Generator().manual_seed(2))

ATTENTION = AttentionConfig(heads=3)
FEED_FORWARD = FeedForwardConfig(width=23)


def transformer(dropout: float = 0.0, norm: NormConfig | None = None, **parts: Any) -> EncoderDecoderConfig:
    """parts: `attention`, `embedding`, `tie`."""
    tie = parts.pop("tie", "decoder")
    common: dict[str, Any] = {
        "attention": ATTENTION,
        "feed_forward": FEED_FORWARD,
        "norm": norm or NormConfig(),
    } | parts
    return EncoderDecoderConfig(
        TransformerEncoderConfig(DIM, ENCODER_LAYERS, **common, dropout=dropout),
        TransformerDecoderConfig(DIM, DECODER_LAYERS, **common, dropout=dropout),
        tie=tie,
    )


def recurrent(
    score: Any = "additive", dropout: float = 0.0, layers: int = 2, cell: Any = "gru", **parts: Any
) -> EncoderDecoderConfig:
    """parts: of the decoder."""
    return EncoderDecoderConfig(
        RecurrentEncoderConfig("recurrent", 10, num_layers=layers, dropout=dropout),
        AttentionRNNConfig("attention-rnn", DIM, attention_dim=14, score=score, cell=cell, dropout=dropout, **parts),
    )


def luong(score: Any, dropout: float = 0.0, layers: int = 1, **parts: Any) -> EncoderDecoderConfig:
    """parts: of the decoder."""
    return EncoderDecoderConfig(
        RecurrentEncoderConfig("recurrent", 7, num_layers=layers, cell="lstm", dropout=dropout),
        LuongRNNConfig("luong-rnn", DIM, 14, num_layers=layers, score=score, dropout=dropout, **parts),
    )


def conformer(**attention: Any) -> EncoderDecoderConfig:
    """attention: of the encoder."""
    encoder = ConformerEncoderConfig(
        "conformer",
        DIM,
        ENCODER_LAYERS,
        AttentionConfig(3, **attention),
        FeedForwardConfig(23, "silu"),
        kernel=5,
        embedding=EmbeddingConfig("none"),
        dropout=0.0,
    )
    return replace(transformer(), encoder=encoder, ctc=CTCConfig(dropout=0.0))


def telling(initial: Any) -> EncoderDecoderConfig:
    """Show, Attend and Tell over words, whose lengths differ."""
    return EncoderDecoderConfig(
        RecurrentEncoderConfig("recurrent", 7, dropout=0.0),
        ShowAttendTellConfig("show-attend-tell", DIM, 14, 10, initial=initial, dropout=0.0),
    )


def mixed() -> EncoderDecoderConfig:
    """A Transformer's encoder under a recurrent decoder."""
    return replace(transformer(), decoder=recurrent().decoder)


CONFIGS: dict[str, EncoderDecoderConfig] = {
    "pre-norm": transformer(),
    "post-norm rms": transformer(norm=NormConfig("rms", "post")),
    "grouped heads, learned positions": transformer(
        attention=AttentionConfig(6, kv_heads=2, head_dim=4, bias=False), embedding=EmbeddingConfig("learned", 31)
    ),
    "one key head, rotary": transformer(
        attention=AttentionConfig(3, kv_heads=1, rotary_base=100.0), embedding=EmbeddingConfig("none")
    ),
    "window, learned bias of distance, learned sink": transformer(
        attention=AttentionConfig(3, window=4, distance_bias="t5", sink="learned"), embedding=EmbeddingConfig("none")
    ),
    "alibi, soft cap, off by one": transformer(
        attention=AttentionConfig(3, distance_bias="alibi", soft_cap=2.0, sink="off_by_one"),
        embedding=EmbeddingConfig("none"),
    ),
    "gated": transformer(feed_forward=FeedForwardConfig(13, "silu", gated=True), embedding=EmbeddingConfig(norm=True)),
    "additive": recurrent("additive"),
    "dot": recurrent("dot"),
    "bilinear": recurrent("bilinear"),
    "conditional": recurrent(cell="conditional-gru"),
    "location": recurrent("location", location_filters=3, location_width=5),
    "luong dot": luong("dot"),
    "luong concat": luong("concat", layers=2),
    "luong bilinear, nothing fed": luong("bilinear", layers=2, input_feeding=False),
    "mixed": mixed(),
    "conformer, rotary": conformer(rotary_base=100.0),
    "conformer, learned bias of distance": conformer(distance_bias="t5"),
    "show, attend and tell": telling("mean"),
    "telling what was looked at": telling("learned"),
}


def build(config: EncoderDecoderConfig, *, source_vocab: int = SOURCE_VOCAB, seed: int = 0) -> EncoderDecoder:
    """In float64, every weight drawn wide enough that no part of the model says nothing."""
    torch.manual_seed(seed)
    model = EncoderDecoder(source_vocab, TARGET_VOCAB, config).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def log_probs(model: EncoderDecoder, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
    """All target positions at once, [batch, target_len, vocab]."""
    return model.decoder.head.log_probs(model(source, lengths, target))
