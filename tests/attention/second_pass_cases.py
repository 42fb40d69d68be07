"""Calls that every kernel of the second pass is held to, and the materialised oracle in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from regard.attention.pair_scores import PairScores
from regard.attention.statistics import Statistics, Wanted

NEGATIVE_INFINITY = float("-inf")


def inputs(
    batch: int = 2,
    heads: int = 6,
    kv_heads: int = 3,
    query_len: int = 53,
    key_len: int = 67,
    head_dim: int = 19,
    dtype: torch.dtype = torch.float32,
    spread: float = 1.0,
) -> PairScores:
    generator = torch.Generator().manual_seed(7)
    query = torch.randn(batch, heads, query_len, head_dim, generator=generator, dtype=torch.float64) * spread
    key = torch.randn(batch, kv_heads, key_len, head_dim, generator=generator, dtype=torch.float64)
    return PairScores(query.to(dtype), key.to(dtype), head_dim**-0.5)


def causal(pairs: PairScores) -> Tensor:
    ends = torch.arange(pairs.query_len) + pairs.key_len - pairs.query_len + 1
    return torch.stack([torch.zeros_like(ends), ends.clamp(0, pairs.key_len)], -1).int().view(1, -1, 1, 2)


def padded(pairs: PairScores) -> Tensor:
    """Item b has key_len - 11 b keys; the last item's last queries may attend to nothing."""
    ends = (pairs.key_len - 11 * torch.arange(pairs.batch))[:, None].repeat(1, pairs.query_len)
    ends[-1, -5:] = 0
    return torch.stack([torch.zeros_like(ends), ends], -1).int()[:, :, None, :]


def window_and_global(pairs: PairScores) -> Tensor:
    place = torch.arange(pairs.query_len) + pairs.key_len - pairs.query_len
    first = torch.tensor([0, 3]).expand(pairs.query_len, 2)
    second = torch.stack([(place - 7).clamp(3, pairs.key_len), (place + 5).clamp(3, pairs.key_len)], -1)
    second = torch.where((second[:, :1] < second[:, 1:]), second, 0)
    return torch.stack([first, second], 1).int()[None].contiguous()


def random(pairs: PairScores, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


def finite_minimum(pairs: PairScores) -> Tensor:
    """As transformers writes masks: added, 0 or the dtype's lowest value."""
    keep = random(pairs, pairs.batch, 1, pairs.query_len, pairs.key_len) > -0.3
    keep[0, 0, 3] = False
    return torch.zeros(keep.shape, dtype=pairs.query.dtype).masked_fill(~keep, torch.finfo(pairs.query.dtype).min)


def offset_bias(pairs: PairScores) -> Tensor:
    return random(pairs, pairs.heads, pairs.query_len + pairs.key_len - 1).to(pairs.dtype)


# name -> what makes the case out of plain pairs
CASES: dict[str, Callable[[PairScores], PairScores]] = {
    "plain": lambda pairs: pairs,
    "causal": lambda pairs: replace(pairs, ranges=causal(pairs)),
    "padded": lambda pairs: replace(pairs, ranges=padded(pairs)),
    "window and global": lambda pairs: replace(pairs, ranges=window_and_global(pairs)),
    "soft cap": lambda pairs: replace(pairs, soft_cap=1.5, ranges=causal(pairs)),
    "sink": lambda pairs: replace(pairs, sink=random(pairs, pairs.heads).to(pairs.dtype), ranges=padded(pairs)),
    "offset bias": lambda pairs: replace(pairs, offset_bias=offset_bias(pairs), ranges=causal(pairs)),
    "bias of all heads": lambda pairs: replace(
        pairs, bias=random(pairs, 1, pairs.heads, pairs.query_len, pairs.key_len).to(pairs.query.dtype)
    ),
    "bias of keys": lambda pairs: replace(pairs, bias=random(pairs, pairs.batch, 1, 1, pairs.key_len).to(pairs.dtype)),
    "finite minimum": lambda pairs: replace(pairs, bias=finite_minimum(pairs)),
    "allowed": lambda pairs: replace(
        pairs, allowed=random(pairs, pairs.batch, pairs.heads, pairs.query_len, pairs.key_len) > 0
    ),
    "allowed keys": lambda pairs: replace(pairs, allowed=random(pairs, pairs.batch, 1, 1, pairs.key_len) > 0),
    "everything": lambda pairs: replace(
        pairs,
        soft_cap=3.0,
        offset_bias=offset_bias(pairs),
        bias=finite_minimum(pairs),
        ranges=window_and_global(pairs),
        allowed=random(pairs, 1, pairs.heads, pairs.query_len, pairs.key_len) > -1.0,
        sink=random(pairs, pairs.heads).to(pairs.dtype),
    ),
    "strided": lambda pairs: replace(
        pairs,
        query=pairs.query.transpose(1, 2).contiguous().transpose(1, 2),
        key=pairs.key.transpose(1, 2).contiguous().transpose(1, 2),
        ranges=causal(pairs),
    ),
}
# name -> keyword arguments of `inputs`: every remainder of a tile, tiny and empty sides
SIZES: dict[str, dict[str, int]] = {
    "odd": {},
    "one query": {"query_len": 1},
    "one key": {"key_len": 1, "query_len": 3},
    "many queries": {"query_len": 131, "key_len": 37},
    "wide heads": {"head_dim": 160, "query_len": 9},
    "aligned": {"query_len": 128, "key_len": 256, "head_dim": 64},
    "multi-query": {"kv_heads": 1},
    "no keys": {"key_len": 0, "query_len": 5},
}


def wanted_everything(pairs: PairScores, *, weighted: bool = False) -> Wanted:
    weights = random(pairs, pairs.batch, pairs.query_len).to(pairs.dtype) if weighted else None
    columns = torch.tensor([pairs.key_len - 1, 0, pairs.key_len // 2] if pairs.key_len else [], dtype=torch.int64)
    return Wanted(entropy=True, received=True, weights=weights, sink_mass=4, top_k=5, columns=columns, grid=(7, 5))


def materialised(pairs: PairScores) -> tuple[Tensor, Tensor, Tensor]:
    """(scores, weights, logsumexp) from the definition, in float64."""
    double = {
        name: tensor.double()
        for name, tensor in pairs.tensors().items()
        if tensor.is_floating_point() and name != "bias"
    }
    pairs = replace(pairs, **double)
    scores = pairs.of_queries(torch.arange(pairs.query_len))
    sink = torch.full((pairs.heads,), NEGATIVE_INFINITY) if pairs.sink is None else pairs.sink
    shown = torch.cat([scores, sink.double().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], -1)
    logsumexp = shown.logsumexp(-1)
    return scores, torch.where(scores == NEGATIVE_INFINITY, 0.0, (scores - logsumexp[..., None]).exp()), logsumexp


def oracle(pairs: PairScores, wanted: Wanted) -> Statistics:
    """Everything from the definition, in float64, materialised."""
    scores, weights, logsumexp = materialised(pairs)
    counted = torch.ones(1, pairs.query_len) if wanted.weights is None else wanted.weights
    top = torch.zeros(*weights.shape[:-1], wanted.top_k, dtype=torch.float64)
    index = torch.full(top.shape, -1)
    kept = min(wanted.top_k, pairs.key_len)
    top[..., :kept], index[..., :kept] = weights.topk(kept, -1)
    grid_rows, grid_columns = wanted.grid or (0, 0)
    rows = torch.arange(pairs.query_len) * grid_rows // pairs.query_len
    columns = torch.arange(pairs.key_len) * grid_columns // max(pairs.key_len, 1)
    pooled = torch.zeros(*weights.shape[:2], grid_rows, grid_columns, dtype=torch.float64)
    for row in range(pairs.query_len):
        pooled[:, :, rows[row]].index_add_(-1, columns, weights[:, :, row])
    return Statistics(
        logsumexp=logsumexp,
        max_logit=torch.cat([scores, torch.full_like(logsumexp[..., None], NEGATIVE_INFINITY)], -1).amax(-1),
        entropy=torch.special.entr(weights).sum(-1),
        received=(weights * counted.double()[:, None, :, None]).sum(-2),
        sink_mass=weights[..., : wanted.sink_mass].sum(-1),
        top_weights=top,
        top_index=torch.where(top > 0, index, -1),
        columns=weights[..., wanted.columns] if wanted.columns is not None else torch.zeros(0),
        pooled=pooled,
    )


def compare(kernel: ModuleType, pairs: PairScores, wanted: Wanted, *, given: bool, tolerance: float) -> None:
    """Holds a kernel to the oracle; given: whether it is handed the logsumexp or has to find it.

    tolerance: of weights (absolute, and relative to the number of queries where they are summed), of logsumexp, max
    logit and entropy (absolute). Raises: AssertionError, naming the statistic.
    """
    expected = oracle(pairs, wanted)
    logsumexp = expected.logsumexp.to(pairs.dtype) if given else None
    found = kernel.statistics(pairs, logsumexp, wanted)
    for name in Statistics._fields:
        mine, truth = getattr(found, name), getattr(expected, name)
        assert mine.shape == truth.shape or mine.numel() == truth.numel() == 0, name
        if mine.numel() == truth.numel() == 0:
            continue
        if name == "top_index":
            _same_places(mine, found.top_weights, materialised(pairs)[1], tolerance)
            continue
        allowed = tolerance * (pairs.query_len if name in ("received", "pooled") else 1)
        torch.testing.assert_close(
            mine.double(), truth.double(), rtol=tolerance, atol=allowed, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert mine.dtype == pairs.dtype, name


def _same_places(index: Tensor, top_weights: Tensor, weights: Tensor, tolerance: float) -> None:
    """Places may differ among equal weights alone: each is taken once, and -1 stands exactly where the weight is 0."""
    assert index.dtype == torch.int64
    assert ((index == -1) == (top_weights == 0)).all(), "top_index: -1 where and only where there is no weight"
    for row in index.flatten(0, -2).tolist():
        real = [place for place in row if place >= 0]
        assert len(real) == len(set(real)), f"top_index: {row} names a key twice"
    if weights.shape[-1]:
        there = torch.where(index >= 0, weights.gather(-1, index.clamp(min=0)), 0.0)
        torch.testing.assert_close(top_weights.double(), there, rtol=tolerance, atol=tolerance)
