"""The decoder-only Transformer: causal self-attention over the text so far, and nothing else. Radford et al. 2018.

With rotary positions, grouped heads, RMS norms and gated feed-forward blocks it is the Llama of Touvron et al. 2023:
each of them is an option of the block it belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from regard.attention.masks import Causal, Mask, Packed
from regard.attention.observation import Observation, Observe
from regard.errors import ConfigError, ShapeError
from regard.inputs.embeddings import EmbeddingConfig, TextEmbedding
from regard.layers.attention import AttentionConfig, MultiHeadAttention
from regard.layers.cache import Cache
from regard.layers.feed_forward import FeedForward, FeedForwardConfig
from regard.layers.head import HeadConfig, OutputHead
from regard.layers.norm import NormConfig
from regard.models.decoder import Step, Vocabulary
from regard.models.memory import Memory
from regard.models.quick_step import QuickStep, is_watched, refuses
from regard.models.residual import Residual, final_norm


@dataclass(frozen=True)
class LanguageModelConfig:
    """A stack of equal layers over the text so far."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    model_dim: int
    num_layers: int
    attention: AttentionConfig
    feed_forward: FeedForwardConfig
    type: Literal["transformer"] = "transformer"
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    tie: bool = True  # the head's matrix is the embedding's (Press and Wolf 2017)
    dropout: float = 0.1  # on each block's output, before it is added
    # Llama's start: every matrix drawn from a normal distribution of this width, and those that end a residual branch
    # divided by the root of their number (Radford et al. 2019, sec. 2.3); null: each block's own start.
    init_std: float | None = None


@dataclass(frozen=True)
class Documents:
    """Where the documents of packed rows lie, each of which attends to itself alone.

    numbers: int64 [rows, length], the same throughout a document, rising along the row. positions: int64 [rows,
    length], from 0 in each document.
    """

    numbers: Tensor
    positions: Tensor

    @staticmethod
    def beginning_at(begins: Tensor) -> Documents | None:
        """begins: bool [rows, length], where a document begins; the first token of a row always does.

        None where every row is one document, so that no mask is needed.
        """
        begins = begins.clone()
        begins[:, 0] = True
        numbers = begins.cumsum(1) - 1
        if not numbers.numel() or int(numbers[:, -1].max()) == 0:
            return None
        place = torch.arange(begins.shape[1], device=begins.device)
        return Documents(numbers, place - torch.where(begins, place, 0).cummax(1).values)


class LanguageModelState(NamedTuple):
    """layers: the cached keys and values of each layer, none before the first token; rows: how many then.

    quick: what takes single steps of a single row, None where the modules do; found out at the first such step.
    """

    layers: tuple[Cache, ...]
    rows: int
    quick: QuickStep | None = None

    @property
    def position(self) -> int:
        """How many tokens have been read."""
        return self.layers[0].length if self.layers else 0

    def select(self, rows: Tensor) -> LanguageModelState:
        return LanguageModelState(tuple(layer.select(rows) for layer in self.layers), len(rows), self.quick)


class LanguageModelLayer(nn.Module):
    """Causal self-attention, then feed-forward, each in a residual block."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        dim = config.model_dim
        self.self_attention = MultiHeadAttention(dim, config.attention, is_self=True)
        self.feed_forward = FeedForward(dim, config.feed_forward)
        self.attention_block = Residual(dim, config.norm, config.dropout)
        self.feed_forward_block = Residual(dim, config.norm, config.dropout)

    def forward(
        self, vectors: Tensor, cache: Cache | None, documents: Documents | None, observe: Observe | None
    ) -> tuple[Tensor, Cache, Observation]:
        """vectors [rows, n, model_dim] -> (the same shape, the cache grown by n, what was observed)."""
        grown = cache
        observation = Observation()

        def attention(inputs: Tensor) -> Tensor:
            nonlocal grown, observation
            begin = 0 if cache is None else cache.length
            positions = None if documents is None else documents.positions
            query, fresh = self.self_attention.project_self(inputs, begin, positions)
            grown = Cache.of(fresh) if cache is None else cache.followed_by(fresh)
            mask: Mask = Causal()
            if documents is not None:
                mask = mask & Packed(documents.numbers, contiguous=True)
            output: Tensor
            output, observation = self.self_attention(query, grown.read, mask, observe)
            return output

        vectors = self.feed_forward_block(self.attention_block(vectors, attention), self.feed_forward)
        assert grown is not None
        return vectors, grown, observation


class LanguageModel(nn.Module):
    """Speaks the protocol of `models/decoder.py` without reading any memory.

    Raises: ConfigError when there is no layer, because the cache of the first counts the tokens read so far.
    """

    def __init__(self, vocab: int, config: LanguageModelConfig) -> None:
        super().__init__()
        if config.num_layers < 1:
            raise ConfigError(f"model: num_layers is {config.num_layers}, expected at least 1")
        self.config = config
        self.outputs = Vocabulary(vocab)
        self.embedding = TextEmbedding(vocab, config.model_dim, config.embedding)
        self.layers = nn.ModuleList(LanguageModelLayer(config) for _ in range(config.num_layers))
        self.norm = final_norm(config.model_dim, config.norm)
        weight = self.embedding.weight if config.tie else nn.Parameter(torch.empty(vocab, config.model_dim))
        if not config.tie:
            nn.init.normal_(weight, std=config.model_dim**-0.5)
        self.head = OutputHead(weight, config.head)
        if config.init_std is not None:
            self._draw_weights(config.init_std)

    def _draw_weights(self, std: float) -> None:
        for parameter in self.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=std)
        at_the_end = std / (2 * len(self.layers)) ** 0.5
        for layer in self.layers:
            assert isinstance(layer, LanguageModelLayer)
            for linear in (layer.self_attention.output, layer.feed_forward.outer):
                nn.init.normal_(linear.weight, std=at_the_end)

    def start(self, memories: Mapping[str, Memory]) -> LanguageModelState:
        """One row where there are no memories, else as many as they have; their content is not read."""
        return LanguageModelState((), next((len(memory.lengths) for memory in memories.values()), 1))

    def read(
        self,
        state: LanguageModelState,
        tokens: Tensor,
        observe: Observe | None = None,
        documents: Documents | None = None,
    ) -> tuple[Tensor, LanguageModelState, dict[str, Observation]]:
        """tokens [rows, n] -> (hidden [rows, n, model_dim], the state after them, observations by layer name).

        documents: of packed rows, which are read from their beginning.
        Raises: ShapeError for packed rows behind tokens already read.
        """
        if documents is not None and state.layers:
            raise ShapeError(
                f"language model: packed documents behind {state.position} tokens already read; read them from a new"
                " state"
            )
        vectors = self.embedding(tokens, state.position, None if documents is None else documents.positions)
        caches, observations = [], {}
        for index, layer in enumerate(self.layers):
            cache = state.layers[index] if state.layers else None
            vectors, grown, observation = layer(vectors, cache, documents, observe)
            caches.append(grown)
            if observe:
                observations[f"layers.{index}.self"] = observation
        return self.norm(vectors), LanguageModelState(tuple(caches), tokens.shape[0]), observations

    def forward(self, tokens: Tensor, documents: Documents | None = None) -> Tensor:
        """Teacher forcing: tokens [rows, n] -> hidden [rows, n, model_dim], from which `head` predicts what follows."""
        return self.read(self.start({}), tokens, documents=documents)[0]

    def advance(
        self, state: LanguageModelState, tokens: Tensor, observe: Observe | None = None
    ) -> tuple[Step, LanguageModelState]:
        if state.layers and tokens.shape == (1, 1) and not observe and not self.training and not is_watched():
            quick = state.quick or self._quick()
            if quick is not None:
                hidden, layers = quick.take(self.embedding(tokens, state.position), state.layers)
                return Step(self.head.log_probs(hidden), {}), LanguageModelState(layers, 1, quick)
        hidden, state, observations = self.read(state, tokens, observe)
        return Step(self.head.log_probs(hidden), observations), state

    def _quick(self) -> QuickStep | None:
        layers = cast("list[LanguageModelLayer]", list(self.layers))
        parts = [
            (layer.self_attention, layer.feed_forward, layer.attention_block, layer.feed_forward_block)
            for layer in layers
        ]
        return None if refuses(parts, self.norm) else QuickStep(parts, self.norm)

    def num_parameters(self) -> int:
        """Trained numbers, shared matrices counted once."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
