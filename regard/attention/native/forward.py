"""Attention itself in native C: output, logsumexp, greatest score and entropy in one pass, for a CPU.

Of anything that `PairScores` can say, grouped heads and values of another width included. No gradient: a backend that
trains takes torch's. Compiled at the first call, like the second pass.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from regard.attention.native import SELF_CHECK_TOLERANCE, build, unavailable
from regard.attention.native.pairs import COUNT, POINTER, STRIDES, Pairs, Reading
from regard.attention.native.pairs import refuses as unreadable
from regard.attention.pair_scores import PairScores


class Forwarded(NamedTuple):
    """output: [batch, heads, query_len, value_dim], in value's dtype, laid out as [batch, query_len, heads, value_dim].

    logsumexp (the sink included), max_logit, entropy: [batch, heads, query_len], float32. A query that may attend to
    nothing has output and entropy 0, max_logit -inf, and logsumexp -inf or the sink's score.
    """

    output: Tensor
    logsumexp: Tensor
    max_logit: Tensor
    entropy: Tensor


class _Forward(ctypes.Structure):
    """`struct forward` of forward.c."""

    _fields_ = [
        ("pairs", Pairs),
        ("value", POINTER),
        ("value_strides", STRIDES),
        ("value_dim", COUNT),
        ("output_strides", COUNT * 3),
        ("threads", COUNT),
        *((name, POINTER) for name in ("output", "logsumexp", "max_logit", "entropy")),
    ]


def refuses(pairs: PairScores, value: Tensor) -> str | None:
    """Why `forward` cannot serve a call, or None. Compiles it at the first call that it could serve."""
    if value.dtype != pairs.query.dtype or value.device != pairs.query.device or value.layout != torch.strided:
        return "it reads strided values of the queries' dtype and device"
    if value.shape[3] == 0:
        return "there is nothing to sum"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (value, *pairs.tensors().values())):
        return "it has no gradient"
    reason = unreadable(pairs) or unavailable()
    if reason is None and isinstance(library := _library(), str):
        return library
    return reason


def forward(pairs: PairScores, value: Tensor) -> Forwarded:
    """Softmax of `pairs`, times the values. The call is one that `refuses` does not refuse.

    value: [batch, kv_heads, key_len, value_dim]. Numerics: float32 throughout; weights are not rounded to bfloat16.
    Values of keys that no range of neighbouring queries holds are not read; those that `allowed` or a bias exclude
    must be finite, as in every fused kernel.
    Source: Milakov and Gimelshein 2018 (online softmax); Rabe and Staats 2021 (its use for attention).
    """
    return _run(_library(), pairs, value)


def _run(library: ctypes.CDLL | str, pairs: PairScores, value: Tensor) -> Forwarded:
    assert isinstance(library, ctypes.CDLL), library
    batch, heads, query_len, value_dim = pairs.batch, pairs.heads, pairs.query_len, value.shape[3]
    output = torch.empty(batch, query_len, heads, value_dim).transpose(1, 2)
    logsumexp, max_logit, entropy = (torch.empty(batch, heads, query_len) for _ in range(3))
    if logsumexp.numel():
        reading = Reading()
        call = _Forward(
            pairs=reading.pairs(pairs),
            value=reading.address(value),
            value_strides=STRIDES(*value.stride()),
            value_dim=value_dim,
            output_strides=(COUNT * 3)(*output.stride()[:3]),
            threads=torch.get_num_threads(),
            output=output.data_ptr(),
            logsumexp=logsumexp.data_ptr(),
            max_logit=max_logit.data_ptr(),
            entropy=entropy.data_ptr(),
        )
        if library.regard_forward(ctypes.byref(call)):
            raise MemoryError(f"no memory for attention of {query_len} queries to {pairs.key_len} keys")
    return Forwarded(output.to(value.dtype), logsumexp, max_logit, entropy)


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled code, or why there is none."""
    try:
        library = build.load("forward.c")
    except build.BuildError as error:
        return str(error)
    library.regard_size_of_forward.restype = ctypes.c_int64
    if library.regard_size_of_forward() != ctypes.sizeof(_Forward) or not _is_right(library):
        return "the compiled code gives wrong results"
    return library


def _is_right(library: ctypes.CDLL) -> bool:
    """Whether a small problem comes out as it does in plain torch."""
    generator = torch.Generator().manual_seed(7)
    query, key, value = (torch.randn(1, 2, 61, 5, generator=generator) for _ in range(3))
    ends = torch.arange(1, 62)
    ranges = torch.stack([ends // 2, ends], -1).int().view(1, 61, 1, 2)
    found = _run(library, PairScores(query, key, 0.7, ranges=ranges), value)
    place = ends - 1
    hidden = (place > place[:, None]) | (place < ends[:, None] // 2)
    weights = (query @ key.transpose(-2, -1) * 0.7).masked_fill(hidden, float("-inf")).softmax(-1)
    near = torch.allclose(found.output, weights @ value, rtol=SELF_CHECK_TOLERANCE, atol=SELF_CHECK_TOLERANCE)
    entropy = torch.special.entr(weights).sum(-1)
    return near and torch.allclose(found.entropy, entropy, rtol=SELF_CHECK_TOLERANCE, atol=SELF_CHECK_TOLERANCE)
