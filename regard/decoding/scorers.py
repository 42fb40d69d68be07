"""What else may vote in a search beside the decoder: bans, forced tokens and, by the same protocol, other models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from regard.decoding.coverage import RepeatPenalty
from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError
from regard.models.memory import Memory

FORBIDDEN = float("-inf")


class Scorer(Protocol):
    """One voter. Its votes are added to the decoder's log-probabilities before tokens are chosen.

    A scorer that stands for a model (a language model, CTC prefix scores) returns weight * log-probability of every
    output; it runs its model in `start` and `select`, so that `score` only reads. Votes enter `Hypothesis.score` and
    never `Hypothesis.log_prob`.

    bound: the most that one vote can add to one token, for the proof that a search may stop. 0 for bans and for
    weighted log-probabilities; a reward above 0 must say how large it gets, math.inf if unknown.
    """

    @property
    def bound(self) -> float: ...

    def start(self, sentences: Tensor) -> Any:
        """The state before the first token; sentences: int64 [rows], the batch row that each row decodes."""
        ...

    def score(self, state: Any, log_probs: Tensor) -> Tensor | None:
        """Votes, broadcastable to log_probs [rows, num_outputs] (the decoder's own); None abstains for this step."""
        ...

    def select(self, state: Any, rows: Tensor, tokens: Tensor) -> Any:
        """The state of chosen rows in the order given, each followed by its token; both int64 [new rows]."""
        ...


@dataclass(frozen=True)
class NoRepeatNGram:
    """Forbids every token that would complete an n-gram that the output already holds.

    Only tokens of the output count, not a prefix that was given. Source: Paulus et al. 2018, section 2.5.
    """

    size: int
    bound: ClassVar[float] = 0.0

    def start(self, sentences: Tensor) -> Tensor:
        """The tokens so far: int64 [rows, 0]."""
        return sentences.new_zeros((len(sentences), 0), dtype=torch.int64)

    def score(self, state: Tensor, log_probs: Tensor) -> Tensor | None:
        start = state.shape[1] - (self.size - 1)
        if start < 1:
            return None
        grams = state.unfold(1, self.size, 1)  # [rows, start, size]
        repeated = (grams[:, :, :-1] == state[:, None, start:]).all(-1)
        if not bool(repeated.any()):
            return None
        bans = torch.zeros_like(grams[:, :, -1], dtype=log_probs.dtype).masked_fill_(repeated, FORBIDDEN)
        return torch.zeros_like(log_probs).scatter_reduce_(1, grams[:, :, -1], bans, "amin")

    def select(self, state: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        return torch.cat([state[rows], tokens[:, None]], dim=1)


@dataclass(frozen=True)
class MinLength:
    """Forbids EOS until `tokens` tokens stand before it."""

    tokens: int
    eos: int
    bound: ClassVar[float] = 0.0

    def start(self, sentences: Tensor) -> int:
        """The number of tokens so far, the same in every row."""
        return 0

    def score(self, state: int, log_probs: Tensor) -> Tensor | None:
        if state >= self.tokens:
            return None
        votes = log_probs.new_zeros(log_probs.shape[-1])
        votes[self.eos] = FORBIDDEN
        return votes

    def select(self, state: int, rows: Tensor, tokens: Tensor) -> int:
        return state + 1


@dataclass(frozen=True)
class Suppress:
    """Forbids tokens wherever they stand, such as the one for unknown words. tokens: output ids."""

    tokens: tuple[int, ...]
    bound: ClassVar[float] = 0.0

    def start(self, sentences: Tensor) -> None:
        return None

    def score(self, state: None, log_probs: Tensor) -> Tensor | None:
        votes = log_probs.new_zeros(log_probs.shape[-1])
        votes[list(self.tokens)] = FORBIDDEN
        return votes

    def select(self, state: None, rows: Tensor, tokens: Tensor) -> None:
        return None


class _Forced(NamedTuple):
    position: int
    tokens: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class ForcedPrefix:
    """Lets nothing but given tokens begin an output; they are scored and returned like tokens of the model's choice.

    tokens: output ids [sentences, prefix_len], each row's in front; lengths: [sentences], how many of them are real.
    Unlike `decode(prefix=...)`, prefixes may differ in length from sentence to sentence.
    """

    tokens: Tensor
    lengths: Tensor
    bound: ClassVar[float] = 0.0

    def start(self, sentences: Tensor) -> _Forced:
        return _Forced(0, self.tokens[sentences], self.lengths[sentences])

    def score(self, state: _Forced, log_probs: Tensor) -> Tensor | None:
        if state.position >= state.tokens.shape[1]:
            return None
        forced = state.position < state.lengths
        allowed = state.tokens[:, state.position].masked_fill(~forced, 0)  # whatever pads the tokens is a valid index
        votes = torch.zeros_like(log_probs).masked_fill_(forced[:, None], FORBIDDEN)
        return votes.scatter_(1, allowed[:, None], 0.0)

    def select(self, state: _Forced, rows: Tensor, tokens: Tensor) -> _Forced:
        return _Forced(state.position + 1, state.tokens[rows], state.lengths[rows])


def own_scorers(options: DecodingOptions, memories: Mapping[str, Memory], eos: int) -> list[Scorer]:
    """The voters that `options` asks for by itself.

    Raises: ConfigError for a coverage penalty where there is no memory whose coverage could be counted.
    """
    voters: list[Scorer] = []
    if options.min_length:
        voters.append(MinLength(options.min_length, eos))
    if options.no_repeat_ngram:
        voters.append(NoRepeatNGram(options.no_repeat_ngram))
    if options.coverage_penalty:
        if not memories:
            raise ConfigError(no_source(options))
        voters.append(RepeatPenalty(options.coverage_penalty))
    return voters


def no_source(options: DecodingOptions) -> str:
    """What is wrong with a coverage penalty for a language model."""
    return (
        f"decoding: coverage_penalty is {options.coverage_penalty}, but a language model reads no source that it could"
        " come back to; set it to 0, or use no_repeat_ngram"
    )
