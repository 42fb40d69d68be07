"""Scorers that read where a search has looked: what is attended to twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from regard.attention.observation import Observation
from regard.errors import ObservationError


@runtime_checkable
class Onlooker(Protocol):
    """A scorer that also reads a step's attention; it is observed for its sake where nobody else asks."""

    def look(self, state: Any, attention: Mapping[str, Observation]) -> Any:
        """The state that knows the attention of the step of which `score` is asked next, by layer; `rows` is there."""
        ...


class Covered(NamedTuple):
    """received: [rows, key_len], the attention that each key has received; before the first step it has no keys.
    excess: [rows], how much of it is above 1 a key; added: [rows], what the last step added to that."""

    received: Tensor
    excess: Tensor
    added: Tensor


@dataclass(frozen=True)
class RepeatPenalty:
    """Takes `weight` off the score for each unit of attention that a key receives beyond 1, at the step that gives it.

    The sum over the steps is weight * (sum_i max(1, c_i) - source_len), c_i the attention to key i over all steps,
    that of EOS included: the mean over the heads of the last layer, which points if any does. Source: Gehrmann et al.
    2018, sec. 5, with their beta as `weight`.
    """

    weight: float
    bound: ClassVar[float] = 0.0

    def start(self, sentences: Tensor) -> Covered:
        nothing = torch.zeros(len(sentences), dtype=torch.float32, device=sentences.device)
        return Covered(nothing[:, None][:, :0], nothing, nothing)

    def look(self, state: Covered, attention: Mapping[str, Observation]) -> Covered:
        """Raises: ObservationError when the decoder shows no attention, or that to a text that grows."""
        rows = list(attention.values())[-1].rows if attention else None
        if rows is None:
            raise ObservationError("decode: a coverage penalty wants attention, but this decoder shows none; drop it")
        given = rows[:, :, -1].mean(1).float()
        if state.received.shape[1] not in (0, given.shape[1]):
            raise ObservationError(
                "decode: a coverage penalty wants attention to a source, but this decoder looks at its own output;"
                " drop it"
            )
        received = given if not state.received.shape[1] else state.received + given
        excess = (received - 1.0).clamp_min(0.0).sum(-1)
        return Covered(received, excess, excess - state.excess)

    def select(self, state: Covered, rows: Tensor, tokens: Tensor) -> Covered:
        return Covered(*(part[rows] for part in state))

    def score(self, state: Covered, log_probs: Tensor) -> Tensor | None:
        """The same for every token of a row: what the step looked at is done whichever is chosen."""
        return -self.weight * state.added[:, None].to(log_probs.dtype)
