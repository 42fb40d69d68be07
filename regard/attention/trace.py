"""Exact weights out of a trace: any tile of the full map, chosen rows, weighted column sums and pooled areas.

A trace is what a call attended with (`PairScores`) and the logsumexp of its rows, both linear in the length. A weight
is exp(score - logsumexp), so a part of the map costs what that part holds, wherever it lies.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from regard.attention.observation import Observe
from regard.attention.pair_scores import PairScores
from regard.attention.second_pass import second_pass

BLOCK_ELEMENTS = 2**20  # weights computed at once: 4 MiB in float32

Range = tuple[int, int]  # half-open range of positions


def cut(pairs: PairScores, item: int, head: int, queries: Range, keys: Range) -> PairScores:
    """The pairs of one item, head and area alone, as a call of its own; views of tensors wherever they can be."""
    (first, last), (begin, end) = queries, keys
    ranges = pairs.ranges
    if ranges is not None:
        ranges = (_one(ranges, 0, item)[:, first:last] - begin).clamp(0, end - begin)
        empty = ranges[..., 0] >= ranges[..., 1]
        if ranges.shape[2] > 1:  # what the cut emptied goes to the end, where unused ranges stand
            order = empty.sort(dim=-1, stable=True).indices
            ranges, empty = ranges.gather(2, order[..., None].expand_as(ranges)), empty.gather(2, order)
        ranges = ranges.masked_fill(empty[..., None], 0)
    bias, allowed = (
        None if dense is None else _area(_one(_one(_whole(dense), 0, item), 1, head), queries, keys)
        for dense in (pairs.bias, pairs.allowed)
    )
    offset_bias = pairs.offset_bias
    if offset_bias is not None:
        # Offset j - i + query_len - 1 of the whole map, for the first key and the last query of the area.
        start = begin - last + pairs.query_len
        offset_bias = offset_bias[head : head + 1, start : start + (last - first) + (end - begin) - 1]
    return replace(
        pairs,
        query=_one(_one(pairs.query, 0, item), 1, head)[:, :, first:last],
        key=_one(_one(pairs.key, 0, item), 1, head // pairs.group)[:, :, begin:end],
        offset_bias=offset_bias,
        bias=bias,
        ranges=ranges,
        allowed=allowed,
        sink=None if pairs.sink is None else pairs.sink[head : head + 1],
    )


def tile(pairs: PairScores, logsumexp: Tensor, item: int, head: int, queries: Range, keys: Range) -> Tensor:
    """The weights of an area, [num_queries, num_keys] in `PairScores.dtype`, float32 at least.

    logsumexp: [batch, heads, query_len]. Beside the result it holds one block of weights.
    """
    (first, last), (begin, end) = queries, keys
    found = pairs.query.new_zeros((last - first, end - begin), dtype=pairs.dtype)
    if found.numel() == 0:
        return found
    step = max(1, BLOCK_ELEMENTS // (end - begin))
    for here in range(first, last, step):
        stop = min(here + step, last)
        scores = cut(pairs, item, head, (here, stop), keys).of_queries(torch.arange(stop - here, device=found.device))
        found[here - first : stop - first] = _weights(scores[0, 0], logsumexp[item, head, here:stop])
    return found


def rows(pairs: PairScores, logsumexp: Tensor, item: int, head: int, index: Tensor) -> Tensor:
    """The weights of chosen queries over all keys, [num_rows, key_len]; index: int64 [num_rows]."""
    found = pairs.query.new_zeros((len(index), pairs.key_len), dtype=pairs.dtype)
    if found.numel() == 0:
        return found
    whole = cut(pairs, item, head, (0, pairs.query_len), (0, pairs.key_len))
    step = max(1, BLOCK_ELEMENTS // pairs.key_len)
    for place in range(0, len(index), step):
        chosen = index[place : place + step]
        found[place : place + step] = _weights(whole.of_queries(chosen)[0, 0], logsumexp[item, head, chosen])
    return found


def received(pairs: PairScores, logsumexp: Tensor, item: int, weights: Tensor) -> Tensor:
    """The weighted column sums weights @ A of one item, [heads, key_len]; weights: [query_len], one a query."""
    request = Observe(received=weights[None])
    found = second_pass(pairs.select_item(item), request, logsumexp[item : item + 1]).received
    assert found is not None
    return found[0]


def pooled(
    pairs: PairScores, logsumexp: Tensor, item: int, head: int, queries: Range, keys: Range, grid: tuple[int, int]
) -> Tensor:
    """The mass of an area summed over the cells of a grid laid over it, [grid rows, grid columns], in linear memory."""
    area = cut(pairs, item, head, queries, keys)
    there = logsumexp[item : item + 1, head : head + 1, queries[0] : queries[1]]
    found = second_pass(area, Observe(pooled=grid), there).pooled
    assert found is not None
    return found[0, 0]


def _weights(scores: Tensor, logsumexp: Tensor) -> Tensor:
    # A query that may attend to nothing has scores and logsumexp -inf, whose difference is no number.
    nothing = logsumexp == float("-inf")
    return (scores - logsumexp.to(scores.dtype).masked_fill(nothing, 0.0)[:, None]).exp()


def _one(tensor: Tensor, axis: int, index: int) -> Tensor:
    """One entry along an axis that is kept; the only one of an axis that is broadcast."""
    return tensor if tensor.shape[axis] == 1 else tensor.narrow(axis, index, 1)


def _whole(tensor: Tensor) -> Tensor:
    """With all four axes, where the first ones were left to broadcasting."""
    return tensor[(None,) * (4 - tensor.dim())]


def _area(tensor: Tensor, queries: Range, keys: Range) -> Tensor:
    if tensor.shape[-2] != 1:
        tensor = tensor[..., queries[0] : queries[1], :]
    return tensor if tensor.shape[-1] == 1 else tensor[..., keys[0] : keys[1]]
