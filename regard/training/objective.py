"""The objective: label-smoothed cross-entropy over a large vocabulary, in chunks.

A plain loss holds the logits of all tokens several times over; here each chunk of tokens goes through the head, its loss and its
gradient are taken at once, and its logits are dropped. Memory is one chunk's; the arithmetic is that of the plain loss.
Label smoothing: Szegedy et al. 2016, sec. 7.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.layers.head import OutputHead

CHUNK_TOKENS = 512  # 512 rows of a 10,000-word vocabulary in float32 are 20 MB: inside a processor's last cache


class Loss(NamedTuple):
    """objective: the smoothed loss that is minimised; nll: the plain negative log-likelihood (detached). Sums, in nats."""

    objective: Tensor
    nll: Tensor


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sums over tokens. The gradient is worked out in the forward pass, while a chunk's logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        tokens, vocab = hidden.shape[0], weight.shape[0]
        products = weight.to(dtype)
        uniform = smoothing / vocab
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        mean_weight = weight.mean(0)
        mean_bias = 0.0 if bias is None else bias.mean()
        nll = hidden.new_zeros((), dtype=torch.float64)
        spread = hidden.new_zeros((), dtype=torch.float64)  # -sum over the vocabulary of log p, divided by its size
        for begin in range(0, tokens, CHUNK_TOKENS):
            part = slice(begin, begin + CHUNK_TOKENS)
            rows, wanted = hidden[part].to(dtype), targets[part, None]
            logits = rows @ products.T
            if bias is not None:
                logits += bias.to(dtype)
            wanted_logits = logits.gather(1, wanted).to(hidden.dtype)
            # One pass instead of five: softmax reads and writes `dtype` and sums in float32 inside.
            gradient = logits.softmax(-1)
            floor = torch.finfo(hidden.dtype).tiny
            wanted_log_probs = gradient.gather(1, wanted).to(hidden.dtype).clamp_min(floor).log()
            nll -= wanted_log_probs.sum()
            logsumexp = wanted_logits - wanted_log_probs
            spread += (logsumexp[:, 0] - hidden[part] @ mean_weight - mean_bias).sum()
            gradient.scatter_add_(1, wanted, gradient.new_full(wanted.shape, smoothing - 1.0))
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
            grad_hidden[part] = gradient @ products
            grad_weight += gradient.T @ rows
        # The even share of the smoothed target is the same for every token: taken off once, in closed form.
        grad_hidden -= smoothing * mean_weight
        grad_weight -= uniform * hidden.sum(0)
        if grad_bias is not None:
            grad_bias -= uniform * tokens
        ctx.save_for_backward(grad_hidden, grad_weight, *([] if grad_bias is None else [grad_bias]))
        objective = ((1.0 - smoothing) * nll + smoothing * spread).to(hidden.dtype)
        nll = nll.to(hidden.dtype)
        ctx.mark_non_differentiable(nll)
        return objective, nll

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        scaled = [saved * scale for saved in ctx.saved_tensors]
        return scaled[0], scaled[1], scaled[2] if len(scaled) > 2 else None, None, None, None


def cross_entropy(
    hidden: Tensor, head: OutputHead, targets: Tensor, *, smoothing: float = 0.0, dtype: torch.dtype | None = None
) -> Loss:
    """Loss of predicting `targets` [tokens] from `hidden` [tokens, model_dim] through `head`, summed over tokens.

    smoothing: the share of probability spread evenly over the vocabulary. dtype: of the matrix products, hidden's unless
    given. In bfloat16 the gradient is what autocast gives, and each token's reported loss is good to 1 %, without bias.
    """
    objective, nll = _ChunkedCrossEntropy.apply(
        hidden, head.weight, head.bias, targets, smoothing, dtype or hidden.dtype
    )
    return Loss(objective, nll)
