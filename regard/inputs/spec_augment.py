"""SpecAugment: frames of which bands of frequency and stretches of time are hidden, anew each time.

What hides a whole word teaches a model to guess: a time mask is therefore bounded in frames and by its share of the
utterance. Source: Park et al. 2019; its adaptive share, Park et al. 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.errors import ConfigError
from regard.inputs.frame_warp import random_times, stretched, vocal_tract_warp


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to frames in training. Random numbers are torch's global ones."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    frequency_masks: int = 2  # bands of frequency hidden in each utterance
    frequency_bins: int = 8  # the widest of them
    time_masks: int = 2  # stretches of time hidden in each utterance
    # The longest of them. A spoken digit or letter takes 20 to 50 frames of 10 ms: a mask as long hides the word, and
    # the model is taught to invent it.
    time_frames: int = 12
    time_share: float = 0.05  # the longest share of an utterance that one mask hides
    time_warp_frames: int = 0  # how far a place in the middle is moved along time; 0: not at all
    speeds: tuple[float, float] = (1.0, 1.0)  # slowest and fastest, by stretching frames along time
    # How far formants are moved, as factors: another speaker's vocal tract. It wants bands of frequency, not cepstra.
    vocal_tract: tuple[float, float] = (1.0, 1.0)
    low_hz: float = 20.0  # where the lowest band begins and the highest ends, for vocal_tract alone
    high_hz: float = 8000.0

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, expected 0 or more"
            for name in ("frequency_masks", "frequency_bins", "time_masks", "time_frames", "time_warp_frames")
            if getattr(self, name) < 0
        ]
        if not 0.0 <= self.time_share <= 1.0:
            problems.append(f"time_share is {self.time_share:g}, expected 0 to 1")
        for name in ("speeds", "vocal_tract"):
            low, high = getattr(self, name)
            if not 0.5 <= low <= high <= 2.0:
                problems.append(f"{name} is [{low:g}, {high:g}], expected 0.5 <= least <= greatest <= 2")
        if not 0.0 <= self.low_hz < self.high_hz:
            problems.append(f"low_hz is {self.low_hz:g} and high_hz {self.high_hz:g}, expected 0 <= low_hz < high_hz")
        if problems:
            raise ConfigError(f"augment: {'; '.join(problems)}")


def warped(frames: Tensor, lengths: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """frames [batch, frames, bins] said by another mouth at another speed, and their new lengths [batch]."""
    if config.vocal_tract != (1.0, 1.0):
        low, high = config.vocal_tract
        factors = low + (high - low) * torch.rand(len(frames))
        matrices = vocal_tract_warp(factors, frames.shape[2], config.low_hz, config.high_hz)
        frames = frames @ matrices.to(frames)
    times = random_times(lengths, config.speeds, config.time_warp_frames)
    if times is not None:
        new_lengths, anchors, moved = times
        frames, lengths = stretched(frames, lengths, new_lengths, anchors, moved), new_lengths
    return frames, lengths


def masked(frames: Tensor, lengths: Tensor, config: AugmentConfig) -> Tensor:
    """frames [batch, frames, ..., bins] with masks of 0 along time and along bins.

    0 is the mean of a normalised utterance. Widths are drawn evenly from 0 to the widest, places evenly from all that
    hold the mask.
    """
    batch, longest, bins = frames.shape[0], frames.shape[1], frames.shape[-1]
    between = frames.dim() - 3
    widest = torch.full((batch,), min(config.frequency_bins, bins))
    hidden = _stretches(config.frequency_masks, widest, torch.full((batch,), bins), bins)
    frames = frames.masked_fill(hidden.to(frames.device).reshape(batch, 1, *[1] * between, bins), 0.0)
    real = lengths.cpu()
    widest = torch.minimum((real * config.time_share).long(), torch.tensor(config.time_frames))
    hidden = _stretches(config.time_masks, widest, real, longest)
    return frames.masked_fill(hidden.to(frames.device).reshape(batch, longest, *[1] * (between + 1)), 0.0)


def _stretches(count: int, widest: Tensor, ends: Tensor, length: int) -> Tensor:
    """bool [batch, length]: `count` random stretches of up to widest [batch] places within ends [batch]."""
    widths = (torch.rand(len(ends), count) * (widest[:, None] + 1)).long()
    begins = (torch.rand(len(ends), count) * (ends[:, None] - widths + 1)).long()
    place = torch.arange(length)
    inside = (place >= begins[..., None]) & (place < (begins + widths)[..., None])
    return inside.any(1) if count else torch.zeros(len(ends), length, dtype=torch.bool)
