"""CTC's vote in a search for outputs: how likely it holds each continuation of a prefix, whatever may follow.

Beside an attention decoder this is one-pass joint decoding: attention alone may skip or repeat parts of the input and
end too early, which CTC, bound to go through all frames in order, holds unlikely. Source: Watanabe et al. 2017, sec.
II-C3 and algorithm 2, whose two loops over frames are sums here: of all tokens at once by one product, and of a chosen
token in closed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from regard.attention.observation import Observe
from regard.decoding.frontier import precise
from regard.decoding.leading import leading
from regard.decoding.scorers import FORBIDDEN
from regard.errors import ConfigError, ShapeError
from regard.models.ctc import BLANK
from regard.models.decoder import Step, Vocabulary
from regard.models.memory import Memory

# What a log-probability of 0 is taken for in sums over frames: e^-1000 is nothing, and a difference of two is a number.
LEAST = -1000.0


class PrefixState(NamedTuple):
    """What is known of the prefix of each row.

    sentences: int64 [rows]; last: int64 [rows], the last token, -1 of the empty prefix. token, blank: [rows, frames +
    1], log-probability that the first t frames say just the prefix and frame t says its last token, or the blank.
    prefix: [rows], log-probability that an output begins with the prefix.
    """

    sentences: Tensor
    last: Tensor
    token: Tensor
    blank: Tensor
    prefix: Tensor


class CTCPrefixScorer:
    """weight * (log p(prefix + token, ...) - log p(prefix, ...)), and for EOS the output as it stands.

    log_probs: [sentences, frames, vocab] of a CTC head; lengths: [sentences], real frames.
    weight: against the decoder's weight of 1. In the paper the two share: lambda and 1 - lambda; a weight of lambda /
    (1 - lambda) ranks the same. eos: the output id that ends an output.
    candidates: only so many tokens of each row, the decoder's likeliest, are looked at, and EOS; all others are
    forbidden. All unless given, which is also the faster way up to some thousands of tokens.

    Numerics: float64. Cost of a step: rows * frames * vocab (or candidates) multiplications, and the frames' sums of
    each row that goes on.
    Raises: ShapeError for shapes that do not fit, ConfigError for a weight or candidates below what makes sense.
    """

    bound: ClassVar[float] = 0.0  # a prefix is never less likely than a longer one

    def __init__(
        self, log_probs: Tensor, lengths: Tensor, *, weight: float, eos: int, candidates: int | None = None
    ) -> None:
        if log_probs.ndim != 3 or lengths.shape != log_probs.shape[:1]:
            raise ShapeError(
                f"CTC prefixes: log_probs has shape {tuple(log_probs.shape)} and lengths {tuple(lengths.shape)}, "
                "expected (sentences, frames, vocab) and (sentences,)"
            )
        if weight <= 0 or (candidates is not None and candidates < 1):
            raise ConfigError(
                f"CTC prefixes: weight is {weight} and candidates {candidates}, expected a weight above 0 and at least "
                "one candidate; leave the scorer out to decode without CTC"
            )
        self.weight, self.eos = weight, eos
        vocab = log_probs.shape[-1]
        self.candidates = None if candidates is None or candidates >= vocab else candidates
        padded = torch.arange(log_probs.shape[1], device=log_probs.device) >= lengths[:, None]
        # Beyond its end a sentence says blanks, surely, and nothing begins: what was said stays as likely as it is.
        self._padded = padded if bool(padded.any()) else None
        known = log_probs.detach().masked_fill(padded[..., None], LEAST).clamp_min(LEAST)
        known[..., BLANK].masked_fill_(padded, 0.0)
        self._of_token = known.transpose(1, 2).contiguous()  # [sentences, vocab, frames]
        blanks = precise(known[..., BLANK]).cumsum(1)
        self._blanks = torch.cat([torch.zeros_like(blanks[:, :1]), blanks], 1)  # log of nothing but blanks so far
        self._probs = precise(known).exp() if self.candidates is None else None  # [sentences, frames, vocab]

    def start(self, sentences: Tensor) -> PrefixState:
        blank = self._blanks[sentences]
        return PrefixState(
            sentences, torch.full_like(sentences, -1), torch.full_like(blank, FORBIDDEN), blank, blank[:, 0]
        )

    def score(self, state: PrefixState, log_probs: Tensor) -> Tensor:
        said = torch.logaddexp(state.token, state.blank)
        before, blank = (self._up_to(state.sentences, values) for values in (said, state.blank))
        if self.candidates is None:
            grown = self._of_all(state, before, blank)
        else:
            grown = self._of_leading(state, before, blank, log_probs)
        grown[:, BLANK] = FORBIDDEN
        grown[:, self.eos] = said[:, -1]
        impossible = state.prefix == FORBIDDEN
        votes = (grown - state.prefix.masked_fill(impossible, 0.0)[:, None]).mul_(self.weight)
        return votes.masked_fill_(impossible[:, None], FORBIDDEN)

    def _up_to(self, sentences: Tensor, values: Tensor) -> Tensor:
        """values [rows, frames + 1] up to the frame before each frame, [rows, frames]; nothing before a padded one."""
        values = values[:, :-1]
        return values if self._padded is None else values.masked_fill(self._padded[sentences], FORBIDDEN)

    def _of_all(self, state: PrefixState, before: Tensor, blank: Tensor) -> Tensor:
        """log p(prefix + token, ...) of every token, [rows, vocab].

        before, blank: [rows, frames], the prefix said up to the frame before, and so that this one was a blank.
        """
        assert self._probs is not None
        scaled, peak = _scaled(before)
        grown = _unscaled(_by_sentence(scaled, self._probs, state.sentences), peak)
        # Only a blank lets the last token come again as another one.
        again = state.last >= 0
        own = self._of_token[state.sentences[again], state.last[again]]
        grown[again, state.last[again]] = (blank[again] + own).logsumexp(1)
        return grown

    def _of_leading(self, state: PrefixState, before: Tensor, blank: Tensor, log_probs: Tensor) -> Tensor:
        """The same of the decoder's likeliest tokens alone; the rest is forbidden."""
        assert self.candidates is not None
        _, ids = leading(log_probs, self.candidates)
        probs = precise(self._of_token[state.sentences[:, None], ids]).exp_()  # [rows, candidates, frames]
        values, own = (
            _unscaled((probs @ scaled[..., None])[..., 0], peak) for scaled, peak in map(_scaled, (before, blank))
        )
        values = torch.where(ids == state.last[:, None], own, values)
        return values.new_full(log_probs.shape, FORBIDDEN).scatter_(1, ids, values)

    def select(self, state: PrefixState, rows: Tensor, tokens: Tensor) -> PrefixState:
        sentences = state.sentences[rows]
        token, blank = state.token[rows], state.blank[rows]
        repeats = (tokens == state.last[rows])[:, None]
        entering = self._up_to(sentences, torch.where(repeats, blank, torch.logaddexp(token, blank)))
        said = precise(self._of_token[sentences, tokens])  # [rows, frames]
        # token_t = (token_{t-1} + entering_{t-1}) p_t, solved: divided by p_1 ... p_t it is a sum.
        so_far = said.cumsum(1)
        first = token.new_full((len(rows), 1), FORBIDDEN)
        token = torch.cat([first, so_far + (entering + said - so_far).logcumsumexp(1)], 1)
        # blank_t = (blank_{t-1} + token_{t-1}) p_t(blank), likewise.
        blanks = self._blanks[sentences]
        blank = torch.cat([first, blanks[:, 1:] + (token - blanks)[:, :-1].logcumsumexp(1)], 1)
        return PrefixState(sentences, tokens, token, blank, (entering + said).logsumexp(1))


def _scaled(log_values: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, frames] -> (values divided by the largest of their row, log of that [rows, 1])."""
    peak = log_values.amax(1, keepdim=True)
    return (log_values - peak.clamp_min(torch.finfo(peak.dtype).min)).exp(), peak


def _unscaled(sums: Tensor, peak: Tensor) -> Tensor:
    """log of sums [rows, n] of scaled values. One too small for its dtype is not 0: a token may be hardly possible."""
    return sums.clamp_min_(torch.finfo(sums.dtype).tiny).log_().add_(peak)


def _by_sentence(rows: Tensor, matrices: Tensor, sentences: Tensor) -> Tensor:
    """rows [n, frames], each times its sentence's matrix [frames, vocab] -> [n, vocab]."""
    if len(rows) == 0:
        return rows.new_zeros(0, matrices.shape[-1])
    groups, counts = sentences.unique_consecutive(return_counts=True)
    width = int(counts[0])
    if bool((counts == width).all()):  # as in a beam: equally many rows of each sentence, one after another
        picked = matrices if len(groups) == len(matrices) and _is_range(groups) else matrices[groups]
        return (rows.view(len(groups), width, -1) @ picked).flatten(0, 1)
    return torch.cat(
        [part @ matrices[group] for group, part in zip(groups.tolist(), rows.split(counts.tolist()), strict=True)]
    )


def _is_range(groups: Tensor) -> bool:
    return torch.equal(groups, torch.arange(len(groups), device=groups.device))


class SilentState(NamedTuple):
    """Nothing but a row for each output; rows: int64 [rows]."""

    rows: Tensor

    def select(self, rows: Tensor) -> SilentState:
        return SilentState(self.rows[rows])


class SilentDecoder:
    """Says nothing of any token: `decode` then searches by its scorers alone, as by CTC and a language model."""

    def __init__(self, vocab: int) -> None:
        self.outputs = Vocabulary(vocab)

    def start(self, memories: Mapping[str, Memory]) -> SilentState:
        return SilentState(next(iter(memories.values())).lengths)

    def advance(self, state: SilentState, tokens: Tensor, observe: Observe | None = None) -> tuple[Step, SilentState]:
        zeros = torch.zeros(*tokens.shape, self.outputs.num_outputs, device=tokens.device)
        return Step(zeros, {}), state
