"""Device code of the second pass on a GPU: `sweep`, launched by `kernel`.

A program owns a block of queries of one head and goes through the keys that any of them may attend to, a tile at a
time; tiles of which every pair is allowed run without any code for masks. What belongs to a query stays in registers;
what belongs to a key (`received`, `pooled`) is added to memory, one atomic addition for each key and block.

Why it is cut like this. With heads of 64 the exponentials bound the pass, on an H200 8 cycles for each warp's 32 of
them, twice the time of the products, so all else has to fit beside them: about 9 instructions a pair are issued for
entropy, max_logit and received. Sums over keys are kept apart for the threads that share a row (`_fold`) and cost no
exchange between threads until the end. Sums over queries take three exchanges a column, shared by the rows that a
warp holds. Programs that own keys in place of queries would spare these, but neither find a logsumexp nor keep the
largest weights of a query.

top_k: a query's keys fall into groups, one for each tile and thread that shares the row. Each such thread keeps the
TOP groups whose largest scores are largest, without asking another thread; `choose` looks into the best of
them. None of the top_k keys is missed: every group that is better than its own holds a better key.
"""
# ruff: noqa: N803, N806 (what the compiler knows is in capitals)
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

import triton
import triton.language as tl

from regard.attention.triton.scores import (
    LN_2,
    LOG2_E,
    NEVER,
    NOTHING,
    num_tiles,
    span_of,
    start_of,
    tile_scores,
    weights_of_few,
)

LANES = tl.constexpr(4)  # threads that share a row of a tile where tensor cores made it, each holding pairs of columns


@triton.jit
def _in_slot(scores, slots, SLOTS: tl.constexpr):
    """Scores with the last bits of others, which say the slot: no two of a query's list are equal, and none moves."""
    kept = scores.to(tl.int32, bitcast=True) & -SLOTS
    return (kept | (slots.to(tl.int32, bitcast=True) & (SLOTS - 1))).to(tl.float32, bitcast=True)


@triton.jit
def _fold(tile, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    """A tile as [queries, keys / 8, LANES, 2], whose axes 1 and 3 lie within threads."""
    return tl.reshape(tile, [BLOCK_Q, BLOCK_K // (2 * LANES), LANES, 2])


@triton.jit
def _sums(tile, PARTS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    """Each query's sum in PARTS, [queries, PARTS]: LANES or 1."""
    if PARTS == 1:
        return tl.sum(tile, 1)[:, None]
    else:
        return tl.sum(tl.sum(_fold(tile, BLOCK_Q, BLOCK_K), 1), 2)


@triton.jit
def _largest(tile, PARTS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    if PARTS == 1:
        return tl.max(tile, 1)[:, None]
    else:
        return tl.max(tl.max(_fold(tile, BLOCK_Q, BLOCK_K), 1), 2)


# Numbers that a kernel compiled for others serves as well; strides stay out, their alignment is worth a compilation.
ANY_NUMBER = ["ranges_item", "heads", "group", "query_len", "key_len", "weights_item", "num_columns", "sink_keys"]
ANY_NUMBER += ["grid_rows", "grid_columns"]


@triton.jit(do_not_specialize=ANY_NUMBER)
def sweep(
    # what the scores are made of; strides in elements, those of axes along which a tensor is broadcast being 0
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
    given,
    # what is wanted
    weights,
    weights_item,
    columns,
    num_columns,
    sink_keys,
    grid_rows,
    grid_columns,
    query_cells,  # which row of the grid each query lies in, and which column each key lies in
    key_cells,
    # what is found, None where it is not wanted; contiguous
    logsumexp,
    max_logit,
    entropy,
    received,
    sink_mass,
    top_groups,
    column_weights,
    pooled,
    BIAS_ROWS: tl.constexpr,  # whether the bias differs between queries
    ALLOWED_ROWS: tl.constexpr,
    TOP: tl.constexpr,  # groups of keys kept for each query, a power of 2
    GRID_ROWS: tl.constexpr,  # rows of the grid that a block spans at most; 0 where they are many, and for no grid
    GRID_COLUMNS: tl.constexpr,  # at least the columns that a tile spans, 16, 32, ...; 0: hardly two keys share one
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
    STAGES: tl.constexpr,
    SWEPT: tl.constexpr,  # whether anything but the logsumexp and the largest score takes a sweep
):
    num_blocks = (query_len + BLOCK_Q - 1) // BLOCK_Q
    # The last blocks of a causal call have most to do and go first.
    block = num_blocks - 1 - tl.program_id(0) % num_blocks
    pair = (tl.program_id(0) // num_blocks).to(tl.int64)
    item = pair // heads
    head = pair % heads

    first_row = block * BLOCK_Q
    in_block = tl.arange(0, BLOCK_Q)
    real = first_row + in_block < query_len
    in_block = tl.where(real, in_block, 0)
    rows = first_row + in_block
    of_rows = pair * query_len + rows
    dims = tl.arange(0, BLOCK_D)
    query += item * query_item + head * query_head
    places = query + rows[:, None].to(tl.int64) * query_row + dims[None, :].to(tl.int64) * query_dim
    queries = tl.load(places, mask=real[:, None] & (dims < head_dim)[None, :], other=0.0)

    if offset_bias is not None:
        offset_bias += head * (query_len + key_len - 1) + (query_len - 1 - first_row)
    if bias is not None:
        bias += item * bias_item + head * bias_head + first_row.to(tl.int64) * bias_query
    if allowed is not None:
        allowed += item * allowed_item + head * allowed_head + first_row.to(tl.int64) * allowed_query
    if ranges is not None:
        ranges += item * ranges_item
        spans = num_ranges
    else:
        spans = 1
    keys_at = (key + item * key_item + (head // group) * key_head, key_row, key_dim, head_dim, key_len)
    bias_at = (bias, bias_query, bias_key, bias_lowest)
    allowed_at = (allowed, allowed_query, allowed_key)
    form = (scale, soft_cap, offset_bias, bias_at, allowed_at)

    # -- the logsumexp, in units of ln 2; where none was given it takes a sweep of its own
    reference = tl.full([BLOCK_Q], NEVER, tl.float32)
    if given is not None:
        log_total = tl.load(given + of_rows) * LOG2_E
        log_total = tl.where(tl.abs(log_total) < 1e30, log_total, 0.0)  # where nothing is allowed it may be anything
    else:
        total = tl.zeros([BLOCK_Q], tl.float32)
        for index in range(spans):
            span = span_of(ranges, rows, real, index, num_ranges, key_len, BLOCK_K)
            for MASKED in tl.static_range(2):
                for tile in tl.range(0, num_tiles(span, MASKED, BLOCK_K), num_stages=STAGES):
                    start = start_of(span, tile, MASKED, BLOCK_K)
                    scores = tile_scores(
                        queries,
                        in_block,
                        span,
                        start,
                        keys_at,
                        form,
                        MASKED,
                        BIAS_ROWS,
                        ALLOWED_ROWS,
                        BLOCK_K,
                        BLOCK_D,
                        EVEN_D,
                    )
                    # As long as all was disallowed the reference is NEVER and such keys count; the first allowed key
                    # takes that count to 0.
                    higher = tl.maximum(reference, tl.max(scores, 1))
                    total = total * tl.exp2(reference - higher) + tl.sum(tl.exp2(scores - higher[:, None]), 1)
                    reference = higher
        higher = reference
        if sink is not None:
            sink_score = tl.load(sink + head).to(tl.float32) * LOG2_E
            higher = tl.maximum(reference, sink_score)
            total = total * tl.exp2(reference - higher) + tl.exp2(sink_score - higher)
        log_total = tl.where(higher > NOTHING, higher + tl.log2(tl.where(total > 0, total, 1.0)), 0.0)
    log_total = tl.where(real, log_total, 1e30)  # rows beyond the last query weigh nothing

    # -- what is summed over all pairs
    # If tiles beside a loaded bias were folded, the compiler would lay out all that follows as the bias lies in memory.
    LOADED: tl.constexpr = (offset_bias is not None) or (bias is not None) or (allowed is not None)
    PARTS: tl.constexpr = 1 if LOADED and TOP == 0 else LANES
    greatest = tl.full([BLOCK_Q, PARTS], NEVER, tl.float32)  # of log weights
    surprise = tl.zeros([BLOCK_Q, PARTS], tl.float32)  # weight times log weight
    SLOTS: tl.constexpr = LANES * TOP
    if TOP:
        slots = tl.arange(0, LANES)[:, None] * TOP + tl.arange(0, TOP)[None, :]
        slots = tl.broadcast_to(slots[None, :, :], [BLOCK_Q, LANES, TOP])
        unset = tl.full([BLOCK_Q, LANES, TOP], NEVER, tl.float32)
        best = _in_slot(unset, slots.to(tl.float32, bitcast=True), SLOTS)  # log weights
        best_tile = tl.full([BLOCK_Q, LANES, TOP], -1, tl.int32)
    if weights is not None:
        counted = tl.load(weights + item * weights_item + rows)
    if received is not None:
        received += pair * key_len
    if pooled is not None:
        pooled += pair * grid_rows * grid_columns
        row_cells = tl.load(query_cells + rows)
        first_row_cell = tl.load(query_cells + first_row)
        last_row_cell = tl.load(query_cells + tl.minimum(first_row + BLOCK_Q, query_len) - 1)
    if SWEPT:
        for index in range(spans):
            span = span_of(ranges, rows, real, index, num_ranges, key_len, BLOCK_K)
            for MASKED in tl.static_range(2):
                for tile in tl.range(0, num_tiles(span, MASKED, BLOCK_K), num_stages=STAGES):
                    start = start_of(span, tile, MASKED, BLOCK_K)
                    scores = tile_scores(
                        queries,
                        in_block,
                        span,
                        start,
                        keys_at,
                        form,
                        MASKED,
                        BIAS_ROWS,
                        ALLOWED_ROWS,
                        BLOCK_K,
                        BLOCK_D,
                        EVEN_D,
                    )
                    scores -= log_total[:, None]
                    if TOP or (given is not None):
                        of_groups = _largest(scores, PARTS, BLOCK_Q, BLOCK_K)
                    if TOP:
                        worst = tl.min(best, 2)
                        replaced = (best == worst[:, :, None]) & (of_groups > worst)[:, :, None]
                        best = tl.where(replaced, _in_slot(of_groups, worst, SLOTS)[:, :, None], best)
                        tile_number = index * ((key_len + BLOCK_K - 1) // BLOCK_K) + start // BLOCK_K
                        best_tile = tl.where(replaced, tile_number, best_tile)
                    if given is not None:
                        greatest = tl.maximum(greatest, of_groups)
                    if (entropy is not None) or (received is not None) or (pooled is not None):
                        shares = tl.exp2(scores)
                        if entropy is not None:
                            surprise += _sums(shares * scores, PARTS, BLOCK_Q, BLOCK_K)
                        keys = start + tl.arange(0, BLOCK_K)
                        there = keys < key_len
                        if (received is not None) and (weights is not None):
                            sums = tl.sum(shares * counted[:, None], 0)
                            tl.atomic_add(received + keys, sums, mask=there, sem="relaxed")
                        if ((received is not None) and (weights is None)) or GRID_ROWS > 0:
                            sums = tl.sum(shares, 0)
                        if (received is not None) and (weights is None):
                            tl.atomic_add(received + keys, sums, mask=there, sem="relaxed")
                        if GRID_ROWS > 0:
                            at_cells = pooled + tl.load(key_cells + keys, mask=there, other=0)
                            for below in tl.static_range(1, GRID_ROWS):
                                row_cell = first_row_cell + below
                                if row_cell <= last_row_cell:
                                    part = tl.sum(tl.where((row_cells == row_cell)[:, None], shares, 0.0), 0)
                                    at_row = at_cells + row_cell.to(tl.int64) * grid_columns
                                    tl.atomic_add(at_row, part, mask=there, sem="relaxed")
                                    sums -= part
                            at_row = at_cells + first_row_cell.to(tl.int64) * grid_columns
                            tl.atomic_add(at_row, sums, mask=there, sem="relaxed")
                        if (pooled is not None) and (GRID_ROWS == 0):
                            cells = tl.load(key_cells + keys, mask=there, other=-1)
                            at_rows = pooled + row_cells[:, None].to(tl.int64) * grid_columns
                            if GRID_COLUMNS == 0:
                                both = real[:, None] & there[None, :]
                                tl.atomic_add(at_rows + cells[None, :], shares, mask=both, sem="relaxed")
                            else:
                                near_cells = tl.load(key_cells + start) + tl.arange(0, GRID_COLUMNS)
                                in_cell = (cells[:, None] == near_cells[None, :]).to(tl.float32).to(tl.bfloat16)
                                upper = shares.to(tl.bfloat16)
                                lower = (shares - upper.to(tl.float32)).to(tl.bfloat16)
                                by_cell = tl.dot(lower, in_cell, tl.dot(upper, in_cell))
                                both = real[:, None] & (near_cells < grid_columns)[None, :]
                                tl.atomic_add(at_rows + near_cells[None, :], by_cell, mask=both, sem="relaxed")

    # -- what belongs to each query
    if TOP:
        best = tl.reshape(best, [BLOCK_Q, SLOTS])
        groups = tl.where(best_tile < 0, -1, best_tile * LANES + tl.arange(0, LANES)[None, :, None])
        groups = tl.reshape(groups, [BLOCK_Q, SLOTS])
        for rank in range(TOP):
            here = best == tl.max(best, 1)[:, None]
            tl.store(top_groups + of_rows * TOP + rank, tl.max(tl.where(here, groups, -1), 1), mask=real)
            best = tl.where(here, float("-inf"), best)
    if given is None:
        peak = reference
        nothing = peak < NOTHING
    else:
        peak = tl.max(greatest, 1)
        nothing = peak < NOTHING
        peak += log_total
    tl.store(max_logit + of_rows, tl.where(nothing, float("-inf"), peak * LN_2), mask=real)
    if sink is not None:
        of_nothing = tl.load(sink + head).to(tl.float32)
    else:
        of_nothing = float("-inf")
    if given is not None:
        settled = tl.load(given + of_rows)
    else:
        settled = log_total * LN_2
    tl.store(logsumexp + of_rows, tl.where(nothing, of_nothing, settled), mask=real)
    if entropy is not None:
        tl.store(entropy + of_rows, tl.sum(surprise, 1) * -LN_2, mask=real)
    if sink_mass is not None:
        mass = tl.zeros([BLOCK_Q], tl.float32)
        for begin in range(0, sink_keys, 16):
            keys = begin + tl.arange(0, 16)
            keys = tl.where(keys < sink_keys, keys, -1)
            few = weights_of_few(
                queries,
                in_block,
                first_row,
                keys,
                log_total,
                ranges,
                num_ranges,
                keys_at,
                form,
                BIAS_ROWS,
                ALLOWED_ROWS,
                BLOCK_D,
            )
            mass += tl.sum(few, 1)
        tl.store(sink_mass + of_rows, mass, mask=real)
    if column_weights is not None:
        for begin in range(0, num_columns, 16):
            which = begin + tl.arange(0, 16)
            keys = tl.load(columns + which, mask=which < num_columns, other=-1)
            few = weights_of_few(
                queries,
                in_block,
                first_row,
                keys,
                log_total,
                ranges,
                num_ranges,
                keys_at,
                form,
                BIAS_ROWS,
                ALLOWED_ROWS,
                BLOCK_D,
            )
            at = column_weights + of_rows[:, None] * num_columns + which[None, :]
            tl.store(at, few, mask=real[:, None] & (which < num_columns)[None, :])
