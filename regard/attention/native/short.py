"""Attention over short rows in native C, with its gradient: for training on a CPU.

Torch's fused kernel is made for long rows; on sentences most of its time goes into preparing them. Here a head's keys
and values are packed once and stay in the first cache, float32 and bfloat16 are read where they lie, and the result is
laid out as the output projection reads it. Compiled at the first call, like the second pass.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from regard.attention.native import SELF_CHECK_TOLERANCE, build, unavailable
from regard.attention.native.pairs import COUNT, POINTER

LONGEST = 128  # keys of a row; beyond, torch's kernel, which goes in tiles, gains on it


class _Place(ctypes.Structure):
    """`struct tensor` of short.c."""

    _fields_ = [("at", POINTER), ("item", COUNT), ("head", COUNT), ("place", COUNT)]


class _ShortRows(ctypes.Structure):
    """`struct short_rows` of short.c."""

    _fields_ = [
        *((name, COUNT) for name in ("batch", "heads", "kv_heads", "query_len", "key_len", "head_dim", "value_dim")),
        ("threads", COUNT),
        *((name, _Place) for name in ("query", "key", "value", "output")),
        *((name, _Place) for name in ("query_gradient", "key_gradient", "value_gradient", "allowed")),
        ("logsumexp", POINTER),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "is_causal", "is_backward", "unused")),
    ]


def refuses(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> str | None:
    """Why `attend_short` cannot serve a call, or None; allowed: as there. Compiles it at the first it could serve."""
    sides = (query, key, value)
    if query.device.type != "cpu" or query.dtype not in (torch.float32, torch.bfloat16):
        return "it reads float32 and bfloat16 on a CPU"
    if not 0 < key.shape[2] <= LONGEST:
        return f"it is for rows of 1 to {LONGEST} keys"
    if allowed is not None and allowed.shape[-2] != 1:
        return "it knows masks that are the same to every query"
    if any(side.stride(-1) != 1 or side.dtype != query.dtype for side in sides):
        return "it reads rows that are contiguous, of one dtype"
    if torch.compiler.is_compiling() or any(_is_no_memory(side) for side in sides):
        return "it reads memory, which a graph or a transform does not show"
    reason = unavailable()
    if reason is None and isinstance(library := _library(), str):
        return library
    return reason


def attend_short(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, causal: bool = False, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(output [batch, heads, query_len, value_dim], logsumexp [batch, heads, query_len] in float32, detached).

    query: [batch, heads, query_len, head_dim]; key: [batch, kv_heads, key_len, head_dim]; value: its width may differ.
    causal: query i sees the first i + 1 keys. allowed: bool [batch or 1, heads or 1, 1, key_len]; None for all.
    The call is one that `refuses` does not refuse. Differentiable once in query, key and value. The output is laid out
    as [batch, query_len, heads, value_dim].

    Edge case: a query that may attend to nothing has output 0 and logsumexp -inf, and gives and takes no gradient.
    Numerics: float32 inside; in bfloat16 inputs and results alone are rounded. No bit depends on the threads.
    """
    output, logsumexp = _Attend.apply(query, key, value, scale, causal, allowed)
    return output, logsumexp


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(query, key, value, *(() if allowed is None else (allowed,)))
        ctx.scale, ctx.causal = scale, causal
        output, logsumexp = _forward(_library(), query, key, value, scale, causal, allowed)
        ctx.mark_non_differentiable(logsumexp)
        return output, logsumexp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, allowed = (*ctx.saved_tensors, None)[:4]
        found = _backward(_library(), gradients[0], query, key, value, ctx.scale, ctx.causal, allowed)
        return *found, None, None, None


def _forward(
    library: ctypes.CDLL | str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    causal: bool,
    allowed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch, heads, query_len, _ = query.shape
    output = _laid_out(query, value.shape[3])
    logsumexp = torch.empty(batch, heads, query_len)
    _run(library, query, key, value, scale, causal, allowed, output=output, logsumexp=logsumexp)
    return output, logsumexp


def _backward(
    library: ctypes.CDLL | str,
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    causal: bool,
    allowed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    gradient = gradient.to(query.dtype)
    if gradient.stride(-1) != 1:
        gradient = gradient.contiguous()
    found = _laid_out(query), _laid_out(key), _laid_out(value)
    _run(library, query, key, value, scale, causal, allowed, output=gradient, gradients=found)
    return found


def _laid_out(like: Tensor, width: int | None = None) -> Tensor:
    """Empty, in the shape of `like` but for its width; in memory heads stand inside places."""
    batch, heads, length, own = like.shape
    return like.new_empty(batch, length, heads, own if width is None else width).transpose(1, 2)


def _run(
    library: ctypes.CDLL | str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    causal: bool,
    allowed: Tensor | None,
    *,
    output: Tensor,
    logsumexp: Tensor | None = None,
    gradients: tuple[Tensor, ...] = (),
) -> None:
    """Fills output and logsumexp, or, given gradients, those; output is then the gradient that arrives."""
    assert isinstance(library, ctypes.CDLL), library
    batch, heads, query_len, head_dim = query.shape
    if not query.numel() and not gradients:
        return
    of_query, of_key, of_value = map(_place, gradients or (None,) * 3)
    spread = None if allowed is None else allowed.expand(batch, heads, 1, -1).transpose(2, 3)
    call = _ShortRows(
        batch=batch,
        heads=heads,
        kv_heads=key.shape[1],
        query_len=query_len,
        key_len=key.shape[2],
        head_dim=head_dim,
        value_dim=value.shape[3],
        threads=torch.get_num_threads(),
        query=_place(query),
        key=_place(key),
        value=_place(value),
        output=_place(output),
        query_gradient=of_query,
        key_gradient=of_key,
        value_gradient=of_value,
        allowed=_place(spread),
        logsumexp=None if logsumexp is None else logsumexp.data_ptr(),
        scale=scale,
        is_bfloat16=query.dtype == torch.bfloat16,
        is_causal=causal,
        is_backward=bool(gradients),
    )
    if library.regard_short_rows(ctypes.byref(call)):
        raise MemoryError(f"no memory for attention of {query_len} queries to {key.shape[2]} keys")


def _place(tensor: Tensor | None) -> _Place:
    return _Place() if tensor is None else _Place(tensor.data_ptr(), *tensor.stride()[:3])


def _is_no_memory(side: Tensor) -> bool:
    """Whether a tensor stands for something else: a fake, a sharded one, one within a function transform."""
    plain = type(side) in (Tensor, torch.nn.Parameter)
    return not plain or torch._C._functorch.is_functorch_wrapped_tensor(side)


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled code, or why there is none."""
    try:
        library = build.load("short.c")
    except build.BuildError as error:
        return str(error)
    library.regard_size_of_short_rows.restype = ctypes.c_int64
    if library.regard_size_of_short_rows() != ctypes.sizeof(_ShortRows) or not _is_right(library):
        return "the compiled code gives wrong results"
    return library


def _is_right(library: ctypes.CDLL) -> bool:
    """Whether a small problem and its gradient come out as they do in plain torch."""
    generator = torch.Generator().manual_seed(7)
    query, gradient = (torch.randn(2, 4, 19, 5, generator=generator) for _ in range(2))
    key, value = (torch.randn(2, 2, 19, 5, generator=generator) for _ in range(2))
    allowed = torch.arange(19)[None, None, None] < torch.tensor([19, 7])[:, None, None, None]
    hidden = ~allowed | torch.ones(19, 19, dtype=torch.bool).triu(1)
    keys, values = (side.repeat_interleave(2, 1) for side in (key, value))
    weights = (query @ keys.transpose(-2, -1) * 0.7).masked_fill(hidden, float("-inf")).softmax(-1)
    slopes = gradient @ values.transpose(-2, -1)
    slopes = 0.7 * weights * (slopes - (weights * slopes).sum(-1, keepdim=True))
    right = (
        weights @ values,
        slopes @ keys,
        (slopes.transpose(-2, -1) @ query).unflatten(1, (2, 2)).sum(2),
        (weights.transpose(-2, -1) @ gradient).unflatten(1, (2, 2)).sum(2),
    )
    output, _ = _forward(library, query, key, value, 0.7, True, allowed)
    found = (output, *_backward(library, gradient, query, key, value, 0.7, True, allowed))
    close = functools.partial(torch.allclose, rtol=SELF_CHECK_TOLERANCE, atol=SELF_CHECK_TOLERANCE)
    return all(close(one, other) for one, other in zip(found, right, strict=True))
