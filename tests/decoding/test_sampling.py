"""Draws: the right distribution, the right truncation, and the same sample in any company."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoders import BOS, EOS, RecurrentDecoder, TableDecoder, alone, memories

from regard.decoding import draws
from regard.decoding.draws import Draw, scramble, truncated, uniforms
from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode

CHI_SQUARE_6 = 22.46  # 0.999 quantile at 6 degrees of freedom


def sampling(**choices: object) -> DecodingOptions:
    return DecodingOptions(**{"sample": True, "max_length": 7, **choices})  # type: ignore[arg-type]


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities * counts.sum()
    kept = expected > 0
    assert counts[~kept].sum() == 0
    return float(((counts - expected)[kept] ** 2 / expected[kept]).sum())


def test_frequencies_match_the_distribution() -> None:
    decoder = TableDecoder.random(7, seed=5, sharpness=1.0)
    source = memories([3], seed=2)
    step, _ = decoder.advance(decoder.start(source), torch.tensor([[BOS]]))
    probabilities = step.log_probs[0, 0].exp()
    options = sampling(max_length=1, num_best=5003, seed=11)
    [found] = decode(decoder, source, options, bos=BOS, eos=EOS)
    counts = torch.bincount(torch.tensor([hypothesis.tokens[0] for hypothesis in found]), minlength=7).double()
    assert chi_square(counts, probabilities) < CHI_SQUARE_6
    assert chi_square(counts, torch.full((7,), 1 / 7).double()) > CHI_SQUARE_6, "the check can fail"


def test_the_second_token_is_independent_of_the_first_draw() -> None:
    """Both tokens of a flat table are uniform, jointly: 25 equally likely pairs."""
    decoder = TableDecoder(torch.full((1009, 5), 0.2, dtype=torch.float64).log())
    options = sampling(max_length=2, num_best=5003, seed=3)
    [found] = decode(decoder, memories([3], seed=2), options, bos=BOS, eos=-1)
    pairs = torch.tensor([hypothesis.tokens[0] * 5 + hypothesis.tokens[1] for hypothesis in found])
    counts = torch.bincount(pairs, minlength=25).double()
    assert chi_square(counts, torch.full((25,), 1 / 25).double()) < 51.2  # 0.999 quantile at 24 degrees of freedom


def test_truncation_by_hand() -> None:
    probabilities = torch.tensor([[0.1, 0.4, 0.3, 0.2]], dtype=torch.float64)

    def kept(**choices: float) -> dict[int, float]:
        found, ids = truncated(probabilities.log(), choices.pop("temperature", 1.0), **choices)  # type: ignore[arg-type]
        labels = range(4) if ids is None else ids[0].tolist()
        total = float(found.sum())
        return {label: value / total for label, value in zip(labels, found[0].tolist(), strict=True) if value}

    assert kept() == pytest.approx({0: 0.1, 1: 0.4, 2: 0.3, 3: 0.2})
    assert kept(top_k=2) == pytest.approx({1: 4 / 7, 2: 3 / 7})
    assert kept(top_p=0.69) == pytest.approx({1: 4 / 7, 2: 3 / 7})
    assert kept(top_p=0.71) == pytest.approx({1: 4 / 9, 2: 3 / 9, 3: 2 / 9})
    assert kept(top_p=1e-9) == pytest.approx({1: 1.0})
    assert kept(top_k=2, top_p=0.6) == pytest.approx({1: 4 / 7, 2: 3 / 7}), "top_p is measured after top_k"
    assert kept(top_k=2, top_p=0.5) == pytest.approx({1: 1.0})
    assert kept(temperature=0.5) == pytest.approx({0: 1 / 30, 1: 16 / 30, 2: 9 / 30, 3: 4 / 30})
    assert kept(temperature=0.5, top_p=0.8) == pytest.approx({1: 16 / 25, 2: 9 / 25}), "temperature comes first"
    assert kept(top_k=9) == kept()


def test_a_large_nucleus_is_found_as_a_small_one_is() -> None:
    scores = torch.randn(5, 601, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores[3] *= 7
    wide, wide_ids = truncated(scores, 1.0, None, 0.93)
    assert wide.shape[1] == 601, "flat rows need more than the first look"
    narrow, narrow_ids = truncated(scores[3:4], 1.0, None, 0.93)
    assert wide_ids is not None
    assert narrow_ids is not None
    assert narrow.shape[1] == draws.NUCLEUS
    torch.testing.assert_close(narrow[0], wide[3, : draws.NUCLEUS], rtol=0, atol=0)
    assert torch.equal(narrow_ids[0], wide_ids[3, : draws.NUCLEUS])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_top_k_of_one_is_greedy(seed: int) -> None:
    decoder = TableDecoder.random(7, seed)
    source = memories([3, 5, 2], seed=seed)
    greedy = decode(decoder, source, DecodingOptions(max_length=7), bos=BOS, eos=EOS)
    for options in (sampling(top_k=1, seed=seed), sampling(top_p=1e-12, seed=seed)):
        assert decode(decoder, source, options, bos=BOS, eos=EOS) == greedy


@pytest.mark.parametrize("choices", [{}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 7, "top_p": 0.9, "temperature": 1.3}])
def test_a_sentence_draws_the_same_in_any_batch(choices: dict[str, float]) -> None:
    decoder = RecurrentDecoder(11, seed=4)
    source = memories([3, 7, 5, 2], seed=6)
    options = sampling(num_best=3, seed=17, max_length=13, **choices)
    numbers = torch.tensor([40, 2, 31, 7])
    together = decode(decoder, source, options, bos=BOS, eos=EOS, sentence_numbers=numbers)
    for row in range(4):
        [single] = decode(
            decoder, alone(source, row), options, bos=BOS, eos=EOS, sentence_numbers=numbers[row : row + 1]
        )
        assert [found.tokens for found in single] == [found.tokens for found in together[row]]
        for one, other in zip(single, together[row], strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-12)
    assert decode(decoder, source, options, bos=BOS, eos=EOS, sentence_numbers=numbers) == together
    others = decode(decoder, source, sampling(num_best=3, seed=18, max_length=13, **choices), bos=BOS, eos=EOS)
    assert [found.tokens for group in others for found in group] != [
        found.tokens for group in together for found in group
    ]


def test_samples_of_one_sentence_differ_and_come_best_first() -> None:
    decoder = RecurrentDecoder(11, seed=4)
    [found] = decode(decoder, memories([5], seed=6), sampling(num_best=13), bos=BOS, eos=EOS)
    assert len({tuple(hypothesis.tokens) for hypothesis in found}) > 5
    scores = [hypothesis.score for hypothesis in found]
    assert scores == sorted(scores, reverse=True)


def test_the_score_is_the_models_own_whatever_the_temperature() -> None:
    decoder = TableDecoder.random(7, seed=3)
    source = memories([3], seed=2)
    options = sampling(temperature=2.5, top_k=3, seed=5, num_best=3)
    [found] = decode(decoder, source, options, bos=BOS, eos=EOS)
    for hypothesis in found:
        step, _ = decoder.advance(decoder.start(source), torch.tensor([[BOS, *hypothesis.tokens[:-1]]]))
        expected = step.log_probs[0].gather(-1, torch.tensor(hypothesis.tokens)[:, None])[:, 0]
        assert hypothesis.token_log_probs == pytest.approx(expected.tolist())
        assert hypothesis.score == pytest.approx(float(expected.mean()))


def test_the_hash_and_its_uniforms() -> None:
    # First outputs of SplitMix64 seeded with 1234567, as published with many implementations.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    gamma, state = 0x9E3779B97F4A7C15, 1234567
    for value in expected:
        signed = state - (1 << 64) if state >= 1 << 63 else state
        assert int(scramble(torch.tensor([signed]))) % (1 << 64) == value
        state = (state + gamma) % (1 << 64)
    numbers = torch.stack([uniforms(scramble(torch.arange(997)), step) for step in range(11)])
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = torch.histc(numbers, 7, 0, 1).double()
    assert chi_square(counts, torch.full((7,), 1 / 7).double()) < CHI_SQUARE_6


def test_impossible_tokens_are_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.full((1, 5), float("-inf"), dtype=torch.float64)
    scores[0, 3] = -2.0
    draw = Draw(torch.tensor([[0, 0]]), seed=0, temperature=1.0, top_k=None, top_p=1.0)
    assert {int(draw(scores, torch.tensor([0]), step)) for step in range(23)} == {3}
    for number in (0.0, 1 - 2.0**-52):  # the ends of what `uniforms` can give
        monkeypatch.setattr(
            draws, "uniforms", lambda keys, step, number=number: torch.tensor([number], dtype=torch.float64)
        )
        assert int(draw(scores, torch.tensor([0]), 0)) == 3
