"""Step 2 of attention: vectors become queries, keys and values; then the call of `attend` and the output projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from regard.attention.attend import attend
from regard.attention.distributions import Distribution, SinkSoftmax
from regard.attention.masks import Global, Mask, Window
from regard.attention.modifiers import ALiBi, Modifier, RelativeBias, SoftCap
from regard.attention.observation import Observation, Observe
from regard.attention.rotary import Rotary
from regard.attention.scores import ScaledDot, Score
from regard.errors import ConfigError

DISTANCE_BUCKETS = 32  # of learned biases, half of them to each side, the last for 128 tokens and more: T5's


@dataclass(frozen=True)
class AttentionConfig:
    """Multi-head attention by scaled dot products."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    heads: int
    # Fewer than `heads`: grouped-query (Ainslie et al. 2023). 1: multi-query (Shazeer 2019). As many unless given.
    kv_heads: int | None = None
    head_dim: int | None = None  # width of a head; model_dim / heads unless given
    bias: bool = True  # on all four projections
    dropout: float = 0.0  # on the attention weights; above 0 the weights are materialised in training
    rotary_base: float | None = None  # rotary positions on queries and keys of self-attention (Su et al. 2021)
    # What distance adds to scores of self-attention: "alibi" a fixed slope a head (Press et al. 2022), "t5" a learned
    # number a head and bucket of distances (Raffel et al. 2020).
    distance_bias: Literal["none", "alibi", "t5"] = "none"
    window: int | None = None  # self-attention sees so many tokens to each side (Beltagy et al. 2020); all unless given
    # Beside the window, the first so many tokens of self-attention see everything and are seen by all (Beltagy et al.
    # 2020): what they gather reaches every token in two layers.
    num_global: int = 0
    soft_cap: float | None = None  # bounds scores smoothly to (-soft_cap, soft_cap) (Gemma Team 2024)
    # Where attention may go instead of to a key: nowhere else, to a score of 0 (Miller 2023), to a learned one a head.
    sink: Literal["none", "off_by_one", "learned"] = "none"

    def head_width(self, model_dim: int) -> int:
        """head_dim, given or derived. Raises: ConfigError, naming every number that does not fit."""
        problems = []
        if self.heads < 1:
            problems.append(f"heads is {self.heads}, expected at least 1")
        elif self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            problems.append(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}; change either")
        if self.head_dim is not None and self.head_dim < 1:
            problems.append(f"head_dim is {self.head_dim}, expected at least 1")
        elif self.head_dim is None and self.heads >= 1 and model_dim % self.heads:
            problems.append(f"model_dim {model_dim} is no multiple of heads {self.heads}; set head_dim")
        width = self.head_dim if self.head_dim is not None else model_dim // max(self.heads, 1)
        if self.rotary_base is not None and width % 2:
            problems.append(f"rotary positions want an even head_dim, not {width}; set head_dim")
        if not 0.0 <= self.dropout < 1.0:
            problems.append(f"dropout is {self.dropout}, expected at least 0 and below 1")
        if self.window is not None and self.window < 0:
            problems.append(f"window is {self.window}, expected at least 0 tokens to each side")
        if self.num_global < 0:
            problems.append(f"num_global is {self.num_global}, expected at least 0 tokens")
        elif self.num_global and self.window is None:
            problems.append(f"num_global {self.num_global} without a window changes nothing; set window, or drop it")
        if self.soft_cap is not None and not self.soft_cap > 0.0:
            problems.append(f"soft_cap is {self.soft_cap}, expected a number above 0")
        if problems:
            raise ConfigError("attention: " + "; ".join(problems))
        return width


class KeysValues(NamedTuple):
    """keys, values: [rows, kv_heads, key_len, head_dim], projected (and rotated) once, then cached."""

    keys: Tensor
    values: Tensor

    def select(self, rows: Tensor) -> KeysValues:
        return KeysValues(self.keys[rows], self.values[rows])

    def followed_by(self, later: KeysValues) -> KeysValues:
        return KeysValues(torch.cat([self.keys, later.keys], 2), torch.cat([self.values, later.values], 2))


class MultiHeadAttention(nn.Module):
    """Queries of one sequence over keys and values of the same (`is_self`) or of another.

    Source: Vaswani et al. 2017, sec. 3.2.2. The projections that read the same vectors are one matrix product.
    """

    def __init__(
        self, model_dim: int, config: AttentionConfig, *, is_self: bool, memory_dim: int | None = None
    ) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.kv_heads or config.heads
        self.head_dim = config.head_width(model_dim)
        self.weight_dropout = config.dropout
        self.rotary = Rotary(config.rotary_base) if is_self and config.rotary_base is not None else None
        self.window: Mask | None = None
        if is_self and config.window is not None:
            self.window = Window(config.window, config.window)
            if config.num_global:
                self.window = self.window | Global(config.num_global)
        self.soft_cap = None if config.soft_cap is None else SoftCap(config.soft_cap)
        self.distance_bias = config.distance_bias if is_self else "none"
        # Both start from 0: a bias that says nothing, a sink that is off by one.
        table = torch.zeros(DISTANCE_BUCKETS, self.heads) if self.distance_bias == "t5" else None
        self.distance_table = None if table is None else nn.Parameter(table)
        self.sink = config.sink
        self.sink_logits = nn.Parameter(torch.zeros(self.heads)) if config.sink == "learned" else None
        query_width, kv_width = self.heads * self.head_dim, 2 * self.kv_heads * self.head_dim
        self.is_self = is_self
        if is_self:
            self.query_key_value = nn.Linear(model_dim, query_width + kv_width, bias=config.bias)
            projections = [self.query_key_value]
        else:
            self.query = nn.Linear(model_dim, query_width, bias=config.bias)
            self.key_value = nn.Linear(memory_dim or model_dim, kv_width, bias=config.bias)
            projections = [self.query, self.key_value]
        self.output = nn.Linear(query_width, model_dim, bias=config.bias)
        for linear in (*projections, self.output):
            # Glorot and Bengio 2010. The bound is the stacked matrix's, as in torch.nn.MultiheadAttention: smaller than
            # each projection's own.
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def project_memory(self, memory: Tensor) -> KeysValues:
        """memory [rows, key_len, memory_dim] -> the keys and values that every later query shares."""
        assert not self.is_self, "self-attention projects its own input"
        keys, values = self._apart(self.key_value(memory), self.kv_heads, self.kv_heads)
        return KeysValues(keys, values)

    def project_self(self, vectors: Tensor, begin: int, positions: Tensor | None = None) -> tuple[Tensor, KeysValues]:
        """vectors [rows, n, model_dim] at positions begin to begin + n, or `positions` [rows, n] -> (queries, keys and
        values)."""
        assert self.is_self, "cross-attention has no keys of its own"
        query, keys, values = self._apart(self.query_key_value(vectors), self.heads, self.kv_heads, self.kv_heads)
        if self.rotary is not None:
            if positions is None:
                positions = torch.arange(begin, begin + vectors.shape[1], device=vectors.device)
            query, keys = self.rotary.rotate(query, positions), self.rotary.rotate(keys, positions)
        return query, KeysValues(keys, values)

    def project_query(self, vectors: Tensor) -> Tensor:
        """vectors [rows, n, model_dim] -> queries [rows, heads, n, head_dim] of cross-attention."""
        [query] = self._apart(self.query(vectors), self.heads)
        return query

    def forward(
        self, query: Tensor, memory: KeysValues, mask: Mask | None, observe: Observe | None = None
    ) -> tuple[Tensor, Observation]:
        """Projected queries over projected keys and values -> ([rows, query_len, model_dim], what was observed)."""
        if self.window is not None:
            mask = self.window if mask is None else mask & self.window
        attended = attend(
            query,
            memory.keys,
            memory.values,
            score=self._score(),
            distribution=self._distribution(),
            mask=mask,
            dropout=self.weight_dropout if self.training else 0.0,
            observe=observe,
        )
        merged = attended.output.transpose(1, 2).flatten(2)
        output: Tensor = self.output(merged)
        return output, attended.observation

    def _score(self) -> Score | None:
        modifiers: list[Modifier] = [] if self.soft_cap is None else [self.soft_cap]
        if self.distance_table is not None:
            modifiers.append(RelativeBias(self.distance_table))
        elif self.distance_bias == "alibi":
            modifiers.append(ALiBi())
        return ScaledDot().then(*modifiers) if modifiers else None

    def _distribution(self) -> Distribution | None:
        return None if self.sink == "none" else SinkSoftmax(self.sink_logits)

    def _apart(self, vectors: Tensor, *heads: int) -> list[Tensor]:
        """[rows, n, sum(heads) * head_dim] -> [rows, heads, n, head_dim] of each part.

        Parts first, heads then: their gradients are put together along the last axis, in one copy.
        """
        parts = vectors.split([count * self.head_dim for count in heads], dim=-1)
        return [part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts]
