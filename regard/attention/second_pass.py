"""Exact statistics of an attention call in one second pass over (query, key, logsumexp), in linear memory.

The model's own kernel runs untouched and yields the output; this pass recomputes the scores tile by tile, turns them
into weights by that kernel's logsumexp (its own, where the kernel kept none) and adds up what was asked for. It is a
`torch.library` custom op, so that it stands in a compiled graph as one node. Nothing here carries gradient but `rows`,
which are computed apart.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from regard.attention import chunked, native
from regard.attention.observation import Observation, Observe, observe_rows
from regard.attention.pair_scores import PairScores
from regard.attention.statistics import Statistics, Wanted


class Kernel(Protocol):
    """What `regard.attention.statistics` describes; each is a module."""

    def refuses(self, pairs: PairScores, wanted: Wanted) -> str | None: ...

    def statistics(self, pairs: PairScores, logsumexp: Tensor | None, wanted: Wanted) -> Statistics: ...


def kernels(device: torch.device) -> list[Kernel]:
    """The kernels of a device, the fastest first; the last serves everything.

    One that cannot be built here says so when it is asked whether it refuses.
    """
    if device.type == "cpu":
        return [native, chunked]
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from regard.attention.triton import (
            kernel as triton_kernel,  # imports Triton, which is there on machines with a GPU alone
        )

        return [triton_kernel, chunked]
    return [chunked]


def second_pass(pairs: PairScores, request: Observe, logsumexp: Tensor | None = None) -> Observation:
    """The statistics asked for, of a softmax over `pairs` (with its sink, where there is one).

    logsumexp: [batch, heads, query_len], of the kernel that ran, its sink included; computed here unless given.
    The request has been checked (`observation.problems_of`). Everything but `rows` is detached.
    """
    if request.queries is not None:
        pairs = pairs.of_real_queries(request.queries)
    head_index = None
    if request.heads is not None:
        head_index = torch.tensor(request.heads, dtype=torch.int64, device=pairs.query.device) % pairs.heads
        pairs = pairs.select_heads(head_index)
        logsumexp = None if logsumexp is None else logsumexp[:, head_index]
    rows = row_index = None
    if request.rows is not None:
        row_index = observe_rows(request, pairs.query_len, pairs.query.device)
        rows = _rows(pairs, row_index)
        if not replace(request, rows=None):  # rows alone need no pass over all pairs
            return Observation(rows=rows, row_index=row_index, head_index=head_index)
    wanted = _wanted(request, pairs)
    detached = pairs.detach()
    with torch.no_grad():
        found = _op(detached, None if logsumexp is None else logsumexp.detach(), wanted)
    return Observation(
        logsumexp=found.logsumexp if request.logsumexp or request.trace else None,
        entropy=found.entropy.clamp(min=0.0) if request.entropy else None,  # rounding may leave -1e-8 of a sure row
        max_logit=found.max_logit if request.max_logit else None,
        received=found.received if wanted.received else None,
        sink_mass=found.sink_mass if request.sink_mass else None,
        top_weights=found.top_weights if request.top_k else None,
        top_index=found.top_index if request.top_k else None,
        rows=rows,
        row_index=row_index,
        columns=None if wanted.columns is None else found.columns.view(*found.logsumexp.shape, len(wanted.columns)),
        column_index=wanted.columns,
        pooled=found.pooled if request.pooled is not None else None,
        head_index=head_index,
        trace=detached if request.trace else None,
    )


def _wanted(request: Observe, pairs: PairScores) -> Wanted:
    columns = None
    if request.columns is not None:
        chosen = [column % pairs.key_len for column in request.columns]
        columns = torch.tensor(chosen, dtype=torch.int64, device=pairs.query.device)
    weights = None
    if isinstance(request.received, Tensor):
        weights = request.received.detach().to(device=pairs.query.device, dtype=pairs.dtype)
    return Wanted(
        entropy=request.entropy,
        received=request.received is not False,
        weights=weights,
        sink_mass=request.sink_mass,
        top_k=request.top_k,
        columns=columns,
        grid=request.pooled,
    )


def _rows(pairs: PairScores, row_index: Tensor) -> Tensor:
    """Full distributions of chosen queries, [batch, heads, num_rows, key_len]; differentiable."""
    scores = pairs.of_queries(row_index)
    empty = (scores == float("-inf")).all(-1, keepdim=True)
    if pairs.sink is not None:
        sink = pairs.sink.to(scores)[None, :, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    # An empty row is let attend to everything and then set to nothing, which keeps its gradient at 0 as well.
    return scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)


# -- the custom op -----------------------------------------------------------------------------------------------------


def _op(pairs: PairScores, logsumexp: Tensor | None, wanted: Wanted) -> Statistics:
    grid_rows, grid_columns = wanted.grid or (0, 0)
    return Statistics(
        *_second_pass(
            pairs.query,
            pairs.key,
            pairs.scale,
            pairs.soft_cap,
            pairs.offset_bias,
            pairs.bias,
            pairs.ranges,
            pairs.allowed,
            pairs.sink,
            logsumexp,
            wanted.entropy,
            wanted.received,
            wanted.weights,
            wanted.sink_mass,
            wanted.top_k,
            wanted.columns,
            grid_rows,
            grid_columns,
        )
    )


@torch.library.custom_op("regard::second_pass", mutates_args=())
def _second_pass(
    query: Tensor,
    key: Tensor,
    scale: float,
    soft_cap: float | None,
    offset_bias: Tensor | None,
    bias: Tensor | None,
    ranges: Tensor | None,
    allowed: Tensor | None,
    sink: Tensor | None,
    logsumexp: Tensor | None,
    entropy: bool,
    received: bool,
    weights: Tensor | None,
    sink_mass: int,
    top_k: int,
    columns: Tensor | None,
    grid_rows: int,
    grid_columns: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    pairs = PairScores(query, key, scale, soft_cap, offset_bias, bias, ranges, allowed, sink)
    grid = (grid_rows, grid_columns) if grid_rows else None
    wanted = Wanted(entropy, received, weights, sink_mass, top_k, columns, grid)
    for kernel in kernels(query.device):
        if kernel.refuses(pairs, wanted) is None:
            return tuple(kernel.statistics(pairs, logsumexp, wanted))  # type: ignore[return-value]
    raise AssertionError("the chunked kernel serves every call")


@_second_pass.register_fake
def _(
    query: Tensor,
    key: Tensor,
    scale: float,
    soft_cap: float | None,
    offset_bias: Tensor | None,
    bias: Tensor | None,
    ranges: Tensor | None,
    allowed: Tensor | None,
    sink: Tensor | None,
    logsumexp: Tensor | None,
    entropy: bool,
    received: bool,
    weights: Tensor | None,
    sink_mass: int,
    top_k: int,
    columns: Tensor | None,
    grid_rows: int,
    grid_columns: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, query_len, _ = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)

    def of(wanted: object, *shape: int) -> Tensor:
        return query.new_empty(shape if wanted else (0,), dtype=dtype)

    num_columns = 0 if columns is None else columns.shape[0]
    per_query = (batch, heads, query_len)
    return (
        of(True, *per_query),
        of(True, *per_query),
        of(entropy, *per_query),
        of(received, batch, heads, key.shape[2]),
        of(sink_mass, *per_query),
        of(top_k, *per_query, top_k),
        query.new_empty((*per_query, top_k) if top_k else (0,), dtype=torch.int64),
        of(num_columns, *per_query, num_columns),
        of(grid_rows, batch, heads, grid_rows, grid_columns),
    )
