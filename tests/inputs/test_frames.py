"""Normalisation, deltas, warps and masks of frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regard.errors import ConfigError
from regard.inputs.frame_statistics import corpus_statistics, utterance_normalised, with_deltas
from regard.inputs.frame_warp import random_times, stretched, vocal_tract_warp
from regard.inputs.spec_augment import AugmentConfig, masked, warped

LENGTHS = torch.tensor([11, 5, 1])


def frames(bins: int = 7) -> torch.Tensor:
    """[3, 11, bins], zero behind LENGTHS."""
    torch.manual_seed(3)
    made = torch.randn(3, 11, bins) * 4 + 20
    return made * (torch.arange(11) < LENGTHS[:, None])[..., None]


def test_an_utterance_is_normalised_over_its_own_frames():
    found = utterance_normalised(frames(), LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        real = found[row, :length]
        torch.testing.assert_close(real.mean(0), torch.zeros(7), atol=1e-5, rtol=0)
        if length > 1:
            torch.testing.assert_close(real.std(0, unbiased=False), torch.ones(7), atol=1e-4, rtol=0)
        assert (found[row, length:] == 0).all()
    assert (found[2] == 0).all()  # one frame says nothing but its mean
    assert torch.isfinite(utterance_normalised(torch.full((1, 4, 2), -15.9), torch.tensor([4]))).all()


def test_statistics_of_a_corpus_are_those_of_all_frames_together():
    parts = [np.random.default_rng(n).normal(n, 2, size=(n + 3, 5)).astype(np.float32) for n in range(4)]
    mean, deviation = corpus_statistics(parts)
    together = np.concatenate(parts).astype(np.float64)
    np.testing.assert_allclose(mean, together.mean(0), rtol=1e-9)
    np.testing.assert_allclose(deviation, together.std(0), rtol=1e-9)


def test_deltas_are_slopes_and_do_not_see_padding():
    line = torch.arange(11.0)[None, :, None] * torch.tensor([1.0, -2.0])
    found = with_deltas(line, torch.tensor([11]), 2)
    assert found.shape == (1, 11, 3, 2)
    torch.testing.assert_close(found[0, 2:-2, 1], torch.tensor([[1.0, -2.0]]).expand(7, 2))
    torch.testing.assert_close(found[0, 4:-4, 2], torch.zeros(3, 2), atol=1e-6, rtol=0)
    padded = frames()
    together = with_deltas(padded, LENGTHS, 2)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = with_deltas(padded[row : row + 1, :length], LENGTHS[row : row + 1], 2)
        torch.testing.assert_close(together[row, :length], alone[0])
        assert (together[row, length:] == 0).all()


def test_stretching_to_the_same_length_changes_nothing():
    given = frames()
    middle = LENGTHS.float() / 2
    torch.testing.assert_close(stretched(given, LENGTHS, LENGTHS, middle, middle), given, atol=1e-4, rtol=1e-5)


def test_stretching_keeps_the_ends_and_the_order():
    ramp = torch.arange(11.0)[None, :, None]
    new = torch.tensor([21])
    even = stretched(ramp, torch.tensor([11]), new, torch.tensor([10.0]), torch.tensor([10.0]))
    torch.testing.assert_close(even[0, :, 0], torch.arange(21) / 2, atol=1e-5, rtol=0)
    # What stood at 6 of 20 is shown at 12: slow first, fast afterwards, ends kept.
    moved = stretched(ramp, torch.tensor([11]), new, torch.tensor([12.0]), torch.tensor([6.0]))[0, :, 0]
    assert moved[0] == 0 and float(moved[-1]) == pytest.approx(10) and float(moved[12]) == pytest.approx(3)
    assert (moved.diff() > 0).all()


def test_times_are_drawn_within_their_limits():
    torch.manual_seed(1)
    lengths = torch.full((2000,), 100)
    times = random_times(lengths, (0.8, 1.25), 10)
    assert times is not None
    new_lengths, anchors, moved = times
    assert int(new_lengths.min()) >= 80 and int(new_lengths.max()) <= 125 and int(new_lengths.max()) > 120
    assert (anchors >= 10).all() and (anchors <= new_lengths - 10).all()
    assert float((anchors - moved).abs().max()) <= 9 and float((anchors - moved).abs().max()) > 8
    assert random_times(lengths, (1.0, 1.0), 0) is None


def test_a_vocal_tract_of_factor_one_changes_nothing_and_others_move_formants():
    matrices = vocal_tract_warp(torch.tensor([1.0, 0.85, 1.15]), 40, 20.0, 8000.0)
    torch.testing.assert_close(matrices[0], torch.eye(40), atol=1e-5, rtol=0)
    torch.testing.assert_close(matrices.sum(1), torch.ones(3, 40))  # each band is a mean of two
    formant = torch.exp(-(((torch.arange(40.0) - 20) / 3) ** 2))
    lower, upper = (float((formant @ matrix).argmax()) for matrix in matrices[1:])
    assert upper < 20 < lower


def test_masks_hide_no_more_than_they_may():
    torch.manual_seed(2)
    config = AugmentConfig(frequency_masks=1, frequency_bins=5, time_masks=1, time_frames=12, time_share=0.1)
    given = torch.ones(500, 200, 40)
    lengths = torch.full((500,), 80)
    hidden = masked(given, lengths, config) == 0
    whole_frames, whole_bins = hidden.all(2).sum(1), hidden.all(1).sum(1)
    assert int(whole_frames.max()) == 8  # a tenth of 80 is less than 12
    assert int(whole_bins.max()) == 5 and int(whole_bins.min()) == 0
    assert not hidden.all(2)[:, 80:].any()  # masks fall on what is said
    assert len(set(whole_frames.tolist())) == 9
    short = masked(torch.ones(50, 9, 40), torch.full((50,), 9), config)
    assert not (short == 0).all(2).any()  # a tenth of 9 frames is none


def test_augmenting_follows_the_random_seed_and_keeps_shapes():
    config = AugmentConfig(time_warp_frames=2, speeds=(0.9, 1.1), vocal_tract=(0.9, 1.1))

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(11)
        changed, lengths = warped(frames(), LENGTHS, config)
        return masked(changed, lengths, config), lengths

    (first, lengths), (second, again) = run(), run()
    assert torch.equal(first, second) and torch.equal(lengths, again)
    assert first.shape == (3, int(lengths.max()), 7) and (lengths >= 1).all()
    for row, length in enumerate(lengths.tolist()):
        assert (first[row, length:] == 0).all()


def test_nothing_asked_for_is_nothing_done():
    config = AugmentConfig(frequency_masks=0, time_masks=0)
    given = frames()
    changed, lengths = warped(given, LENGTHS, config)
    assert torch.equal(changed, given) and torch.equal(lengths, LENGTHS)
    assert torch.equal(masked(given, LENGTHS, config), given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_masks": -1}, "time_masks is -1, expected 0 or more"),
        ({"time_share": 1.5}, "time_share is 1.5, expected 0 to 1"),
        ({"speeds": (1.1, 0.9)}, r"speeds is \[1.1, 0.9\]"),
        ({"vocal_tract": (0.1, 1.0)}, "vocal_tract is"),
        ({"low_hz": 9000.0}, "low_hz is 9000"),
    ],
)
def test_augmentations_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**changes)
