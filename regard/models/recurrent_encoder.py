"""A bidirectional recurrent encoder: each memory vector has read the source from both ends.

Source: Bahdanau et al. 2015, sec. 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from regard.attention.observation import Observation, Observe
from regard.inputs.embeddings import EmbeddingConfig, TextEmbedding
from regard.layers.dropout import Dropout
from regard.models.memory import Memory


@dataclass(frozen=True)
class RecurrentEncoderConfig:
    """A stack of bidirectional GRUs over one embedded source."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    type: Literal["recurrent"]
    model_dim: int  # width of the embedding and of each direction
    num_layers: int = 1
    embedding: EmbeddingConfig = field(
        default_factory=lambda: EmbeddingConfig(positions="none", scale_by_root=False)  # recurrence knows the position
    )
    dropout: float = 0.1  # on the embedded source and on every layer's output


class RecurrentEncoder(nn.Module):
    """Source ids -> memory of width 2 * model_dim: [forward state; backward state] at each position."""

    def __init__(self, vocab: int, config: RecurrentEncoderConfig) -> None:
        super().__init__()
        self.memory_dim = 2 * config.model_dim
        self.embedding = TextEmbedding(vocab, config.model_dim, config.embedding)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(
            nn.GRU(
                config.model_dim if index == 0 else 2 * config.model_dim,
                config.model_dim,
                batch_first=True,
                bidirectional=True,
            )
            for index in range(config.num_layers)
        )
        for layer in self.layers:
            initialise_recurrence(layer)

    def forward(
        self, ids: Tensor, lengths: Tensor, observe: Observe | None = None
    ) -> tuple[Memory, dict[str, Observation]]:
        """ids [batch, source_len], lengths [batch] -> (memory, no observations: nothing attends here)."""
        vectors = self.dropout(self.embedding(ids))
        for layer in self.layers:
            # Packing keeps the backward direction from reading padding first. It knows no empty sequence: one is read
            # as a single padding vector, which nothing attends to.
            packed = pack_padded_sequence(vectors, lengths.cpu().clamp_min(1), batch_first=True, enforce_sorted=False)
            states, _ = pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=ids.shape[1])
            vectors = self.dropout(states)
        return Memory(vectors, lengths), {}


def initialise_recurrence(layer: nn.Module) -> None:
    """Orthogonal recurrent matrices, a gate each; N(0, 0.01^2) input matrices; zero biases.

    Source: Bahdanau et al. 2015, appendix B.1.
    """
    for name, parameter in layer.named_parameters():
        with torch.no_grad():
            if "bias" in name:
                parameter.zero_()
            elif "weight_hh" in name:
                for gate in parameter.chunk(parameter.shape[0] // parameter.shape[1], dim=0):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.normal_(parameter, std=0.01)
