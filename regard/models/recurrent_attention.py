"""One head of attention that a recurrence asks once a token: what every attention-RNN decoder shares.

The memory is projected once a source (`ReadMemory`); each token brings one query. `Looks` gives a step its context and
puts the steps' observations together to that of one call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from regard.attention.attend import attend
from regard.attention.masks import Padding
from regard.attention.observation import Observation, Observe, joined, problems_of
from regard.attention.scores import Score
from regard.errors import ConfigError, ObservationError
from regard.inputs.embeddings import EmbeddingConfig

LAYER = "decoder.layers.0.cross"  # the one place where these decoders attend
# The same, to whoever observes the model, relative to the decoder: it attends in no module of its own.
ATTENTION_NAME = LAYER.removeprefix("decoder.")


@dataclass(frozen=True)
class ReadMemory:
    """The memory as a decoder reads it, projected once.

    keys [rows, 1, source_len, key_dim] and values [rows, 1, source_len, memory_dim]. lengths: [rows], real memory
    vectors. source: [rows], which source each row reads; lets a reordering among rows of one source copy nothing.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    source: Tensor

    @staticmethod
    def of(keys: Tensor, values: Tensor, lengths: Tensor) -> ReadMemory:
        """keys [rows, source_len, key_dim], in values' dtype from here on: autocast narrows projections alone."""
        source = torch.arange(values.shape[0], device=values.device)
        return ReadMemory(keys.to(values.dtype)[:, None], values[:, None], lengths, source)

    def select(self, rows: Tensor) -> ReadMemory:
        """The memory of chosen rows, in the order given; a row may be taken many times or never."""
        source = self.source[rows]
        if torch.equal(source, self.source):
            return replace(self, source=source)
        return ReadMemory(self.keys[rows], self.values[rows], self.lengths[rows], source)


class Looks:
    """The looks of `num_queries` steps at one memory.

    Raises: ObservationError, naming all that cannot be observed of queries that come one by one. name: of the decoder,
    in that error.
    """

    def __init__(self, name: str, memory: ReadMemory, score: Score, num_queries: int, observe: Observe | None) -> None:
        self._memory, self._score, self._mask = memory, score, Padding(memory.lengths)
        self._num_queries, self._request = num_queries, observe or None
        self._seen: list[Observation] = []
        if self._request is not None:
            self._check(name, self._request)

    def at(self, query: Tensor) -> Tensor:
        """The context [rows, memory_dim] of the next step's query [rows, key_dim]."""
        memory = self._memory
        asked = None if self._request is None else query_request(self._request, len(self._seen), self._num_queries)
        query = query[:, None, None].to(memory.keys.dtype)
        attended = attend(query, memory.keys, memory.values, score=self._score, mask=self._mask, observe=asked)
        self._seen.append(attended.observation)
        return attended.output[:, 0, 0]

    def observations(self) -> dict[str, Observation]:
        """What was asked for, by layer name; empty when nothing was."""
        return {} if self._request is None else {LAYER: _join(self._seen, self._request)}

    def _check(self, name: str, request: Observe) -> None:
        keys = self._memory.keys
        problems = problems_of(request, keys.shape[0], 1, self._num_queries, keys.shape[2])
        if request.trace:
            problems.append("observe.trace is of one call, and this decoder makes one a token; ask for rows instead")
        if problems:
            raise ObservationError(f"{name}: " + "; ".join(problems))


class Remembered(Protocol):
    """What a score remembers of earlier looks, [rows, 1, 1, source_len], and its parameters."""

    def first(self, memory: ReadMemory) -> Tensor:
        """Before the first look."""
        ...

    def score(self, attended: Tensor) -> Score:
        """The score of a step that remembers this."""
        ...

    def next(self, attended: Tensor, weights: Tensor) -> Tensor:
        """After a step with these weights; both [rows, 1, 1, source_len]."""
        ...


class RememberingLooks(Looks):
    """The looks of `num_queries` steps, each scored with what is remembered of those before.

    attended: [rows, 1, 1, source_len], before the first step and, after each, its own; carries gradient.
    """

    def __init__(
        self,
        name: str,
        memory: ReadMemory,
        remembered: Remembered,
        attended: Tensor,
        num_queries: int,
        observe: Observe | None,
    ) -> None:
        super().__init__(name, memory, remembered.score(attended), num_queries, observe)
        self.remembered, self.attended = remembered, attended

    def at(self, query: Tensor) -> Tensor:
        """The context [rows, memory_dim] of the next step's query [rows, key_dim]."""
        memory, request = self._memory, self._request
        query = query[:, None, None].to(memory.keys.dtype)
        score = self.remembered.score(self.attended)
        asked = None if request is None else query_request(request, len(self._seen), self._num_queries)
        # The weights are asked for in the same call, unless what is asked hides some of them.
        hides = asked is not None and (asked.queries is not None or asked.heads is not None)
        together = Observe(rows="all") if asked is None or hides else replace(asked, rows="all")
        attended = attend(query, memory.keys, memory.values, score=score, mask=self._mask, observe=together)
        weights = attended.observation.rows
        assert weights is not None
        self.attended = self.remembered.next(self.attended, weights)
        seen = attended.observation
        if asked is not None and hides:
            seen = attend(query, memory.keys, memory.values, score=score, mask=self._mask, observe=asked).observation
        elif asked is not None and asked.rows is None:
            seen = replace(seen, rows=None, row_index=None)
        elif asked is not None and asked.rows is not None and asked.rows != "all":
            kept = slice(len(asked.rows))  # the one row, or none
            seen = replace(seen, rows=weights[:, :, kept], row_index=None)
        if asked is not None:
            self._seen.append(seen)
        return attended.output[:, 0, 0]


def refuse_positions(name: str, embedding: EmbeddingConfig) -> None:
    """Raises: ConfigError when the embedding of the decoder `name` has positions."""
    if embedding.positions != "none":
        raise ConfigError(
            f"{name}: embedding.positions is `{embedding.positions}`, expected `none`: "
            "a recurrence knows the position by itself"
        )


def query_request(request: Observe, index: int, num_queries: int) -> Observe:
    """What is asked of one of the queries, whose call knows no other."""
    rows = request.rows
    if rows is not None and rows != "all":
        rows = (0,) if index in {row % num_queries for row in rows} else ()
    received = request.received
    return replace(
        request,
        received=received[:, index : index + 1] if isinstance(received, Tensor) else received,
        rows=rows,
        pooled=None if request.pooled is None else (1, request.pooled[1]),
        queries=None if request.queries is None else request.queries[:, index : index + 1],
    )


def _join(steps: list[Observation], request: Observe) -> Observation:
    """The observation of n queries that was asked for, out of n observations of one."""
    if request.pooled is not None:
        steps = [_placed(step, index * request.pooled[0] // len(steps), request) for index, step in enumerate(steps)]
    return joined(steps, request, len(steps))


def _placed(step: Observation, row: int, request: Observe) -> Observation:
    """With its one row of the grid where it stands in the whole."""
    assert step.pooled is not None and request.pooled is not None
    pooled = step.pooled.new_zeros(*step.pooled.shape[:2], *request.pooled)
    pooled[:, :, row] = step.pooled[:, :, 0]
    return replace(step, pooled=pooled)
