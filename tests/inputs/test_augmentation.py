"""Random changes of pictures: what they keep, what they change, and that a seed decides all of it."""

from __future__ import annotations

import pytest
import torch

from regard.errors import ConfigError
from regard.inputs.augmentation import AugmentationConfig, augment


def pictures(batch: int = 5, side: int = 16) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.rand(batch, 3, side, side)


def test_nothing_is_changed_unless_asked_for() -> None:
    given = pictures()
    assert augment(given, AugmentationConfig()) is given


EVERYTHING = AugmentationConfig(
    crop=0.5, stretch=1.3, shift=0.1, flip=True, turn=True, brightness=0.3, contrast=0.3, colour=0.3, erase=0.2
)


def test_a_seed_decides_everything_and_the_range_is_kept() -> None:
    given = pictures()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(given, EVERYTHING))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert results[0].shape == given.shape
    assert float(results[0].min()) >= 0.0 and float(results[0].max()) <= 1.0


def test_each_picture_is_changed_by_itself() -> None:
    same = pictures(1).expand(6, -1, -1, -1)
    torch.manual_seed(0)
    changed = augment(same, EVERYTHING)
    assert all(not torch.equal(changed[0], other) for other in changed[1:])


def test_a_flip_exchanges_the_sides_of_about_half() -> None:
    given = pictures(400, 4)
    torch.manual_seed(0)
    changed = augment(given, AugmentationConfig(flip=True))
    flipped = [torch.allclose(one, other.flip(2), atol=1e-5) for one, other in zip(changed, given, strict=True)]
    kept = [torch.allclose(one, other, atol=1e-5) for one, other in zip(changed, given, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 150 < sum(flipped) < 250


def test_turns_are_quarter_turns() -> None:
    given = pictures(60, 6)
    torch.manual_seed(0)
    changed = augment(given, AugmentationConfig(turn=True))
    seen = set()
    for one, other in zip(changed, given, strict=True):
        fits = [turns for turns in range(4) if torch.allclose(one, other.rot90(turns, (1, 2)), atol=1e-4)]
        assert len(fits) == 1
        seen.update(fits)
    assert seen == {0, 1, 2, 3}


def test_turning_a_picture_that_is_not_square_is_refused() -> None:
    with pytest.raises(ConfigError, match="turn wants square pictures, received 4 x 6"):
        augment(torch.rand(1, 3, 4, 6), AugmentationConfig(turn=True))


def test_a_crop_shows_a_part_at_full_size() -> None:
    # A ramp from left to right: a crop's ends lie inside of it, and it is a ramp again.
    ramp = torch.linspace(0, 1, 32).expand(50, 3, 32, 32)
    torch.manual_seed(0)
    changed = augment(ramp, AugmentationConfig(crop=0.25))
    widths = changed[:, 0, 0, -1] - changed[:, 0, 0, 0]
    assert (changed.diff(dim=-1) >= -1e-6).all()
    assert float(widths.min()) > 0.4 and float(widths.max()) <= 1.0 and float(widths.std()) > 0.05


def test_no_colour_means_grey_and_no_contrast_means_flat() -> None:
    given = pictures(300, 4)
    torch.manual_seed(0)
    greyer = augment(given, AugmentationConfig(colour=0.99))
    spread = (greyer.amax(1) - greyer.amin(1)).mean((1, 2)) / (given.amax(1) - given.amin(1)).mean((1, 2))
    assert float(spread.min()) < 0.1 and float(spread.max()) > 1.0
    flatter = augment(given, AugmentationConfig(contrast=0.99))
    assert float((flatter.std((1, 2, 3)) / given.std((1, 2, 3))).min()) < 0.1


def test_brightness_is_one_factor_a_picture() -> None:
    given = pictures() * 0.5
    torch.manual_seed(0)
    ratio = augment(given, AugmentationConfig(brightness=0.4)) / given
    assert torch.allclose(ratio, ratio[:, :1, :1, :1].expand_as(ratio), rtol=1e-4)
    assert ((ratio > 0.6 - 1e-4) & (ratio < 1.4 + 1e-4)).all()


def test_an_erased_part_is_a_rectangle_no_larger_than_asked_for() -> None:
    torch.manual_seed(0)
    covered = augment(torch.ones(200, 3, 20, 20), AugmentationConfig(erase=0.3)) == 0.5
    assert 0.05 < float(covered.float().mean()) < 0.2
    assert float(covered.float().mean((1, 2, 3)).max()) < 0.4
    rows, columns = covered[:, 0].any(2), covered[:, 0].any(1)
    assert torch.equal(covered[:, 0], rows[:, :, None] & columns[:, None])


def test_numbers_that_cannot_be_are_named_together() -> None:
    with pytest.raises(ConfigError, match=r"crop is 0.0, .*; stretch is 0.5, .*; erase is 1.0, expected 0 to below 1"):
        AugmentationConfig(crop=0.0, stretch=0.5, erase=1.0)
