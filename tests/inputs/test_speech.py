"""The speech source: frames into fewer vectors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from regard.errors import ConfigError, ShapeError
from regard.inputs.spec_augment import AugmentConfig
from regard.inputs.speech import SpeechSource, SpeechSourceConfig

LENGTHS = torch.tensor([23, 8, 1])


def frames(bins: int = 11) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.randn(3, 23, bins) * (torch.arange(23) < LENGTHS[:, None])[..., None]


def source(**changes: object) -> SpeechSource:
    torch.manual_seed(7)
    config = replace(SpeechSourceConfig("speech", channels=3), **changes)
    return SpeechSource(11, 6, config).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {"stride": 1},
        {"stride": 2},
        {"stride": 4, "deltas": 2, "positions": "sinusoidal"},
        {"stride": 8},
        {"subsampling": "stacked", "stride": 3, "deltas": 1},
        {"subsampling": "stacked", "stride": 1, "normalization": "none"},
        {"normalization": "corpus", "mean": (0.5,) * 11, "deviation": (2.0,) * 11},
    ],
    ids=str,
)
def test_a_padded_batch_equals_its_sounds_alone(changes):
    part = source(**changes)
    together = part.represent(frames(), LENGTHS)
    stride = changes.get("stride", 4)
    assert together.stride == stride
    assert together.lengths.tolist() == [-(-length // stride) for length in LENGTHS.tolist()]
    assert together.vectors.shape == (3, -(-23 // stride), 6)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = part.represent(frames()[row : row + 1, :length], LENGTHS[row : row + 1])
        count = int(alone.lengths)
        torch.testing.assert_close(together.vectors[row, :count], alone.vectors[0], atol=1e-5, rtol=1e-4)
        assert (together.vectors[row, count:] == 0).all()


def test_what_stands_in_padding_is_never_read():
    part = source(deltas=1)
    poisoned = frames()
    poisoned[1, 8:] = 1e6
    clean, dirty = part.represent(frames(), LENGTHS), part.represent(poisoned, LENGTHS)
    torch.testing.assert_close(clean.vectors, dirty.vectors)


def test_loudness_does_not_matter_to_an_utterance_that_is_normalised():
    part = source()
    quiet = frames() * 0.5 - 3.0
    torch.testing.assert_close(
        part.represent(quiet, LENGTHS).vectors, part.represent(frames(), LENGTHS).vectors, atol=1e-4, rtol=1e-3
    )


def test_it_augments_in_training_alone_by_the_global_random_numbers():
    part, given = source(augment=AugmentConfig(time_share=0.5, speeds=(0.8, 1.2))), frames()
    plain = part.represent(given, LENGTHS)
    torch.testing.assert_close(plain.vectors, source().represent(given, LENGTHS).vectors)
    part.train()
    torch.manual_seed(1)
    first = part.represent(given, LENGTHS)
    torch.manual_seed(1)
    assert torch.equal(part.represent(given, LENGTHS).vectors, first.vectors)
    other = part.represent(given, LENGTHS)
    assert other.vectors.shape != first.vectors.shape or not torch.equal(other.vectors, first.vectors)


def test_gradients_reach_every_weight():
    part = source(deltas=1)
    part.represent(frames(), LENGTHS).vectors.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in part.parameters())


def test_mistakes_are_told():
    with pytest.raises(ShapeError, match=r"received frames \[3, 23, 9\], expected \[batch, frames, 11\]"):
        source().represent(frames(9), LENGTHS)
    with pytest.raises(ConfigError, match="stride is 3, expected 1, 2, 4 or 8 by convolution"):
        SpeechSourceConfig("speech", stride=3)
    with pytest.raises(ConfigError, match="mean has 2 numbers, expected 11"):
        source(normalization="corpus", mean=(0.0, 1.0), deviation=(1.0, 1.0))
    with pytest.raises(ConfigError, match="mean and deviation are missing"):
        source(normalization="corpus").represent(frames(), LENGTHS)
    with pytest.raises(ConfigError, match="an even model_dim"):
        SpeechSource(11, 5, SpeechSourceConfig("speech", positions="sinusoidal"))
