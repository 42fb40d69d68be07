"""An encoder and a decoder, joined by the memory: the skeleton of every sequence-to-sequence model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from regard.attention.observation import Observation, Observe
from regard.errors import ConfigError
from regard.inputs.embeddings import TextEmbedding
from regard.inputs.text import Tokenizer
from regard.models.attention_rnn import AttentionRNNConfig, AttentionRNNDecoder
from regard.models.conformer_encoder import ConformerEncoder, ConformerEncoderConfig
from regard.models.copying import Copied, CopyConfig, CopyingDecoder
from regard.models.ctc import CTCConfig, CTCHead
from regard.models.luong_rnn import LuongRNNConfig, LuongRNNDecoder
from regard.models.memory import Memory
from regard.models.no_encoder import NoEncoder, NoEncoderConfig
from regard.models.pyramid_encoder import PyramidEncoder, PyramidEncoderConfig
from regard.models.recurrent_encoder import RecurrentEncoder, RecurrentEncoderConfig
from regard.models.show_attend_tell import ShowAttendTellConfig, ShowAttendTellDecoder
from regard.models.transformer_decoder import TransformerDecoder, TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoder, TransformerEncoderConfig

EncoderConfig = (
    TransformerEncoderConfig | ConformerEncoderConfig | RecurrentEncoderConfig | PyramidEncoderConfig | NoEncoderConfig
)
Encoder = TransformerEncoder | ConformerEncoder | RecurrentEncoder | PyramidEncoder | NoEncoder
Decoder = TransformerDecoder | AttentionRNNDecoder | LuongRNNDecoder | ShowAttendTellDecoder
DecoderConfig = TransformerDecoderConfig | AttentionRNNConfig | LuongRNNConfig | ShowAttendTellConfig


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """A choice at each place of the skeleton."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    encoder: EncoderConfig
    decoder: DecoderConfig
    # Which matrices are one (Press and Wolf 2017). "all": source and target embeddings and the head, wants a joint
    # vocabulary and equal widths; "decoder": target embedding and head; "none".
    tie: Literal["all", "decoder", "none"] = "decoder"
    # A CTC head beside the decoder, for sources of which the output is read off in order: speech. It guides the encoder
    # in training and votes in decoding (Watanabe et al. 2017).
    ctc: CTCConfig | None = None
    # The decoder may also copy words of the source, whose vocabulary is then the target's.
    copy: CopyConfig | None = None


class EncoderDecoder(nn.Module):
    """source_size: of what is read, as for `build_source`. target_vocab: size of the vocabulary that is written.

    Where `tie` is "all", the source is text of the same vocabulary.
    """

    def __init__(self, source_size: int, target_vocab: int, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(source_size, config.encoder)
        token_weight = None
        if config.tie == "all":
            embedding = self.encoder.embedding
            if not isinstance(embedding, TextEmbedding):
                raise ConfigError("model: tie `all` wants a source of text; tie `decoder` instead")
            token_weight = embedding.weight
            target = (target_vocab, config.decoder.model_dim)
            if tuple(token_weight.shape) != target:
                raise ConfigError(
                    f"model: tie `all` wants equal embeddings, got source {tuple(token_weight.shape)} and target "
                    f"{target}; use a joint vocabulary and equal widths, or tie `decoder`"
                )
        decoder = _build_decoder(
            target_vocab, config.decoder, self.encoder.memory_dim, token_weight, tie_head=config.tie != "none"
        )
        self.ctc = None if config.ctc is None else CTCHead(self.encoder.memory_dim, target_vocab, config.ctc)
        self.decoder: Decoder | CopyingDecoder = decoder
        if config.copy is not None:
            if not isinstance(self.encoder.embedding, TextEmbedding) or source_size != target_vocab:
                raise ConfigError(
                    f"model: copying wants text of one vocabulary on both sides, got a source of size {source_size} "
                    f"and a target of {target_vocab} words; use a joint vocabulary, or drop model.copy"
                )
            self.decoder = CopyingDecoder(
                decoder,
                config.copy,
                vocab=target_vocab,
                model_dim=config.decoder.model_dim,
                memory_dim=self.encoder.memory_dim,
                unknown=Tokenizer.UNK,
            )

    def encode(
        self, values: Tensor, lengths: Tensor, observe: Observe | None = None
    ) -> tuple[dict[str, Memory], dict[str, Observation]]:
        """values, lengths: as `Source` reads them -> (the memories a decoder reads, observations by layer).

        A model that copies takes ids beyond its vocabulary for unknown words, equal for equal words of a row.
        """
        if not isinstance(self.decoder, CopyingDecoder):
            memory, observations = self.encoder(values, lengths, observe)
            return {"source": memory}, observations
        memory, observations = self.encoder(self.decoder.outputs.inputs(values), lengths, observe)
        return {"source": replace(memory, outputs=values)}, observations

    def forward(self, source: Tensor, source_lengths: Tensor, target_inputs: Tensor) -> Tensor:
        """Teacher forcing: hidden vectors [batch, target_len, model_dim], from which `decoder.head` predicts."""
        return self.forced(source, source_lengths, target_inputs)[0]

    def forced(self, source: Tensor, source_lengths: Tensor, target_inputs: Tensor) -> tuple[Tensor, dict[str, Memory]]:
        """The same, and the memories, from which `ctc` predicts."""
        memories, _ = self.encode(source, source_lengths)
        decoder: Any = self.decoder  # a decoder reads its own state, which a union of decoders cannot say
        hidden: Tensor = decoder.read(decoder.start(memories), target_inputs)[0]
        return hidden, memories

    def copying(self, source: Tensor, source_lengths: Tensor, target_inputs: Tensor) -> tuple[Tensor, Copied]:
        """As `forward`, of a model that copies: the hidden vectors, and what is copied rather than generated."""
        assert isinstance(self.decoder, CopyingDecoder), "a model without copying has nothing to say of it"
        memories, _ = self.encode(source, source_lengths)
        return self.decoder.read_copying(self.decoder.start(memories), target_inputs)[:2]

    def num_parameters(self) -> int:
        """Trained numbers, shared matrices counted once."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def build_encoder(source_size: int, config: EncoderConfig) -> Encoder:
    """The encoder that `config` describes; source_size: see `build_source`."""
    if isinstance(config, NoEncoderConfig):
        return NoEncoder(source_size, config)
    if isinstance(config, TransformerEncoderConfig):
        return TransformerEncoder(source_size, config)
    if isinstance(config, ConformerEncoderConfig):
        return ConformerEncoder(source_size, config)
    if isinstance(config, PyramidEncoderConfig):
        return PyramidEncoder(source_size, config)
    return RecurrentEncoder(source_size, config)


def _build_decoder(
    vocab: int, config: DecoderConfig, memory_dim: int, token_weight: nn.Parameter | None, *, tie_head: bool
) -> Decoder:
    if isinstance(config, ShowAttendTellConfig):
        return ShowAttendTellDecoder(vocab, config, memory_dim=memory_dim, token_weight=token_weight, tie_head=tie_head)
    if isinstance(config, TransformerDecoderConfig):
        return TransformerDecoder(vocab, config, memory_dim=memory_dim, token_weight=token_weight, tie_head=tie_head)
    if isinstance(config, LuongRNNConfig):
        return LuongRNNDecoder(vocab, config, memory_dim=memory_dim, token_weight=token_weight, tie_head=tie_head)
    return AttentionRNNDecoder(vocab, config, memory_dim=memory_dim, token_weight=token_weight, tie_head=tie_head)
