"""A language model's vote in a search (shallow fusion), and a reward for length that balances it.

Source: Gulcehre et al. 2015, sec. 4.1, who add weight * log p of the language model to the decoder's log-probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from regard.decoding.frontier import first_inputs, start_rows
from regard.errors import ConfigError
from regard.models.decoder import Decoder


class FusionState(NamedTuple):
    """decoder: the language model's state; log_probs: [rows, num_outputs], what it expects next, None before it has
    read anything."""

    decoder: Any
    log_probs: Tensor | None


class LanguageModelScorer:
    """weight * log p(token | the output so far) of any decoder that reads no memory and has the same output ids.

    bos: the token id that it is fed first. None, for a model that hardly saw one: it reads the output as the middle of
    a text, and holds every first token equally likely.
    Raises: ConfigError for a weight of 0 or below, and when it is asked about another number of outputs than it has.
    """

    bound: ClassVar[float] = 0.0

    def __init__(self, decoder: Decoder, *, weight: float, bos: int | None) -> None:
        if weight <= 0:
            raise ConfigError(f"language model: weight is {weight}, expected above 0; leave it out to decode without")
        self.decoder, self.weight, self.bos = decoder, weight, bos

    def start(self, sentences: Tensor) -> FusionState:
        state, _, _ = start_rows(self.decoder, {}, None)
        state = state.select(torch.zeros_like(sentences))
        if self.bos is None:
            return FusionState(state, None)
        return self._after(state, first_inputs(self.decoder, self.bos, None, len(sentences), sentences.device))

    def score(self, state: FusionState, log_probs: Tensor) -> Tensor:
        known = self.decoder.outputs.num_outputs if state.log_probs is None else state.log_probs.shape[-1]
        if known != log_probs.shape[-1]:
            raise ConfigError(
                f"language model: it knows {known} outputs and the decoder "
                f"{log_probs.shape[-1]}; expected one vocabulary: train both with the same tokenizer"
            )
        if state.log_probs is None:
            return torch.full_like(log_probs, -self.weight * math.log(known))
        return self.weight * state.log_probs

    def select(self, state: FusionState, rows: Tensor, tokens: Tensor) -> FusionState:
        return self._after(state.decoder.select(rows), self.decoder.outputs.inputs(tokens)[:, None])

    def _after(self, state: Any, inputs: Tensor) -> FusionState:
        step, state = self.decoder.advance(state, inputs)
        return FusionState(state, step.log_probs[:, -1])


@dataclass(frozen=True)
class LengthReward:
    """So much, in nats, for every token but EOS: sums of log-probabilities favour short outputs, and a language model
    adds to that. Source: Graves and Jaitly 2014, sec. 5; Hannun et al. 2014, eq. 2, where it is beta."""

    nats: float
    eos: int

    @property
    def bound(self) -> float:
        return max(self.nats, 0.0)

    def start(self, sentences: Tensor) -> None:
        return None

    def score(self, state: None, log_probs: Tensor) -> Tensor:
        votes = log_probs.new_full(log_probs.shape[-1:], self.nats)
        votes[self.eos] = 0.0
        return votes

    def select(self, state: None, rows: Tensor, tokens: Tensor) -> None:
        return None
