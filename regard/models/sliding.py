"""A decoder whose text may outgrow what it was trained on: when the context is full, its last half is read anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.attention.observation import Observe
from regard.errors import ShapeError
from regard.models.decoder import Decoder, OutputSpace, Step
from regard.models.memory import Memory


@dataclass(frozen=True, eq=False)
class SlidingState:
    """inner: the decoder's own state; read: the tokens in it, int64 [rows, n]; memories: to begin anew with."""

    inner: Any
    read: Tensor | None
    memories: Mapping[str, Memory]

    def select(self, rows: Tensor) -> SlidingState:
        memories = {name: memory.select(rows) for name, memory in self.memories.items()}
        return SlidingState(self.inner.select(rows), None if self.read is None else self.read[rows], memories)


class SlidingDecoder:
    """Speaks the protocol of `models/decoder.py` and never lets `decoder` read more than `context` tokens.

    Of a text that outgrows them the last half of the context is read again, from position 0: a token is then predicted
    from half a context at least, and on the average one token is read again, in bulk, for each one written.
    """

    def __init__(self, decoder: Decoder[Any], context: int) -> None:
        self.decoder = decoder
        self.context = context

    @property
    def outputs(self) -> OutputSpace:
        return self.decoder.outputs

    def start(self, memories: Mapping[str, Memory]) -> SlidingState:
        return SlidingState(self.decoder.start(memories), None, memories)

    def advance(self, state: SlidingState, tokens: Tensor, observe: Observe | None = None) -> tuple[Step, SlidingState]:
        """As a decoder. Raises: ShapeError for more tokens at once than the context holds."""
        read = tokens if state.read is None else torch.cat([state.read, tokens], 1)
        inner, new = state.inner, tokens
        if read.shape[1] > self.context:
            kept = _num_kept(self.context, tokens.shape[1])
            if kept > self.context:
                raise ShapeError(
                    f"context: {tokens.shape[1]} tokens at once, but the model was trained on {self.context}; give the"
                    " last of them only"
                )
            read = new = read[:, -kept:]
            rows = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
            inner = self.decoder.start(state.memories)
            inner = inner if state.memories else inner.select(rows)
        step, inner = self.decoder.advance(inner, new, observe)
        if new.shape[1] != tokens.shape[1]:
            step = Step(step.log_probs[:, -tokens.shape[1] :], step.attention)
        return step, SlidingState(inner, read, state.memories)


class Window(NamedTuple):
    """The tokens from `begin` to `end` are read from position 0; what is asked of them are those from `first` on."""

    begin: int
    first: int
    end: int


def windows(num_first: int, num_tokens: int, context: int) -> Iterator[Window]:
    """How a `SlidingDecoder` reads `num_tokens` tokens, the first `num_first` of them at once, then one by one.

    Of those at once the last is asked alone; every later token is asked in one window.
    """
    begin, first = 0, num_first - 1
    while first < num_tokens:
        end = min(begin + context, num_tokens)
        yield Window(begin, first, end)
        begin, first = end + 1 - _num_kept(context, 1), end


def _num_kept(context: int, num_new: int) -> int:
    """Tokens that are read anew where `num_new` do not fit behind the others."""
    return max(context // 2, num_new)
