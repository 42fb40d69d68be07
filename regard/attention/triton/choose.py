"""Device code of the second pass on a GPU: `choose`, which finds each query's largest weights.

It computes the scores of the few groups of keys anew that `sweep` kept for a query, and takes the largest ones
one after the other.
"""
# ruff: noqa: N803, N806 (what the compiler knows is in capitals)
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

import triton
import triton.language as tl

from regard.attention.triton.scores import LOG2_E, scores_of
from regard.attention.triton.sweep import LANES


@triton.jit(do_not_specialize=["ranges_item", "heads", "group", "query_len", "key_len", "top_k"])
def choose(
    query,
    query_item,
    query_head,
    query_row,
    query_dim,
    key,
    key_item,
    key_head,
    key_row,
    key_dim,
    scale,
    soft_cap,
    offset_bias,
    bias,
    bias_item,
    bias_head,
    bias_query,
    bias_key,
    bias_lowest,
    ranges,
    ranges_item,
    num_ranges,
    allowed,
    allowed_item,
    allowed_head,
    allowed_query,
    allowed_key,
    sink,
    heads,
    group,
    query_len,
    key_len,
    head_dim,
    logsumexp,
    top_groups,
    top_weights,
    top_index,
    top_k,
    BIAS_ROWS: tl.constexpr,
    ALLOWED_ROWS: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,  # as in `sweep`
    BLOCK_D: tl.constexpr,  # of the head, gone through in such pieces
):
    """The largest weights out of the groups that `sweep` kept, largest first."""
    num_blocks = (query_len + BLOCK_Q - 1) // BLOCK_Q
    block = tl.program_id(0) % num_blocks
    pair = (tl.program_id(0) // num_blocks).to(tl.int64)
    item = pair // heads
    head = pair % heads
    first_row = block * BLOCK_Q
    in_block = tl.arange(0, BLOCK_Q)
    real = first_row + in_block < query_len
    in_block = tl.where(real, in_block, 0)
    rows = first_row + in_block
    of_rows = pair * query_len + rows

    GROUP: tl.constexpr = BLOCK_K // LANES
    groups = tl.load(top_groups + of_rows[:, None] * TOP + tl.arange(0, TOP)[None, :])
    kept = real[:, None] & (groups >= 0)
    groups = tl.where(kept, groups, 0)
    tiles = groups // LANES
    num_tiles = (key_len + BLOCK_K - 1) // BLOCK_K
    member = tl.arange(0, GROUP)
    member = member // 2 * (2 * LANES) + member % 2  # of a group: pairs of keys, one out of 2 * LANES keys
    first = tiles % num_tiles * BLOCK_K + groups % LANES * 2
    keys = first[:, :, None] + member[None, None, :]
    if ranges is not None:
        places = ranges + item * ranges_item + (rows[:, None] * num_ranges + tiles // num_tiles) * 2
        begins = tl.load(places)
        ends = tl.minimum(tl.load(places + 1), key_len)
    else:
        begins = tl.zeros_like(groups)
        ends = begins + key_len
    inside = kept[:, :, None] & (begins[:, :, None] <= keys) & (keys < ends[:, :, None])
    keys = tl.reshape(tl.where(inside, keys, -1), [BLOCK_Q, TOP * GROUP])
    inside = keys >= 0
    keys = tl.maximum(keys, 0)

    query += item * query_item + head * query_head
    key += item * key_item + (head // group) * key_head
    products = tl.zeros([BLOCK_Q, TOP * GROUP], tl.float32)
    for begin in range(0, head_dim, BLOCK_D):
        dims = begin + tl.arange(0, BLOCK_D)
        of_query = tl.load(
            query + rows[:, None].to(tl.int64) * query_row + dims[None, :].to(tl.int64) * query_dim,
            mask=(dims < head_dim)[None, :],
            other=0.0,
        ).to(tl.float32)
        of_key = tl.load(
            key + keys[:, :, None].to(tl.int64) * key_row + dims[None, None, :].to(tl.int64) * key_dim,
            mask=inside[:, :, None] & (dims < head_dim)[None, None, :],
            other=0.0,
        ).to(tl.float32)
        products += tl.sum(of_query[:, None, :] * of_key, 2)
    if offset_bias is not None:
        offset_bias += head * (query_len + key_len - 1) + (query_len - 1 - first_row)
    if bias is not None:
        bias += item * bias_item + head * bias_head + first_row.to(tl.int64) * bias_query
    if allowed is not None:
        allowed += item * allowed_item + head * allowed_head + first_row.to(tl.int64) * allowed_query
    bias_at = (bias, bias_query, bias_key, bias_lowest)
    allowed_at = (allowed, allowed_query, allowed_key)
    form = (scale, soft_cap, offset_bias, bias_at, allowed_at)
    scores = scores_of(products, in_block[:, None], keys.to(tl.int64), form, BIAS_ROWS, ALLOWED_ROWS)
    log_total = tl.load(logsumexp + of_rows) * LOG2_E
    log_total = tl.where(tl.abs(log_total) < 1e30, log_total, 0.0)
    weights = tl.where(inside, tl.exp2(scores - log_total[:, None]), 0.0)
    # Positive numbers are in the order of their bits; equal ones are taken from the first key on.
    order = tl.where(weights > 0, weights, 0.0).to(tl.int32, bitcast=True)
    for rank in range(top_k):
        largest = tl.max(order, 1)
        equal = order == largest[:, None]
        index = tl.min(tl.where(equal, keys, 2147483647), 1)
        order = tl.where(equal & (keys == index[:, None]), 0, order)
        weight = largest.to(tl.float32, bitcast=True)
        tl.store(top_weights + of_rows * top_k + rank, weight, mask=real)
        tl.store(top_index + of_rows * top_k + rank, tl.where(weight > 0, index, -1).to(tl.int64), mask=real)
