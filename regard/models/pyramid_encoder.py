"""The pyramid encoder: bidirectional LSTMs, each of which reads what several steps of the one below have said.

Speech has ten times as many frames as tokens: a decoder finds its place among fewer, each of which has heard more.
Source: Chan et al. 2016 (Listen, Attend and Spell), sec. 3.1, eq. 5: h_i^j = BLSTM(h_{i-1}^j, [h_{2i}^{j-1},
h_{2i+1}^{j-1}]).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention.observation import Observation, Observe
from regard.errors import ConfigError
from regard.inputs.embeddings import EmbeddingConfig
from regard.inputs.sources import SourceConfig, build_source
from regard.layers.dropout import Dropout
from regard.layers.recurrence import initialise_recurrence
from regard.models.memory import Memory
from regard.models.recurrent_encoder import states_of


@dataclass(frozen=True)
class PyramidEncoderConfig:
    """A stack of bidirectional LSTMs; every one but the first packs vectors together."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    type: Literal["pyramid"]
    model_dim: int  # width of the source and of each direction
    num_layers: int = 4  # the first reads the source as it comes; the paper has three above it
    pack: int = 2  # vectors that each further layer takes together: memory is pack^(num_layers - 1) times shorter
    embedding: SourceConfig = field(
        default_factory=lambda: EmbeddingConfig(positions="none", scale_by_root=False)  # recurrence knows the position
    )
    dropout: float = 0.1  # on the embedded source and on every layer's output


class PyramidEncoder(nn.Module):
    """A source -> memory of width 2 * model_dim, [forward state; backward state]. source_size: see `build_source`.

    Raises: ConfigError when there is no layer, or nothing to pack.
    """

    def __init__(self, source_size: int, config: PyramidEncoderConfig) -> None:
        super().__init__()
        if config.num_layers < 1 or config.pack < 1:
            raise ConfigError(
                f"pyramid: num_layers is {config.num_layers} and pack {config.pack}, expected at least 1 of each"
            )
        dim = config.model_dim
        self.memory_dim = 2 * dim
        self.pack = config.pack
        self.embedding = build_source(source_size, dim, config.embedding)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(
            nn.LSTM(dim if index == 0 else config.pack * 2 * dim, dim, batch_first=True, bidirectional=True)
            for index in range(config.num_layers)
        )
        for layer in self.layers:
            initialise_recurrence(layer)

    def forward(
        self, values: Tensor, lengths: Tensor, observe: Observe | None = None
    ) -> tuple[Memory, dict[str, Observation]]:
        """values, lengths: as `Source` reads them -> (memory, no observations: nothing attends here)."""
        memory = Memory(*self.embedding.represent(values, lengths))
        vectors, lengths, stride = self.dropout(memory.vectors), memory.lengths, memory.stride
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.LSTM)
            if index:
                vectors, lengths, stride = packed(vectors, self.pack), -(-lengths // self.pack), stride * self.pack
            vectors = self.dropout(states_of(layer, vectors, lengths))
        return replace(memory, vectors=vectors, lengths=lengths, stride=stride), {}


def packed(vectors: Tensor, count: int) -> Tensor:
    """[batch, length, dim], 0 at padding -> [batch, ceil(length / count), count * dim]; zeros fill up the last one."""
    missing = -vectors.shape[1] % count
    if missing:
        vectors = F.pad(vectors, (0, 0, 0, missing))
    return vectors.reshape(vectors.shape[0], -1, count * vectors.shape[2])
