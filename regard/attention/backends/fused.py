"""Torch's fused kernels: the scores of all pairs are never held. Softmax, with a sink or without, of a product.

Where one call of a kernel does (no mask, a square causal one, short rows with padding) that call is made and torch
differentiates it; all else goes in parts (`regard.attention.backends.parts`). Statistics come from a second pass that
starts from the kernel's own logsumexp: the output is the unobserved one to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.attention.backends import parts
from regard.attention.backends.call import Attended, Call
from regard.attention.backends.kernels import Inputs, kernel_for, mask_dtype
from regard.attention.masks import Both, Causal, Dense, Global, Mask, Padding, Window
from regard.attention.native import short
from regard.attention.observation import Observation
from regard.attention.pair_scores import PairScores
from regard.attention.second_pass import second_pass

PARTS_FROM = 2**18  # query-key pairs of a sequence; from them on parts are quicker than one call with a mask of keys
PADDED_FROM = 2**20  # scores; from them on keys and values of unequal width are quicker padded than materialised


class Fused:
    """See the module."""

    def refuses(self, call: Call) -> str | None:
        if call.dropout > 0:
            return "dropout on the weights is served materialised"
        if not call.distribution.has_logsumexp:
            return f"it normalises by softmax, not by {type(call.distribution).__name__}"
        pairs = call.pairs
        if pairs is None:
            return f"it compares by products, not by {call.score_name}"
        if pairs.soft_cap is not None:
            return "it bounds no scores by a soft-cap"
        if pairs.bias is not None:
            return "it adds no bias of all pairs"
        if pairs.offset_bias is not None and pairs.offset_bias.requires_grad and torch.is_grad_enabled():
            return "it gives a learned position bias no gradient"
        return self._device_refuses(call, pairs)

    def declines(self, call: Call) -> str | None:
        key_dim, value_dim = call.key.shape[-1], call.value.shape[-1]
        if key_dim != value_dim and call.num_scores < PADDED_FROM:
            return (
                f"it wants equal widths; padding keys of {key_dim} and values of {value_dim} pays from {PADDED_FROM} "
                f"scores on, not for {call.num_scores}"
            )
        return None

    def run(self, call: Call) -> Attended:
        assert call.pairs is not None
        with call.exact():
            output, logsumexp = _attend(call, call.pairs)
            if call.observe is None:
                return Attended(output, Observation())
            assert call.masked_pairs is not None
            return Attended(output, second_pass(call.masked_pairs, call.observe, logsumexp))

    def _device_refuses(self, call: Call, pairs: PairScores) -> str | None:
        device = call.query.device.type
        if device == "cpu":
            return None
        if call.query.dtype == torch.float64:
            return "float64 is fused on a CPU only"
        if device == "cuda" and pairs.offset_bias is not None:
            return "on a GPU it adds no position bias"
        single = _single(call, pairs)
        if device != "cuda":
            return None if single is not None else f"on {device} it knows squares below the diagonal and masks of keys"
        if not call.num_scores:
            return None
        inputs = Inputs(*_fitted(pairs.query, pairs.key, call.value), 1.0)
        if single is None:  # some tile may be masked
            nothing = pairs.query.new_zeros(1, 1, 1, 1)
            inputs = inputs._replace(mask=nothing.expand(1, 1, call.query_len, call.key_len))
        return None if kernel_for(inputs) else f"torch has no kernel for {call.query.dtype} of this shape here"


class Single(NamedTuple):
    """What one call of a kernel is told of the mask.

    causal: query i sees the first i + 1 keys. keys: bool, [batch or 1, heads or 1, 1, key_len], or with as many queries
    as there are where these are few; None for all.
    """

    causal: bool = False
    keys: Tensor | None = None


def _attend(call: Call, pairs: PairScores) -> tuple[Tensor, Tensor | None]:
    """(output in the dtype of the values, logsumexp or None where the kernel keeps it to itself)."""
    query, key, value, scale = pairs.query, pairs.key, call.value, pairs.scale
    if scale <= 0.0:  # the kernels scale what they have masked, and -inf must stay what it is
        query, scale = query * scale, 1.0
    single = _single(call, pairs)
    if torch.is_grad_enabled() and any(side.requires_grad for side in (query, key, value)):
        # Short rows have a kernel of their own in training, where rounding differs from step to step anyhow; without a
        # gradient nobody's output changes because a compiler is there.
        if single is not None and short.refuses(query, key, value, single.keys) is None:
            return short.attend_short(query, key, value, scale=scale, causal=single.causal, allowed=single.keys)
        # Torch's CPU backward in bfloat16 is 4 to 5 times slower than in float32 on rows that are not long: widen.
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:
            query, key, value = query.float(), key.float(), value.float()
    query, key, value = _fitted(query, key, value)
    logsumexp: Tensor | None
    if single is None:
        masked = _masked(call, pairs)
        output, logsumexp = parts.attend_in_parts(replace(masked, query=query, key=key, scale=scale), value)
    else:
        output, logsumexp = _one_call(Inputs(query, key, value, scale), single, keep=call.observe is not None)
    if output.shape[-1] != call.value.shape[-1]:
        output = output[..., : call.value.shape[-1]]
    return output.to(call.value.dtype), logsumexp


def _fitted(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As kernels want them: of one width, the last axis contiguous. Zeros at the end change no product."""
    missing = value.shape[-1] - key.shape[-1]
    if missing > 0:
        query, key = F.pad(query, (0, missing)), F.pad(key, (0, missing))
    elif missing < 0:
        value = F.pad(value, (0, -missing))
    if query.stride(-1) == key.stride(-1) == value.stride(-1) == 1:
        return query, key, value
    return query.contiguous(), key.contiguous(), value.contiguous()


def _single(call: Call, pairs: PairScores) -> Single | None:
    """What one call of a kernel is told; None where it takes parts."""
    if pairs.sink is not None or pairs.offset_bias is not None or not call.num_scores:
        return None
    query_len, key_len = call.query_len, call.key_len
    masks = _masks(call)
    causal = query_len == key_len and any(isinstance(mask, Causal) for mask in masks)
    others = [mask for mask in masks if not (causal and isinstance(mask, Causal))]
    if not others:
        return Single(causal)
    device = call.query.device
    of_keys = all(map(_is_of_keys, others)) and (device.type == "cpu" or not causal)
    if of_keys and (query_len * key_len < PARTS_FROM or device.type not in ("cpu", "cuda")):
        key_index = torch.arange(key_len, device=device)
        allowed = [mask.allowed(key_index[-1:], key_index) for mask in others]
        return Single(causal, reduce(torch.logical_and, allowed))
    if query_len * key_len <= parts.FEW_PAIRS:
        return Single(keys=_dense(call, masks))
    return None


def _masked(call: Call, pairs: PairScores) -> PairScores:
    """What goes in parts; a mask of few pairs is quickest as it is."""
    masks = _masks(call)
    if not masks:
        return pairs
    if 0 < call.query_len * call.key_len <= parts.FEW_PAIRS:
        return replace(pairs, allowed=_dense(call, masks))
    assert call.masked_pairs is not None
    return call.masked_pairs


def _masks(call: Call) -> list[Mask]:
    """The masks that all have to allow a pair, without those that allow every one."""
    every = (call.key_len - call.query_len, call.key_len), (0, call.key_len)
    conjuncts = [] if call.mask is None else _conjuncts(call.mask)
    return [mask for mask in conjuncts if not (_readable(mask) and mask.kind(*every) == "full")]


def _conjuncts(mask: Mask) -> Iterator[Mask]:
    if isinstance(mask, Both):
        yield from _conjuncts(mask.first)
        yield from _conjuncts(mask.second)
    else:
        yield mask


def _dense(call: Call, masks: list[Mask]) -> Tensor:
    device = call.query.device
    return reduce(torch.logical_and, (mask.dense(call.query_len, call.key_len, device) for mask in masks))


def _readable(mask: Mask) -> bool:
    """Whether asking what the mask allows reads no tensor, or may: a compiled graph does not read any."""
    return isinstance(mask, Causal | Window | Global) or not torch.compiler.is_compiling()


def _is_of_keys(mask: Mask) -> bool:
    """Whether it says the same to every query."""
    if isinstance(mask, Dense):
        return mask.tensor.ndim < 2 or mask.tensor.shape[-2] == 1
    return isinstance(mask, Padding)


def _one_call(inputs: Inputs, single: Single, *, keep: bool) -> tuple[Tensor, Tensor | None]:
    """keep: the logsumexp is wanted as well, -inf where nothing may be attended to."""
    inputs = inputs._replace(causal=single.causal)
    keys, empty = single.keys, None
    if keys is not None:
        if inputs.query.device.type != "cpu":
            # Kernels differ in what an empty row yields, not-a-number included. Here it attends to everything and its
            # output is set to 0, which makes its gradient exactly 0 too. The CPU's yields 0 by itself.
            empty = ~keys.any(dim=-1, keepdim=True)
            keys = keys | empty
        inputs = inputs._replace(mask=torch.where(keys, 0.0, float("-inf")).to(mask_dtype(inputs.query)))
    kernel = kernel_for(inputs)
    if kernel is not None:
        output, logsumexp = kernel.forward(inputs)
    else:
        group = inputs.query.shape[1] != inputs.key.shape[1]
        output = F.scaled_dot_product_attention(
            *inputs[:3], inputs.mask, is_causal=inputs.causal, scale=inputs.scale, enable_gqa=group
        )
        logsumexp = None
    if empty is not None:
        output = output.masked_fill(empty, 0.0)
    if keep and logsumexp is not None and single.keys is not None:
        some = single.keys.cumsum(-1)[..., 0, :] > 0 if single.causal else single.keys.any(-1)
        logsumexp = logsumexp.detach().masked_fill(~some, float("-inf"))
    return output, logsumexp
