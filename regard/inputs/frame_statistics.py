"""Normalisation of frames, by what an utterance or a corpus is like, and differences along time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_DEVIATION = 1e-3  # of a bin that says the same all along, as digital silence does
_DELTA_REACH = 2  # frames to either side


def real_frames(lengths: Tensor, longest: int) -> Tensor:
    """bool [batch, longest, 1]: which frames are no padding."""
    return (torch.arange(longest, device=lengths.device) < lengths[:, None])[..., None]


def utterance_normalised(frames: Tensor, lengths: Tensor) -> Tensor:
    """Each bin of each item with mean 0 and standard deviation 1 over the item's own frames; padding is 0.

    frames: [batch, frames, bins], zero behind lengths [batch]. Numerics: float32; a bin that never changes becomes 0.
    """
    real = real_frames(lengths, frames.shape[1])
    count = lengths.clamp(min=1)[:, None, None].to(frames.dtype)
    mean = (frames * real).sum(1, keepdim=True) / count
    centred = (frames - mean) * real
    deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return centred / deviation.clamp(min=_LEAST_DEVIATION)


def corpus_statistics(frames: Iterable[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each bin over all frames [frames, bins] of a corpus; summed in float64."""
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for part in frames:
        wide = part.astype(np.float64)
        count, total, squares = count + len(wide), total + wide.sum(0), squares + np.square(wide).sum(0)
    mean = total / max(count, 1)
    deviation = np.sqrt(np.maximum(squares / max(count, 1) - np.square(mean), _LEAST_DEVIATION**2))
    return tuple(float(value) for value in mean), tuple(float(value) for value in deviation)


def with_deltas(frames: Tensor, lengths: Tensor, orders: int) -> Tensor:
    """[batch, frames, 1 + orders, bins]: frames, their slopes, the slopes of these...; padding is 0.

    The slope is a least-squares line over two frames to either side; ends go on as they are. Source: Young et al. 2006
    (HTK), eq. 5.16; Kaldi's add-deltas is the same away from the ends.
    """
    real = real_frames(lengths, frames.shape[1])
    last = (lengths - 1).clamp(min=0)[:, None]
    time = torch.arange(frames.shape[1], device=frames.device)[None]
    places = torch.minimum(time, last)[..., None].expand(-1, -1, frames.shape[2])
    stacked = [frames * real]
    for _ in range(orders):
        held = stacked[-1].gather(1, places)  # the last frame stands on behind the end
        padded = F.pad(held.transpose(1, 2), (_DELTA_REACH, _DELTA_REACH), mode="replicate")
        length = frames.shape[1]
        slope = torch.zeros_like(held).transpose(1, 2)
        for reach in range(1, _DELTA_REACH + 1):
            ahead = padded[..., _DELTA_REACH + reach : _DELTA_REACH + reach + length]
            behind = padded[..., _DELTA_REACH - reach : _DELTA_REACH - reach + length]
            slope = slope + reach * (ahead - behind)
        slope = slope / (2 * sum(reach**2 for reach in range(1, _DELTA_REACH + 1)))
        stacked.append(slope.transpose(1, 2) * real)
    return torch.stack(stacked, dim=2)
