"""Voters: each one's law, under greedy search, beam search and sampling alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoders import BOS, EOS, TableDecoder, TableState, alone, exhaustive, memories, next_log_probs
from torch import Tensor

from regard.decoding.options import DecodingOptions
from regard.decoding.scorers import ForcedPrefix, MinLength, NoRepeatNGram, Scorer
from regard.decoding.search import decode

WAYS = [
    DecodingOptions(max_length=17),
    DecodingOptions(max_length=17, beam_size=4, num_best=3),
    DecodingOptions(max_length=17, sample=True, num_best=3, temperature=1.5),
]


def tokens_of(decoder: TableDecoder, options: DecodingOptions, *scorers: Scorer, rows: int = 3, **more: Tensor) -> list:
    source = memories([3, 5, 2][:rows], seed=8)
    found = decode(decoder, source, options, bos=BOS, eos=EOS, scorers=scorers, **more)  # type: ignore[arg-type]
    return [[hypothesis.tokens for hypothesis in group] for group in found]


def repeats(tokens: list[int], size: int) -> bool:
    grams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return len(set(grams)) < len(grams)


@pytest.mark.parametrize("options", WAYS, ids=["greedy", "beam", "sample"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_comes_twice(options: DecodingOptions, size: int) -> None:
    would = 0
    for seed in range(7):
        decoder = TableDecoder.random(5, seed, sharpness=3.0)
        decoder.table[:, EOS] -= 4.0
        plain = tokens_of(decoder, options)
        would += sum(repeats(tokens, size) for group in plain for tokens in group)
        for group in tokens_of(decoder, options, NoRepeatNGram(size)):
            assert group
            assert not any(repeats(tokens, size) for tokens in group)
    assert would, "without the scorer nothing repeated, so that this test would notice nothing"


def test_no_repeat_forbids_exactly_what_would_repeat() -> None:
    scorer = NoRepeatNGram(3)
    state = scorer.start(torch.arange(2))
    log_probs = torch.zeros(2, 7)
    for pair in ([4, 2], [6, 3], [4, 5], [2, 2]):
        assert scorer.score(state, log_probs) is None
        state = scorer.select(state, torch.arange(2), torch.tensor(pair))
    state = scorer.select(state, torch.tensor([1, 1]), torch.tensor([3, 4]))  # 2 3 5 2 3 and 2 3 5 2 4
    votes = scorer.score(state, log_probs)
    assert votes is not None
    assert (votes == float("-inf")).nonzero().tolist() == [[0, 5]]
    state = scorer.select(state, torch.tensor([0, 0]), torch.tensor([3, 2]))  # 2 3 5 2 3 3 and 2 3 5 2 3 2
    assert scorer.score(state, log_probs) is None


@pytest.mark.parametrize("options", WAYS, ids=["greedy", "beam", "sample"])
def test_no_output_is_shorter_than_the_minimum(options: DecodingOptions) -> None:
    decoder = TableDecoder.random(7, 3)
    decoder.table[:, EOS] += 3.0
    decoder.table = decoder.table.log_softmax(-1)
    assert min(len(tokens) for group in tokens_of(decoder, options) for tokens in group) <= 5
    for group in tokens_of(decoder, options, MinLength(5, EOS)):
        for tokens in group:
            assert len(tokens) >= 6


@pytest.mark.parametrize("options", WAYS, ids=["greedy", "beam", "sample"])
def test_forced_prefixes_of_different_lengths(options: DecodingOptions) -> None:
    decoder = TableDecoder.random(7, 3)
    forced = torch.tensor([[2, 3, 4], [5, -100, -100], [-100, -100, -100]])
    scorer = ForcedPrefix(forced, torch.tensor([3, 1, 0]))
    found = tokens_of(decoder, options, scorer)
    assert all(tokens[:3] == [2, 3, 4] for tokens in found[0])
    assert all(tokens[0] == 5 for tokens in found[1])
    assert found[2] == tokens_of(decoder, options)[2], "a prefix of nothing changes nothing"
    assert len(found[0]) == options.num_best


class OtherModel:
    """A second decoder that votes with weight * log-probability, run in start and select as a language model would."""

    bound = 0.0

    def __init__(self, decoder: TableDecoder, weight: float) -> None:
        self.decoder, self.weight = decoder, weight

    def start(self, sentences: Tensor) -> tuple[TableState, Tensor]:
        return self.follow(TableState(torch.zeros_like(sentences)), torch.full_like(sentences, BOS))

    def follow(self, state: TableState, tokens: Tensor) -> tuple[TableState, Tensor]:
        step, state = self.decoder.advance(state, tokens[:, None])
        return state, step.log_probs[:, 0]

    def score(self, state: tuple[TableState, Tensor], log_probs: Tensor) -> Tensor:
        return self.weight * state[1]

    def select(self, state: tuple[TableState, Tensor], rows: Tensor, tokens: Tensor) -> tuple[TableState, Tensor]:
        return self.follow(state[0].select(rows), tokens)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), weight=st.sampled_from([0.3, 1.0]))
def test_a_second_model_joins_the_search(seed: int, weight: float) -> None:
    decoder, other = TableDecoder.random(3, seed), TableDecoder.random(3, seed + 1)
    source = memories([3, 2], seed=seed)
    options = DecodingOptions(beam_size=81, num_best=81, max_length=4)
    found = decode(decoder, source, options, bos=BOS, eos=EOS, scorers=[OtherModel(other, weight)])
    for row in range(2):
        follow = next_log_probs(decoder, alone(source, row))

        def joined(history: tuple[int, ...], follow=follow) -> list[float]:  # type: ignore[no-untyped-def]
            tokens = torch.tensor([[BOS, *history]])
            votes = other.advance(TableState(torch.zeros(1, dtype=torch.int64)), tokens)[0].log_probs[0, -1]
            return [mine + weight * theirs for mine, theirs in zip(follow(history), votes.tolist(), strict=True)]

        expected = exhaustive(joined, 3, 4, 1.0)
        assert [tuple(hypothesis.tokens) for hypothesis in found[row]] == [tokens for tokens, _, _ in expected]
        for hypothesis, (tokens, score, _) in zip(found[row], expected, strict=True):
            assert hypothesis.score == pytest.approx(score)
            own = [follow(tokens[:place])[token] for place, token in enumerate(tokens)]
            assert hypothesis.token_log_probs == pytest.approx(own), "log-probabilities stay the model's own"


class Reward:
    """So much for every token: long outputs win."""

    def __init__(self, amount: float, bound: float) -> None:
        self.amount, self.bound = amount, bound

    def start(self, sentences: Tensor) -> None:
        return None

    def score(self, state: None, log_probs: Tensor) -> Tensor:
        return torch.full_like(log_probs, self.amount)

    def select(self, state: None, rows: Tensor, tokens: Tensor) -> None:
        return None


def test_a_reward_must_tell_its_bound() -> None:
    """Stopping trusts `bound`: with the true one the longer, better output is found; with 0 it may be missed."""
    missed = 0
    for seed in range(20):
        decoder = TableDecoder.random(5, seed)
        source = memories([3], seed=seed)
        options = DecodingOptions(beam_size=3, length_penalty=0.0, max_length=9)

        def best(bound: float, decoder=decoder, source=source, options=options) -> float:  # type: ignore[no-untyped-def]
            return decode(decoder, source, options, bos=BOS, eos=EOS, scorers=[Reward(1.5, bound)])[0][0].score

        assert best(1.5) == best(float("inf"))
        missed += best(0.0) < best(1.5)
    assert missed
