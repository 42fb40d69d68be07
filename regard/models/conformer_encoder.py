"""The Conformer encoder: self-attention for what is far apart, convolution for what is near. Gulati et al. 2020.

Three things differ from the paper. Positions are what regard's attention offers (rotary, a learned bias of distance) in
place of Transformer-XL's relative ones. The convolution is normalised over channels, each frame by itself, in place
of over the batch: batch statistics are state that is no weight, they know the padding, and small batches make them
noisy. And padding is kept out of the convolution, so that a padded batch gives what its items give alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention.observation import Observation, Observe
from regard.errors import ConfigError
from regard.inputs.embeddings import EmbeddingConfig
from regard.inputs.sources import SourceConfig, build_source
from regard.layers.attention import AttentionConfig, MultiHeadAttention
from regard.layers.depthwise import DepthwiseConvolution
from regard.layers.feed_forward import FeedForward, FeedForwardConfig
from regard.layers.norm import NormConfig
from regard.models.memory import Memory
from regard.models.residual import Residual


@dataclass(frozen=True)
class ConformerEncoderConfig:
    """A stack of equal blocks over one source."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    type: Literal["conformer"]
    model_dim: int
    num_layers: int
    attention: AttentionConfig  # with rotary_base or distance_bias, lest only the embedding knows positions
    feed_forward: FeedForwardConfig  # of each of a block's two; the paper's is four times as wide, by silu
    kernel: int = 15  # vectors that the convolution spans, odd; the paper takes 31, at 40 ms a vector
    embedding: SourceConfig = field(default_factory=EmbeddingConfig)
    norm: NormConfig = field(default_factory=NormConfig)  # before each part and behind the block; placement stays `pre`
    dropout: float = 0.1  # on each part's output, before it is added


class ConvolutionModule(nn.Module):
    """Pointwise and gated, depthwise over time, norm, swish, pointwise. Gulati et al. 2020, sec. 2.2, figure 2."""

    def __init__(self, config: ConformerEncoderConfig) -> None:
        super().__init__()
        dim = config.model_dim
        self.inner = nn.Linear(dim, 2 * dim)
        self.depthwise = DepthwiseConvolution(dim, config.kernel)
        self.norm = config.norm.build(dim)
        self.outer = nn.Linear(dim, dim)
        for linear in (self.inner, self.outer):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, vectors: Tensor, real: Tensor | None) -> Tensor:
        """vectors [batch, length, model_dim]; real: bool [batch, length, 1], None where nothing is padding."""
        gated = F.glu(self.inner(vectors), dim=-1)
        if real is not None:
            gated = gated * real
        mixed: Tensor = self.outer(F.silu(self.norm(self.depthwise(gated))))
        return mixed


class ConformerLayer(nn.Module):
    """Half a feed-forward step, self-attention, convolution, the other half, norm. Gulati et al. 2020, eq. 1."""

    def __init__(self, config: ConformerEncoderConfig) -> None:
        super().__init__()
        dim, norm, dropout = config.model_dim, config.norm, config.dropout
        self.self_attention = MultiHeadAttention(dim, config.attention, is_self=True)
        self.convolution = ConvolutionModule(config)
        self.first_half = FeedForward(dim, config.feed_forward)
        self.second_half = FeedForward(dim, config.feed_forward)
        self.first_block = Residual(dim, norm, dropout)
        self.attention_block = Residual(dim, norm, dropout)
        self.convolution_block = Residual(dim, norm, dropout)
        self.second_block = Residual(dim, norm, dropout)
        self.norm = norm.build(dim)

    def forward(
        self, vectors: Tensor, memory: Memory, real: Tensor | None, observe: Observe | None
    ) -> tuple[Tensor, Observation]:
        observation = Observation()

        def attention(inputs: Tensor) -> Tensor:
            nonlocal observation
            query, keys_values = self.self_attention.project_self(inputs, begin=0)
            output: Tensor
            output, observation = self.self_attention(query, keys_values, memory.mask, observe)
            return output

        vectors = self.first_block(vectors, lambda inputs: 0.5 * self.first_half(inputs))
        vectors = self.attention_block(vectors, attention)
        vectors = self.convolution_block(vectors, lambda inputs: self.convolution(inputs, real))
        vectors = self.second_block(vectors, lambda inputs: 0.5 * self.second_half(inputs))
        return self.norm(vectors), observation


class ConformerEncoder(nn.Module):
    """A source -> memory of a vector for each of its own. source_size: see `build_source`.

    Raises: ConfigError when the norms are not to stand before the parts.
    """

    def __init__(self, source_size: int, config: ConformerEncoderConfig) -> None:
        super().__init__()
        if config.norm.placement != "pre":
            raise ConfigError(
                f"conformer: norm.placement is `{config.norm.placement}`, but its norms stand before each part; set "
                "it to `pre`"
            )
        self.memory_dim = config.model_dim
        self.embedding = build_source(source_size, config.model_dim, config.embedding)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.num_layers))

    def forward(
        self, values: Tensor, lengths: Tensor, observe: Observe | None = None
    ) -> tuple[Memory, dict[str, Observation]]:
        """values, lengths: as `Source` reads them -> (memory, observations by layer name; empty unless asked for).

        Padded positions are no queries: they count nowhere, and theirs is the observation of a query without keys.
        """
        memory = Memory(*self.embedding.represent(values, lengths))
        vectors = memory.vectors
        real = torch.arange(vectors.shape[1], device=vectors.device) < memory.lengths[:, None]
        if observe:
            observe = replace(observe, queries=real if observe.queries is None else real & observe.queries)
        kept = None if bool(real.all()) else real[..., None]
        observations = {}
        for index, layer in enumerate(self.layers):
            vectors, observation = layer(vectors, memory, kept, observe)
            if observe:
                observations[f"encoder.layers.{index}.self"] = observation
        return replace(memory, vectors=vectors), observations
