"""Beam search against exhaustive search, against a plain search that never stops early, and its own laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoders import (
    BOS,
    EOS,
    RecurrentDecoder,
    TableDecoder,
    alone,
    exhaustive,
    memories,
    next_log_probs,
    patient_beam,
)
from torch import Tensor

from regard.attention.observation import Observe
from regard.decoding.beam import beam_search, continuations, optimistic
from regard.decoding.force import force
from regard.decoding.frontier import Frontier
from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode

PENALTIES = st.sampled_from([0.0, 0.5, 1.0, 1.7, -0.5])


def beam(size: int, num_best: int = 1, penalty: float = 1.0, max_length: int = 7) -> DecodingOptions:
    return DecodingOptions(beam_size=size, num_best=num_best, length_penalty=penalty, max_length=max_length)


def assert_same(found: list, expected: list) -> None:
    assert [tuple(hypothesis.tokens) for hypothesis in found] == [tokens for tokens, _, _ in expected]
    assert [hypothesis.finished for hypothesis in found] == [finished for _, _, finished in expected]
    assert [hypothesis.score for hypothesis in found] == pytest.approx([score for _, score, _ in expected], abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), penalty=PENALTIES, max_length=st.integers(1, 4), vocab=st.integers(2, 4))
def test_a_huge_beam_is_exhaustive_search(seed: int, penalty: float, max_length: int, vocab: int) -> None:
    decoder = TableDecoder.random(vocab, seed)
    source = memories([3], seed=seed)
    expected = exhaustive(next_log_probs(decoder, source), vocab, max_length, penalty)
    size = vocab**max_length
    [found] = decode(decoder, source, beam(size, size, penalty, max_length), bos=BOS, eos=EOS)
    assert_same(found, expected)
    [best] = decode(decoder, source, beam(size, 1, penalty, max_length), bos=BOS, eos=EOS)
    assert_same(best, expected[:1])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    penalty=PENALTIES,
    size=st.integers(2, 7),
    num_best=st.integers(1, 7),
    max_length=st.integers(1, 13),
)
def test_stopping_early_never_loses(seed: int, penalty: float, size: int, num_best: int, max_length: int) -> None:
    decoder = TableDecoder.random(5, seed)
    source = memories([3, 2], seed=seed)
    num_best = min(num_best, size)
    found = decode(decoder, source, beam(size, num_best, penalty, max_length), bos=BOS, eos=EOS)
    for row in range(2):
        follow = next_log_probs(decoder, alone(source, row))
        assert_same(found[row], patient_beam(follow, size, num_best, max_length, penalty))


def test_it_does_stop_early() -> None:
    decoder = TableDecoder.random(5, 3)
    decoder.table[:, EOS] += 3.0
    decoder.table = decoder.table.log_softmax(-1)
    decode(decoder, memories([3], seed=1), beam(3, penalty=0.0, max_length=100), bos=BOS, eos=EOS)
    assert len(decoder.rows_advanced) < 10


def test_the_bound_is_optimistic_and_knows_rewards() -> None:
    totals = torch.tensor([-6.0, -6.0], dtype=torch.float64)
    caps = torch.tensor([12, 4])
    assert optimistic(totals, 3, caps, 1.0, 0.0).tolist() == pytest.approx([-0.5, -1.5])
    assert optimistic(totals, 3, caps, 0.0, 0.0).tolist() == pytest.approx([-6.0, -6.0])
    assert optimistic(totals, 3, caps, -1.0, 0.0).tolist() == pytest.approx([-18.0, -18.0])
    assert optimistic(totals, 3, caps, 1.0, 1.0).tolist() == pytest.approx([1.0, -1.25])
    assert optimistic(totals, 3, caps, 1.0, float("inf")).tolist() == [float("inf")] * 2


def test_a_plain_beam_that_stops_at_the_first_end_would_be_caught() -> None:
    """The comparison above can fail: the first hypothesis to finish is not always the best one."""
    differs = 0
    for seed in range(20):
        decoder = TableDecoder.random(5, seed)
        source = memories([3], seed=seed)
        follow = next_log_probs(decoder, source)
        patient = patient_beam(follow, 4, 1, 9, 1.0)
        hasty = next(
            found for length in range(1, 10) if (found := patient_beam(follow, 4, 1, length, 1.0))[0][2] or length == 9
        )
        differs += patient[0][0] != hasty[0][0]
    assert differs > 5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), penalty=PENALTIES)
def test_beam_size_one_is_greedy(seed: int, penalty: float) -> None:
    decoder = TableDecoder.random(5, seed)
    source = memories([3, 5, 2], seed=seed)
    greedy = decode(decoder, source, beam(1, penalty=0.0), bos=BOS, eos=EOS)
    frontier = Frontier(decoder, source, bos=BOS, prefix=None, scorers=(), observe=None)
    caps = torch.full((3,), 7)
    narrow = beam_search(frontier, source, beam_size=1, num_best=1, eos=EOS, max_lengths=caps, length_penalty=0.0)
    for row, ([one], [other]) in enumerate(zip(greedy, narrow, strict=True)):
        assert one.tokens == other.tokens
        assert one.score == pytest.approx(other.score)
        follow = next_log_probs(decoder, alone(source, row))
        history: tuple[int, ...] = ()
        for token in one.tokens:
            log_probs = follow(history)
            assert log_probs.index(max(log_probs)) == token
            history = (*history, token)
    [[best]] = decode(decoder, alone(source, 1), beam(1, penalty=penalty), bos=BOS, eos=EOS)
    assert best.tokens == greedy[1][0].tokens


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_else_is_in_the_batch_changes_nothing(penalty: float, dtype: torch.dtype) -> None:
    decoder = RecurrentDecoder(11, seed=5, dtype=dtype)
    lengths = [3, 7, 1, 5, 2, 7, 4]
    source = memories(lengths, seed=3, dtype=dtype)
    caps = torch.tensor([4, 13, 2, 9, 17, 6, 11])
    options = beam(5, 3, penalty, max_length=19)
    together = decode(decoder, source, options, bos=BOS, eos=EOS, max_lengths=caps)
    assert len({len(found[0].tokens) for found in together}) > 2, "sentences should end at different steps"
    for row in range(len(lengths)):
        cap = int(caps[row])
        [single] = decode(decoder, alone(source, row), options, bos=BOS, eos=EOS, max_lengths=cap)
        assert [hypothesis.tokens for hypothesis in single] == [hypothesis.tokens for hypothesis in together[row]]
        for one, other in zip(single, together[row], strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-12 if dtype is torch.float64 else 1e-5)


def test_finished_sentences_leave_the_batch() -> None:
    decoder = TableDecoder.random(7, 3)
    decoder.table[:, EOS] = -50.0
    decode(decoder, memories([3, 2, 5, 4], seed=1), beam(3), bos=BOS, eos=EOS, max_lengths=torch.tensor([2, 5, 3, 5]))
    assert decoder.rows_advanced == [4, 12, 9, 6, 6]


def reordered(frontier: Frontier, width: int) -> bool:
    """Whether some live hypothesis moved to another place of its sentence's beam."""
    return any(
        bool((parents % width != torch.arange(len(parents)) % width).any()) for parents in frontier.trail.parents[1:]
    )


def test_attention_follows_the_winner_through_the_beam() -> None:
    decoder = RecurrentDecoder(11, seed=2)
    source = memories([7, 3, 5], seed=7)
    frontier = Frontier(decoder, source, bos=BOS, prefix=None, scorers=(), observe=Observe(rows="all"))
    found = beam_search(
        frontier, source, beam_size=5, num_best=5, eos=EOS, max_lengths=torch.tensor([13, 11, 9]), length_penalty=1.0
    )
    assert reordered(frontier, 5), "nothing moved, so that a lost back-pointer would not be noticed"
    for row, hypotheses in enumerate(found):
        given = alone(source, row)
        for hypothesis in hypotheses:
            tokens = torch.tensor([hypothesis.tokens])
            forced = force(decoder, given, tokens, bos=BOS, observe=Observe(rows="all"))
            expected = forced.attention["decoder.cross"].rows
            seen = hypothesis.attention["decoder.cross"]
            assert expected is not None
            assert seen.shape == (2, len(hypothesis.tokens), int(given["source"].lengths[0]))
            torch.testing.assert_close(seen, expected[0], rtol=0, atol=1e-12)
            assert forced.token_log_probs[0].tolist() == pytest.approx(hypothesis.token_log_probs, abs=1e-12)
            assert hypothesis.log_prob == pytest.approx(sum(hypothesis.token_log_probs))
            assert hypothesis.score == pytest.approx(hypothesis.log_prob / len(hypothesis.tokens))


def test_forgetting_the_back_pointers_would_be_noticed() -> None:
    """The attention check can fail: rows read at the same place at every step differ from the winner's."""
    decoder = RecurrentDecoder(11, seed=2)
    source = memories([7], seed=7)
    frontier = Frontier(decoder, source, bos=BOS, prefix=None, scorers=(), observe=Observe(rows="all"))
    [[best]] = beam_search(
        frontier, source, beam_size=5, num_best=1, eos=EOS, max_lengths=torch.tensor([13]), length_penalty=1.0
    )
    steps = frontier.trail.attention[: len(best.tokens)]
    naive = torch.stack([step["decoder.cross"][0] for step in steps], 1)
    assert not torch.allclose(naive, best.attention["decoder.cross"], atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 9), vocab=st.integers(2, 5))
def test_n_best_is_sorted_distinct_and_survives_a_tiny_vocabulary(seed: int, size: int, vocab: int) -> None:
    decoder = TableDecoder.random(vocab, seed)
    found = decode(decoder, memories([3, 4], seed=seed), beam(size, size), bos=BOS, eos=EOS)
    for hypotheses in found:
        assert 1 <= len(hypotheses) <= size
        assert len({tuple(hypothesis.tokens) for hypothesis in hypotheses}) == len(hypotheses)
        keys = [(not hypothesis.finished, -hypothesis.score) for hypothesis in hypotheses]
        assert keys == sorted(keys)
        for hypothesis in hypotheses:
            assert hypothesis.finished == (hypothesis.tokens[-1] == EOS)
            assert EOS not in hypothesis.tokens[:-1]
            assert hypothesis.finished or len(hypothesis.tokens) == 7


def test_ties_go_to_the_lower_place_and_then_to_the_lower_id() -> None:
    live = torch.zeros((1, 2), dtype=torch.float64)
    scores = torch.zeros((2, 3), dtype=torch.float64)
    totals, parents, tokens = continuations(live, scores, 4)
    assert parents.tolist() == [[0, 0, 0, 1]]
    assert tokens.tolist() == [[0, 1, 2, 0]]
    assert totals.tolist() == [[0.0] * 4]


def test_uniform_tables_decode_alike_in_any_batch() -> None:
    decoder = TableDecoder(torch.full((1009, 5), 0.2, dtype=torch.float64).log())
    source = memories([3, 2, 5], seed=1)
    together = decode(decoder, source, beam(3, 3), bos=BOS, eos=EOS)
    for row in range(3):
        [single] = decode(decoder, alone(source, row), beam(3, 3), bos=BOS, eos=EOS)
        assert [hypothesis.tokens for hypothesis in single] == [hypothesis.tokens for hypothesis in together[row]]
    assert together[0][0].tokens[0] == 0


class Impossible:
    """Forbids everything from a step on."""

    bound = 0.0

    def __init__(self, step: int) -> None:
        self.step = step

    def start(self, sentences: Tensor) -> int:
        return 0

    def score(self, state: int, log_probs: Tensor) -> Tensor | None:
        return torch.full_like(log_probs, float("-inf")) if state >= self.step else None

    def select(self, state: int, rows: Tensor, tokens: Tensor) -> int:
        return state + 1


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("step", [0, 1, 3])
def test_where_nothing_is_allowed_the_best_so_far_is_kept_unfinished(size: int, step: int) -> None:
    decoder = TableDecoder.random(5, 4)
    decoder.table[:, EOS] = -50.0
    found = decode(decoder, memories([3, 2], seed=1), beam(size), bos=BOS, eos=EOS, scorers=[Impossible(step)])
    for [hypothesis] in found:
        assert len(hypothesis.tokens) == len(hypothesis.token_log_probs) == step
        assert not hypothesis.finished
        assert hypothesis.score == pytest.approx(hypothesis.log_prob / max(step, 1))
