"""Penalties on where a search has looked: their formulas, and that searches obey them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_decoders import BOS, EOS, RecurrentDecoder, TableDecoder, memories
from torch import Tensor

from regard.attention.observation import Observe
from regard.decoding.coverage import RepeatPenalty
from regard.decoding.hypotheses import Hypothesis
from regard.decoding.options import DecodingOptions
from regard.decoding.scorers import Suppress
from regard.decoding.search import decode
from regard.errors import ConfigError, ObservationError

LENGTHS = [3, 5, 2]
WAYS = [
    DecodingOptions(max_length=13),
    DecodingOptions(max_length=13, beam_size=4, num_best=3),
    DecodingOptions(max_length=13, sample=True, num_best=3),
]


def found(options: DecodingOptions, *scorers: Any, seed: int = 2) -> list[list[Hypothesis]]:
    decoder = RecurrentDecoder(6, seed)
    given = memories(LENGTHS, seed=4)
    observe = Observe(rows="all")
    return decode(decoder, given, options, bos=BOS, eos=EOS, scorers=scorers, observe=observe)


def coverage(hypothesis: Hypothesis) -> Tensor:
    """[num_tokens, key_len], after each token."""
    return list(hypothesis.attention.values())[-1].mean(0).cumsum(0)


@pytest.mark.parametrize("options", WAYS, ids=["greedy", "beam", "sample"])
def test_the_score_is_the_likelihood_less_what_was_repeated(options: DecodingOptions) -> None:
    for group in found(options.changed(coverage_penalty=0.7)):
        for hypothesis in group:
            excess = (coverage(hypothesis)[-1] - 1).clamp_min(0).sum().item()
            wanted = (hypothesis.log_prob - 0.7 * excess) / len(hypothesis.tokens)
            assert hypothesis.score == pytest.approx(wanted, abs=1e-5)


def test_a_search_that_pays_for_repeats_repeats_less() -> None:
    options = DecodingOptions(max_length=13, beam_size=4, min_length=8)
    totals = []
    for penalty in (0.0, 3.0):
        total = 0.0
        for seed in range(4):
            for [best, *_] in found(options.changed(coverage_penalty=penalty), seed=seed):
                total += (coverage(best)[-1] - 1).clamp_min(0).sum().item() / len(best.tokens)
        totals.append(total)
    assert totals[1] < totals[0]


def test_attention_that_only_a_scorer_wants_is_not_kept() -> None:
    decoder, given = RecurrentDecoder(6, 2), memories(LENGTHS, seed=4)
    options = DecodingOptions(max_length=13, beam_size=4, coverage_penalty=0.7)
    quiet = decode(decoder, given, options, bos=BOS, eos=EOS)
    assert [group[0].tokens for group in quiet] == [group[0].tokens for group in found(options)]
    assert not any(group[0].attention for group in quiet)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="coverage_penalty is -1, expected a finite number of at least 0"):
        DecodingOptions(coverage_penalty=-1).check()
    options = DecodingOptions(coverage_penalty=1.0)
    with pytest.raises(ObservationError, match="wants attention, but this decoder shows none"):
        decode(TableDecoder.random(5, 0), memories([2], seed=1), options, bos=BOS, eos=EOS)


@pytest.mark.parametrize("options", WAYS, ids=["greedy", "beam", "sample"])
def test_suppressed_tokens_never_come(options: DecodingOptions) -> None:
    plain = {token for group in found(options) for hypothesis in group for token in hypothesis.tokens}
    banned = tuple(sorted(plain - {EOS}))[:1]
    assert banned
    left = {token for group in found(options, Suppress(banned)) for hypothesis in group for token in hypothesis.tokens}
    assert left
    assert not left & set(banned)


def test_the_penalty_is_one_object_a_search() -> None:
    penalty = RepeatPenalty(0.5)
    assert penalty.bound == 0.0
    state = penalty.start(torch.arange(2))
    assert state.received.shape == (2, 0)
