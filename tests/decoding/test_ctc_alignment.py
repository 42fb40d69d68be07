from __future__ import annotations

import itertools

import pytest
import torch
from ctc_oracles import best_alignment, random_log_probs
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.decoding.ctc_alignment import forced_alignment
from regard.errors import ShapeError


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_alignment_is_the_likeliest_of_all(seed: int) -> None:
    log_probs = random_log_probs(4, 6, 3, seed)
    lengths = torch.tensor([6, 4, 2, 5])
    targets = torch.tensor([[1, 2, 2], [1, 1, 0], [2, -7, -7], [2, 1, 2]])
    target_lengths = torch.tensor([3, 2, 1, 3])
    lengths[1] = 4  # of 3 that two equal tokens need
    found = forced_alignment(log_probs, lengths, targets, target_lengths)
    for row, spans in enumerate(found):
        real = log_probs[row, : lengths[row]]
        wanted = best_alignment(real, tuple(targets[row, : target_lengths[row]].tolist()))
        groups, frame = [], 0
        for label, group in itertools.groupby(wanted):
            length = len(list(group))
            if label:
                mean = real[range(frame, frame + length), label].mean().item()
                groups.append((frame, frame + length, pytest.approx(mean)))
            frame += length
        assert [tuple(span) for span in spans] == groups


def test_a_row_does_not_depend_on_its_batch() -> None:
    log_probs = random_log_probs(3, 23, 11, 5)
    lengths = torch.tensor([23, 9, 14])
    targets = torch.randint(1, 11, (3, 7), generator=torch.Generator().manual_seed(1))
    target_lengths = torch.tensor([7, 2, 0])
    found = forced_alignment(log_probs, lengths, targets, target_lengths)
    assert found[2] == []
    for row, spans in enumerate(found):
        one = slice(row, row + 1)
        length, count = int(lengths[row]), int(target_lengths[row])
        [alone] = forced_alignment(log_probs[one, :length], lengths[one], targets[one, :count], target_lengths[one])
        assert [span[:2] for span in spans] == [span[:2] for span in alone]
        assert [span.log_prob for span in spans] == pytest.approx([span.log_prob for span in alone])


def test_too_few_frames_are_refused() -> None:
    log_probs = random_log_probs(2, 4, 3, 0)
    with pytest.raises(ShapeError) as caught:
        forced_alignment(log_probs, torch.tensor([4, 2]), torch.tensor([[1, 2], [1, 1]]), torch.tensor([2, 2]))
    assert str(caught.value) == (
        "forced alignment: row 1 has 2 frames for 2 tokens, which need at least 3; leave it out, subsample less or "
        "take longer tokens"
    )
