from __future__ import annotations

import math

import pytest
import torch
from ctc_oracles import output_log_probs, prefix_log_prob, random_log_probs
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoders import BOS, TableDecoder, alone, exhaustive, memories, next_log_probs
from torch import Tensor

from regard.decoding.ctc_prefix import CTCPrefixScorer, SilentDecoder
from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode
from regard.errors import ConfigError, ShapeError
from regard.models.ctc import BLANK
from regard.models.memory import Memory

EOS = 1
LENGTHS = torch.tensor([5, 3, 4])
FORBIDDEN = float("-inf")


def votes_along(scorer: CTCPrefixScorer, rows: Tensor, tokens: Tensor, vocab: int) -> list[Tensor]:
    """What is voted after each prefix of tokens [rows, n], the empty one first; each [rows, vocab]."""
    zeros = torch.zeros(len(rows), vocab, dtype=torch.float64)
    state = scorer.start(rows)
    found = [scorer.score(state, zeros)]
    for place in range(tokens.shape[1]):
        state = scorer.select(state, torch.arange(len(rows)), tokens[:, place])
        found.append(scorer.score(state, zeros))
    return found


@given(seed=st.integers(0, 10**6), weight=st.sampled_from([1.0, 0.3]))
@settings(max_examples=15, deadline=None)
def test_votes_are_prefix_probabilities_by_enumeration(seed: int, weight: float) -> None:
    vocab = 4
    log_probs = random_log_probs(3, 5, vocab, seed)
    # 1 is EOS, which frames say as little as anything else: it stands in no prefix.
    tokens = torch.randint(2, vocab, (3, 3), generator=torch.Generator().manual_seed(seed))
    scorer = CTCPrefixScorer(log_probs, LENGTHS, weight=weight, eos=EOS)
    votes = votes_along(scorer, torch.arange(3), tokens, vocab)
    for row in range(3):
        outputs = output_log_probs(log_probs[row, : LENGTHS[row]])
        for place in range(4):
            prefix = tuple(tokens[row, :place].tolist())
            base = prefix_log_prob(outputs, prefix)
            found = votes[place][row].tolist()
            assert found[BLANK] == FORBIDDEN
            if base == -math.inf:
                assert found == [FORBIDDEN] * vocab
                continue
            assert found[EOS] == pytest.approx(weight * (outputs.get(prefix, -math.inf) - base), rel=1e-9, abs=1e-9)
            for token in range(2, vocab):
                wanted = weight * (prefix_log_prob(outputs, (*prefix, token)) - base)
                assert found[token] == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def by_loops(log_probs: Tensor, prefix: list[int]) -> tuple[Tensor, float, float]:
    """Watanabe et al. 2017, algorithm 2, as it stands there: (log p(prefix + c, ...) of all c, of the prefix, of the
    prefix and no more). log_probs: [frames, vocab], float64."""
    frames = log_probs.shape[0]
    rows = [[*row] for row in log_probs.tolist()]

    def add(first: float, second: float) -> float:
        high, low = max(first, second), min(first, second)
        return high if low == -math.inf else high + math.log1p(math.exp(low - high))

    token, blank, so_far = [-math.inf] * (frames + 1), [0.0], 0.0
    for row in rows:
        blank.append(blank[-1] + row[BLANK])

    def grown(label: int, last: int) -> tuple[list[float], list[float], float]:
        new_token, new_blank, total = [-math.inf], [-math.inf], -math.inf
        for frame, row in enumerate(rows):
            entering = blank[frame] if label == last else add(blank[frame], token[frame])
            new_token.append(add(new_token[-1], entering) + row[label])
            new_blank.append(add(new_blank[-1], new_token[frame]) + row[BLANK])
            total = add(total, entering + row[label])
        return new_token, new_blank, total

    last = -1
    for label in prefix:
        token, blank, so_far = grown(label, last)
        last = label
    ends = add(token[-1], blank[-1])
    continued = [grown(label, last)[2] for label in range(log_probs.shape[1])]
    return torch.tensor(continued, dtype=torch.float64), so_far, ends


@pytest.mark.parametrize("sharpness", [1.0, 30.0], ids=["flat", "sharp"])
@pytest.mark.parametrize("candidates", [None, 4])
def test_long_inputs_against_the_papers_loops(sharpness: float, candidates: int | None) -> None:
    vocab, frames = 7, 300
    log_probs = random_log_probs(2, frames, vocab, 8, sharpness)
    lengths = torch.tensor([300, 211])
    tokens = torch.tensor([[2, 2, 5, 3, 6, 6, 2], [4, 5, 4, 4, 2, 3, 3]])
    scorer = CTCPrefixScorer(log_probs.float(), lengths, weight=1.0, eos=EOS, candidates=candidates)
    state = scorer.start(torch.arange(2))
    own = torch.randn(2, vocab, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    for place in range(tokens.shape[1] + 1):
        votes = scorer.score(state, own)
        for row in range(2):
            exact = log_probs[row, : lengths[row]].float().double()
            wanted, so_far, ends = by_loops(exact, tokens[row, :place].tolist())
            wanted = wanted - so_far
            wanted[BLANK], wanted[EOS] = FORBIDDEN, ends - so_far
            looked_at = torch.ones(vocab, dtype=torch.bool)
            if candidates is not None:
                looked_at = torch.zeros(vocab, dtype=torch.bool).scatter_(0, own[row].topk(candidates).indices, True)
                looked_at[EOS] = True
            torch.testing.assert_close(votes[row][looked_at], wanted[looked_at], rtol=1e-6, atol=1e-6)
            assert (votes[row][~looked_at] == FORBIDDEN).all()
        if place < tokens.shape[1]:
            state = scorer.select(state, torch.arange(2), tokens[:, place])


def test_rows_may_repeat_move_and_disappear() -> None:
    log_probs = random_log_probs(3, 9, 6, 1)
    lengths = torch.tensor([9, 5, 7])
    scorer = CTCPrefixScorer(log_probs, lengths, weight=1.0, eos=EOS)
    state = scorer.start(torch.tensor([2, 0, 1]))
    state = scorer.select(state, torch.tensor([0, 0, 2]), torch.tensor([3, 4, 5]))
    state = scorer.select(state, torch.tensor([2, 1, 1]), torch.tensor([2, 4, 3]))
    found = scorer.score(state, torch.zeros(3, 6))
    for row, (sentence, prefix) in enumerate([(1, [5, 2]), (2, [4, 4]), (2, [4, 3])]):
        one = slice(sentence, sentence + 1)
        length = int(lengths[sentence])
        single = CTCPrefixScorer(log_probs[one, :length], lengths[one], weight=1.0, eos=EOS)
        wanted = votes_along(single, torch.tensor([0]), torch.tensor([prefix]), 6)[-1]
        torch.testing.assert_close(found[row], wanted[0])


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_a_search_by_ctc_alone_is_the_exact_search(seed: int) -> None:
    vocab = 4
    log_probs = random_log_probs(3, 4, vocab, seed)
    log_probs[:, :, EOS] = -300.0  # frames never say the end
    lengths = torch.tensor([4, 2, 3])
    sources = {"source": Memory(torch.zeros(3, 4, 1), lengths)}
    options = DecodingOptions(beam_size=60, num_best=60, max_length=6, length_penalty=0.0)
    scorer = CTCPrefixScorer(log_probs, lengths, weight=1.0, eos=EOS)
    found = decode(SilentDecoder(vocab), sources, options, bos=BOS, eos=EOS, scorers=[scorer])
    for row, group in enumerate(found):
        wanted = {
            output: total
            for output, total in output_log_probs(log_probs[row, : lengths[row]]).items()
            if EOS not in output
        }
        # Below e^-300 stands what frames say by the help of labels that never are.
        scores = {tuple(one.tokens[:-1]): one.score for one in group if one.finished and one.score > -250}
        assert scores == {output: pytest.approx(total) for output, total in wanted.items() if total > -250}
        assert [one.score for one in group if one.finished] == sorted(scores.values(), reverse=True)[: len(group)]


@given(seed=st.integers(0, 10**6), weight=st.sampled_from([0.5, 2.0]))
@settings(max_examples=8, deadline=None)
def test_joint_search_finds_what_enumeration_finds(seed: int, weight: float) -> None:
    vocab = 4
    decoder = TableDecoder.random(vocab, seed)
    source = memories([3, 4], seed=seed)
    log_probs = random_log_probs(2, 4, vocab, seed + 1)
    lengths = torch.tensor([3, 4])
    scorer = CTCPrefixScorer(log_probs, lengths, weight=weight, eos=EOS)
    options = DecodingOptions(beam_size=64, num_best=5, max_length=4, length_penalty=0.0)
    found = decode(decoder, source, options, bos=BOS, eos=EOS, scorers=[scorer])
    for row in range(2):
        follow = next_log_probs(decoder, alone(source, row))
        outputs = output_log_probs(log_probs[row, : lengths[row]])

        def joined(history: tuple[int, ...], follow=follow, outputs=outputs) -> list[float]:  # type: ignore[no-untyped-def]
            base = prefix_log_prob(outputs, history)
            if base == -math.inf:
                return [FORBIDDEN] * vocab
            votes = [prefix_log_prob(outputs, (*history, token)) - base for token in range(vocab)]
            votes[BLANK], votes[EOS] = FORBIDDEN, outputs.get(history, FORBIDDEN) - base
            return [mine + weight * vote for mine, vote in zip(follow(history), votes, strict=True)]

        wanted = [one for one in exhaustive(joined, vocab, 4, 0.0) if one[2]][:5]
        assert [tuple(one.tokens) for one in found[row]] == [tokens for tokens, _, _ in wanted]
        assert [one.score for one in found[row]] == pytest.approx([score for _, score, _ in wanted])


def test_a_search_ends_when_the_frames_are_used_up() -> None:
    """However long outputs may be, no more steps are taken than frames can say tokens, and the end."""
    vocab, frames = 6, 5
    decoder = TableDecoder.random(vocab, 3)
    decoder.table[:, EOS] = -30.0  # attention alone would never stop
    source = memories([frames], seed=1)
    scorer = CTCPrefixScorer(random_log_probs(1, frames, vocab, 2), torch.tensor([frames]), weight=1.0, eos=EOS)
    options = DecodingOptions(beam_size=4, max_length=200, length_penalty=0.0)
    [[found]] = decode(decoder, source, options, bos=BOS, eos=EOS, scorers=[scorer])
    assert found.finished
    assert len(found.tokens) <= frames + 1
    assert len(decoder.rows_advanced) <= frames + 2


def test_what_cannot_be_is_refused() -> None:
    log_probs, lengths = random_log_probs(2, 3, 4, 0), torch.tensor([3, 3])
    with pytest.raises(ShapeError, match=r"log_probs has shape \(3, 4\) and lengths \(2,\)"):
        CTCPrefixScorer(log_probs[0], lengths, weight=1.0, eos=EOS)
    for options in ({"weight": 0.0}, {"weight": 1.0, "candidates": 0}):
        with pytest.raises(ConfigError, match="expected a weight above 0 and at least one candidate"):
            CTCPrefixScorer(log_probs, lengths, eos=EOS, **options)  # type: ignore[arg-type]
