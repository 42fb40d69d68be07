"""The Transformer encoder: self-attention over the source, both ways. Vaswani et al. 2017, sec. 3.1."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from regard.attention.observation import Observation, Observe
from regard.inputs.embeddings import EmbeddingConfig
from regard.inputs.sources import SourceConfig, build_source
from regard.layers.attention import AttentionConfig, MultiHeadAttention
from regard.layers.feed_forward import FeedForward, FeedForwardConfig
from regard.layers.norm import NormConfig
from regard.models.memory import Memory
from regard.models.residual import Residual, final_norm


@dataclass(frozen=True)
class TransformerEncoderConfig:
    """A stack of equal layers over one embedded source."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    model_dim: int
    num_layers: int
    attention: AttentionConfig
    feed_forward: FeedForwardConfig
    type: Literal["transformer"] = "transformer"
    embedding: SourceConfig = field(default_factory=EmbeddingConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    dropout: float = 0.1  # on each block's output, before it is added


class TransformerEncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each in a residual block."""

    def __init__(self, config: TransformerEncoderConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config.model_dim, config.attention, is_self=True)
        self.feed_forward = FeedForward(config.model_dim, config.feed_forward)
        self.attention_block = Residual(config.model_dim, config.norm, config.dropout)
        self.feed_forward_block = Residual(config.model_dim, config.norm, config.dropout)

    def forward(self, vectors: Tensor, memory: Memory, observe: Observe | None) -> tuple[Tensor, Observation]:
        observation = Observation()

        def attention(inputs: Tensor) -> Tensor:
            nonlocal observation
            query, keys_values = self.self_attention.project_self(inputs, begin=0)
            output: Tensor
            output, observation = self.self_attention(query, keys_values, memory.mask, observe)
            return output

        vectors = self.feed_forward_block(self.attention_block(vectors, attention), self.feed_forward)
        return vectors, observation


class TransformerEncoder(nn.Module):
    """A source -> memory of a vector for each of its own. source_size: see `build_source`."""

    def __init__(self, source_size: int, config: TransformerEncoderConfig) -> None:
        super().__init__()
        self.memory_dim = config.model_dim
        self.embedding = build_source(source_size, config.model_dim, config.embedding)
        self.layers = nn.ModuleList(TransformerEncoderLayer(config) for _ in range(config.num_layers))
        self.norm = final_norm(config.model_dim, config.norm)

    def forward(
        self, values: Tensor, lengths: Tensor, observe: Observe | None = None
    ) -> tuple[Memory, dict[str, Observation]]:
        """values, lengths: as `Source` reads them -> (memory, observations by layer name; empty unless asked for).

        Padded positions are no queries: they count nowhere, and theirs is the observation of a query without keys.
        """
        memory = Memory(*self.embedding.represent(values, lengths))
        vectors = memory.vectors
        if observe:
            real = torch.arange(vectors.shape[1], device=vectors.device) < memory.lengths[:, None]
            observe = replace(observe, queries=real if observe.queries is None else real & observe.queries)
        observations = {}
        for index, layer in enumerate(self.layers):
            vectors, observation = layer(vectors, memory, observe)
            if observe:
                observations[f"encoder.layers.{index}.self"] = observation
        return replace(memory, vectors=self.norm(vectors)), observations
