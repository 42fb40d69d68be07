"""The objective: label-smoothed cross-entropy over a large vocabulary, in chunks.

A plain loss holds the logits of all tokens several times over; here each chunk of tokens goes through the head, its
loss and its gradient are taken at once, and its logits are dropped. Memory is one chunk's; the arithmetic is that of
the plain loss. Label smoothing: Szegedy et al. 2016, sec. 7.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from regard.errors import ConfigError, ShapeError
from regard.layers.head import OutputHead

CHUNK_TOKENS = 512  # 512 rows of a 10,000-word vocabulary in float32 are 20 MB: inside a processor's last cache


class Loss(NamedTuple):
    """Sums over tokens, in nats, in float32 at least.

    objective: the smoothed loss that is minimised; nll: the plain negative log-likelihood (detached).
    """

    objective: Tensor
    nll: Tensor


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient is worked out in the forward pass, while a chunk's logits are at hand, when `learns`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: float,
        dtype: torch.dtype,
        learns: bool,
        generate: Tensor | None,
        copy: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        tokens, vocab = hidden.shape[0], weight.shape[0]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        products = weight.to(dtype)
        mean_weight = weight.to(wide).mean(0)
        mean_bias = 0.0 if bias is None else bias.to(wide).mean()
        nll = hidden.new_zeros((), dtype=torch.float64)
        spread = hidden.new_zeros((), dtype=torch.float64)  # -sum over the vocabulary of log p, divided by its size
        grad_hidden = torch.empty_like(hidden, dtype=wide)
        grad_weight = weight.new_zeros(weight.shape[1], vocab, dtype=wide)  # transposed
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        # Of what each token is generated rather than copied, and the gradient of copying: without copying, all of it.
        grad_generate = None if generate is None else torch.empty_like(generate)
        grad_copy = None if copy is None else torch.empty_like(copy)
        rows_of_part = torch.arange(min(tokens, CHUNK_TOKENS), device=hidden.device)
        for begin in range(0, tokens, CHUNK_TOKENS):
            part = slice(begin, begin + CHUNK_TOKENS)
            rows, wanted = hidden[part].to(dtype), targets[part, None]
            logits = rows @ products.T
            if bias is not None:
                logits += bias.to(dtype)
            # One pass instead of five: softmax reads and writes `dtype` and sums in float32 inside.
            gradient = logits.softmax(-1)
            wanted_log_probs = _log_of_chosen(gradient, logits, wanted, wide)
            share: Tensor | float = 1.0
            if generate is None or copy is None:
                nll -= wanted_log_probs.sum()
            else:
                generated = generate[part] + wanted_log_probs[:, 0]
                total = torch.logaddexp(generated, copy[part])
                nll -= total.sum()
                share = (generated - total).exp().nan_to_num(0.0)
            logsumexp = logits.gather(1, wanted).to(wide) - wanted_log_probs
            spread += (logsumexp[:, 0] - hidden[part].to(wide) @ mean_weight - mean_bias).sum()
            if not learns:
                continue
            # Not scatter_, which copies all of it.
            if isinstance(share, Tensor):
                assert grad_generate is not None and grad_copy is not None
                learnt = (1.0 - smoothing) * share
                grad_generate[part], grad_copy[part] = -learnt, learnt - (1.0 - smoothing)
                gradient *= (learnt + smoothing).to(dtype)[:, None]
                gradient[rows_of_part[: len(rows)], wanted[:, 0]] -= learnt.to(dtype)
            else:
                gradient[rows_of_part[: len(rows)], wanted[:, 0]] += smoothing - 1.0
            if grad_bias is not None:
                grad_bias += gradient.sum(0, dtype=wide)
            grad_hidden[part] = gradient @ products
            # Transposing the narrow side alone: a third faster on a CPU than transposing the logits' gradient.
            grad_weight += rows.T @ gradient
        if learns:
            # The even share of the smoothed target is the same for every token: taken off once, in closed form.
            uniform = smoothing / vocab
            grad_hidden -= smoothing * mean_weight
            grad_weight -= uniform * hidden.sum(0, dtype=wide)[:, None]
            if grad_bias is not None:
                grad_bias -= uniform * tokens
            # Saved with what is not there as an empty tensor.
            found = [grad_hidden, grad_weight.T, grad_bias, grad_generate, grad_copy]
            ctx.save_for_backward(*(hidden.new_empty(0) if part is None else part for part in found))
        ctx.dtypes = [None if part is None else part.dtype for part in (hidden, weight, bias, generate, copy)]
        objective = ((1.0 - smoothing) * nll + smoothing * spread).to(wide)
        nll = nll.to(wide)
        ctx.mark_non_differentiable(nll)
        return objective, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, generate, copy = (
            None if dtype is None else (part * gradients[0]).to(dtype)
            for part, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return hidden, weight, bias, None, None, None, None, generate, copy


def _log_of_chosen(probs: Tensor, logits: Tensor, chosen: Tensor, dtype: torch.dtype) -> Tensor:
    """log of the chosen probabilities, [tokens, 1]; off the logits where a probability is too small for its dtype."""
    picked = probs.gather(1, chosen).to(dtype)
    lost = (picked < torch.finfo(probs.dtype).tiny).nonzero()[:, 0]
    log_probs = picked.log()
    if lost.numel():
        exact = logits[lost].to(dtype)
        log_probs[lost] = exact.gather(1, chosen[lost]) - exact.logsumexp(-1, keepdim=True)
    return log_probs


class Mixture(NamedTuple):
    """Two ways to a token, each with its log-probability [tokens], in float32 at least.

    generate: that the token is drawn from the vocabulary, -inf where it is not in there. copy: that it is copied, and
    is the one wanted; -inf where nothing can be copied. A token has one way at least.
    """

    generate: Tensor
    copy: Tensor


def cross_entropy(
    hidden: Tensor,
    head: OutputHead,
    targets: Tensor,
    *,
    smoothing: float = 0.0,
    dtype: torch.dtype | None = None,
    mixture: Mixture | None = None,
) -> Loss:
    """Loss of predicting `targets` [tokens] from `hidden` [tokens, model_dim] through `head`, summed over tokens.

    smoothing: the share of probability spread evenly over the vocabulary. dtype: of the matrix products and of the
    softmax's result, hidden's unless given. mixture: a token's probability is exp(generate) * that of the head's
    softmax + exp(copy) (See et al. 2017, eq. 9); smoothing then goes on spreading over the head's softmax alone. Edge
    case: no tokens give a loss of 0.

    Numerics: in bfloat16 the gradient is as good as autocast's. A token's reported loss then carries two roundings of
    1/512 each, of its probability (at most 0.004 nats) and of its logit (at most 1/256 of the largest logit); both
    fall to either side alike, so that a batch's mean is far closer.
    Raises: ShapeError, naming every mismatch; ConfigError when smoothing is not in [0, 1).
    """
    vocab, model_dim = head.weight.shape
    problems = []
    if hidden.ndim != 2 or hidden.shape[-1] != model_dim:
        problems.append(f"hidden has shape {tuple(hidden.shape)}, expected (tokens, {model_dim})")
    if targets.shape != hidden.shape[:1]:
        problems.append(f"targets has shape {tuple(targets.shape)}, expected {tuple(hidden.shape[:1])}")
    if targets.dtype != torch.int64:
        problems.append(f"targets is {targets.dtype}, expected torch.int64: ids below {vocab}")
    for name, part in ({} if mixture is None else mixture._asdict()).items():
        if part.shape != targets.shape:
            problems.append(f"mixture.{name} has shape {tuple(part.shape)}, expected {tuple(targets.shape)}")
    if problems:
        raise ShapeError("cross_entropy: " + "; ".join(problems))
    if not 0.0 <= smoothing < 1.0:
        raise ConfigError(f"cross_entropy: smoothing is {smoothing}, expected at least 0 and below 1")
    learns = torch.is_grad_enabled() and any(
        part is not None and part.requires_grad for part in (hidden, head.weight, head.bias, *(mixture or ()))
    )
    with torch.autocast(hidden.device.type, enabled=False):
        objective, nll = _ChunkedCrossEntropy.apply(
            hidden,
            head.weight,
            head.bias,
            targets,
            smoothing,
            dtype or hidden.dtype,
            learns,
            *(mixture or (None, None)),
        )
    return Loss(objective, nll)


def of_outputs(nll: Tensor) -> Loss:
    """The loss of whole outputs, as `regard.models.ctc.ctc_nll` gives it, [batch] in nats: their sum, unsmoothed."""
    total = nll.sum()
    return Loss(total, total.detach())


def mixed(first: Loss, second: Loss, weight: float) -> Loss:
    """(1 - weight) * first + weight * second; nll is the first's, so that curves of different weights compare.

    Both are sums of log-probabilities of the same outputs, one token by token, the other (CTC) whole, and training
    divides both by the target tokens of an update: a long output weighs as much more in the one as in the other, and
    the curve does not depend on how batches are spread over processes. Source: Watanabe et al. 2017, eq. 11.

    Raises: ConfigError when weight is no share.
    """
    if not 0.0 <= weight <= 1.0:
        raise ConfigError(f"mixed loss: weight is {weight}, expected a share, from 0 to 1")
    return Loss((1.0 - weight) * first.objective + weight * second.objective, first.nll)
