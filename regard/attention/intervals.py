"""Sets of keys, one a query, as a few half-open ranges: how masks are carried in linear memory.

Ranges are int32 [batch or 1, query_len, num_ranges, 2], as `PairScores.ranges` wants them: ascending, disjoint and not
touching, within [0, key_len], unused ones (0, 0) at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

BEHIND = 2**30 - 1  # no key stands there; twice it and one more is an int32


def one_range(begin: Tensor, end: Tensor, query_len: int, key_len: int) -> Tensor:
    """Ranges of one a query; begin, end: integers of any size, broadcastable to [batch, query_len]."""
    begin, end = begin.clamp(0, key_len), end.clamp(0, key_len)
    ranges = torch.stack(torch.broadcast_tensors(begin, end), -1)
    ranges = ranges * (begin < end)[..., None]
    return ranges.to(torch.int32).expand(-1, query_len, -1)[:, :, None].contiguous()


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """What is in both; at most one range fewer than the two have together."""
    most = first.shape[2] + second.shape[2] - 1
    if most > 2:
        return _swept(first, second, depth=2, most=most)
    begin = torch.maximum(first[..., 0], second[..., 0])
    end = torch.minimum(first[..., 1], second[..., 1])
    is_empty = begin >= end
    if most == 1:
        return torch.stack([begin, end], -1).masked_fill_(is_empty[..., None], 0)
    begin, end = begin.masked_fill_(is_empty, BEHIND), end.masked_fill_(is_empty, BEHIND)
    return _of_two(begin[..., 0], end[..., 0], begin[..., 1], end[..., 1])


def union(first: Tensor, second: Tensor) -> Tensor:
    """What is in either; ranges that touch become one."""
    most = first.shape[2] + second.shape[2]
    if most > 2:
        return _swept(first, second, depth=1, most=most)
    first, second = (_behind(ranges)[:, :, 0] for ranges in (first, second))
    begin, later = torch.minimum(first[..., 0], second[..., 0]), torch.maximum(first[..., 0], second[..., 0])
    end, last = torch.minimum(first[..., 1], second[..., 1]), torch.maximum(first[..., 1], second[..., 1])
    meets = later <= end
    return _of_two(
        begin, torch.where(meets, last, end), later.masked_fill_(meets, BEHIND), last.masked_fill(meets, BEHIND)
    )


def _behind(ranges: Tensor) -> Tensor:
    """With unused ranges moved behind all others, where they begin and end at once."""
    return ranges.masked_fill((ranges[..., :1] >= ranges[..., 1:]), BEHIND)


def _of_two(begin: Tensor, end: Tensor, next_begin: Tensor, next_end: Tensor) -> Tensor:
    """Two ranges a query, ascending, out of two disjoint ones in any order, the unused ones behind."""
    begins = torch.stack([torch.minimum(begin, next_begin), torch.maximum(begin, next_begin)], -1)
    ends = torch.stack([torch.minimum(end, next_end), torch.maximum(end, next_end)], -1)
    return torch.stack([begins, ends], -1).masked_fill_((begins == BEHIND)[..., None], 0)


def trimmed(ranges: Tensor) -> Tensor:
    """Without the places that no query uses; one stays. Where asking would wait for a device they all stay."""
    if ranges.shape[2] == 1 or ranges.device.type != "cpu" or torch.compiler.is_compiling():
        return ranges
    used = (ranges[..., 1] > ranges[..., 0]).flatten(0, 1).any(0)
    return ranges[:, :, : max(int(used.sum()), 1)].contiguous()


def _swept(first: Tensor, second: Tensor, *, depth: int, most: int) -> Tensor:
    """The keys that `depth` of the two cover: their ends are walked in order, counting how many ranges are open.

    Where ends meet, a union opens before it closes, so that touching ranges become one; an intersection closes first.
    """
    batch = max(first.shape[0], second.shape[0])
    ranges = torch.cat([first.expand(batch, -1, -1, -1), second.expand(batch, -1, -1, -1)], 2)
    ranges = _behind(ranges)
    opening = 0 if depth == 1 else 1  # the last bit of an end: what comes first where ends meet
    tie = torch.tensor([opening, 1 - opening], dtype=torch.int32, device=ranges.device)
    ends = (ranges * 2 + tie).flatten(2).sort(-1).values
    covered = torch.where((ends & 1) == opening, 1, -1).cumsum(-1) >= depth
    before = torch.cat([torch.zeros_like(covered[..., :1]), covered[..., :-1]], -1)
    places = ends >> 1
    begins = torch.where(covered & ~before, places, BEHIND).sort(-1).values[..., :most]
    closes = torch.where(before & ~covered, places, BEHIND).sort(-1).values[..., :most]
    found = torch.stack([begins, closes], -1)
    return found * (begins < closes)[..., None]
