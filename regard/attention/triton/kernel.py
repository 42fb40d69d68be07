"""The second pass in Triton, for NVIDIA devices; `sweep` says how it goes and `statistics` what it returns.

Products are of the inputs' dtype and summed in float32 (float32 inputs: without tf32), all else is float32. `received`
and `pooled` are summed by atomic additions: their last bits differ from run to run. Keys that tie for the last place of
`top_k` to one part in 2^17 of their logarithm may stand for each other; the weights given are those of the keys given.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.attention import chunked
from regard.attention.pair_scores import PairScores
from regard.attention.statistics import Statistics, Wanted

WIDEST_HEAD = 256
MOST_TOP_K = 32
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WORTH_TIMING = 2**30  # pairs of a call from which on the ways to cut it are timed: about half a millisecond's work
SEPARATE_ROWS = 3  # rows of the grid of `pooled` in a block up to which each is summed by itself


class Blocks(NamedTuple):
    """How a problem is cut: queries of a program, keys of a tile, warps of a program, tiles on their way at once."""

    queries: int
    keys: int
    warps: int
    stages: int


def refuses(pairs: PairScores, wanted: Wanted) -> str | None:
    """Why it cannot serve a call; None where it can."""
    if not _triton_is_there():
        return "triton is not installed"
    query = pairs.query
    if query.dtype not in DTYPES or pairs.key.dtype != query.dtype:
        return f"it reads float32, bfloat16 and float16, not queries of {query.dtype} and keys of {pairs.key.dtype}"
    if query.shape[-1] > WIDEST_HEAD:
        return f"heads are {query.shape[-1]} wide; it serves widths up to {WIDEST_HEAD}"
    if wanted.top_k > MOST_TOP_K:
        return f"top_k is {wanted.top_k}; it serves up to {MOST_TOP_K}"
    if not interpreted():
        if query.device.type != "cuda":
            return f"the tensors are on {query.device}; it needs a CUDA device"
        if torch.version.hip is not None or torch.cuda.get_device_capability(query.device) < (8, 0):
            return "it needs an NVIDIA device of compute capability 8.0 or later"
    return None


@functools.cache
def _triton_is_there() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on a CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def statistics(pairs: PairScores, logsumexp: Tensor | None, wanted: Wanted) -> Statistics:
    """See `regard.attention.statistics`."""
    if 0 in (pairs.batch, pairs.heads, pairs.query_len, pairs.key_len):
        return chunked.statistics(pairs, logsumexp, wanted)
    with torch.cuda.device_of(pairs.query):
        return _run(pairs, logsumexp, wanted, _fastest(pairs, logsumexp, wanted))


# -- how to cut a problem ----------------------------------------------------------------------------------------------

_FOUND_FASTEST: dict[tuple[object, ...], Blocks] = {}


def ways_to_cut(pairs: PairScores, wanted: Wanted) -> tuple[Blocks, ...]:
    """Blocks worth trying for a call, the likely fastest first; registers bound them."""
    head_dim, top_k = pairs.query.shape[-1], wanted.top_k
    if interpreted():
        return (Blocks(32, 32, 4, 1),)
    if pairs.query.dtype == torch.float32:  # without tensor cores
        return (Blocks(32, 32, 4, 2),) if head_dim <= 64 and top_k <= 8 else (Blocks(16, 32, 4, 2),)
    if pairs.query_len <= 16:
        return (Blocks(16, 64, 4, 3),)
    tiles_beside_keys = not (pairs.bias is pairs.offset_bias is pairs.allowed is None)
    if head_dim > 128 or tiles_beside_keys:
        return (Blocks(64, 64, 8, 2), Blocks(64, 64, 4, 2)) if top_k <= 16 else (Blocks(64, 64, 8, 2),)
    if top_k > 16:
        return (Blocks(64, 64, 8, 3),)
    if top_k > 8:
        return (Blocks(64, 64, 4, 3),)
    if top_k or head_dim > 64:
        return (Blocks(128, 64, 4, 3), Blocks(64, 64, 4, 3))
    return (Blocks(128, 64, 4, 3), Blocks(256, 64, 4, 3))


def _fastest(pairs: PairScores, logsumexp: Tensor | None, wanted: Wanted) -> Blocks:
    """The fastest way to cut a call; timed once for each kind of call, and only where the call is large."""
    ways = ways_to_cut(pairs, wanted)
    large = pairs.batch * pairs.heads * pairs.query_len * pairs.key_len >= WORTH_TIMING
    if len(ways) == 1 or not large or torch.cuda.is_current_stream_capturing():
        return ways[0]
    asked = (wanted.entropy, wanted.received, wanted.top_k, wanted.grid is None, logsumexp is None)
    kind = (pairs.query.device, pairs.query.dtype, pairs.query.shape[-1], *pairs.tensors(), *asked)
    if kind not in _FOUND_FASTEST:
        milliseconds = {way: _milliseconds(pairs, logsumexp, wanted, way) for way in ways}
        _FOUND_FASTEST[kind] = min(ways, key=lambda way: milliseconds[way])
    return _FOUND_FASTEST[kind]


def _milliseconds(pairs: PairScores, logsumexp: Tensor | None, wanted: Wanted, way: Blocks) -> float:
    """The least time of three runs, after one that compiles; infinite where the device has too little shared memory."""
    from triton.runtime.errors import OutOfResources

    times: list[float] = []
    try:
        for _ in range(4):
            begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begun.record()
            _run(pairs, logsumexp, wanted, way)
            ended.record()
            ended.synchronize()
            times.append(begun.elapsed_time(ended))
    except OutOfResources:
        return math.inf
    return min(times[1:])


# -- launching ---------------------------------------------------------------------------------------------------------


def _run(pairs: PairScores, logsumexp: Tensor | None, wanted: Wanted, cut: Blocks) -> Statistics:
    found, top_groups = _empty(pairs, wanted)
    _sweep(pairs, logsumexp, wanted, found, top_groups, cut)
    if top_groups is not None:
        _choose(pairs, wanted, found, top_groups, cut)
    return found


def _empty(pairs: PairScores, wanted: Wanted) -> tuple[Statistics, Tensor | None]:
    """Where results go, zero where they are summed up, and where the groups go that hold a query's largest weights."""
    num_columns = 0 if wanted.columns is None else wanted.columns.numel()
    per_query = (pairs.batch, pairs.heads, pairs.query_len)

    def of(wanted: object, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return pairs.query.new_empty(shape if wanted else (0,), dtype=dtype)

    found = Statistics(
        logsumexp=of(True, *per_query),
        max_logit=of(True, *per_query),
        entropy=of(wanted.entropy, *per_query),
        received=of(wanted.received, pairs.batch, pairs.heads, pairs.key_len).zero_(),
        sink_mass=of(wanted.sink_mass, *per_query),
        top_weights=of(wanted.top_k, *per_query, wanted.top_k),
        top_index=of(wanted.top_k, *per_query, wanted.top_k, dtype=torch.int64),
        columns=of(num_columns, *per_query, num_columns),
        pooled=of(wanted.grid, pairs.batch, pairs.heads, *(wanted.grid or (0, 0))).zero_(),
    )
    top_groups = None
    if wanted.top_k:
        top_groups = of(True, *per_query, _power_of_two(wanted.top_k), dtype=torch.int32)
    return found, top_groups


def _form(pairs: PairScores) -> dict[str, Any]:
    """Arguments that both kernels share: what the scores are made of."""
    capped = pairs.soft_cap is not None
    arguments: dict[str, Any] = {
        "scale": pairs.scale if capped else pairs.scale * math.log2(math.e),
        "soft_cap": pairs.soft_cap,
        "offset_bias": None if pairs.offset_bias is None else pairs.offset_bias.float().contiguous(),
        "ranges": None if pairs.ranges is None else pairs.ranges.contiguous(),
        "ranges_item": 0,
        "num_ranges": 1,
        "sink": None if pairs.sink is None else pairs.sink.contiguous(),
        "heads": pairs.heads,
        "group": pairs.group,
        "query_len": pairs.query_len,
        "key_len": pairs.key_len,
        "head_dim": pairs.query.shape[-1],
        "bias_lowest": 0.0,
    }
    for name, side in (("query", pairs.query), ("key", pairs.key)):
        axes = (f"{name}_item", f"{name}_head", f"{name}_row", f"{name}_dim")
        arguments |= {name: side, **dict(zip(axes, side.stride(), strict=True))}
    for name, table in (("bias", pairs.bias), ("allowed", pairs.allowed)):
        axes = (f"{name}_item", f"{name}_head", f"{name}_query", f"{name}_key")
        steps = _strides(table)
        arguments |= {name: table, **dict(zip(axes, steps, strict=True)), f"{name.upper()}_ROWS": steps[2] != 0}
    if pairs.bias is not None:
        arguments["bias_lowest"] = max(torch.finfo(pairs.bias.dtype).min, torch.finfo(torch.float32).min) / 2
    if pairs.allowed is not None:
        arguments["allowed"] = pairs.allowed.view(torch.uint8)
    if pairs.ranges is not None:
        arguments["num_ranges"] = pairs.ranges.shape[2]
        arguments["ranges_item"] = pairs.ranges[0].numel() if pairs.ranges.shape[0] > 1 else 0
    return arguments


def _strides(tensor: Tensor | None) -> tuple[int, ...]:
    """Strides over [batch, heads, query_len, key_len] of a tensor that may be broadcast along any, then 0."""
    if tensor is None:
        return (0, 0, 0, 0)
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    strides = tuple(0 if size == 1 else stride for size, stride in sizes)
    return (0,) * (4 - len(strides)) + strides


def _sweep(
    pairs: PairScores,
    logsumexp: Tensor | None,
    wanted: Wanted,
    found: Statistics,
    top_groups: Tensor | None,
    cut: Blocks,
) -> None:
    from regard.attention.triton.sweep import sweep

    grid_rows, grid_columns = wanted.grid or (1, 1)
    spanned_rows = _cells_spanned(grid_rows, pairs.query_len, cut.queries)
    spanned_columns = _cells_spanned(grid_columns, pairs.key_len, cut.keys)
    summed = wanted.entropy or wanted.received or wanted.top_k > 0 or wanted.grid is not None
    head_dim = pairs.query.shape[-1]
    block_dim = max(16, _power_of_two(head_dim))
    sweep[(pairs.batch * pairs.heads * -(-pairs.query_len // cut.queries),)](
        **_form(pairs),
        given=None if logsumexp is None else logsumexp.float().contiguous(),
        weights=None if wanted.weights is None else wanted.weights.float().contiguous(),
        weights_item=0 if wanted.weights is None or wanted.weights.shape[0] == 1 else pairs.query_len,
        columns=None if wanted.columns is None else wanted.columns.contiguous(),
        num_columns=0 if wanted.columns is None else wanted.columns.numel(),
        sink_keys=min(wanted.sink_mass, pairs.key_len),
        grid_rows=grid_rows,
        grid_columns=grid_columns,
        query_cells=None if wanted.grid is None else _cells(grid_rows, pairs.query_len, pairs.query.device),
        key_cells=None if wanted.grid is None else _cells(grid_columns, pairs.key_len, pairs.query.device),
        logsumexp=found.logsumexp,
        max_logit=found.max_logit,
        entropy=found.entropy if wanted.entropy else None,
        received=found.received if wanted.received else None,
        sink_mass=found.sink_mass if wanted.sink_mass else None,
        top_groups=top_groups,
        column_weights=found.columns if found.columns.numel() else None,
        pooled=found.pooled if wanted.grid is not None else None,
        TOP=0 if top_groups is None else top_groups.shape[-1],
        GRID_ROWS=0 if wanted.grid is None or spanned_rows > SEPARATE_ROWS else spanned_rows,
        GRID_COLUMNS=0 if spanned_columns > cut.keys // 2 else max(16, _power_of_two(spanned_columns)),
        BLOCK_Q=cut.queries,
        BLOCK_K=cut.keys,
        BLOCK_D=block_dim,
        EVEN_D=block_dim == head_dim,
        STAGES=cut.stages,
        SWEPT=summed or logsumexp is not None,
        num_warps=cut.warps,
        num_stages=cut.stages,
        enable_fp_fusion=True,
    )


def _choose(pairs: PairScores, wanted: Wanted, found: Statistics, top_groups: Tensor, cut: Blocks) -> None:
    from regard.attention.triton.choose import choose

    kept = top_groups.shape[-1]
    queries = 64 if interpreted() else 1
    choose[(pairs.batch * pairs.heads * -(-pairs.query_len // queries),)](
        **_form(pairs),
        logsumexp=found.logsumexp,
        top_groups=top_groups,
        top_weights=found.top_weights,
        top_index=found.top_index,
        top_k=wanted.top_k,
        TOP=kept,
        BLOCK_Q=queries,
        BLOCK_K=cut.keys,
        BLOCK_D=min(32, max(16, _power_of_two(pairs.query.shape[-1]))),
        num_warps=max(1, kept // 8),
        enable_fp_fusion=True,
    )


def _cells(cells: int, length: int, device: torch.device) -> Tensor:
    """int32 [length], the cell that each place along an axis lies in."""
    return (torch.arange(length, device=device) * cells // length).int()


def _cells_spanned(cells: int, length: int, block: int) -> int:
    """How many of a grid's cells lie between the first and the last place of a block at most, wherever one begins."""
    if length % cells == 0 and (length // cells) % block == 0:
        return 1
    return min(cells, -(-(block - 1) * cells // length) + 1)


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()
