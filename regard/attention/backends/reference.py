"""The reference: scores and weights of all pairs, materialised."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from regard.attention.backends.call import Attended, Call
from regard.attention.observation import Observation, observe_materialised


class Reference:
    """Any dtype up to float64, every score, distribution, mask and statistic; the oracle of the others.

    Everything between the inputs and the output is float32 at least, autocast or not.
    """

    def refuses(self, call: Call) -> str | None:
        return None

    def declines(self, call: Call) -> str | None:
        return None

    def run(self, call: Call) -> Attended:
        dtype = torch.promote_types(call.query.dtype, torch.float32)
        with call.exact():
            query, key, value = call.query.to(dtype), call.key.to(dtype), call.value.to(dtype)
            if call.group > 1:
                key, value = (kept.repeat_interleave(call.group, dim=1) for kept in (key, value))
            scores = call.score.similarity(query, key)
            allowed = None if call.mask is None else call.mask.dense(call.query_len, call.key_len, query.device)
            weights, logsumexp = call.distribution.weights(scores, allowed)
            observation = Observation()
            if call.observe is not None:
                observation = observe_materialised(
                    call.observe,
                    scores,
                    weights,
                    logsumexp,
                    allowed,
                    sink=call.distribution.sink(call.heads, scores),
                    pairs=call.masked_pairs if call.observe.trace else None,
                )
            dropped = F.dropout(weights, call.dropout) if call.dropout > 0 else weights
            # A recurrence asks with one query at a time.
            output: Tensor = _OneQuery.apply(dropped, value) if call.query_len == 1 else dropped @ value
            return Attended(output.to(call.value.dtype), observation)


class _OneQuery(torch.autograd.Function):
    """weights @ value for one query.

    Its gradients are an outer product, which as a matrix product of depth 1 takes torch two to five times as long on a
    CPU, and a product of a matrix with a vector, which with the vector first takes up to three times as long.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(weights, value)
        return weights @ value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        weights, value = ctx.saved_tensors
        (gradient,) = gradients
        return (value @ gradient.mT).mT, weights.mT * gradient
