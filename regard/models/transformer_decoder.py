"""The Transformer decoder: causal self-attention, then cross-attention over a memory. Vaswani et al. 2017, sec. 3.1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from regard.attention.masks import Causal, Padding
from regard.attention.observation import Observation, Observe
from regard.errors import ConfigError
from regard.inputs.embeddings import EmbeddingConfig, TextEmbedding
from regard.layers.attention import AttentionConfig, KeysValues, MultiHeadAttention
from regard.layers.feed_forward import FeedForward, FeedForwardConfig
from regard.layers.head import HeadConfig, OutputHead
from regard.layers.norm import NormConfig
from regard.models.decoder import Step, Vocabulary
from regard.models.memory import Memory
from regard.models.residual import Residual, final_norm


@dataclass(frozen=True)
class TransformerDecoderConfig:
    """A stack of equal layers over the target so far, reading one memory."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    model_dim: int
    num_layers: int
    attention: AttentionConfig  # of self-attention; cross-attention takes the same but for rotary positions
    feed_forward: FeedForwardConfig
    type: Literal["transformer"] = "transformer"
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    dropout: float = 0.1  # on each block's output, before it is added


@dataclass(frozen=True)
class TransformerState:
    """Cached keys and values, a pair a layer.

    own: of the target so far, None before the first token. source: [rows], which source each row reads.
    cross: of the memory, [groups, ...], and lengths: [groups], real memory vectors. Rows come in groups of equal size,
    one after another, each of which reads one source: a beam shares the keys and values of its sentence.
    """

    own: tuple[KeysValues | None, ...]
    cross: tuple[KeysValues, ...]
    lengths: Tensor
    source: Tensor

    @property
    def position(self) -> int:
        """How many tokens have been read."""
        return 0 if self.own[0] is None else self.own[0].keys.shape[2]

    @property
    def group(self) -> int:
        """Rows of a group."""
        return len(self.source) // max(len(self.lengths), 1)

    def select(self, rows: Tensor) -> TransformerState:
        own = tuple(None if layer is None else layer.select(rows) for layer in self.own)
        source = self.source[rows]
        _, sizes = source.unique_consecutive(return_counts=True)
        size = int(sizes[0]) if len(sizes) and bool((sizes == sizes[0]).all()) else 1
        groups = rows[::size] // max(self.group, 1)
        if torch.equal(groups, torch.arange(len(self.lengths), device=groups.device)):
            return TransformerState(own, self.cross, self.lengths, source)
        cross = tuple(layer.select(groups) for layer in self.cross)
        return TransformerState(own, cross, self.lengths[groups], source)

    def spread(self) -> tuple[tuple[KeysValues, ...], Tensor]:
        """`cross` and `lengths` of every row."""
        groups = torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(self.group)
        return tuple(layer.select(groups) for layer in self.cross), self.lengths[groups]


class TransformerDecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward, each in a residual block."""

    def __init__(self, config: TransformerDecoderConfig, memory_dim: int) -> None:
        super().__init__()
        dim = config.model_dim
        self.self_attention = MultiHeadAttention(dim, config.attention, is_self=True)
        self.cross_attention = MultiHeadAttention(dim, config.attention, is_self=False, memory_dim=memory_dim)
        self.feed_forward = FeedForward(dim, config.feed_forward)
        self.self_block = Residual(dim, config.norm, config.dropout)
        self.cross_block = Residual(dim, config.norm, config.dropout)
        self.feed_forward_block = Residual(dim, config.norm, config.dropout)

    def forward(
        self, vectors: Tensor, own: KeysValues | None, cross: KeysValues, lengths: Tensor, observe: Observe | None
    ) -> tuple[Tensor, KeysValues, Observation]:
        """vectors [rows, n, model_dim] -> (the same shape, the cache grown by n, what cross-attention showed).

        cross, lengths: of as many groups of rows, see `TransformerState`.
        """
        grown = own
        observation = Observation()

        def attend_own(inputs: Tensor) -> Tensor:
            nonlocal grown
            query, fresh = self.self_attention.project_self(inputs, begin=0 if own is None else own.keys.shape[2])
            grown = fresh if own is None else own.followed_by(fresh)
            output: Tensor = self.self_attention(query, grown, Causal())[0]
            return output

        def attend_memory(inputs: Tensor) -> Tensor:
            nonlocal observation
            query = self.cross_attention.project_query(inputs)
            output: Tensor
            size = len(query) // max(len(lengths), 1)
            if size <= 1:
                output, observation = self.cross_attention(query, cross, Padding(lengths), observe)
                return output
            # To attention the rows of a group are further queries of one row.
            output, observation = self.cross_attention(_as_one(query, size), cross, Padding(lengths), observe)
            observation = _apart(observation, size)
            return output.reshape(inputs.shape)

        vectors = self.self_block(vectors, attend_own)
        vectors = self.cross_block(vectors, attend_memory)
        vectors = self.feed_forward_block(vectors, self.feed_forward)
        assert grown is not None
        return vectors, grown, observation


def _as_one(query: Tensor, size: int) -> Tensor:
    """[groups * size, heads, n, head_dim] -> [groups, heads, size * n, head_dim]."""
    together: Tensor = query.unflatten(0, (-1, size)).transpose(1, 2).flatten(2, 3)
    return together


def _apart(observation: Observation, size: int) -> Observation:
    """The rows of each row of a group: [groups, heads, size * n, key_len] -> [groups * size, heads, n, key_len]."""
    if observation.rows is None:
        return observation
    rows = observation.rows.unflatten(2, (size, -1)).transpose(1, 2).flatten(0, 1)
    return replace(observation, rows=rows, row_index=torch.arange(rows.shape[2], device=rows.device))


class TransformerDecoder(nn.Module):
    """Speaks the protocol of `models/decoder.py`; reads the memory called "source".

    token_weight: the embedding's matrix when it is shared with the encoder, [vocab, model_dim]. tie_head: whether the
    head's weight is the embedding's.

    Raises: ConfigError when there is no layer, because the cache of the first counts the tokens read so far.
    """

    def __init__(
        self,
        vocab: int,
        config: TransformerDecoderConfig,
        *,
        memory_dim: int,
        token_weight: nn.Parameter | None = None,
        tie_head: bool = True,
    ) -> None:
        super().__init__()
        if config.num_layers < 1:
            raise ConfigError(f"decoder: num_layers is {config.num_layers}, expected at least 1")
        self.outputs = Vocabulary(vocab)
        self.embedding = TextEmbedding(vocab, config.model_dim, config.embedding)
        if token_weight is not None:
            self.embedding.tokens.weight = token_weight
        self.layers = nn.ModuleList(TransformerDecoderLayer(config, memory_dim) for _ in range(config.num_layers))
        self.norm = final_norm(config.model_dim, config.norm)
        weight = self.embedding.weight if tie_head else nn.Parameter(torch.empty(vocab, config.model_dim))
        if not tie_head:
            nn.init.normal_(weight, std=config.model_dim**-0.5)
        self.head = OutputHead(weight, config.head)

    def start(self, memories: Mapping[str, Memory]) -> TransformerState:
        memory = memories["source"]
        layers = cast("list[TransformerDecoderLayer]", list(self.layers))
        cross = tuple(layer.cross_attention.project_memory(memory.vectors) for layer in layers)
        source = torch.arange(memory.vectors.shape[0], device=memory.vectors.device)
        return TransformerState((None,) * len(self.layers), cross, memory.lengths, source)

    def read(
        self, state: TransformerState, tokens: Tensor, observe: Observe | None = None
    ) -> tuple[Tensor, TransformerState, dict[str, Observation]]:
        """tokens [rows, n] -> (hidden [rows, n, model_dim], the state after them, observations by layer name)."""
        vectors = self.embedding(tokens, begin=state.position)
        cross, lengths = state.cross, state.lengths
        if observe and not observe.asks_rows_alone:  # other statistics are of one row each
            cross, lengths = state.spread()
        own, observations = [], {}
        for index, layer in enumerate(self.layers):
            vectors, grown, observation = layer(vectors, state.own[index], cross[index], lengths, observe)
            own.append(grown)
            if observe:
                observations[f"decoder.layers.{index}.cross"] = observation
        return self.norm(vectors), TransformerState(tuple(own), state.cross, state.lengths, state.source), observations

    def advance(
        self, state: TransformerState, tokens: Tensor, observe: Observe | None = None
    ) -> tuple[Step, TransformerState]:
        hidden, state, observations = self.read(state, tokens, observe)
        return Step(self.head.log_probs(hidden), observations), state
