"""Scorers that run a language model, and the reward that makes up for it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoders import BOS, EOS, TableDecoder, TableState, alone, exhaustive, memories, next_log_probs

from regard.decoding.force import force
from regard.decoding.fusion import LanguageModelScorer, LengthReward
from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode
from regard.errors import ConfigError
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.models.language_model import LanguageModel, LanguageModelConfig
from regard.models.memory import Memory


class TableLanguageModel(TableDecoder):
    """Knows its own history and no memory."""

    def __init__(self, vocab: int, seed: int) -> None:
        super().__init__(TableDecoder.random(vocab, seed).table)

    def start(self, memories: Mapping[str, Memory]) -> TableState:
        assert not memories
        return TableState(torch.zeros(1, dtype=torch.int64))

    def log_prob_of_next(self, history: tuple[int, ...]) -> list[float]:
        step, _ = self.advance(self.start({}), torch.tensor([[BOS, *history]]))
        values: list[float] = step.log_probs[0, -1].tolist()
        return values


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), weight=st.sampled_from([0.3, 1.0]), reward=st.sampled_from([0.0, 0.7, -0.4]))
def test_a_language_model_and_a_reward_join_the_search(seed: int, weight: float, reward: float) -> None:
    decoder, model = TableDecoder.random(3, seed), TableLanguageModel(3, seed + 1)
    source = memories([3, 2], seed=seed)
    options = DecodingOptions(beam_size=81, num_best=81, max_length=4, length_penalty=0.0)
    scorers = [LanguageModelScorer(model, weight=weight, bos=BOS), LengthReward(reward, EOS)]
    found = decode(decoder, source, options, bos=BOS, eos=EOS, scorers=scorers)
    for row in range(2):
        follow = next_log_probs(decoder, alone(source, row))

        def joined(history: tuple[int, ...], follow=follow) -> list[float]:  # type: ignore[no-untyped-def]
            pairs = zip(follow(history), model.log_prob_of_next(history), strict=True)
            return [
                mine + weight * theirs + (reward if token != EOS else 0.0) for token, (mine, theirs) in enumerate(pairs)
            ]

        expected = exhaustive(joined, 3, 4, 0.0)
        assert [tuple(hypothesis.tokens) for hypothesis in found[row]] == [tokens for tokens, _, _ in expected]
        for hypothesis, (_, score, _) in zip(found[row], expected, strict=True):
            assert hypothesis.score == pytest.approx(score)


def test_a_model_that_knows_no_beginning_reads_the_middle_of_a_text() -> None:
    decoder, model = TableDecoder.random(4, 1), TableLanguageModel(4, 2)
    options = DecodingOptions(beam_size=16, num_best=16, max_length=5, length_penalty=0.0)
    scorers = [LanguageModelScorer(model, weight=0.6, bos=None)]
    found = decode(decoder, memories([3, 2], seed=1), options, bos=BOS, eos=EOS, scorers=scorers)
    for tokens, score, log_prob in ((one.tokens, one.score, one.log_prob) for row in found for one in row):
        vote = -math.log(4)
        if len(tokens) > 1:
            vote += float(force(model, {}, torch.tensor([tokens[1:]]), bos=tokens[0]).log_prob)
        assert score == pytest.approx(log_prob + 0.6 * vote)


def test_a_greedy_search_reads_the_language_model_token_by_token() -> None:
    decoder, model = TableDecoder.random(5, 1), TableLanguageModel(5, 2)
    scorer = LanguageModelScorer(model, weight=0.5, bos=BOS)
    found = decode(decoder, memories([3, 2, 4], seed=1), DecodingOptions(), bos=BOS, eos=EOS, scorers=[scorer])
    assert len(found) == 3
    assert {*model.tokens_advanced} == {1}


def test_the_reward_says_how_large_it_is() -> None:
    assert (LengthReward(0.7, EOS).bound, LengthReward(-0.7, EOS).bound) == (0.7, 0.0)


def test_what_does_not_fit_is_refused() -> None:
    for weight in (0.0, -1.0):
        with pytest.raises(ConfigError, match=rf"language model: weight is {weight}, expected above 0"):
            LanguageModelScorer(TableLanguageModel(5, 2), weight=weight, bos=BOS)
    scorer = LanguageModelScorer(TableLanguageModel(5, 2), weight=1.0, bos=BOS)
    decoder = TableDecoder.random(7, 1)
    with pytest.raises(ConfigError, match="it knows 5 outputs and the decoder 7; expected one vocabulary"):
        decode(decoder, memories([3], seed=1), DecodingOptions(), bos=BOS, eos=EOS, scorers=[scorer])
    unread = LanguageModelScorer(TableLanguageModel(5, 2), weight=1.0, bos=None)
    with pytest.raises(ConfigError, match="it knows 5 outputs and the decoder 7"):
        decode(decoder, memories([3], seed=1), DecodingOptions(), bos=BOS, eos=EOS, scorers=[unread])
    assert math.isfinite(scorer.bound)


def test_a_trained_kind_of_language_model_votes_with_what_it_says_when_forced() -> None:
    """Its cache grows in place: rows that repeat and part must not write over each other."""
    torch.manual_seed(0)
    config = LanguageModelConfig(8, 2, AttentionConfig(2), FeedForwardConfig(16), dropout=0.0)
    model = LanguageModel(5, config).double().eval()
    decoder = TableDecoder.random(5, 3)
    options = DecodingOptions(beam_size=4, num_best=4, max_length=9, length_penalty=0.0)
    scorers = [LanguageModelScorer(model, weight=0.7, bos=BOS)]
    found = decode(decoder, memories([3, 2, 4], seed=1), options, bos=BOS, eos=EOS, scorers=scorers)
    for hypothesis in (one for group in found for one in group):
        own = force(model, {}, torch.tensor([hypothesis.tokens]), bos=BOS)
        assert hypothesis.score == pytest.approx(hypothesis.log_prob + 0.7 * own.log_prob.item())
