"""Masks and biases that a foreign model built, in the form that `PairScores` carries them in."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.attention.compact import offsets_of, ranges_of
from regard.attention.intervals import intersection, one_range, trimmed, union
from regard.attention.pair_scores import PairScores


def with_mask(pairs: PairScores, mask: Tensor | None, *, disallows: bool = False, extra: int = 0) -> PairScores:
    """The pairs with one more mask, broadcastable to [batch, heads, query_len, key_len - extra].

    mask: bool, True where attending is allowed (or, where it `disallows`, forbidden); or added to the scores.
    extra: how many keys stand behind those of the mask, allowed to all.

    Cost: one reading of a dense mask, remembered while it lives. What is a few ranges a query or depends on the offset
    alone is kept in linear memory; else the dense tensor itself is kept, and copied only where it disallows, where
    there are extra keys, or another dense mask beside it.
    """
    if mask is None:
        return pairs
    mask = mask.detach()
    whole = mask.expand(*mask.shape[:2], pairs.query_len, pairs.key_len - extra)
    ranges = ranges_of(whole)
    if ranges is not None:
        ranges = complement(ranges, whole.shape[-1]) if disallows and mask.dtype == torch.bool else ranges
        return _within(pairs, _with_extra(ranges, pairs, extra))
    if mask.dtype == torch.bool:
        allowed = ~mask if disallows else mask
        allowed = F.pad(allowed, (0, extra), value=True) if extra else allowed
        return replace(pairs, allowed=allowed if pairs.allowed is None else pairs.allowed & allowed)
    offsets = None if extra else offsets_of(whole.expand(-1, pairs.heads, -1, -1))
    if offsets is not None:
        offset_bias, ranges = offsets
        offset_bias = offset_bias if pairs.offset_bias is None else pairs.offset_bias + offset_bias
        pairs = replace(pairs, offset_bias=offset_bias)
        return pairs if ranges is None else _within(pairs, ranges)
    bias = F.pad(mask, (0, extra)) if extra else mask
    return replace(pairs, bias=bias if pairs.bias is None else pairs.bias + bias)


def complement(ranges: Tensor, key_len: int) -> Tensor:
    """The keys that are in none of a query's ranges, as ranges."""
    used = ranges[..., 0] < ranges[..., 1]
    begins = torch.where(used, ranges[..., 0], key_len)
    ends = torch.where(used, ranges[..., 1], key_len)
    gaps = torch.stack([F.pad(ends, (1, 0), value=0), F.pad(begins, (0, 1), value=key_len)], -1)
    empty = gaps[..., 0] >= gaps[..., 1]
    order = torch.where(empty, key_len, gaps[..., 0]).argsort(-1)
    gaps = (gaps * ~empty[..., None]).gather(-2, order[..., None].expand_as(gaps))
    return trimmed(gaps)


def _with_extra(ranges: Tensor, pairs: PairScores, extra: int) -> Tensor:
    if not extra:
        return ranges
    begin = torch.tensor([[pairs.key_len - extra]], device=ranges.device)
    return trimmed(union(ranges, one_range(begin, begin + extra, pairs.query_len, pairs.key_len)))


def _within(pairs: PairScores, ranges: Tensor) -> PairScores:
    return replace(pairs, ranges=ranges if pairs.ranges is None else trimmed(intersection(pairs.ranges, ranges)))
