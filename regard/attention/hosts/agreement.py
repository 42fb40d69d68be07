"""Whether an attention function computed what was read from its arguments: a few of its rows, computed again.

Every model file of transformers has an attention function of its own. Most are one formula; one that is another (a bias
looked up inside, a mask left out) must not be observed as if it were that formula.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from regard.attention.pair_scores import PairScores

HALF = 1e-4  # the precision of half-precision dtypes is coarser


def disagreement(pairs: PairScores, value: Tensor, output: object, weights: object, dropout: float) -> str | None:
    """What differs, or None. Cost: three queries' rows.

    value: [batch, kv_heads, key_len, value_dim]; output: [batch, query_len, heads, value_dim], or with the last two in
    one; weights: [batch, heads, query_len, key_len], which dropout may have thinned; needed where it has.
    """
    if not pairs.query_len or not pairs.key_len:
        return None
    rows = torch.tensor(sorted({0, pairs.query_len // 2, pairs.query_len - 1}), device=pairs.query.device)
    with torch.no_grad():
        scores = pairs.of_queries(rows)
        real = (scores > float("-inf")).any(-1)
        seen = scores.masked_fill(scores == float("-inf"), 0.0).abs().amax()
        # Many take their softmax in float32 whatever the model's dtype.
        dtypes = [torch.float32, pairs.query.dtype, *([output.dtype] if isinstance(output, Tensor) else [])]
        eps = max(torch.finfo(dtype).eps for dtype in dtypes)
        slack = eps * (16 + 8 * seen)
        # In half precision that bound would let anything pass. There a product, its scale and its mask are rounded, and
        # that of a score changes its weight by so much of itself.
        products = replace(pairs, soft_cap=None, offset_bias=None, bias=None, ranges=None, allowed=None, sink=None)
        size = torch.maximum(products.of_queries(rows).abs(), scores.masked_fill(scores == float("-inf"), 0.0).abs())
        rounding = None if eps < HALF else eps * (3 + 1.5 * size)
        plain = scores.masked_fill(~real[..., None], 0.0).softmax(-1)
        sunk = plain if pairs.sink is None else _with_sink(scores, pairs.sink)
        if dropout > 0.0:
            return _of_thinned(weights, rows, real, (plain, sunk), dropout, slack, rounding)
        return _of_output(output, rows, real, sunk, value, slack, rounding)


def _of_output(
    output: object, rows: Tensor, real: Tensor, weights: Tensor, value: Tensor, slack: Tensor, rounding: Tensor | None
) -> str | None:
    batch, heads = weights.shape[:2]
    wide = value.to(weights.dtype).repeat_interleave(heads // value.shape[1], 1)
    expected = (weights @ wide).transpose(1, 2)
    if not isinstance(output, Tensor) or output.ndim < 3 or output.shape[0] != batch or len(rows) > output.shape[1]:
        return f"its output is no [batch, query_len, heads, value_dim] of {batch} items"
    found = output[:, rows]
    if found.numel() != expected.numel():
        return f"its output has shape {tuple(output.shape)}"
    gap = (found.reshape(expected.shape).to(expected.dtype) - expected).abs()
    # What stands at a query that may attend to nothing means nothing, and may be NaN.
    gap = gap.masked_fill(~real.transpose(1, 2)[..., None], 0.0)
    bound = slack * wide.abs().amax()
    if rounding is not None:
        changed = weights * rounding
        common = changed.sum(-1, keepdim=True) * (weights @ wide.abs())  # by the softmax' denominator
        bound = (changed @ wide.abs() + common).transpose(1, 2)
    return None if bool((gap <= bound).all()) else f"its output differs by {float(gap.amax()):.1e}"


def _of_thinned(
    weights: object,
    rows: Tensor,
    real: Tensor,
    expected: tuple[Tensor, ...],
    dropout: float,
    slack: Tensor,
    rounding: Tensor | None,
) -> str | None:
    if not isinstance(weights, Tensor) or weights.shape[-1] != expected[0].shape[-1]:
        return "it returns no weights, and dropout hides them in its output"
    found = weights[:, :, rows].to(expected[0].dtype) * (1.0 - dropout)
    kept = (found != 0) & real[..., None]
    gaps = [(found - one).abs().masked_fill(~kept, 0.0) for one in expected]
    bounds = [slack if rounding is None else _of_weights(one, rounding) for one in expected]
    if any(bool((gap <= bound).all()) for gap, bound in zip(gaps, bounds, strict=True)):
        return None
    gap = torch.stack([gap.amax() for gap in gaps]).amin()
    return f"its weights differ by {float(gap):.1e}"


def _of_weights(weights: Tensor, rounding: Tensor) -> Tensor:
    return weights * (rounding + (weights * rounding).sum(-1, keepdim=True))


def _with_sink(scores: Tensor, sink: Tensor) -> Tensor:
    beside = sink.to(scores)[None, :, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, beside], -1).softmax(-1)[..., :-1]
