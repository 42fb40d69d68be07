from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard.errors import ShapeError
from regard.lens.warping import followed, salience, token_frames, warp


def best_total(benefit: Tensor) -> float:
    """The greatest sum of any path, by recursion over the ways back."""
    cells = benefit.tolist()

    @functools.cache
    def total(row: int, column: int) -> float:
        if row == column == 0:
            return float(cells[0][0])
        back = [(row - 1, column), (row, column - 1), (row - 1, column - 1)]
        return float(cells[row][column]) + max(total(*place) for place in back if min(place) >= 0)

    return total(len(cells) - 1, len(cells[0]) - 1)


@given(rows=st.integers(1, 6), columns=st.integers(1, 9), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_no_path_gathers_more(rows: int, columns: int, seed: int) -> None:
    benefit = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    path = list(zip(*warp(benefit), strict=True))
    assert path[0] == (0, 0)
    assert path[-1] == (rows - 1, columns - 1)
    for (row, column), (next_row, next_column) in itertools.pairwise(path):
        assert (next_row - row, next_column - column) in {(0, 1), (1, 0), (1, 1)}
    assert sum(benefit[place].item() for place in path) == pytest.approx(best_total(benefit))


def test_the_median_filter_and_normalisation_by_hand() -> None:
    attention = torch.rand(2, 4, 11, generator=torch.Generator().manual_seed(1)).softmax(-1)
    weights = attention.double().numpy()
    normalised = (weights - weights.mean(1, keepdims=True)) / weights.std(1, keepdims=True)
    mirrored = np.pad(normalised, ((0, 0), (0, 0), (2, 2)), mode="reflect")
    wanted = np.stack([np.median(mirrored[..., frame : frame + 5], -1) for frame in range(11)], -1).mean(0)
    np.testing.assert_allclose(salience(attention, filter_frames=5).numpy(), wanted, rtol=1e-12, atol=1e-12)
    unfiltered = salience(attention, filter_frames=1).numpy()
    np.testing.assert_allclose(unfiltered, normalised.mean(0), rtol=1e-12, atol=1e-12)


def test_tokens_get_the_frames_that_heads_look_at() -> None:
    """Three heads follow the sound, blurred and noisy; every frame also gets a share that nobody means."""
    bounds = [(0, 9), (9, 16), (16, 30), (30, 34), (34, 47)]
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(3, 5, 47, generator=generator) * 0.3
    for token, (begin, end) in enumerate(bounds):
        attention[:, token, begin:end] += 1.0
    attention[:, :, 20] += 50.0  # a frame that everybody looks at
    found = token_frames(attention / attention.sum(-1, keepdim=True))
    for (begin, end), (true_begin, true_end) in zip(found, bounds, strict=True):
        assert abs(begin - true_begin) <= 1
        assert abs(end - true_end) <= 1
    assert found[0][0] == 0
    assert found[-1][1] == 47


def test_more_tokens_than_frames_share_them() -> None:
    found = token_frames(torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0)))
    assert len(found) == 5
    assert all(0 <= begin < end <= 3 for begin, end in found)
    assert token_frames(torch.rand(2, 1, 4)) == [(0, 4)], "one token has all frames"
    assert token_frames(torch.rand(2, 0, 4)) == []
    assert token_frames(torch.rand(2, 3, 1)) == [(0, 1)] * 3


def test_even_attention_says_nothing_and_is_no_noise() -> None:
    assert not salience(torch.full((2, 3, 9), 1 / 9)).any()


def test_what_is_no_attention_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"salience: attention has shape \(3, 4\), expected \(heads, tokens, frames\)"):
        salience(torch.rand(3, 4))
    with pytest.raises(ShapeError, match="filter_frames is 4, expected an odd number of frames"):
        salience(torch.rand(2, 3, 4), filter_frames=4)
    with pytest.raises(ShapeError, match=r"warp: benefit has shape \(0, 4\)"):
        warp(torch.rand(0, 4))


def test_heads_that_follow_the_sound_are_told_from_those_that_do_not() -> None:
    tokens, frames = 5, 40
    diagonal = torch.full((tokens, frames), 0.01)
    for token in range(tokens):
        diagonal[token, 8 * token : 8 * token + 8] = 1.0
    everywhere = torch.ones(tokens, frames)
    one_place = torch.full((tokens, frames), 1e-3)
    one_place[:, 17] = 1.0
    backwards = diagonal.flip(0)
    attention = torch.stack([diagonal, everywhere, one_place, backwards])
    shares = followed(attention / attention.sum(-1, keepdim=True)).tolist()
    assert shares[0] > 0.9
    assert max(shares[1:]) < 0.5
    assert followed(torch.rand(3, 0, 7)).tolist() == [0.0] * 3
