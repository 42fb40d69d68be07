"""Step 4, second half: scores become a distribution over the allowed keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Distribution:
    """Turns masked scores into weights. Abstract: the classes below are final."""

    has_logsumexp: bool = False  # whether exp(score - logsumexp) gives the weight, so that fused kernels can serve it

    def weights(self, scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(weights, logsumexp): [..., query_len, key_len] and [..., query_len] or None.

        allowed: bool, broadcastable to scores; None allows everything. A row that may attend to nothing has weights 0
        and logsumexp -inf, never NaN.
        """
        raise TypeError(f"{type(self).__name__} does not say how to normalise")


@dataclass(frozen=True)
class Softmax(Distribution):
    """exp(s_ij) / sum_j exp(s_ij) over the allowed keys. Computed in float32 at least."""

    has_logsumexp = True

    def weights(self, scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scores = scores if scores.dtype == torch.float64 else scores.float()
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        logsumexp = scores.logsumexp(dim=-1)
        # An empty row has logsumexp -inf; subtracting 0 instead keeps both its weights and its gradient at 0.
        finite = logsumexp.masked_fill(logsumexp == float("-inf"), 0.0)
        return torch.exp(scores - finite[..., None]), logsumexp
