"""CTC alone: an encoder whose every frame says a token or the blank, and no decoder. Graves et al. 2006."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from regard.attention.observation import Observation, Observe
from regard.models.ctc import CTCConfig, CTCHead
from regard.models.encoder_decoder import EncoderConfig, build_encoder
from regard.models.memory import Memory


@dataclass(frozen=True)
class CTCModelConfig:
    """An encoder under a CTC head."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    type: Literal["ctc"]
    encoder: EncoderConfig
    dropout: float = 0.1  # on the memory, before the head


class CTCModel(nn.Module):
    """source_size: of what is read, as for `build_source`. target_vocab: of the vocabulary that is written.

    `regard.decoding.ctc` reads outputs off its log-probabilities.
    """

    def __init__(self, source_size: int, target_vocab: int, config: CTCModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(source_size, config.encoder)
        self.ctc = CTCHead(self.encoder.memory_dim, target_vocab, CTCConfig(weight=1.0, dropout=config.dropout))

    def encode(
        self, values: Tensor, lengths: Tensor, observe: Observe | None = None
    ) -> tuple[dict[str, Memory], dict[str, Observation]]:
        """values, lengths: as `Source` reads them -> (the memory that the head reads, observations by layer)."""
        memory, observations = self.encoder(values, lengths, observe)
        return {"source": memory}, observations

    def forward(self, source: Tensor, source_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probabilities [batch, frames, vocab], real frames [batch])."""
        memory = self.encode(source, source_lengths)[0]["source"]
        return self.ctc(memory.vectors), memory.lengths

    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
