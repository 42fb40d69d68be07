"""Step 4, second half: scores become a distribution over the allowed keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Distribution:
    """Turns masked scores into weights. Abstract: the classes below are final."""

    has_logsumexp: bool = False  # whether exp(score - logsumexp) gives the weight, so that fused kernels can serve it

    def weights(self, scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(weights, logsumexp): [..., query_len, key_len] and [..., query_len] or None; logsumexp is detached.

        allowed: bool, broadcastable to scores; None allows everything. A row that may attend to nothing has weights 0
        and logsumexp -inf, never NaN.
        """
        raise TypeError(f"{type(self).__name__} does not say how to normalise")


@dataclass(frozen=True)
class Softmax(Distribution):
    """exp(s_ij) / sum_j exp(s_ij) over the allowed keys. Computed in float32 at least."""

    has_logsumexp = True

    def weights(self, scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        # Normalised by its own sum: exp(s - logsumexp) would carry the rounding of the logsumexp into every weight.
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if allowed is None:
            return scores.softmax(-1), scores.detach().logsumexp(-1)
        # An empty row is let attend to everything and then set to nothing, which keeps its gradient at 0 as well.
        empty = ~allowed.any(dim=-1, keepdim=True)
        scores = scores.masked_fill(~(allowed | empty), float("-inf"))
        logsumexp = scores.detach().logsumexp(-1).masked_fill(empty[..., 0], float("-inf"))
        return scores.softmax(-1).masked_fill(empty, 0.0), logsumexp
