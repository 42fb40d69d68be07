from __future__ import annotations

import pytest
import torch
from ctc_oracles import output_log_probs, prefix_beam_by_dictionaries, random_log_probs, said
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.decoding.ctc import best_path, prefix_beam_search
from regard.errors import ConfigError

LENGTHS = torch.tensor([5, 3, 1, 4])


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_best_path_is_the_likeliest_alignment(seed: int) -> None:
    log_probs = random_log_probs(4, 5, 3, seed)
    for row, found in enumerate(best_path(log_probs, LENGTHS)):
        real = log_probs[row, : LENGTHS[row]]
        values, labels = real.max(-1)
        assert tuple(found.tokens) == said(labels.tolist())
        assert found.log_prob == pytest.approx(values.sum().item())


def test_a_token_after_a_blank_is_another_one() -> None:
    log_probs = torch.full((1, 6, 3), -9.0)
    for frame, label in enumerate([2, 2, 0, 2, 1, 1]):
        log_probs[0, frame, label] = -0.1
    assert best_path(log_probs, torch.tensor([6]))[0].tokens == [2, 2, 1]
    assert best_path(log_probs, torch.tensor([3]))[0].tokens == [2]
    [[found]] = prefix_beam_search(log_probs, torch.tensor([6]), beam_size=4)
    assert found.tokens == [2, 2, 1]


@given(seed=st.integers(0, 10**6), vocab=st.sampled_from([2, 3, 4]))
@settings(max_examples=15, deadline=None)
def test_a_beam_of_all_prefixes_is_exact(seed: int, vocab: int) -> None:
    log_probs = random_log_probs(4, 5, vocab, seed)
    found = prefix_beam_search(log_probs, LENGTHS, beam_size=400, num_best=400)
    for row, outputs in enumerate(found):
        wanted = output_log_probs(log_probs[row, : LENGTHS[row]])
        assert {tuple(one.tokens): pytest.approx(one.log_prob) for one in outputs} == wanted
        totals = [one.log_prob for one in outputs]
        assert totals == sorted(totals, reverse=True)


@given(seed=st.integers(0, 10**6), beam_size=st.integers(1, 7))
@settings(max_examples=25, deadline=None)
def test_a_narrow_beam_is_that_of_dictionaries(seed: int, beam_size: int) -> None:
    log_probs = random_log_probs(3, 17, 5, seed, sharpness=3.0)
    lengths = torch.tensor([17, 6, 11])
    found = prefix_beam_search(log_probs, lengths, beam_size=beam_size, num_best=beam_size)
    for row, outputs in enumerate(found):
        wanted = prefix_beam_by_dictionaries(log_probs[row, : lengths[row]], beam_size)
        assert [tuple(one.tokens) for one in outputs] == [prefix for prefix, _ in wanted]
        assert [one.log_prob for one in outputs] == pytest.approx([total for _, total in wanted])


def test_a_row_does_not_depend_on_its_batch() -> None:
    log_probs = random_log_probs(4, 9, 7, 3)
    lengths = torch.tensor([9, 2, 7, 9])
    together = prefix_beam_search(log_probs, lengths, beam_size=5, num_best=3)
    for row, outputs in enumerate(together):
        length = int(lengths[row])
        [alone] = prefix_beam_search(log_probs[row : row + 1, :length], lengths[row : row + 1], beam_size=5, num_best=3)
        assert [one.tokens for one in outputs] == [one.tokens for one in alone]
        assert [one.log_prob for one in outputs] == pytest.approx([one.log_prob for one in alone])


def test_candidates_prune_what_hardly_matters() -> None:
    log_probs = random_log_probs(2, 13, 50, 4, sharpness=4.0)
    lengths = torch.tensor([13, 10])
    everything = prefix_beam_search(log_probs, lengths, beam_size=5)
    pruned = prefix_beam_search(log_probs, lengths, beam_size=5, candidates=10)
    assert [[one.tokens for one in row] for row in everything] == [[one.tokens for one in row] for row in pruned]
    [five, _] = prefix_beam_search(log_probs, lengths, beam_size=5, num_best=5)
    [few, _] = prefix_beam_search(log_probs, lengths, beam_size=5, num_best=5, candidates=1)
    assert few[-1].log_prob < five[-1].log_prob


def test_no_frames_say_nothing() -> None:
    log_probs = random_log_probs(2, 3, 4, 0)
    found = prefix_beam_search(log_probs, torch.tensor([0, 3]), beam_size=2)
    assert found[0][0] == ([], 0.0)
    assert best_path(log_probs, torch.tensor([0, 3]))[0] == ([], 0.0)
    assert prefix_beam_search(log_probs[:, :0], torch.tensor([0, 0]), beam_size=2)[1] == [([], 0.0)]


def test_the_likeliest_output_is_not_always_the_best_paths() -> None:
    """Graves et al. 2006, figure 2: two alignments of one output may outweigh the likeliest single one."""
    log_probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    lengths = torch.tensor([2])
    assert best_path(log_probs, lengths)[0].tokens == []  # 0.36
    [[found]] = prefix_beam_search(log_probs, lengths, beam_size=3)
    assert found.tokens == [1]
    assert found.log_prob == pytest.approx(torch.tensor(0.64).log().item(), abs=1e-6)


@pytest.mark.parametrize(
    "options", [{"beam_size": 0}, {"beam_size": 2, "num_best": 3}, {"beam_size": 2, "candidates": 0}]
)
def test_options_that_cannot_be(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected numbers of at least 1, num_best at most beam_size"):
        prefix_beam_search(random_log_probs(1, 2, 3, 0), torch.tensor([2]), **options)
