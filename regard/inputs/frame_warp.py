"""Other ways of saying the same: frames stretched along time, and along frequency, a different one for each item.

Both are resampling by linear interpolation, so they need features alone and cost a fraction of a model's step. Random
numbers are torch's global ones, which the trainer seeds.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stretched(frames: Tensor, lengths: Tensor, new_lengths: Tensor, anchors: Tensor, moved: Tensor) -> Tensor:
    """[batch, longest new, bins]: each item's frames spread over its new length, zero behind it.

    frames: [batch, frames, bins]. lengths, new_lengths: [batch], at least 1. anchors: [batch], places in the new time
    that show what stood at `moved` in even spread: what is before and behind is stretched evenly, as SpecAugment's time
    warp does (Park et al. 2019); equal ones leave it at the change of speed.
    """
    longest = int(new_lengths.max())
    time = torch.arange(longest, device=frames.device, dtype=torch.float32)[None]
    last = (new_lengths - 1).clamp(min=1)[:, None].float()
    anchor, origin = anchors[:, None].float(), moved[:, None].float()
    before = time * (origin / anchor.clamp(min=1e-6))
    behind = origin + (time - anchor) * ((last - origin) / (last - anchor).clamp(min=1e-6))
    even = torch.where(time <= anchor, before, behind).clamp(min=0.0)
    source = torch.minimum(even / last, torch.ones(())) * (lengths - 1)[:, None]
    left = source.floor().long().clamp(max=frames.shape[1] - 1)
    right = torch.minimum(left + 1, (lengths - 1)[:, None])
    share = (source - left)[..., None]
    width = frames.shape[2]
    result = torch.lerp(
        frames.gather(1, left[..., None].expand(-1, -1, width)),
        frames.gather(1, right[..., None].expand(-1, -1, width)),
        share.to(frames.dtype),
    )
    return result.masked_fill((time >= new_lengths[:, None])[..., None], 0.0)


def random_times(
    lengths: Tensor, speeds: tuple[float, float], warp_frames: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """New lengths, anchors and where they were moved from, for `stretched`; None where nothing would change.

    speeds: least and greatest factor of speed. warp_frames: the farthest an anchor moves, and its least distance to
    either end; an item too short for it stays unwarped.
    """
    if speeds == (1.0, 1.0) and not warp_frames:
        return None
    batch, device = len(lengths), lengths.device
    low, high = speeds
    factors = low + (high - low) * torch.rand(batch)
    new_lengths = (lengths.cpu() / factors).round().long().clamp(min=1)
    middle = new_lengths.float() / 2
    anchors, moved = middle.clone(), middle.clone()
    if warp_frames:
        room = (new_lengths - 1 - 2 * warp_frames).float()
        places = warp_frames + torch.rand(batch) * room.clamp(min=0.0)
        shifts = (2 * torch.rand(batch) - 1) * (warp_frames - 1)
        warped = room > 0
        anchors = torch.where(warped, places, anchors)
        moved = torch.where(warped, places + shifts, moved)
    return new_lengths.to(device), anchors.to(device), moved.to(device)


def vocal_tract_warp(factors: Tensor, bins: int, low_hz: float, high_hz: float) -> Tensor:
    """[batch, bins, bins]: matrices that turn frames (as row vectors) into those of a longer or shorter vocal tract.

    factors: [batch], by which formants move; 1 changes nothing. The bins are bands evenly spread over mels from low_hz
    to high_hz. Up to three fifths of high_hz frequencies are multiplied, from there bent back so that high_hz stays.
    Source: Jaitly and Hinton 2013.
    """
    mels = torch.linspace(_mel(low_hz), _mel(high_hz), bins + 2, dtype=torch.float64)
    centres = (700.0 * torch.expm1(mels[1:-1] / 1127.0))[None]
    factor = factors.double()[:, None]
    knee = 0.6 * high_hz * factor.clamp(max=1.0)
    bent = high_hz - (high_hz - knee) / (high_hz - knee / factor) * (high_hz - centres)
    target = torch.where(centres <= knee / factor, centres * factor, bent)
    # The warped frame's band that lies at `target` shows what was at the centre: read there, in bands.
    place = 1127.0 * torch.log1p(target / 700.0)
    place = ((place - mels[1]) / (mels[1] - mels[0])).clamp(0.0, bins - 1.0)
    left = place.floor().long().clamp(max=bins - 2)
    share = (place - left).float()
    matrix = torch.zeros(len(factors), bins, bins)
    matrix.scatter_(1, left[:, None, :], (1.0 - share)[:, None, :])
    matrix.scatter_add_(1, (left + 1)[:, None, :], share[:, None, :])
    return matrix


def _mel(hz: float) -> float:
    return 1127.0 * float(torch.log1p(torch.tensor(hz / 700.0, dtype=torch.float64)))
