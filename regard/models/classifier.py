"""An encoder, a pooling of its vectors into one, and a label: the skeleton of every classifier.

Pooling by attention is the structured self-attention of Lin et al. 2017: some hops, each with its own distribution over
the input, whose sums stand side by side. What an encoder reads through is a source like any other's, so that text and
pictures are classified alike.

Beside it may stand a linear model of n-grams (models/ngrams.py): each learns by its own loss, and their scores are
added, as the evidence of two witnesses who have not talked to each other (Mesnil et al. 2015).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from regard.attention.attend import attend
from regard.attention.observation import Observation, Observe
from regard.attention.scores import Dot
from regard.errors import ConfigError
from regard.layers.dropout import Dropout
from regard.models.encoder_decoder import EncoderConfig, build_encoder
from regard.models.memory import Memory
from regard.models.ngrams import Ngrams, NgramsConfig

POOLED = "pooling"  # the layer name of what the hops attend to


@dataclass(frozen=True)
class PoolingConfig:
    """How the vectors of an input become one."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    # "mean" and "max": over all real vectors. "first": the first alone (Devlin et al. 2019). "attention": hops.
    kind: Literal["mean", "max", "first", "attention"] = "attention"
    hops: int = 1  # attention only: rows of the annotation matrix, r of Lin et al. 2017, eq. 6
    width: int = 64  # attention only: inner width of the scores, d_a of eq. 5
    # Attention only: weight of ||A A^T - I||^2 (eq. 8) in the loss, which drives hops apart and each to few places.
    penalty: float = 0.0

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, expected 1 or more"
            for name in ("hops", "width")
            if getattr(self, name) < 1
        ]
        if not 0.0 <= self.penalty < float("inf"):
            problems.append(f"penalty is {self.penalty}, expected 0 or more")
        if self.kind != "attention" and self.penalty:
            problems.append(f"penalty is {self.penalty}, but pooling by {self.kind} has no hops; set it to 0")
        if problems:
            raise ConfigError("pooling: " + "; ".join(problems))


@dataclass(frozen=True)
class ClassifierConfig:
    """A choice at each place of the skeleton."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    encoder: EncoderConfig
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    hidden: int | None = None  # width of a layer with ReLU before the labels; null: none
    dropout: float = 0.1  # on the pooled vector, and on the hidden layer
    ngrams: NgramsConfig | None = None  # text only: a linear model of n-grams beside it all; null: none


class Classified(NamedTuple):
    """logits: [batch, labels]; the sum of `parts`, of which each learns by itself: the encoder's, and those of n-grams
    where there are any. penalty: of the hops, summed over the batch, before its weight. attention: by layer name, empty
    unless asked for; `pooling` has the hops as its queries."""

    logits: Tensor
    parts: tuple[Tensor, ...]
    penalty: Tensor
    attention: dict[str, Observation]


class AttentionPooling(nn.Module):
    """A = softmax(W2 tanh(W1 H^T)), M = A H. Lin et al. 2017, eq. 6 and 7; a row of W2 is a query, tanh(W1 h) a key."""

    def __init__(self, memory_dim: int, config: PoolingConfig) -> None:
        super().__init__()
        self.keys = nn.Linear(memory_dim, config.width, bias=False)
        self.queries = nn.Parameter(torch.empty(config.hops, config.width))
        nn.init.xavier_uniform_(self.keys.weight)
        nn.init.xavier_uniform_(self.queries)

    def forward(self, memory: Memory, observe: Observe) -> tuple[Tensor, Observation]:
        """-> ([batch, hops, memory_dim], what was observed)."""
        keys = torch.tanh(self.keys(memory.vectors))[:, None]
        queries = self.queries.to(keys.dtype).expand(len(keys), 1, -1, -1)
        values = memory.vectors[:, None].to(keys.dtype)
        pooled, seen = attend(queries, keys, values, score=Dot(), mask=memory.mask, observe=observe)
        return pooled[:, 0], seen


class Classifier(nn.Module):
    """source_size: of what is read, as for `build_source`. num_labels: classes to tell apart.

    Raises: ConfigError for fewer than two labels.
    """

    def __init__(self, source_size: int, num_labels: int, config: ClassifierConfig) -> None:
        super().__init__()
        if num_labels < 2:
            raise ConfigError(f"model: {num_labels} labels, expected at least 2 to tell apart")
        self.config = config
        self.encoder = build_encoder(source_size, config.encoder)
        width, kind = self.encoder.memory_dim, config.pooling.kind
        self.pooling = AttentionPooling(width, config.pooling) if kind == "attention" else None
        if self.pooling is not None:
            width *= config.pooling.hops
        self.dropout = Dropout(config.dropout)
        self.hidden = None if config.hidden is None else nn.Linear(width, config.hidden)
        self.labels = nn.Linear(width if config.hidden is None else config.hidden, num_labels)
        self.ngrams = None if config.ngrams is None else Ngrams(num_labels, config.ngrams)

    def forward(self, values: Tensor, lengths: Tensor, observe: Observe | None = None) -> Classified:
        """values, lengths: as the encoder's source reads them; each input has at least one position."""
        memory, attention = self.encoder(values, lengths, observe)
        pooled, penalty, seen = self._pool(memory, observe)
        if seen is not None and observe:
            attention = {**attention, POOLED: seen}
        hidden = self.dropout(pooled)
        if self.hidden is not None:
            hidden = self.dropout(torch.relu(self.hidden(hidden)))
        logits = self.labels(hidden)
        if self.ngrams is None:
            return Classified(logits, (logits,), penalty, attention)
        counted = self.ngrams(values, lengths)
        return Classified(logits + counted, (logits, counted), penalty, attention)

    def _pool(self, memory: Memory, observe: Observe | None) -> tuple[Tensor, Tensor, Observation | None]:
        """([batch, width], the penalty, what the hops showed)."""
        vectors, nothing = memory.vectors, memory.vectors.new_zeros(())
        if self.pooling is not None:
            weighed = self.training and self.config.pooling.penalty > 0
            pooled, seen = self.pooling(memory, observe or Observe(rows="all" if weighed else None))
            penalty = hop_penalty(seen.rows[:, 0]) if weighed and seen.rows is not None else nothing
            return pooled.flatten(1), penalty, seen
        if self.config.pooling.kind == "first":
            return vectors[:, 0], nothing, None
        real = (torch.arange(vectors.shape[1], device=vectors.device) < memory.lengths[:, None])[..., None]
        if self.config.pooling.kind == "max":
            return vectors.masked_fill(~real, float("-inf")).amax(1), nothing, None
        return (vectors * real).sum(1) / memory.lengths[:, None], nothing, None

    def num_parameters(self) -> int:
        """Trained numbers, shared matrices counted once."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def hop_penalty(weights: Tensor) -> Tensor:
    """||A A^T - I||^2, summed over the batch: 0 where hops look at one place each, and no two at the same.

    weights: [batch, hops, length], each row a distribution. Source: Lin et al. 2017, eq. 8.
    """
    overlap = weights @ weights.transpose(1, 2)
    return (overlap - torch.eye(weights.shape[1], dtype=weights.dtype, device=weights.device)).square().sum()
