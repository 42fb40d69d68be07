"""An encoder and a decoder, joined by the memory: the skeleton of every sequence-to-sequence model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from regard.attention.observation import Observation, Observe
from regard.errors import ConfigError
from regard.models.attention_rnn import AttentionRNNConfig, AttentionRNNDecoder
from regard.models.luong_rnn import LuongRNNConfig, LuongRNNDecoder
from regard.models.memory import Memory
from regard.models.recurrent_encoder import RecurrentEncoder, RecurrentEncoderConfig
from regard.models.transformer_decoder import TransformerDecoder, TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoder, TransformerEncoderConfig

EncoderConfig = TransformerEncoderConfig | RecurrentEncoderConfig
DecoderConfig = TransformerDecoderConfig | AttentionRNNConfig | LuongRNNConfig


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """A choice at each place of the skeleton."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    encoder: EncoderConfig
    decoder: DecoderConfig
    # Which matrices are one (Press and Wolf 2017). "all": source and target embeddings and the head, wants a joint
    # vocabulary and equal widths; "decoder": target embedding and head; "none".
    tie: Literal["all", "decoder", "none"] = "decoder"


class EncoderDecoder(nn.Module):
    """source_vocab, target_vocab: sizes of the vocabularies; equal and joint when `tie` is "all"."""

    def __init__(self, source_vocab: int, target_vocab: int, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _build_encoder(source_vocab, config.encoder)
        token_weight = None
        if config.tie == "all":
            token_weight = self.encoder.embedding.weight
            target = (target_vocab, config.decoder.model_dim)
            if tuple(token_weight.shape) != target:
                raise ConfigError(
                    f"model: tie `all` wants equal embeddings, got source {tuple(token_weight.shape)} and target "
                    f"{target}; use a joint vocabulary and equal widths, or tie `decoder`"
                )
        self.decoder = _build_decoder(
            target_vocab, config.decoder, self.encoder.memory_dim, token_weight, tie_head=config.tie != "none"
        )

    def encode(
        self, ids: Tensor, lengths: Tensor, observe: Observe | None = None
    ) -> tuple[dict[str, Memory], dict[str, Observation]]:
        """ids [batch, source_len], lengths [batch] -> (the memories a decoder reads, observations by layer)."""
        memory, observations = self.encoder(ids, lengths, observe)
        return {"source": memory}, observations

    def forward(self, source: Tensor, source_lengths: Tensor, target_inputs: Tensor) -> Tensor:
        """Teacher forcing: hidden vectors [batch, target_len, model_dim], from which `decoder.head` predicts."""
        memories, _ = self.encode(source, source_lengths)
        decoder: Any = self.decoder  # a decoder reads its own state, which a union of decoders cannot say
        hidden: Tensor = decoder.read(decoder.start(memories), target_inputs)[0]
        return hidden

    def num_parameters(self) -> int:
        """Trained numbers, shared matrices counted once."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def _build_encoder(vocab: int, config: EncoderConfig) -> TransformerEncoder | RecurrentEncoder:
    if isinstance(config, TransformerEncoderConfig):
        return TransformerEncoder(vocab, config)
    return RecurrentEncoder(vocab, config)


def _build_decoder(
    vocab: int, config: DecoderConfig, memory_dim: int, token_weight: nn.Parameter | None, *, tie_head: bool
) -> TransformerDecoder | AttentionRNNDecoder | LuongRNNDecoder:
    if isinstance(config, TransformerDecoderConfig):
        return TransformerDecoder(vocab, config, memory_dim=memory_dim, token_weight=token_weight, tie_head=tie_head)
    if isinstance(config, LuongRNNConfig):
        return LuongRNNDecoder(vocab, config, memory_dim=memory_dim, token_weight=token_weight, tie_head=tie_head)
    return AttentionRNNDecoder(vocab, config, memory_dim=memory_dim, token_weight=token_weight, tie_head=tie_head)
