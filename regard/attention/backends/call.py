"""One call of `attend`, as the backends receive it, and what they return."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from regard.attention.distributions import Distribution
from regard.attention.masks import Mask
from regard.attention.observation import Observation, Observe
from regard.attention.pair_scores import PairScores
from regard.attention.scores import Modified, Score


class Attended(NamedTuple):
    """output: [batch, heads, query_len, value_dim], in value's dtype; observation: empty unless asked for."""

    output: Tensor
    observation: Observation


@dataclass(frozen=True, eq=False)
class Call:
    """A checked call. query: [batch, heads, query_len, head_dim]; the rest as `attend` has it.

    observe: None unless something is asked for.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    score: Score
    distribution: Distribution
    mask: Mask | None
    dropout: float
    observe: Observe | None
    _made: dict[str, PairScores | None] = field(default_factory=dict)  # once asked for; `cached_property` locks

    @property
    def batch(self) -> int:
        return self.query.shape[0]

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def query_len(self) -> int:
        return self.query.shape[2]

    @property
    def key_len(self) -> int:
        return self.key.shape[2]

    @property
    def group(self) -> int:
        """How many query heads share one key head."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def num_scores(self) -> int:
        return self.batch * self.heads * self.query_len * self.key_len

    @property
    def score_name(self) -> str:
        score = self.score
        if isinstance(score, Modified):
            return " and ".join(type(part).__name__ for part in (score.score, *score.modifiers))
        return type(score).__name__

    @property
    def pairs(self) -> PairScores | None:
        """The scores and the sink unmaterialised, without the mask; None where they, or their weights, are not so."""
        if "pairs" not in self._made:
            self._made["pairs"] = self._pairs()
        return self._made["pairs"]

    @property
    def masked_pairs(self) -> PairScores | None:
        """The same with the mask."""
        if "masked" not in self._made:
            pairs = self.pairs
            if pairs is not None and self.mask is not None:
                ranges, allowed = self.mask.lowered(self.batch, self.query_len, self.key_len, self.query.device)
                pairs = replace(pairs, ranges=ranges, allowed=allowed)
            self._made["masked"] = pairs
        return self._made["masked"]

    def _pairs(self) -> PairScores | None:
        if not self.distribution.has_logsumexp:
            return None
        with self.exact():
            pairs = self.score.pairs(self.query, self.key)
            sink = self.distribution.sink(self.query.shape[1], self.query)
        return pairs if pairs is None or sink is None else replace(pairs, sink=sink)

    def exact(self) -> AbstractContextManager[object]:
        """Within it autocast rounds nothing: between the inputs and the output all is float32 at least."""
        device = self.query.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return torch.autocast(device, enabled=False)
        return nullcontext()


class Backend(Protocol):
    def refuses(self, call: Call) -> str | None:
        """Why this backend cannot compute exactly what is asked, or None."""
        ...

    def declines(self, call: Call) -> str | None:
        """Why a slower backend is the better choice although this one could, or None."""
        ...

    def run(self, call: Call) -> Attended:
        """Computes it. What is observed changes no bit of the output."""
        ...
