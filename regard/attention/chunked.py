"""The second pass in plain torch, a block of queries at a time: for machines without a compiler, and for every dtype.

Its memory is that of one block, `BLOCK_ELEMENTS` scores, whatever the length. All products are those of the scores'
dtype (float32 at least), so it is exact to rounding for every input that `PairScores` describes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from regard.attention.pair_scores import PairScores
from regard.attention.statistics import Statistics, Wanted

BLOCK_ELEMENTS = 2**20  # scores held at once: 4 MiB in float32, about what a core's cache holds


def refuses(pairs: PairScores, wanted: Wanted) -> str | None:
    """None: it serves everything."""
    return None


def statistics(pairs: PairScores, logsumexp: Tensor | None, wanted: Wanted) -> Statistics:
    """See `regard.attention.statistics`."""
    batch, heads, query_len, key_len = pairs.batch, pairs.heads, pairs.query_len, pairs.key_len
    filled = pairs.query.new_zeros
    per_query = (batch, heads, query_len)
    grid = wanted.grid or (0, 0)
    num_columns = 0 if wanted.columns is None else wanted.columns.numel()
    found = Statistics(
        logsumexp=filled(per_query, dtype=pairs.dtype),
        max_logit=filled(per_query, dtype=pairs.dtype),
        entropy=filled(per_query if wanted.entropy else (0,), dtype=pairs.dtype),
        received=filled((batch, heads, key_len) if wanted.received else (0,), dtype=pairs.dtype),
        sink_mass=filled(per_query if wanted.sink_mass else (0,), dtype=pairs.dtype),
        top_weights=filled((*per_query, wanted.top_k) if wanted.top_k else (0,), dtype=pairs.dtype),
        top_index=filled((*per_query, wanted.top_k) if wanted.top_k else (0,), dtype=torch.int64),
        columns=filled((*per_query, num_columns) if num_columns else (0,), dtype=pairs.dtype),
        pooled=filled((batch, heads, *grid) if wanted.grid else (0,), dtype=pairs.dtype),
    )
    if not key_len or not query_len or not batch:
        nothing = pairs.query.new_tensor(float("-inf"), dtype=pairs.dtype)
        found.logsumexp.copy_(nothing if pairs.sink is None else pairs.sink.to(pairs.dtype)[None, :, None])
        found.max_logit.fill_(float("-inf"))
        found.top_index.fill_(-1)
        return found
    if pairs.ranges is not None and pairs.ranges.shape[0] > 1 and batch * heads * query_len * key_len > BLOCK_ELEMENTS:
        # Each item by itself: what one has as padding lies outside its hull and costs nothing, not even a mask.
        for item in range(batch):
            own = slice(item, item + 1)
            part = Statistics(*(tensor[own] if tensor.ndim > 1 else tensor for tensor in found))
            weights = None if wanted.weights is None or len(wanted.weights) == 1 else wanted.weights[own]
            of_item = wanted if weights is None else replace(wanted, weights=weights)
            _blocks(pairs.select_item(item), None if logsumexp is None else logsumexp[own], of_item, part)
    else:
        _blocks(pairs, logsumexp, wanted, found)
    return found


def _blocks(pairs: PairScores, logsumexp: Tensor | None, wanted: Wanted, found: Statistics) -> None:
    """Fills `found`, a block of queries at a time."""
    rows = max(1, BLOCK_ELEMENTS // (pairs.batch * pairs.heads * pairs.key_len))
    key = pairs.key.to(pairs.dtype).transpose(-2, -1)
    for begin in range(0, pairs.query_len, rows):
        _one_block(pairs, key, logsumexp, wanted, found, begin, min(begin + rows, pairs.query_len))


def _one_block(
    pairs: PairScores, key: Tensor, logsumexp: Tensor | None, wanted: Wanted, found: Statistics, begin: int, end: int
) -> None:
    """Adds the queries of [begin, end) to what was found."""
    first, last = _hull(pairs, begin, end)
    scores = _scores(pairs, key, begin, end, first, last)
    here = slice(begin, end)
    found.max_logit[:, :, here] = greatest = (
        scores.amax(-1) if last > first else scores.new_full(scores.shape[:-1], float("-inf"))
    )
    if logsumexp is None:
        total = scores.logsumexp(-1) if last > first else greatest
        if pairs.sink is not None:
            total = torch.logaddexp(total, pairs.sink.to(total)[None, :, None])
    else:
        total = logsumexp[:, :, here].to(scores.dtype)
    nothing = greatest == float("-inf")
    empty = total.new_tensor(float("-inf")) if pairs.sink is None else pairs.sink.to(total)[None, :, None]
    found.logsumexp[:, :, here] = total = torch.where(nothing, empty, total)
    log_weights = scores.sub_(total.masked_fill(nothing, 0.0)[..., None])  # -inf stays -inf
    weights = log_weights.exp()
    if wanted.entropy:
        surprise = log_weights.clamp_(min=torch.finfo(log_weights.dtype).min).mul_(weights)
        found.entropy[:, :, here] = surprise.sum(-1).neg_()
    if wanted.received:
        per_query = weights.new_ones(1, end - begin) if wanted.weights is None else wanted.weights[:, here]
        found.received[:, :, first:last] += (per_query[:, None, None, :] @ weights)[:, :, 0]
    if wanted.sink_mass > first:
        found.sink_mass[:, :, here] = weights[..., : wanted.sink_mass - first].sum(-1)
    if wanted.top_k:
        _top_k(weights, first, wanted.top_k, found.top_weights[:, :, here], found.top_index[:, :, here])
    if wanted.columns is not None and wanted.columns.numel():
        inside = (wanted.columns >= first) & (wanted.columns < last)
        chosen = wanted.columns[inside] - first
        found.columns[:, :, here, inside] = weights[..., chosen]
    if wanted.grid is not None:
        grid_rows, grid_columns = wanted.grid
        row = torch.arange(begin, end, device=weights.device) * grid_rows // pairs.query_len
        column = torch.arange(first, last, device=weights.device) * grid_columns // pairs.key_len
        by_column = weights.new_zeros(*weights.shape[:-1], grid_columns).index_add_(-1, column, weights)
        found.pooled.index_add_(2, row, by_column)


def _hull(pairs: PairScores, begin: int, end: int) -> tuple[int, int]:
    """The range of keys outside which the ranges of these queries allow nothing."""
    if pairs.ranges is None:
        return 0, pairs.key_len
    ranges = pairs.ranges[:, begin:end]
    used = ranges[..., 1] > ranges[..., 0]
    if not bool(used.any()):
        return 0, 0
    return int(ranges[..., 0][used].min()), int(ranges[..., 1].max())


def _scores(pairs: PairScores, key: Tensor, begin: int, end: int, first: int, last: int) -> Tensor:
    """As `PairScores.of_queries` of one tile, computed in place; key: [batch, kv_heads, head_dim, key_len]."""
    query = pairs.query[:, :, begin:end].to(pairs.dtype).unflatten(1, (key.shape[1], pairs.group)).flatten(2, 3)
    scores = ((query * pairs.scale) @ key[..., first:last]).unflatten(2, (pairs.group, end - begin)).flatten(1, 2)
    if pairs.soft_cap is not None:
        scores.div_(pairs.soft_cap).tanh_().mul_(pairs.soft_cap)
    rows = torch.arange(begin, end, device=scores.device)
    keys = torch.arange(first, last, device=scores.device)
    if pairs.offset_bias is not None:
        offsets = keys[None, :] - rows[:, None] + (pairs.query_len - 1)
        scores += pairs.offset_bias[:, offsets]
    if pairs.bias is not None:
        bias = _cut(pairs.bias, begin, end, first, last)
        scores += bias
        scores.masked_fill_(bias <= torch.finfo(bias.dtype).min / 2, float("-inf"))
    if pairs.ranges is not None and not _all_allowed(pairs.ranges, begin, end, first, last):
        ranges = pairs.ranges[:, begin:end]
        inside = ((ranges[..., 0, None] <= keys) & (keys < ranges[..., 1, None])).any(-2)
        scores.masked_fill_(~inside[:, None], float("-inf"))
    if pairs.allowed is not None:
        scores.masked_fill_(~_cut(pairs.allowed, begin, end, first, last), float("-inf"))
    masked: Tensor = scores
    return masked


def _all_allowed(ranges: Tensor, begin: int, end: int, first: int, last: int) -> bool:
    whole = (ranges[:, begin:end, :, 0] <= first) & (ranges[:, begin:end, :, 1] >= last)
    return bool(whole.any(-1).all())


def _cut(tensor: Tensor, begin: int, end: int, first: int, last: int) -> Tensor:
    """A tile of a tensor that may be broadcast along either axis."""
    if tensor.shape[-2] != 1:
        tensor = tensor[..., begin:end, :]
    return tensor if tensor.shape[-1] == 1 else tensor[..., first:last]


def _top_k(weights: Tensor, first: int, top_k: int, top_weights: Tensor, top_index: Tensor) -> None:
    kept = min(top_k, weights.shape[-1])
    top_weights.zero_()
    top_index.fill_(-1)
    if kept:
        values, index = weights.topk(kept, dim=-1)
        top_weights[..., :kept] = values
        top_index[..., :kept] = torch.where(values > 0, index + first, -1)
