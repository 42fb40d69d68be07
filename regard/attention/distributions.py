"""Step 4, second half: scores become weights over the allowed keys.

Weights are computed in float32 at least. A query that may attend to nothing has weights 0 and passes no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor


class Distribution:
    """Turns masked scores into weights. Abstract: the classes below are final."""

    # Whether exp(score - logsumexp) gives the weight, so that fused kernels can serve it.
    has_logsumexp: ClassVar[bool] = False

    def weights(self, scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(weights, logsumexp): like scores, and [batch, heads, query_len] or None; logsumexp is detached.

        scores: [batch, heads, query_len, key_len]. allowed: bool, broadcastable to scores; None allows everything.
        A row that may attend to nothing has weights 0 and logsumexp -inf (the sink's score, where there is one), never
        NaN.
        """
        raise TypeError(f"{type(self).__name__} does not say how to normalise")

    def sink(self, heads: int, like: Tensor) -> Tensor | None:
        """[heads], the score of a key without a value that takes part in the normalisation; None where there is none.

        In float32 at least, on the device of `like`; carries gradient.
        """
        return None

    def check(self, *, heads: int) -> list[str]:
        """Every way in which it does not fit this many query heads."""
        return []


@dataclass(frozen=True)
class Softmax(Distribution):
    """exp(s_ij) / sum_j exp(s_ij) over the allowed keys."""

    has_logsumexp = True

    def weights(self, scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        # Normalised by its own sum: exp(s - logsumexp) would carry the rounding of the logsumexp into every weight.
        scores = _widened(scores)
        if allowed is None:
            return scores.softmax(-1), scores.detach().logsumexp(-1)
        scores, empty = _masked(scores, allowed)
        logsumexp = scores.detach().logsumexp(-1).masked_fill(empty[..., 0], float("-inf"))
        return scores.softmax(-1).masked_fill(empty, 0.0), logsumexp


@dataclass(frozen=True, eq=False, init=False)
class SinkSoftmax(Distribution):
    """exp(s_ij) / (exp(z) + sum_j exp(s_ij)): a softmax that may give less than everything, z being the sink's score.

    logits: [heads], learned, as in GPT-OSS (OpenAI 2025); z = 0 unless given, 'off by one' (Miller 2023).
    """

    has_logsumexp = True
    logits: Tensor | None

    def __init__(self, logits: Tensor | Sequence[float] | None = None) -> None:
        given = logits if logits is None or isinstance(logits, Tensor) else torch.tensor(logits, dtype=torch.float32)
        object.__setattr__(self, "logits", given)

    def sink(self, heads: int, like: Tensor) -> Tensor | None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        if self.logits is None:
            return torch.zeros(heads, dtype=dtype, device=like.device)
        return self.logits.to(device=like.device, dtype=dtype)

    def weights(self, scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scores = _widened(scores)
        sink = self.sink(scores.shape[-3], scores)
        assert sink is not None
        sink = sink[:, None, None].expand(*scores.shape[:-1], 1)
        empty = None
        if allowed is not None:
            scores, empty = _masked(scores, allowed)
        joined = torch.cat([scores, sink], -1)
        weights, logsumexp = joined.softmax(-1)[..., :-1], joined.detach().logsumexp(-1)
        if empty is not None:
            weights = weights.masked_fill(empty, 0.0)
            logsumexp = torch.where(empty[..., 0], sink.detach()[..., 0], logsumexp)
        return weights, logsumexp

    def check(self, *, heads: int) -> list[str]:
        if self.logits is None or tuple(self.logits.shape) == (heads,):
            return []
        return [f"SinkSoftmax.logits has shape {tuple(self.logits.shape)}, expected ({heads},)"]


@dataclass(frozen=True)
class Sparsemax(Distribution):
    """The point of the simplex nearest to the scores: max(s_ij - t_i, 0). Martins and Astudillo 2016, eq. 2.

    Cost: sorts each row.
    """

    def weights(self, scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return _sparse(_SparsemaxRows, scores, allowed), None


@dataclass(frozen=True)
class Entmax15(Distribution):
    """max(s_ij / 2 - t_i, 0)^2, between softmax and sparsemax. Peters et al. 2019, eq. 8 and algorithm 2, alpha 1.5.

    Cost: sorts each row.
    """

    def weights(self, scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return _sparse(_Entmax15Rows, scores, allowed), None


@dataclass(frozen=True, eq=False, init=False)
class Sigmoid(Distribution):
    """1 / (1 + exp(-s_ij - b)): each key is weighed alone, and a row's weights need not sum to 1.

    Ramapuram et al. 2024, eq. 3, with b = -log n. Their n is the length of the sequence. Here it is the number of keys
    that the query may attend to, which is the same without a mask; with one, a padded batch and a cached decoding
    yield what the items alone and the whole sequence yield.

    bias: b, a number or [heads]; -log n unless given.
    """

    bias: Tensor | None

    def __init__(self, bias: Tensor | Sequence[float] | float | None = None) -> None:
        given = bias if bias is None or isinstance(bias, Tensor) else torch.tensor(bias, dtype=torch.float64)
        object.__setattr__(self, "bias", given)

    def weights(self, scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scores = _widened(scores)
        if self.bias is not None:
            bias = self.bias.to(device=scores.device, dtype=scores.dtype)
            bias = bias if bias.ndim == 0 else bias[:, None, None]
        elif allowed is None or allowed.shape[-1] == 1:
            bias = -scores.new_tensor(max(scores.shape[-1], 1)).log()
        else:
            bias = -allowed.sum(-1, keepdim=True).clamp(min=1).to(scores.dtype).log()
        weights = torch.sigmoid(scores + bias)
        return weights if allowed is None else weights.masked_fill(~allowed, 0.0), None

    def check(self, *, heads: int) -> list[str]:
        if self.bias is None or tuple(self.bias.shape) in {(), (heads,)}:
            return []
        return [f"Sigmoid.bias has shape {tuple(self.bias.shape)}, expected ({heads},) or a number"]


def _widened(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _masked(scores: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """(scores, -inf where not allowed; bool [..., query_len, 1], the rows that may attend to nothing).

    Such a row is let attend to everything: whoever sets its weights to 0 keeps its gradient at 0 as well.
    """
    empty = ~allowed.any(dim=-1, keepdim=True)
    return scores.masked_fill(~(allowed | empty), float("-inf")), empty


def _sparse(rows: type[torch.autograd.Function], scores: Tensor, allowed: Tensor | None) -> Tensor:
    scores = _widened(scores)
    if scores.shape[-1] == 0:
        return scores
    if allowed is None:
        return rows.apply(scores)  # type: ignore[no-any-return]
    scores, empty = _masked(scores, allowed)
    return rows.apply(scores).masked_fill(empty, 0.0)  # type: ignore[no-any-return]


class _SparsemaxRows(torch.autograd.Function):
    """Sparsemax over the last axis; a score of -inf has weight 0."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        # A key 1 or more below the greatest has no weight. Counted from there, all of them are 0 and so add nothing to
        # a running sum, and the threshold is 0 or more.
        lifted = (scores - scores.amax(-1, keepdim=True) + 1.0).clamp(min=0.0)
        falling = lifted.sort(-1, descending=True).values
        sums = falling.cumsum(-1)
        count = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
        kept = (count * falling > sums - 1.0).sum(-1, keepdim=True)
        threshold = (sums.gather(-1, kept - 1) - 1.0) / kept
        # One step of Newton's takes away what the running sum rounded.
        surplus = (lifted - threshold).clamp(min=0.0).sum(-1, keepdim=True) - 1.0
        weights = (lifted - (threshold + surplus / kept).clamp(min=0.0)).clamp(min=0.0)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        weights: Tensor = ctx.saved_tensors[0]
        kept = weights > 0.0
        gradient = gradients[0].masked_fill(~kept, 0.0)
        mean = gradient.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True)
        return (gradient - mean).masked_fill(~kept, 0.0)


class _Entmax15Rows(torch.autograd.Function):
    """1.5-entmax over the last axis; a score of -inf has weight 0."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        # As in sparsemax: halved, a key 1 or more below the greatest has no weight.
        lifted = ((scores - scores.amax(-1, keepdim=True)) * 0.5 + 1.0).clamp(min=0.0)
        falling = lifted.sort(-1, descending=True).values
        count = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
        mean = falling.cumsum(-1) / count
        spread = falling.square().cumsum(-1) - count * mean.square()
        thresholds = mean - ((1.0 - spread) / count).clamp(min=0.0).sqrt()
        kept = (thresholds <= falling).sum(-1, keepdim=True)
        threshold = thresholds.gather(-1, kept - 1)
        root = (lifted - threshold).clamp(min=0.0)
        surplus = root.square().sum(-1, keepdim=True) - 1.0
        threshold = (threshold + surplus / (2.0 * root.sum(-1, keepdim=True))).clamp(min=0.0)
        weights = (lifted - threshold).clamp(min=0.0).square()
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        weights: Tensor = ctx.saved_tensors[0]
        none = weights == 0.0
        slope = weights.masked_fill(none, 1.0).sqrt().masked_fill(none, 0.0)
        gradient = gradients[0] * slope
        return gradient - slope * (gradient.sum(-1, keepdim=True) / slope.sum(-1, keepdim=True))
