"""Device code that both kernels of the second pass on a GPU share: how scores are made, and which tiles a block visits.

All scores are in units of ln 2, so that weights are powers of 2. What is disallowed has the score `NEVER`, finite, so
that a weight of 0 times its logarithm is 0. Tuples stand for what belongs together: `keys_at` is where keys lie,
`form` what a score is made of beside the product, `span` which tiles a block of queries visits.
"""
# ruff: noqa: N803, RUF059 (what the compiler knows is in capitals)
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
NEVER = tl.constexpr(-3.0e38)
NOTHING = tl.constexpr(-1.5e38)  # a largest score below this one: nothing was allowed
LEAST = tl.constexpr(-0.5e38)  # an added bias counts as no less, so that it stays above NOTHING


@triton.jit
def soft_cap_of(scores, cap):
    """cap * tanh(scores / cap); near 0 by its power series, where the quotient of exponentials loses digits."""
    ratio = scores / cap
    square = ratio * ratio
    near = ratio * (1.0 + square * (-1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315 + square * (62.0 / 2835)))))
    shrunk = tl.exp2(tl.abs(ratio) * (-2.0 * LOG2_E))
    far = (1.0 - shrunk) / (1.0 + shrunk)
    return cap * tl.where(square < 0.09, near, tl.where(ratio < 0, -far, far))


@triton.jit
def scores_of(products, rows, keys, form, BIAS_ROWS: tl.constexpr, ALLOWED_ROWS: tl.constexpr):
    """Final scores of pairs as if the ranges allowed them all.

    rows, keys: places that broadcast to the products' shape, counted from the row and key that form points at.
    """
    scale, soft_cap, offset_bias, bias_at, allowed_at = form
    scores = products * scale  # the scale holds the factor log2(e), unless there is a soft cap
    if soft_cap is not None:
        scores = soft_cap_of(scores, soft_cap) * LOG2_E
    if offset_bias is not None:
        scores += tl.maximum(tl.load(offset_bias + (keys - rows)), LEAST) * LOG2_E
    bias, bias_query, bias_key, bias_lowest = bias_at
    if bias is not None:
        place = keys * bias_key
        if BIAS_ROWS:
            place = place + rows * bias_query
        added = tl.load(bias + place).to(tl.float32)
        scores = tl.where(added > bias_lowest, scores + tl.maximum(added, LEAST) * LOG2_E, NEVER)
    allowed, allowed_query, allowed_key = allowed_at
    if allowed is not None:
        place = keys * allowed_key
        if ALLOWED_ROWS:
            place = place + rows * allowed_query
        scores = tl.where(tl.load(allowed + place) != 0, scores, NEVER)
    return scores


@triton.jit
def span_of(ranges, rows, real, index, num_ranges, key_len, BLOCK_K: tl.constexpr):
    """One range of each query of a block, and the tiles that these take: (begins, ends, first, first full, last full,
    last).

    Tiles are named by their first key, a multiple of BLOCK_K. In the tiles from the first full to before the last full
    every pair is allowed; those from the first to before the last hold every allowed pair.
    """
    if ranges is None:
        begins = tl.zeros_like(rows)
        ends = begins + key_len
        first = 0
        last = (key_len + BLOCK_K - 1) // BLOCK_K * BLOCK_K
        first_full = 0
        last_full = key_len // BLOCK_K * BLOCK_K
    else:
        place = ranges + (rows * num_ranges + index) * 2
        begins = tl.load(place)
        ends = tl.minimum(tl.load(place + 1), key_len)
        used = real & (begins < ends)
        first = tl.min(tl.where(used, begins, key_len), 0) // BLOCK_K * BLOCK_K
        last = (tl.max(tl.where(used, ends, 0), 0) + BLOCK_K - 1) // BLOCK_K * BLOCK_K
        first_full = (tl.max(tl.where(real, begins, 0), 0) + BLOCK_K - 1) // BLOCK_K * BLOCK_K
        last_full = tl.min(tl.where(real, ends, key_len), 0) // BLOCK_K * BLOCK_K
        first_full = tl.minimum(first_full, last)
        last_full = tl.maximum(tl.minimum(last_full, last), first_full)
    return begins, ends, first, first_full, last_full, last


@triton.jit
def num_tiles(span, MASKED: tl.constexpr, BLOCK_K: tl.constexpr):
    """Of the tiles that need a mask, or of those that need none."""
    begins, ends, first, first_full, last_full, last = span
    if MASKED:
        return (first_full - first + last - last_full) // BLOCK_K
    else:
        return (last_full - first_full) // BLOCK_K


@triton.jit
def start_of(span, tile, MASKED: tl.constexpr, BLOCK_K: tl.constexpr):
    """The first key of the n-th of these tiles."""
    begins, ends, first, first_full, last_full, last = span
    if MASKED:
        start = first + tile * BLOCK_K
        return tl.where(start < first_full, start, start - first_full + last_full)
    else:
        return first_full + tile * BLOCK_K


@triton.jit
def tile_scores(
    queries,
    rows,
    span,
    start,
    keys_at,
    form,
    MASKED: tl.constexpr,
    BIAS_ROWS: tl.constexpr,
    ALLOWED_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
):
    """Final scores of a block of queries and the tile of keys that begins at `start`, [BLOCK_Q, BLOCK_K].

    rows: counted from the block's first, which form points at.
    """
    key, key_row, key_dim, head_dim, key_len = keys_at
    begins, ends, first, first_full, last_full, last = span
    dims = tl.arange(0, BLOCK_D)
    in_tile = tl.arange(0, BLOCK_K)
    keys = start + in_tile
    start = start.to(tl.int64)
    places = key + start * key_row + (in_tile[None, :] * key_row + dims[:, None].to(tl.int64) * key_dim)
    there = (keys < key_len)[None, :]
    within = (dims < head_dim)[:, None]
    if EVEN_D and not MASKED:
        block = tl.load(places)
    elif EVEN_D:
        block = tl.load(places, mask=there, other=0.0)
    elif MASKED:
        block = tl.load(places, mask=there & within, other=0.0)
    else:
        block = tl.load(places, mask=within, other=0.0)
    products = tl.dot(queries, block, input_precision="ieee")
    scale, soft_cap, offset_bias, bias_at, allowed_at = form
    bias, bias_query, bias_key, bias_lowest = bias_at
    allowed, allowed_query, allowed_key = allowed_at
    if offset_bias is not None:
        offset_bias += start
    if bias is not None:
        bias += start * bias_key
    if allowed is not None:
        allowed += start * allowed_key
    bias_at = (bias, bias_query, bias_key, bias_lowest)
    here = (scale, soft_cap, offset_bias, bias_at, (allowed, allowed_query, allowed_key))
    if MASKED:
        in_tile = tl.where(keys < key_len, in_tile, 0)
        scores = scores_of(products, rows[:, None], in_tile[None, :], here, BIAS_ROWS, ALLOWED_ROWS)
        inside = (begins[:, None] <= keys[None, :]) & (keys[None, :] < ends[:, None])
        return tl.where(inside, scores, NEVER)
    else:
        return scores_of(products, rows[:, None], in_tile[None, :], here, BIAS_ROWS, ALLOWED_ROWS)


@triton.jit
def weights_of_few(
    queries,
    rows,
    first_row,
    keys,
    log_total,
    ranges,
    num_ranges,
    keys_at,
    form,
    BIAS_ROWS: tl.constexpr,
    ALLOWED_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Weights of chosen keys, [BLOCK_Q, keys]; 0 for keys that lie outside the axis.

    rows: as in `tile_scores`; first_row: the block's first.
    """
    key, key_row, key_dim, head_dim, key_len = keys_at
    outside = (keys < 0) | (keys >= key_len)
    keys = tl.where(outside, 0, keys).to(tl.int64)
    inside = ~outside[None, :] & (rows >= 0)[:, None]
    if ranges is not None:
        in_none = inside
        for index in range(num_ranges):
            place = ranges + ((first_row + rows) * num_ranges + index) * 2
            begins = tl.load(place)[:, None]
            ends = tl.load(place + 1)[:, None]
            in_none = in_none & ((keys[None, :] < begins) | (keys[None, :] >= ends))
        inside = inside & ~in_none
    dims = tl.arange(0, BLOCK_D)
    places = key + keys[None, :] * key_row + dims[:, None].to(tl.int64) * key_dim
    block = tl.load(places, mask=(dims < head_dim)[:, None], other=0.0)
    products = tl.dot(queries, block, input_precision="ieee")
    scores = scores_of(products, rows[:, None], keys[None, :], form, BIAS_ROWS, ALLOWED_ROWS)
    return tl.where(inside, tl.exp2(scores - log_total[:, None]), 0.0)
